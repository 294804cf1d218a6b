"""Whether an error of reading was only the connection."""

# by name: which HTTP client raises them differs from one huggingface_hub to the next
_CONNECTION = {"ConnectionError", "TimeoutError", "TransportError", "HfHubHTTPError", "FileNotFoundError"}


def is_connection_lost(error: BaseException) -> bool:
    """Whether an error comes down to a server that did not answer or has no such file, rather than to what it sent."""
    cause: BaseException | None = error
    while cause is not None:
        if not _CONNECTION.isdisjoint(kind.__name__ for kind in type(cause).__mro__):
            return True
        cause = cause.__cause__
    return False
