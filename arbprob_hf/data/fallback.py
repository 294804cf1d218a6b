"""Well-known data sets by a short name, what is used while one is unavailable, and whether the Hub answers."""

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from huggingface_hub import constants
from huggingface_hub.utils import get_session

from ..errors import chain_of
from .arguments import DataArguments, is_local

logger = logging.getLogger(__name__)

T = TypeVar("T")

WIKIPEDIA, WIKITEXT, EMBEDDED = "wikimedia/wikipedia", "Salesforce/wikitext", "embedded"
SHORT_NAMES = {"wikipedia": WIKIPEDIA, "wikitext": WIKITEXT}
# where no configuration is named
CONFIGS = {WIKIPEDIA: "20231101.en", WIKITEXT: "wikitext-2-raw-v1"}
# where no validation split is named; the others hold documents out
VALIDATION = {WIKITEXT: "validation"}
# only these: whoever names another data set means no other text
INSTEAD = {WIKIPEDIA: (WIKITEXT, EMBEDDED), WIKITEXT: (EMBEDDED,)}
# ISO 639; longer names of Wikipedias, as zh-min-nan, are not such codes
_CODE = re.compile(r"[a-z]{2,3}")


class UnavailableError(ValueError):
    """A data set that is unavailable: not on the Hub, or the Hub does not answer. `why` says which in few words."""

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


def first_available(arguments: DataArguments, load: Callable[[DataArguments], T]) -> tuple[T, str]:
    """What `load` makes of the source that `arguments` name, or, where that is unavailable, of what is used instead.

    The second value says so: empty, or in one line what was meant and why it was not used. Each step is logged.
    Raises what `load` raises; `UnavailableError` too where `fallback` is off or nothing is left.
    """
    first, *others = _candidates(arguments)
    missing: list[str] = []
    while True:
        try:
            return load(first), "; ".join(missing)
        except UnavailableError as error:
            if not others:
                raise
            logger.warning(
                "source %s is unavailable (%s); %s is used instead (fallback: false makes this an error)",
                title(first),
                error.why,
                title(others[0]),
            )
            missing.append(f"{title(first)} was unavailable")
            first, *others = others


def title(arguments: DataArguments) -> str:
    """The source and its configuration."""
    return " ".join(filter(None, (arguments.source, arguments.source_config)))


def known_language(arguments: DataArguments) -> str | None:
    """The language, as a code, of a well-known data set by its full name; None where it is not known."""
    if arguments.source == WIKITEXT:
        return "en"
    if arguments.source != WIKIPEDIA or arguments.source_config is None:
        return None
    # a date and the name of a Wikipedia, which is mostly a language's code
    name = arguments.source_config.rpartition(".")[2]
    return "en" if name == "simple" else name if _CODE.fullmatch(name) else None


def _candidates(arguments: DataArguments) -> list[DataArguments]:
    first = _completed(arguments)
    if not arguments.fallback or is_local(arguments.source):
        return [first]
    plain: dict[str, Any] = dict(
        source_config=None, source_revision=None, text_column="text", train_split="train", validation_split=None
    )
    return [first, *(_completed(replace(arguments, source=name, **plain)) for name in INSTEAD.get(first.source, ()))]


def _completed(arguments: DataArguments) -> DataArguments:
    """With short names written out, and the configuration and validation split that well-known data sets have."""
    if is_local(arguments.source):
        return arguments
    name = SHORT_NAMES.get(arguments.source, arguments.source)
    config = arguments.source_config or CONFIGS.get(name)
    split = arguments.validation_split
    if split is None and arguments.train_split == "train":
        split = VALIDATION.get(name)
    return replace(arguments, source=name, source_config=config, validation_split=split)


# seconds that a Hub which does not answer may cost
PROBE_SECONDS = 3.0


def hub_answers() -> bool:
    """Whether the Hub answers within PROBE_SECONDS; False in offline mode."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception:
        # the client's exceptions differ from one huggingface_hub to the next; each means no answer
        return False
    return True


# by name: which HTTP client raises them differs from one huggingface_hub to the next
_CONNECTION = {"ConnectionError", "TimeoutError", "TransportError", "HfHubHTTPError", "DataFilesNotFoundError"}


def is_connection_lost(error: BaseException) -> bool:
    """Whether an error comes down to a server that did not answer, or does not have the file."""
    return any(not _CONNECTION.isdisjoint(kind.__name__ for kind in type(one).__mro__) for one in chain_of(error))


def is_about_content(error: BaseException) -> bool:
    """Whether an error comes down to what was read: to neither the connection nor the machine."""
    # pyarrow raises OSError, too, but without the number that the system gives
    is_of_the_machine = any(isinstance(one, OSError) and one.errno is not None for one in chain_of(error))
    return not is_connection_lost(error) and not is_of_the_machine


def is_revision_unknown(error: BaseException) -> bool:
    """Whether an error means that a repository has no such branch, tag or commit."""
    return any(kind.__name__ == "RevisionNotFoundError" for one in chain_of(error) for kind in type(one).__mro__)
