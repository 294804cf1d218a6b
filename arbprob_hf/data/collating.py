"""Makes a batch of a list of blocks: integers only, never a mask of (B, T, T)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import brief
from ..model.questions.layouts import IGNORED

COLUMNS = ("input_ids", "document_ids")
# of blocks that are not packed: how many of its tokens are not padding
LENGTH = "length"


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
        input_ids, document_ids = (stacked(features, name) for name in COLUMNS)
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
