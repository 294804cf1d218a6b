"""Compares trained models on the same questions: the five modes side by side, with paired differences."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..data.eval_sets import GAINS, MODES
from ..data.tokenizer import scored_bytes
from ..errors import reason
from ..model.modeling_arbprob import ArbProbForCausalLM
from ..model_folder import load_network, read_config, read_saved_patterns
from ..runs.log import run_names
from .inputs import Questions, check_alike, check_fits, find_questions, find_tokenizer
from .score import Floats, UnanswerableError, block_nats


@dataclass(frozen=True)
class Figure:
    """What a run reaches on a set of questions, or gains between two; its attributes are the columns of the CSV.

    Attributes:
        question_set: a name of MODES or GAINS. tokens: how many targets are scored, in so many blocks.
        nats_per_token: the mean over all of these tokens of -log P; of a gain, how much that falls.
        standard_error: of that mean, blocks being independent of one another; None for fewer than two.
        bits_per_byte: None where the run has no byte-level tokenizer.
        difference: nats per token more than the first run, the same blocks being compared.
        missing_because: why there is no figure; empty where there is one.
    """

    run: str
    layout: str
    question_set: str
    tokens: int
    blocks: int
    nats_per_token: float | None = None
    standard_error: float | None = None
    perplexity: float | None = None
    bits_per_byte: float | None = None
    difference: float | None = None
    difference_standard_error: float | None = None
    missing_because: str = ""


@dataclass(frozen=True)
class Comparison:
    """The figures of every run on every set, run by run, and what the questions are: `source`, in a few words."""

    source: str
    figures: tuple[Figure, ...]

    @property
    def runs(self) -> dict[str, str]:
        """The layout of each run by its name, in the order they were given."""
        return {figure.run: figure.layout for figure in self.figures}

    def of(self, run: str, question_set: str) -> Figure:
        """The figure of a run on a set, or a gain."""
        return next(one for one in self.figures if (one.run, one.question_set) == (run, question_set))


@dataclass(frozen=True)
class _Answers:
    # sums of -log P over the scored tokens of each block, by set, and their gains; or why there are none
    sums: dict[str, Floats]
    refused: dict[str, str]


def compare(
    folders: Sequence[Path],
    *,
    questions: Path | None = None,
    batch_size: int = 8,
    device: str | None = None,
    trust_remote_code: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Put the same questions to the models in `folders`, to each in its own layout.

    Args:
        folders: output folders of runs, or checkpoints in them; differences are to the first.
        questions: folder of the sets; those of the first run that has any when None.
        batch_size: blocks at a time.
        device: as torch names it; a GPU where there is one when None.
        trust_remote_code: whether the custom patterns that come with the models may be run.
        report: takes a line about each step.

    Raises:
        ValueError: in one line, for a folder without a whole model, models of several vocabularies, and questions
            that are missing or do not fit.
    """
    place, names = _device(device), run_names(folders)
    # whatever can be wrong is found before the first model has answered
    configs = [read_config(folder) for folder in folders]
    for folder, config in zip(folders, configs, strict=True):
        read_saved_patterns(folder, config, trust_remote_code=trust_remote_code)
    tokenizers = [find_tokenizer(folder) for folder in folders]
    check_alike(folders, configs, tokenizers)
    question_sets = find_questions(folders, questions)
    for folder, config in zip(folders, configs, strict=True):
        check_fits(folder, config, question_sets)
    figures: list[Figure] = []
    first: _Answers | None = None
    for name, folder, tokenizer in zip(names, folders, tokenizers, strict=True):
        # one model at a time is in memory; those saved in several precisions are compared in one
        model = load_network(folder, dtype=torch.float32)
        # transformers' own `to` hides what it takes from the type checker
        torch.nn.Module.to(model, place)
        own = _answers(model, question_sets, batch_size=batch_size, report=partial(_report, report, name))
        scored = {} if tokenizer is None else scored_bytes(question_sets.sets, tokenizer, model.config.vocab_size)
        for one, counts in question_sets.counts.items():
            empty = Figure(name, model.config.layout, one, int(counts.sum()), len(counts))
            figures.append(_filled(empty, counts, own, first=first, in_bytes=scored.get(one)))
        first = own if first is None else first
    return Comparison(question_sets.source, tuple(figures))


def _answers(
    model: ArbProbForCausalLM, question_sets: Questions, *, batch_size: int, report: Callable[[str], None]
) -> _Answers:
    sums: dict[str, Floats] = {}
    refused: dict[str, str] = {}
    for mode, rows in question_sets.sets.items():
        report(mode)
        try:
            sums[mode] = block_nats(model, mode, rows, batch_size=batch_size)
        except UnanswerableError as error:
            refused[mode] = str(error)
    for gain, (plain, informed) in GAINS.items():
        if plain in sums and informed in sums:
            sums[gain] = sums[plain] - sums[informed]
        else:
            refused[gain] = refused.get(informed) or refused[plain]
    return _Answers(sums, refused)


def mean_and_error(sums: Floats, counts: npt.NDArray[np.int64]) -> tuple[float, float | None]:
    """Mean per token and its standard error, from sums and numbers of tokens of independent blocks, both (blocks,).

    The error is that of a ratio of two means (Cochran 1977, Sampling Techniques, chapter 2); None for one block.
    """
    blocks, tokens = len(sums), int(counts.sum())
    mean = float(sums.sum()) / tokens
    if blocks < 2:
        return mean, None
    rest = sums - mean * counts
    return mean, math.sqrt(blocks / (blocks - 1) * float(rest @ rest)) / tokens


def _filled(
    figure: Figure,
    counts: npt.NDArray[np.int64],
    own: _Answers,
    *,
    first: _Answers | None,
    in_bytes: int | None,
) -> Figure:
    name = figure.question_set
    if name not in own.sums:
        return dataclasses.replace(figure, missing_because=own.refused[name])
    if not figure.tokens:
        return dataclasses.replace(figure, missing_because="no token of this set is scored")
    mean, error = mean_and_error(own.sums[name], counts)
    values: dict[str, Any] = {"nats_per_token": mean, "standard_error": error}
    if name in MODES:
        # beyond that, a float has no exponential
        values["perplexity"] = math.exp(mean) if mean < 709 else math.inf
    if in_bytes:
        values["bits_per_byte"] = float(own.sums[name].sum()) / math.log(2) / in_bytes
    if first is not None and name in first.sums:
        more, error = mean_and_error(own.sums[name] - first.sums[name], counts)
        values.update(difference=more, difference_standard_error=error)
    return dataclasses.replace(figure, **values)


def _report(report: Callable[[str], None], name: str, mode: str) -> None:
    report(f"{name}: {mode}")


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r:.40} cannot be used here: {reason(error)}") from error
    return device
