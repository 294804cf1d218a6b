"""The network in a run's folder, a checkpoint or a repository on the Hub; one-line errors where it is not whole."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from .errors import check_folder, check_source, reason
from .model.configuration_arbprob import ArbProbConfig
from .model.modeling_arbprob import ArbProbForCausalLM
from .model.saved_patterns import read_saved
from .pattern_file import read_patterns


def load_network(
    source: Path | str,
    *,
    trust_remote_code: bool = False,
    patterns: Path | str | None = None,
    may_lack: Collection[str] = (),
    **options: Any,
) -> ArbProbForCausalLM:
    """The network in a folder or on the Hub by this package's own classes, for evaluation. GPT-2's weights load too.

    Args:
        source: the output folder of a run, a checkpoint in it, or a name on the Hub.
        trust_remote_code: whether code beside the weights may run.
        patterns: a file of `@pattern` functions that the network's mask uses; it is executed first.
        may_lack: weights that may be missing from the files; they start as the network initialises them.
        options: of `from_pretrained`, such as `dtype`, `revision` or fields of the configuration.

    Raises:
        ValueError: nothing there, files that cannot be read, or weights that are missing or of another size; one line.
    """
    check_source(source)
    if patterns is not None:
        read_patterns(patterns)
    try:
        model, found = ArbProbForCausalLM.from_pretrained(
            source,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **options,
        )
    except Exception as error:
        # what a damaged file and a Hub that does not answer raise differs from one to the next
        other = "another folder" if Path(source).is_dir() else "a folder, or another repository on the Hub"
        raise ValueError(
            f"{source}: its model cannot be loaded: {' '.join(str(error).split()):.300}; mend that, or name {other}"
        ) from error
    _refuse_partial(source, found, may_lack)
    return model


def read_saved_patterns(folder: Path, config: ArbProbConfig, *, trust_remote_code: bool) -> None:
    """Register the custom patterns that the network in `folder` uses; raises ValueError as loading it would."""
    try:
        read_saved(folder, {"config": config}, is_trusted=trust_remote_code)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def read_config(folder: Path) -> ArbProbConfig:
    """The configuration of the network in `folder`. Raises ValueError where there is none, in one line."""
    check_folder(folder)
    check_source(folder)
    try:
        return ArbProbConfig.from_pretrained(folder)
    except Exception as error:
        # some malformed ones fail deep inside transformers
        raise ValueError(f"{folder}: its config.json cannot be read: {reason(error)}") from error


def _refuse_partial(source: Path | str, found: dict[str, Any], may_lack: Collection[str]) -> None:
    # what was not loaded would be random numbers
    lacking = sorted(set(found["missing_keys"]).difference(may_lack))
    if lacking:
        raise ValueError(
            f"{source}: lacks {len(lacking)} of the network's weights, such as {lacking[0]}; name weights that are "
            "whole"
        )
