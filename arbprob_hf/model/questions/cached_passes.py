"""Passes over the slots of one question with a cache: a slot is computed once, when all that it sees is known.

Targets become known one after the other, in their order. Content slots then enter the cache by the number of targets
they see, so that whatever is drafted, the slots of the targets that are known stand first in each row of the cache;
what a pass computed beyond them is written over by the next.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from ..masks.tensors import HIDDEN
from .conditional import ResolvedConditional
from .layouts import MASK_ID, Slots, lay_out, positions_by_step

# what of a slot a pass needs, side by side in the last dimension of a table; and a slot that fills a row up
PARTS = ("positions", "masked", "ranks", "limits", "predicted_position_ids")
FILLER = (0, 0, HIDDEN, -1, -1)


@dataclass(frozen=True)
class Chain:
    """The slots of the chain rule, each target asked given all before it; all on the CPU.

    Attributes:
        table: long (B, S + 1, PARTS), content slots in the order in which they can be computed, then queries; the last
            is a filler.
        count_due: long (B, E + 2), how many content slots see fewer than m targets, themselves included.
        readers: long (B, E + 1), where in the table the slot is that predicts the target of each step; -1 for none.
        count_content: long (B,), how many of the slots are content.
    """

    table: Tensor
    count_due: Tensor
    readers: Tensor
    count_content: Tensor

    @staticmethod
    def of(question: ResolvedConditional, layout: str) -> "Chain":
        """The chain of a question in a layout that has one."""
        slots = lay_out(question, layout)
        positions = positions_by_step(question)
        due = passes_due(slots, question)  # (B, S)
        is_content = (slots.ranks < HIDDEN) & (due > 0)
        most = positions.shape[1]
        order = torch.where(is_content, due, most + 1).argsort(dim=1, stable=True)
        went = order.argsort(dim=1)
        # a slot that sees all targets is never asked anything
        counts = torch.zeros(len(due), most + 2, dtype=torch.long)
        counts.scatter_add_(1, torch.where(is_content, due, 0), is_content.long())
        table = torch.stack([getattr(slots, name).long() for name in PARTS], dim=2)
        table = table.gather(1, order[..., None].expand_as(table))
        table = torch.cat([table, torch.tensor(FILLER).expand(len(table), 1, -1)], dim=1)
        reader = slots.slots_predicting(question.step.shape[1]).gather(1, positions)
        is_asked = torch.arange(most) <= question.step.amax(1)[:, None]
        is_asked[:, 0] = False
        reader = torch.where(is_asked & (reader >= 0), went.gather(1, reader.clamp(min=0)), -1)
        return Chain(table, counts.cumsum(1), reader, is_content.sum(1))

    def rows(self, index: Tensor) -> "Chain":
        """The chain of some of the rows; `index`: long (rows,)."""
        return Chain(self.table[index], self.count_due[index], self.readers[index], self.count_content[index])

    def between(self, known: Tensor, ahead: Tensor) -> tuple[Tensor, Tensor]:
        """The slots still to be computed for the targets after the `known` ones, `ahead` of them in each row.

        Args:
            known: long (B,). ahead: long (B,), at least 0; a row with 0 gets fillers.

        Returns:
            A table (B, W, PARTS), content first, and long (B, A), A the most of `ahead`: the slot of this pass that
            predicts each of those targets, -1 for none.
        """
        start = self.count_due.gather(1, known[:, None])  # (B, 1)
        stop = self.count_due.gather(1, (known + ahead)[:, None])
        width = int((stop - start).amax())
        content = start + torch.arange(width)
        last = self.table.shape[1] - 1
        content = torch.where(content < stop, content, last)
        columns = torch.arange(1, int(ahead.amax()) + 1)
        steps = (known[:, None] + columns).clamp(max=self.readers.shape[1] - 1)
        reader = torch.where(columns <= ahead[:, None], self.readers.gather(1, steps), -1)  # (B, A)
        is_query = reader >= self.count_content[:, None]
        # queries stand behind the content; a column of them where some row has one
        is_used = is_query.any(0)
        queries = torch.where(is_query, reader, last)[:, is_used]
        column = width + is_used.long().cumsum(0) - 1
        at = torch.where(is_query, column, torch.where(reader < 0, -1, reader - start))
        index = torch.cat([content, queries], dim=1)
        return self.table.gather(1, index[..., None].expand(-1, -1, len(PARTS))), at


def passes_due(slots: Slots, question: ResolvedConditional) -> Tensor:
    """The pass in which each slot can be computed when one target becomes known a pass, from 1; 0 for fillers.

    A slot that sees the contents of n targets has to wait for all n.
    """
    contents = (slots.ranks < HIDDEN) & question.target.gather(1, slots.positions)
    ranks = torch.where(contents, slots.ranks, HIDDEN).sort(1).values
    seen = torch.searchsorted(ranks, slots.limits.contiguous(), right=True)
    is_filler = (slots.ranks == HIDDEN) & (slots.limits < 0)
    return torch.where(is_filler, 0, seen + 1)


class SlotCache(Cache):
    """Keys and values of slots, each row with a length of its own; a pass writes behind what its rows hold.

    `starts`: how many slots each row holds, long (B,) on the device, or an int where all rows hold as many.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(layers=[])
        self.capacity = capacity
        self.starts: Tensor | int = 0
        self.longest = 0
        self.states: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        filled = self.longest + key_states.shape[2]
        if layer_idx not in self.states or self.states[layer_idx][0].shape[2] < filled:
            self.states[layer_idx] = self._room(layer_idx, filled, key_states, value_states)
        held = self.states[layer_idx]
        for states, new in zip(held, (key_states, value_states), strict=True):
            if isinstance(self.starts, int):
                states[:, :, self.starts : filled] = new
            else:
                rows = torch.arange(len(new), device=new.device)[:, None]
                columns = self.starts[:, None] + torch.arange(new.shape[2], device=new.device)
                states[rows, :, columns] = new.transpose(1, 2)  # (B, W, H, D)
        return held[0][:, :, :filled], held[1][:, :, :filled]

    def _room(self, layer_idx: int, filled: int, *new: Tensor) -> tuple[Tensor, Tensor]:
        # zeros: what nobody sees must not be nan all the same
        room = [one.new_zeros(*one.shape[:2], max(self.capacity, filled + filled // 4), one.shape[3]) for one in new]
        for states, old in zip(room, self.states.get(layer_idx, ()), strict=False):
            states[:, :, : old.shape[2]] = old
        return room[0], room[1]

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows; `rows`: long, on the device."""
        self.states = {layer: (key[rows], value[rows]) for layer, (key, value) in self.states.items()}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.longest

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.longest + query_length, 0


class CachedPasses:
    """Runs the network over slots of some rows, and keeps the keys and values of those whose targets are known.

    Attributes:
        chain: of the rows that are left. count: how many passes were made.
    """

    def __init__(self, model: Any, chain: Chain) -> None:
        self.network, self.chain = model.transformer, chain
        self.count = 0
        # and a few slots beyond those that stay
        self.capacity = chain.table.shape[1] + 32
        self.cache = SlotCache(self.capacity)
        self.ranks: Tensor | None = None

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows; `rows`: long, on the CPU."""
        self.chain = self.chain.rows(rows)
        if self.ranks is not None:
            there = rows.to(self.ranks.device, non_blocking=True)
            self.ranks = self.ranks[there]
            self.cache.keep(there)

    def run(self, tokens: Tensor, table: Tensor, known: Tensor) -> Tensor:
        """The states (B, W, D) of slots after those of the `known` targets.

        Args:
            tokens: long (B, T), of these rows. table: long (B, W, PARTS), on the CPU, content that follows what is held
                first. known: long (B,).
        """
        self.count += 1
        device = tokens.device
        held = self.chain.count_due.gather(1, known[:, None]).squeeze(1)
        self.cache.longest = longest = int(held.amax())
        is_even = bool((held == longest).all())
        starts = longest if is_even else held.to(device, non_blocking=True)
        self.cache.starts = starts
        positions, masked, ranks, limits, predicted = table.to(device, non_blocking=True).unbind(2)
        token = tokens.gather(1, positions)
        # an id of -1 that should be a token must not pass for [MASK]
        ids = torch.where(token < 0, token - 1, token).masked_fill(masked.bool(), MASK_ID)
        allowed = self._allowed(ranks, limits, starts, longest)  # (B, W, S)
        names = predicted if self.network.config.target_positions else None
        states: Tensor = self.network.run_slots(ids, positions, names, allowed, self.cache)
        return states

    def _allowed(self, ranks: Tensor, limits: Tensor, starts: Tensor | int, longest: int) -> Tensor:
        # bool (B, W, S): each slot sees itself, and what is held or new of a rank up to its limit
        filled = longest + ranks.shape[1]
        if self.ranks is None or self.ranks.shape[1] < filled:
            room = ranks.new_full((len(ranks), max(self.capacity, filled + filled // 4)), HIDDEN)
            if self.ranks is not None:
                room[:, : self.ranks.shape[1]] = self.ranks
            self.ranks = room
        if isinstance(starts, int):
            self.ranks[:, starts:filled] = ranks
            allowed = self.ranks[:, None, :filled] <= limits[..., None]
            allowed.diagonal(starts, 1, 2).fill_(True)
            return allowed
        own = starts[:, None] + torch.arange(ranks.shape[1], device=ranks.device)  # (B, W)
        self.ranks.scatter_(1, own, ranks)
        allowed = self.ranks[:, None, :filled] <= limits[..., None]
        # further columns hold what other passes left there
        columns = torch.arange(filled, device=ranks.device)
        allowed &= columns < (starts + ranks.shape[1])[:, None, None]
        return allowed.scatter_(2, own[..., None], True)
