"""Makes a batch of blocks and questions: the slots of a layout, as integer tensors only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import brief
from ..model.questions.conditional import ResolvedConditional
from ..model.questions.layouts import EMPTY, IGNORED, Slots, lay_out
from .block_questions import QUESTION_COLUMNS, BlockQuestion, draw_question, question_rng
from .packing import LENGTH
from .tasks import Task

# what every block has
BLOCK_COLUMNS = ("input_ids", "document_ids")


class QuestionCollator:
    """Stacks blocks, asks a question about each, and lays both out as slots for the model.

    Questions come with the blocks (columns `given target step scored`) and are used as they are, or are drawn from
    `task`: then a block needs the column `index`, and its question depends on the seed, the epoch and that index alone,
    whoever draws it and when.

    Returns long tensors (B, S): `input_ids` (-1 for [MASK]), `position_ids`, `ranks`, `limits` and `labels`, which the
    model shifts; `document_ids` where a block has several documents, `target_position_ids` if `names_target`.
    Raises ValueError when a column is missing, the blocks differ in length, or the layout cannot ask in that order.
    """

    def __init__(
        self, layout: str, *, given_sees: str, names_target: bool = False, task: Task | None = None, seed: int = 0
    ) -> None:
        self.layout, self.given_sees, self.names_target = layout, given_sees, names_target
        self.task, self.seed = task, seed
        # shared with the workers of a loader, which live longer than an epoch
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Let the questions of the coming batches be those of `epoch`, from 0; workers notice."""
        self._epoch.fill_(epoch)

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        if not features:
            raise ValueError("a batch needs at least one block, got none")
        input_ids, document_ids = (stacked(features, name) for name in BLOCK_COLUMNS)
        question, scored = self._questions(features, document_ids)
        slots = lay_out(question, self.layout)
        # a target that is not scored stays in the sequence, but nobody is asked for it
        counts = scored.gather(1, slots.targets.clamp(min=0)) & (slots.targets >= 0)
        slots = _with_labels_to_spare(slots, counts)
        filled = slots.fill(input_ids, positions_of(document_ids), names_target=self.names_target)
        labels = slots.labels(input_ids)
        labels = labels.masked_fill(~torch.nn.functional.pad(counts, (0, labels.shape[1] - counts.shape[1])), IGNORED)
        filled["labels"] = torch.cat([torch.full_like(labels[:, :1], IGNORED), labels[:, :-1]], dim=1)
        if bool((document_ids != document_ids[:, :1]).any()):
            filled["document_ids"] = document_ids.gather(1, slots.positions)
        return filled

    def _questions(
        self, features: Sequence[Mapping[str, Any]], document_ids: Tensor
    ) -> tuple[ResolvedConditional, Tensor]:
        if self.task is None or any(name in features[0] for name in QUESTION_COLUMNS):
            given, target, step, scored = (stacked(features, name) for name in QUESTION_COLUMNS)
        else:
            drawn = [self._draw(self.task, feature) for feature in features]
            given, target, step, scored = (
                torch.from_numpy(np.stack([getattr(one, name) for one in drawn])) for name in QUESTION_COLUMNS
            )
        several = bool((document_ids != document_ids[:, :1]).any())
        question = ResolvedConditional(
            given.bool(), target.bool(), step.long(), self.given_sees, document_ids if several else None
        )
        return question, scored.bool()

    def _draw(self, task: Task, feature: Mapping[str, Any]) -> BlockQuestion:
        if "index" not in feature:
            raise ValueError(
                "a block has no column 'index', so its question cannot be drawn; number the blocks with number_blocks"
            )
        random = question_rng(self.seed, int(self._epoch), int(feature["index"]))
        return draw_question(task, np.asarray(feature["document_ids"]), random, length=feature.get(LENGTH))


def number_blocks(blocks: Any) -> Any:
    """The data set with a column `index`, 0, 1, 2, ...: a block keeps its number, wherever it is shuffled to."""
    return blocks.add_column("index", np.arange(len(blocks))).with_format("numpy")


def _with_labels_to_spare(slots: Slots, counts: Tensor) -> Slots:
    # labels are those of the slot before: what the last slot predicts needs one more
    if not bool(counts[:, -1].any()):
        return slots
    pad = torch.nn.functional.pad
    return Slots(**{name: pad(getattr(slots, name), (0, 1), value=value) for name, value in EMPTY.items()})


@dataclass(frozen=True)
class BlockCollator:
    """Stacks blocks for the model.

    Returns long tensors (B, T): `input_ids`, `labels` (the same, -100 for padding; the model shifts them),
    `document_ids` and `position_ids`, which start at 0 in each document.
    Raises `ValueError` when a column is missing or the blocks differ in length.
    """

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        if not features:
            raise ValueError("a batch needs at least one block, got none")
        input_ids, document_ids = (stacked(features, name) for name in BLOCK_COLUMNS)
        return {
            "input_ids": input_ids,
            "labels": input_ids.masked_fill(~is_text(features, input_ids.shape[1]), IGNORED),
            "document_ids": document_ids,
            "position_ids": positions_of(document_ids),
        }


def is_text(features: Sequence[Mapping[str, Any]], block_size: int) -> torch.Tensor:
    """Which tokens of blocks are not padding, bool (B, block_size)."""
    lengths = [int(feature.get(LENGTH, block_size)) for feature in features]
    return torch.arange(block_size) < torch.tensor(lengths)[:, None]


def stacked(features: Sequence[Mapping[str, Any]], name: str) -> torch.Tensor:
    """The column `name` of blocks of one length, long (B, T). Raises ValueError where it is missing."""
    missing = next((feature for feature in features if name not in feature), None)
    if missing is not None:
        raise ValueError(
            f"a block has no column {name!r}, only {brief(sorted(missing))}; use blocks of load_blocks and, "
            "when a Trainer drops it, set remove_unused_columns=False"
        )
    rows = [np.asarray(feature[name], np.int64) for feature in features]
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise ValueError(f"blocks of one batch must be equally long, got {name} of {lengths} tokens")
    return torch.from_numpy(np.stack(rows))  # (B, T)


def positions_of(document_ids: torch.Tensor) -> torch.Tensor:
    """Positions that start at 0 in each document, long (B, T)."""
    index = torch.arange(document_ids.shape[1]).expand_as(document_ids)  # (B, T)
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    # the newest beginning at or before each place
    return index - torch.where(begins, index, 0).cummax(dim=1).values
