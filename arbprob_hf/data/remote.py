"""Whether an error of reading was the connection, the revision, what was read, or something else, as a full disk."""

from collections.abc import Iterator

# by name: which HTTP client raises them differs from one huggingface_hub to the next
_CONNECTION = {"ConnectionError", "TimeoutError", "TransportError", "HfHubHTTPError", "DataFilesNotFoundError"}


def is_connection_lost(error: BaseException) -> bool:
    """Whether an error comes down to a server that did not answer, or does not have the file."""
    return any(not _CONNECTION.isdisjoint(kind.__name__ for kind in type(one).__mro__) for one in _causes(error))


def is_about_content(error: BaseException) -> bool:
    """Whether an error comes down to what was read: to neither the connection nor the machine."""
    # pyarrow raises OSError, too, but without the number that the system gives
    is_of_the_machine = any(isinstance(one, OSError) and one.errno is not None for one in _causes(error))
    return not is_connection_lost(error) and not is_of_the_machine


def is_revision_unknown(error: BaseException) -> bool:
    """Whether an error comes down to a repository that has no such branch, tag or commit."""
    return any(kind.__name__ == "RevisionNotFoundError" for one in _causes(error) for kind in type(one).__mro__)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
