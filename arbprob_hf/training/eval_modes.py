"""The five modes that a run with a task is evaluated in: their questions, saved with the run, and their figures."""

import math
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from ..atomic_write import replacing
from ..data.eval_sets import GAINS, MODES, draw_modes, load_modes, save_modes
from ..data.packing import LENGTH
from ..data.tasks import Task
from ..data.tokenizer import scored_bytes

# of the questions of evaluation: the same for every run, so that their figures can be compared
SEED = 0
FOLDER = "evaluation"
FIGURES = ("loss", "perplexity", "bits_per_byte")
COLUMNS = (*(f"{mode}_{figure}" for mode in MODES for figure in FIGURES), *GAINS)
# the mode whose loss is the run's own: the first that its layout answers
_MAIN = ("task", "left_to_right")
# what a layout cannot answer
_LEFT_OUT = {
    # all targets at once, each given the given ones: no joint probability, so nothing from left to right either
    "masked": tuple(mode for mode in MODES if mode != "task"),
    "causal": ("infilling",),
}


def modes_of_layout(layout: str) -> tuple[str, ...]:
    """The modes that a network of this layout can be evaluated in, in order."""
    return tuple(mode for mode in MODES if mode not in _LEFT_OUT.get(layout, ()))


def main_mode(modes: Collection[str]) -> str:
    """The mode whose loss is the run's own."""
    return next(mode for mode in _MAIN if mode in modes)


def draw_eval_modes(blocks: Dataset, task: Task) -> dict[str, Dataset]:
    """The five sets of questions about `blocks`, the same for every run with this text and task."""
    return draw_modes(blocks, task, seed=SEED)


def save_eval_modes(modes: Mapping[str, Dataset], folder: Path, *, is_resumed: bool) -> None:
    """Write the sets into `folder`, whole or not at all; a resumed run's must be those that are there already.

    Raises ValueError where a resumed run would be evaluated on other questions than before.
    """
    if is_resumed and folder.is_dir():
        other = _first_difference(modes, load_modes(folder))
        if other is not None:
            raise ValueError(
                f"{folder}: the questions of mode {other} are not those of this run's task and validation text, so its "
                "figures could not be compared with earlier ones; give the same text, or start another output_dir"
            )
        return
    with replacing(folder) as beside:
        save_modes(modes, beside)
        shutil.rmtree(folder, ignore_errors=True)


def summary(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    """What the metrics of all modes come to: loss and figures of the run's own mode, and the look-ahead gains."""
    losses = {mode: metrics[f"{prefix}_{mode}_loss"] for mode in MODES if f"{prefix}_{mode}_loss" in metrics}
    gains = {f"{prefix}_{name}": gain for name, gain in _gains(losses).items()}
    main = main_mode(losses)
    own = {f"{prefix}_{name}": metrics.get(f"{prefix}_{main}_{name}") for name in FIGURES}
    return {**{name: value for name, value in own.items() if value is not None}, **gains}


def loss_figures(loss: float, prefix: str, *, bytes_per_token: float | None) -> dict[str, float]:
    """`<prefix>_loss`, in nats per token, its perplexity, and bits per byte where the bytes of a token are known."""
    figures = {f"{prefix}_loss": loss, f"{prefix}_perplexity": perplexity(loss)}
    if bytes_per_token is not None:
        figures[f"{prefix}_bits_per_byte"] = bits_per_byte(loss, bytes_per_token)
    return figures


def mode_figures(metrics: Mapping[str, float], *, bytes_per_token: Mapping[str, float]) -> dict[str, float]:
    """The columns of the training log: loss, perplexity and bits per byte of each mode, and the look-ahead gains.

    `bytes_per_token`: of the scored tokens of each mode.
    """
    losses = {mode: metrics[f"eval_{mode}_loss"] for mode in MODES if f"eval_{mode}_loss" in metrics}
    figures: dict[str, float] = {}
    for mode, loss in losses.items():
        values = (loss, perplexity(loss), bits_per_byte(loss, bytes_per_token[mode]))
        figures.update({f"{mode}_{name}": value for name, value in zip(FIGURES, values, strict=True)})
    return {**figures, **_gains(losses)}


def bytes_per_scored_token(
    questions: Mapping[str, Dataset], tokenizer: PreTrainedTokenizerFast, *, otherwise: float
) -> dict[str, float]:
    """Bytes of text per scored token of each mode; `otherwise` where the tokenizer does not tell, or none is scored."""
    columns = {mode: rows[:] for mode, rows in questions.items()}
    found = scored_bytes(columns, tokenizer.backend_tokenizer, len(tokenizer))
    counts = {mode: int(column["scored"].sum()) for mode, column in columns.items()}
    return {mode: found[mode] / count if found.get(mode) else otherwise for mode, count in counts.items()}


def bytes_per_text_token(blocks: Dataset, bytes_per_token: float) -> float:
    """Bytes of text per token that is text: the first of a document stands for none, and no question asks for it.

    `bytes_per_token` counts every token of a block but its first, as plain training does.
    """
    rows = [np.asarray(row["document_ids"])[: row.get(LENGTH)] for row in blocks.with_format("numpy")]
    text_tokens = sum(int((ids[1:] == ids[:-1]).sum()) for ids in rows)
    return bytes_per_token * sum(len(ids) - 1 for ids in rows) / text_tokens if text_tokens else bytes_per_token


def _gains(losses: Mapping[str, float]) -> dict[str, float]:
    both = {name: pair for name, pair in GAINS.items() if losses.keys() >= set(pair)}
    return {name: losses[blind] - losses[seeing] for name, (blind, seeing) in both.items()}


def _first_difference(modes: Mapping[str, Dataset], saved: Mapping[str, Dataset]) -> str | None:
    for name, questions in modes.items():
        if len(questions) != len(saved[name]):
            return name
        for ours, theirs in zip(questions, saved[name], strict=True):
            if any(not np.array_equal(ours[column], theirs[column]) for column in ours):
                return name
    return None


def perplexity(loss: float) -> float:
    """exp(`loss`), `loss` in nats per token; infinite where it exceeds the largest float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Bits needed per byte of text, from `loss` in nats per token; comparable between tokenizers.

    `bytes_per_token`: bytes of text per scored token. Raises ValueError unless it is above 0.
    """
    if not bytes_per_token > 0:
        raise ValueError(f"bytes_per_token: expected a number above 0, got {bytes_per_token}")
    return loss / math.log(2) / bytes_per_token
