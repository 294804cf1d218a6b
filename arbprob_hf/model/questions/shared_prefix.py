"""Many questions about one text in one pass: they share the slots that are the same in all of them, the trunk."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

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
        slots_predicting: for each question long (B, T), the slot that predicts a position; -1 where none does.
    """

    slots: Slots
    branch: Tensor
    slots_predicting: tuple[Tensor, ...]

    def mask(self, device: torch.device) -> Mask:
        """Slots see the trunk and their own branch; to be ANDed with the slots' ranks and limits."""
        branch = self.branch.to(device)
        return Documents(branch) | Padding(branch == 0)


def join(slots: Sequence[Slots], length: int, *, names_target: bool = False) -> Branches:
    """Put the slots of several questions about rows of `length` tokens into one pass.

    A slot is of the trunk when it, and everything it sees, is the same in all questions; where a slot is given what it
    predicts (`names_target`), that too. The questions then have the answers they have one by one.
    """
    width = max(one.positions.shape[1] for one in slots)
    slots = [_widened(one, width) for one in slots]
    trunk = _trunk(slots, names_target)  # (B, width)
    is_filler = torch.stack([(one.ranks == HIDDEN) & (one.limits < 0) for one in slots])  # (questions, B, width)
    is_there = ~trunk & ~is_filler
    is_there[0] |= trunk
    there = torch.cat(list(is_there), dim=1)  # (B, questions * width)
    count = int(there.sum(1).amax())
    columns = (~there).long().argsort(dim=1, stable=True)[:, :count]
    is_used = there.gather(1, columns)
    parts = {
        name: torch.where(is_used, torch.cat([getattr(one, name) for one in slots], dim=1).gather(1, columns), value)
        for name, value in EMPTY.items()
    }
    numbers = torch.arange(1, len(slots) + 1).repeat_interleave(width).expand_as(there)
    branch = numbers.gather(1, columns).masked_fill(trunk.repeat(1, len(slots)).gather(1, columns), 0)
    # where each question's slot went; those of the trunk went where the first question's are
    went = torch.zeros_like(numbers).scatter(1, columns, torch.arange(count).expand_as(columns))
    readers = tuple(
        _followed(one, length, torch.where(trunk, went[:, :width], went[:, number * width : (number + 1) * width]))
        for number, one in enumerate(slots)
    )
    return Branches(Slots(**parts), branch, readers)


def _trunk(slots: Sequence[Slots], names_target: bool) -> Tensor:
    names = [
        field.name
        for field in fields(Slots)
        if field.name != "targets" and (names_target or field.name != "predicted_position_ids")
    ]
    first = slots[0]
    same = torch.ones_like(first.masked)
    for name in names:
        for one in slots[1:]:
            same = same & (getattr(one, name) == getattr(first, name))
    common = same.long().cumprod(1).bool()  # (B, width)
    # visible slots stand by rank: whatever has a lower rank than the first that differs is common to all
    ranks = torch.stack([one.ranks.masked_fill(common, HIDDEN).amin(1) for one in slots])
    return common & (first.ranks < HIDDEN) & (first.limits < ranks.amin(0)[:, None])


def _widened(slots: Slots, width: int) -> Slots:
    more = width - slots.positions.shape[1]
    return Slots(**{name: pad(getattr(slots, name), (0, more), value=value) for name, value in EMPTY.items()})


def _followed(slots: Slots, length: int, went: Tensor) -> Tensor:
    readers = slots.slots_predicting(length)
    return torch.where(readers < 0, -1, went.gather(1, readers.clamp(min=0)))
