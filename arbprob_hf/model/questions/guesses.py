"""Slots that guess at targets further ahead: each target by itself, given what is known and none of those between."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..masks.tensors import HIDDEN
from .cached_passes import FILLER
from .conditional import ResolvedConditional
from .layouts import ranks_of


@dataclass(frozen=True)
class Guesses:
    """What is needed to lay out guesses about a question, row by row, on the CPU.

    Attributes:
        positions: long (B, E + 1), the position of the target of each step. count: long (B,), how many targets.
        rank: long (B, T), of each given and target token. base: long (B, 1), the last given rank.
        last_given: long (B, 1), the last given position. given: bool (B, T).
    """

    layout: str
    positions: Tensor
    count: Tensor
    rank: Tensor
    base: Tensor
    last_given: Tensor
    given: Tensor

    @staticmethod
    def of(question: ResolvedConditional, layout: str, positions: Tensor) -> "Guesses":
        """The guesses of a question in a layout that has a joint; `positions` as in the class."""
        rank, base, _ = ranks_of(question, None)
        place = torch.arange(rank.shape[1])
        last = torch.where(question.given, place, 0).amax(1, keepdim=True)
        return Guesses(layout, positions, question.step.amax(1), rank, base[:, :1], last, question.given)

    def rows(self, index: Tensor) -> "Guesses":
        """Those of some of the rows; `index`: long (rows,)."""
        parts = (self.positions, self.count, self.rank, self.base, self.last_given, self.given)
        return Guesses(self.layout, *(part[index] for part in parts))

    def after(self, known: Tensor, drafted: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Slots that guess `width` targets after each stop that a pass may come to.

        Args:
            known: long (B,), how many targets are known. drafted: long (B,), how many of the next ones have drafts; a
                stop is behind any of them, or before the first.

        Returns:
            A table (B, Q, PARTS), see `Chain`, and long (B, D + 1, width), D the most of `drafted`: the column of the
            guess at target known + j + 2 + i given the first known + j; -1 for none.
        """
        stop = known[:, None] + torch.arange(int(drafted.amax()) + 1)  # (B, D + 1)
        if width == 0:
            return self.rank.new_zeros(len(known), 0, len(FILLER)), self.rank.new_zeros(*stop.shape, 0)
        step = stop[..., None] + 2 + torch.arange(width)  # (B, D + 1, width)
        is_there = (step <= self.count[:, None, None]) & (stop <= (known + drafted)[:, None])[..., None]
        if self.layout == "prefix":
            return self._in_text(known, step[:, 0], is_there)
        # the fullest row decides how many columns there are
        step, stop = step.flatten(1), stop.repeat_interleave(width, dim=1)
        present = is_there.flatten(1)
        order = (~present).long().argsort(dim=1, stable=True)[:, : int(present.sum(1).amax())]
        at = torch.where(present, present.long().cumsum(1) - 1, -1).view(is_there.shape)
        step, stop, present = step.gather(1, order), stop.gather(1, order), present.gather(1, order)
        table = self._beside(step.clamp(max=self.positions.shape[1] - 1), stop)
        return torch.where(present[..., None], table, torch.tensor(FILLER)), at

    def _beside(self, step: Tensor, stop: Tensor) -> Tensor:
        # queries that nobody sees, long (B, Q, PARTS)
        target = self.positions.gather(1, step)
        limit = self.base + stop
        if self.layout == "sigma":
            # copies of the slot that became known last, told another target
            last = self.positions.gather(1, stop.clamp(max=self.positions.shape[1] - 1))
            place, masked = torch.where(stop > 0, last, self.last_given), torch.zeros_like(stop)
        else:
            place = (target - 1).clamp(min=0)
            masked = (self.rank.gather(1, place) > limit).long()
        return torch.stack([place, masked, torch.full_like(place, HIDDEN), limit, target], dim=2)

    def _in_text(self, known: Tensor, step: Tensor, is_there: Tensor) -> tuple[Tensor, Tensor]:
        # the layout prefix goes on through its text, [MASK] at the targets: from the first unknown one to the reader of
        # the last that is guessed. Only what comes after sees these slots, and the next pass writes over them
        length = self.rank.shape[1]
        last = self.positions.shape[1] - 1
        first = self.positions.gather(1, (known + 1).clamp(max=last)[:, None])  # (B, 1)
        target = torch.where(is_there[:, 0], self.positions.gather(1, step.clamp(max=last)), 0)
        stop = target.amax(1, keepdim=True)
        place = first + torch.arange(int((stop - first).amax().clamp(min=0)))
        present = place < stop
        place = place.clamp(max=length - 1)
        masked = (~self.given.gather(1, place)).long()
        order = place + length
        table = torch.stack([place, masked, order, order, torch.full_like(place, -1)], dim=2)
        at = torch.where(is_there[:, 0], target - 1 - first, -1)[:, None]
        return torch.where(present[..., None], table, torch.tensor(FILLER)), at
