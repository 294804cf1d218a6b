"""What the folders of runs hold: models, tokenizers, questions and logs; one-line errors where they do not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from ..data.collators import positions_of
from ..data.eval_sets import GAINS, Columns, load_modes
from ..data.tokenizer import Integers
from ..errors import reason
from ..model.configuration_arbprob import ArbProbConfig
from ..runs.log import Row, by_mode, find_log, read_log


@dataclass(frozen=True)
class Questions:
    """The sets that every model answers.

    Attributes:
        source: the folder they are from. sets: by the names of MODES.
        counts: scored tokens of each block, (blocks,), by the names of MODES and GAINS.
        largest_token: of all input ids. longest_text: tokens of the longest document.
    """

    source: str
    sets: Mapping[str, Columns]
    counts: Mapping[str, Integers]
    largest_token: int
    longest_text: int


def find_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer that a run saved; None where it saved none. Raises ValueError for one that cannot be read."""
    path = _find_in_run(folder, "tokenizer.json")
    if path is None:
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        # its library raises no narrower one
        raise ValueError(f"{path}: cannot be read: {reason(error)}") from error


def find_questions(folders: Sequence[Path], given: Path | None) -> Questions:
    """The sets in the folder `given`, or else of the first run that has some. Raises ValueError for unusable ones."""
    place = given or next(
        (found for found in (_find_in_run(folder, "evaluation") for folder in folders) if found), None
    )
    if place is None:
        raise ValueError(
            f"{', '.join(map(str, folders))}: no folder evaluation, where a run with a task keeps its questions; name "
            "one with --questions"
        )
    sets = {name: rows[:] for name, rows in load_modes(place).items()}
    counts: dict[str, Integers] = {}
    largest, longest = 0, 0
    for name, columns in sets.items():
        shapes = {values.shape for values in columns.values()}
        # rows of several lengths come as an array of arrays
        if len(shapes) > 1 or len(next(iter(shapes))) != 2:
            raise ValueError(f"{place}: {name} has blocks of several lengths; is it a set of questions?")
        if np.any(columns["scored"] & ~columns["target"]):
            raise ValueError(f"{place}: {name} scores tokens that are not targets; is it a set of questions?")
        counts[name] = columns["scored"].sum(1)
        largest = max(largest, int(columns["input_ids"].max()))
        longest = max(longest, int(positions_of(torch.from_numpy(columns["document_ids"]).long()).max()) + 1)
    for gain, (plain, informed) in GAINS.items():
        if not np.array_equal(counts[plain], counts[informed]):
            raise ValueError(f"{place}: {plain} and {informed} do not score the same tokens; draw them together")
        counts[gain] = counts[plain]
    return Questions(str(place), sets, counts, largest, longest)


def check_alike(
    folders: Sequence[Path], configs: Sequence[ArbProbConfig], tokenizers: Sequence[Tokenizer | None]
) -> None:
    """Raise ValueError unless all models have one vocabulary, as far as their folders say."""
    known = [(folder, one.get_vocab()) for folder, one in zip(folders, tokenizers, strict=True) if one is not None]
    for folder, config in zip(folders, configs, strict=True):
        if config.vocab_size != configs[0].vocab_size:
            raise ValueError(
                f"{folder}: its vocabulary has {config.vocab_size} tokens, that of {folders[0]} has "
                f"{configs[0].vocab_size}; losses per token compare models of one vocabulary only"
            )
    for folder, vocabulary in known[1:]:
        if vocabulary != known[0][1]:
            raise ValueError(
                f"{folder}: its tokenizer has other tokens than that of {known[0][0]}; losses per token compare models "
                "of one vocabulary only"
            )


def check_fits(folder: Path, config: ArbProbConfig, question_sets: Questions) -> None:
    """Raise ValueError where a model does not know the tokens of the questions, or takes no texts as long."""
    if question_sets.largest_token >= config.vocab_size:
        raise ValueError(
            f"{folder}: knows the tokens 0 to {config.vocab_size - 1}, but {question_sets.source} asks about token "
            f"{question_sets.largest_token}; name questions of its vocabulary with --questions"
        )
    if question_sets.longest_text > config.n_positions:
        raise ValueError(
            f"{folder}: takes texts of n_positions={config.n_positions} tokens, but {question_sets.source} has one of "
            f"{question_sets.longest_text}; name shorter questions with --questions"
        )


def read_losses(folder: Path) -> list[Row]:
    """The rows of a run's training log, with `<mode>_loss` by the names of MODES; empty where it has no log."""
    log = find_log(folder)
    if log is None:
        return []
    try:
        return by_mode(read_log(log))
    except ValueError:
        # a file of something else; it decides nothing but a picture
        return []


def _find_in_run(folder: Path, name: str) -> Path | None:
    # what a run keeps but once stands beside its checkpoints
    folders = [folder, folder.parent] if folder.name.startswith("checkpoint-") else [folder]
    return next((one / name for one in folders if (one / name).exists()), None)
