"""Attention of one new token: the keys it sees are sliced out of the cache, and no mask is made."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..masks.lookahead import holds_rules, holds_tensors
from ..masks.mask import Mask
from ..masks.tiles import Grid, Sizes
from .plan import AdditivePlan, Plan, additive_plan, unmasked_plan

# rows of a pattern are written so many at a time: the next steps find theirs ready
_ROWS_AT_ONCE = 64
# more runs of keys than this are faster masked than copied together
_MOST_RUNS = 4
# rows with tensors are larger; and so many are written for steps that may never come
_STEPS_AT_ONCE = 16


@dataclass(frozen=True)
class DecodePlan(Plan):
    """One query that sees the same runs of keys in every row and head; `runs` is empty where it sees nothing."""

    runs: tuple[slice, ...]
    path = "stepped"

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, dropout: float
    ) -> tuple[Tensor, None]:
        if not self.runs:
            return query.new_zeros(*query.shape[:-1], value.shape[-1]), None
        key, value = self._seen(key), self._seen(value)  # (B, H, keys seen, D)
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling), None

    def _seen(self, states: Tensor) -> Tensor:
        parts = [states[:, :, run] for run in self.runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def step_plan(mask: Mask, sizes: Sizes) -> DecodePlan | None:
    """The plan of a pass of one query per row under a pattern on the CPU.

    None where rows or heads differ, where tensors would have to be looked at, and where the runs are many.
    """
    offset = sizes.offset
    if sizes.q_len != 1 or not isinstance(offset, int) or torch.compiler.is_compiling() or sizes.device.type != "cpu":
        return None
    if mask.count_heads() > 1 or holds_tensors(mask):
        return None
    if holds_rules(mask):
        # asked every time, as it is known only by what it answers, and of no token that may never exist
        (runs,) = _written_runs(mask, offset, 1)
    else:
        runs = _runs_of_block(mask, offset // _ROWS_AT_ONCE)[offset % _ROWS_AT_ONCE]
    return DecodePlan(runs) if len(runs) <= _MOST_RUNS else None


class StepPlans:
    """The plans of one mask for steps of one token, from the rows of a few steps written at once.

    They are the plans that `prepare_attention` makes of each step by itself, for backends without weights. The mask
    must be cache safe: no token after the prompt is seen before its time.
    """

    def __init__(self, resolve: Callable[[Sizes], Mask], sizes: Sizes, *, limit: int, dtype: torch.dtype) -> None:
        """Plan from the step of `sizes` on.

        Args:
            resolve: the mask of a pass of such sizes, of as many tokens as there are steps.
            limit: no step is planned beyond so many tokens. dtype: of the queries.
        """
        self.resolve, self.sizes, self.limit, self.dtype = resolve, sizes, limit, dtype
        self.first = self.stop = -1
        self.written: AdditivePlan | None = None
        self.runs: list[tuple[slice, ...]] | None = None

    def at(self, offset: int) -> Plan:
        """The plan of the token `offset`, which sees itself and the `offset` tokens before it."""
        if not self.first <= offset < self.stop:
            self._begin(offset)
        if self.fused is not None:
            return self.fused
        if self.runs is not None and len(self.runs[offset % _ROWS_AT_ONCE]) <= _MOST_RUNS:
            return DecodePlan(self.runs[offset % _ROWS_AT_ONCE])
        if self.written is None:
            self.written = additive_plan(self.mask, self.block, dtype=self.dtype)
        row = slice(offset - self.first, offset - self.first + 1)
        has_keys = None if self.written.has_keys is None else self.written.has_keys[:, :, row]
        return AdditivePlan(self.written.scores[:, :, row, : offset + 1], has_keys)

    def _begin(self, offset: int) -> None:
        count = max(1, min(_STEPS_AT_ONCE - offset % _STEPS_AT_ONCE, self.limit - offset))
        given = self.sizes
        self.block = Sizes(given.batch, given.heads, count, offset + count, offset, given.device)
        self.mask = self.resolve(self.block)
        one = Sizes(given.batch, given.heads, 1, offset + 1, offset, given.device)
        self.first, self.stop = offset, offset + count
        self.fused = unmasked_plan(self.mask, one)
        self.written, self.runs = None, None
        if self.fused is None and given.device.type == "cpu" and self.mask.count_heads() == 1:
            is_pattern = not holds_tensors(self.mask)
            self.runs = _runs_of_block(self.mask, offset // _ROWS_AT_ONCE) if is_pattern else None


@functools.lru_cache(maxsize=256)
def _runs_of_block(mask: Mask, block: int) -> list[tuple[slice, ...]]:
    return _written_runs(mask, block * _ROWS_AT_ONCE, _ROWS_AT_ONCE)


def _written_runs(mask: Mask, first: int, count: int) -> list[tuple[slice, ...]]:
    # of each of `count` queries, the runs of earlier keys that it sees, itself included
    queries, keys = range(first, first + count), range(first + count)
    allowed = mask.evaluate(Grid(range(1), range(1), queries, keys)).expand(1, 1, len(queries), len(keys))[0, 0]
    # an edge is where a run starts, or where it has ended
    edges: list[list[int]] = [[] for _ in queries]
    for row, edge in F.pad(allowed.tril(first), (1, 1)).diff().nonzero().tolist():
        edges[row].append(edge)
    return [tuple(slice(*ends) for ends in zip(found[::2], found[1::2], strict=True)) for found in edges]
