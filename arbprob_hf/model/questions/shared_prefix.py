"""Many questions about one text in one pass: they share the slots that are the same in all of them, the trunk."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..masks.mask import Mask
from ..masks.tensors import HIDDEN, Documents, Padding
from .layouts import EMPTY, Slots


@dataclass(frozen=True)
class Branches:
    """Several questions' slots side by side.

    Attributes:
        slots: all of them; `targets` are those of the first question in the trunk, where they may differ.
        branch: long (B, S), 0 in the trunk, then the number of the question, from 1.
        slots_predicting: long (questions, B, T), the slot that predicts a position; -1 where none does.
    """

    slots: Slots
    branch: Tensor
    slots_predicting: Tensor

    def mask(self, device: torch.device) -> Mask:
        """Slots see the trunk and their own branch; to be ANDed with the slots' ranks and limits."""
        branch = self.branch.to(device, non_blocking=True)
        return Documents(branch) | Padding(branch == 0)


def join(slots: Sequence[Slots], length: int, *, names_target: bool = False) -> Branches:
    """Put the slots of several questions about rows of `length` tokens into one pass.

    A slot is of the trunk when it, and everything it sees, is the same in all questions; where a slot is given what it
    predicts (`names_target`), that too. The questions then have the answers they have one by one.
    """
    width = max(one.positions.shape[1] for one in slots)
    slots = [_widened(one, width) for one in slots]
    table = {name: torch.stack([getattr(one, name) for one in slots]) for name in EMPTY}  # (questions, B, width) each
    trunk = _trunk(table, names_target)  # (B, width)
    is_filler = (table["ranks"] == HIDDEN) & (table["limits"] < 0)
    is_there = ~trunk & ~is_filler
    is_there[0] |= trunk
    there = _side_by_side(is_there)  # (B, questions * width)
    count = int(there.sum(1).amax())
    columns = (~there).long().argsort(dim=1, stable=True)[:, :count]
    is_used = there.gather(1, columns)
    parts = {
        name: torch.where(is_used, _side_by_side(table[name]).gather(1, columns), value)
        for name, value in EMPTY.items()
    }
    numbers = torch.arange(1, len(slots) + 1).repeat_interleave(width).expand_as(there)
    branch = numbers.gather(1, columns).masked_fill(trunk.repeat(1, len(slots)).gather(1, columns), 0)
    # where each question's slot went; those of the trunk went where the first question's are
    went = torch.zeros_like(numbers).scatter(1, columns, torch.arange(count).expand_as(columns))
    went = torch.where(trunk, went[:, :width], went.unflatten(1, (len(slots), width)).transpose(0, 1))
    every = Slots(**{name: part.flatten(0, 1) for name, part in table.items()})
    readers = every.slots_predicting(length).unflatten(0, (len(slots), -1))  # (questions, B, T)
    readers = torch.where(readers < 0, -1, went.gather(2, readers.clamp(min=0)))
    return Branches(Slots(**parts), branch, readers)


def _side_by_side(table: Tensor) -> Tensor:
    # (questions, B, width) -> (B, questions * width)
    return table.transpose(0, 1).flatten(1)


def _trunk(table: dict[str, Tensor], names_target: bool) -> Tensor:
    names = [name for name in EMPTY if name != "targets" and (names_target or name != "predicted_position_ids")]
    same = torch.stack([(table[name] == table[name][0]).all(0) for name in names]).all(0)
    common = same.long().cumprod(1).bool()  # (B, width)
    # visible slots stand by rank: whatever has a lower rank than the first that differs is common to all
    ranks, limits = table["ranks"], table["limits"][0]
    first = ranks.masked_fill(common, HIDDEN).amin((0, 2))[:, None]
    return common & (ranks[0] < HIDDEN) & (limits < first)


def _widened(slots: Slots, width: int) -> Slots:
    more = width - slots.positions.shape[1]
    return Slots(**{name: pad(getattr(slots, name), (0, more), value=value) for name, value in EMPTY.items()})
