"""What the command of oracles may be asked for."""

from arbprob_hf.oracles.options import SOURCE_NAMES
from arbprob_hf.oracles.registry import SOURCES


def test_the_names_that_are_known_before_the_sources_are_imported_are_theirs() -> None:
    assert tuple(SOURCES) == SOURCE_NAMES
