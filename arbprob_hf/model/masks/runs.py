"""Packed sequences: whether a mask is causal within runs of tokens, and nothing else."""

import torch
from torch import Tensor

from .mask import And, Mask, Shifted
from .patterns import Causal, Full, Window
from .tensors import HIDDEN, Documents, Order, Padding


def causal_runs(mask: Mask, length: int) -> Tensor | None:
    """Where the runs start of a mask that is causal within runs, over tokens 0 to length - 1.

    Query q then sees key k exactly when k <= q and both lie in the same run. It is told from the documents in a mask
    and from what is ANDed with them, whose values are read.

    Returns:
        bool (B or 1, length), the first column True; None where the mask is another, or where it is not plain.
    """
    parts = conjuncts(mask)
    packed = [part for part in parts if type(part) is Documents]
    if not packed:
        return None
    is_start = torch.zeros(1, length, dtype=torch.bool)
    for one in packed:
        changes = one.ids[:, :length].diff(dim=1) != 0  # (B or 1, T - 1)
        values = one.ids[:, :length].sort(dim=1).values
        if not bool(((values.diff(dim=1) != 0).sum(1) == changes.sum(1)).all()):
            # an id that comes again belongs to two runs
            return None
        is_start = is_start | torch.nn.functional.pad(changes, (1, 0), value=True)
    others = [part for part in parts if type(part) is not Documents]
    told = [_is_ordered(part, is_start, length) for part in others]
    return is_start if True in told and None not in told else None


def conjuncts(mask: Mask) -> list[Mask]:
    """The masks that are ANDed to make this one."""
    return [one for part in mask.operands() for one in conjuncts(part)] if type(mask) is And else [mask]


def _is_ordered(mask: Mask, is_start: Tensor, length: int) -> bool | None:
    # within each run: True for causal, False for all pairs (causal ones at least); None for anything else
    if type(mask) is Shifted:
        step = (torch.arange(length) - mask.starts[:, :length]).diff(dim=1)
        if type(mask.pattern) is Window and not _holds(step == 1, is_start):
            return None
        return _is_ordered_pattern(mask.pattern, is_start, is_forward=_holds(step > 0, is_start))
    if type(mask) is Padding:
        return False if bool(mask.keep[:, :length].all()) else None
    if type(mask) is Order:
        return True if _is_sorted(mask, is_start, length) else None
    return _is_ordered_pattern(mask, is_start, is_forward=True)


def _is_ordered_pattern(mask: Mask, is_start: Tensor, *, is_forward: bool) -> bool | None:
    if type(mask) is Causal:
        return True if is_forward else None
    if type(mask) is Full:
        return False
    if type(mask) is Window:
        return False if longest_run(is_start) <= mask.size else None
    return None


def _is_sorted(mask: Order, is_start: Tensor, length: int) -> bool:
    # neighbours suffice: ranks that rise within a run leave nothing between
    rank = mask.rank[:, :length]
    limit = rank if mask.limit is None else mask.limit[:, :length]
    before, after = rank[:, :-1], rank[:, 1:]
    sees_earlier = (before <= limit[:, 1:]) & (before < HIDDEN)
    sees_no_later = (limit[:, :-1] < after) | (after >= HIDDEN)
    return _holds(sees_earlier & sees_no_later & (before <= after), is_start)


def _holds(between: Tensor, is_start: Tensor) -> bool:
    # of each two neighbours of one run, (B or 1, T - 1)
    return bool((between | is_start[:, 1:]).all())


def longest_run(is_start: Tensor) -> int:
    """Tokens of the longest run; `is_start` is what `causal_runs` returns."""
    index = torch.arange(is_start.shape[1])
    return int((index - torch.where(is_start, index, 0).cummax(1).values).max()) + 1
