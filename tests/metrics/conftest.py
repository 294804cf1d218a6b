"""The networks of tests/clients."""

from tests.clients.conftest import ours, theirs

__all__ = ["ours", "theirs"]
