"""Proof that a mask leaks nothing through several layers, or the path by which it does.

An order of ranks and limits is proved by a look at each slot (`certify`); any other mask by its reach, a path named for
each leak (`check_leakage`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from ..errors import check_integer
from ..model.masks.mask import Mask
from ..model.masks.reach import reach_of, reach_through
from ..model.masks.tensors import HIDDEN
from .layer_reach import AnyMask, read_masks

_LISTED = 10


@dataclass(frozen=True)
class Certificate:
    """What `certify` found; truthy when the ranks and limits leak nothing at any depth.

    `offending` lists (row, slot, rank, limit) of the first visible slots whose limit exceeds their rank, of `total`.
    """

    rows: int
    length: int
    total: int
    offending: tuple[tuple[int, int, int, int], ...]

    def __bool__(self) -> bool:
        return self.total == 0

    def __str__(self) -> str:
        sizes = f"{self.length} slots" + (f", {self.rows} rows" if self.rows > 1 else "")
        if self:
            return f"certified: no slot relays what another must not see, at any depth ({sizes})"
        named = [
            (f"row {row} " if self.rows > 1 else "") + f"slot {slot} (rank {rank}, limit {limit})"
            for row, slot, rank, limit in self.offending
        ]
        more = self.total - len(named)
        listed = ", ".join(named) + (f" and {more} more" if more else "")
        return f"not certified: {self.total} visible slots relay what lies above their rank: {listed}"


def certify(ranks: Tensor, limits: Tensor | None = None) -> Certificate:
    """Prove in O(T) that `order(ranks, limits)` leaks nothing, whatever the number of layers.

    Where `limit <= rank` on every visible slot (rank < HIDDEN), the output of slot q depends on its own input and on
    those of the slots k with `ranks[k] <= limits[q]`, and on nothing else (DESIGN, section 1). A visible slot of a
    higher limit relays what it must not.

    Args:
        ranks: integer (T,) or (B, T). limits: the same, or None for `ranks`.

    Raises:
        TypeError, ValueError: not integer tensors, or of shapes that do not go together.
    """
    ranks = _table("ranks", ranks)
    if limits is None:
        return Certificate(ranks.shape[0], ranks.shape[1], 0, ())
    limits = _table("limits", limits)
    if limits.shape[1] != ranks.shape[1] or len({1, len(ranks), len(limits)}) > 2:
        raise ValueError(f"limits: expected the shape of ranks, {tuple(ranks.shape)}, got {tuple(limits.shape)}")
    ranks, limits = torch.broadcast_tensors(ranks, limits)
    relays = (limits > ranks) & (ranks < HIDDEN)  # (B, T)
    total = int(relays.sum())
    first = relays.nonzero()[:_LISTED].tolist() if total else []
    offending = tuple((row, slot, int(ranks[row, slot]), int(limits[row, slot])) for row, slot in first)
    return Certificate(ranks.shape[0], ranks.shape[1], total, offending)


@dataclass(frozen=True)
class Leak:
    """One path by which a query learns what it must not.

    `slots`: the query first, then each relay, the key last. `layers`: the layer each step is taken in, counted from 0,
    where the layers have masks of their own. `row`: the batch row; None where all rows are alike.
    """

    slots: tuple[int, ...]
    layers: tuple[int, ...] | None = None
    row: int | None = None

    def __str__(self) -> str:
        row = "" if self.row is None else f"row {self.row}: "
        steps = len(self.slots) - 1
        if steps == 0:
            return f"{row}slot {self.slots[0]} <- itself (0 layers)"
        path = " <- ".join(f"slot {slot}" for slot in self.slots)
        named = f"{steps}" if self.layers is None else ", ".join(map(str, self.layers))
        word = "layer" if steps == 1 else "layers"
        return f"{row}{path} ({f'{named} {word}' if self.layers is None else f'{word} {named}'})"


@dataclass(frozen=True)
class Leakage:
    """What `check_leakage` found; truthy when something leaks: `if check_leakage(...): stop`.

    Attributes:
        total: the number of pairs (query, key) that leak.
        leaks: the first of them, each with a shortest path.
        where: bool (B, T, T), True at each pair that leaks.
    """

    total: int
    leaks: tuple[Leak, ...]
    layers: int | None
    where: Tensor = field(repr=False, compare=False)

    def __bool__(self) -> bool:
        return self.total > 0

    def __str__(self) -> str:
        depth = "any number of layers" if self.layers is None else f"{self.layers} layer{'s' * (self.layers > 1)}"
        if not self:
            return f"no leak: {self.where.shape[-1]} slots, {depth}"
        lines = [f"{self.total} leak{'s' * (self.total > 1)}: {self.where.shape[-1]} slots, {depth}"]
        lines += [f"  {leak}" for leak in self.leaks]
        more = self.total - len(self.leaks)
        return "\n".join([*lines, f"  and {more} more"] if more else lines)


def check_leakage(
    mask: AnyMask | Sequence[AnyMask],
    forbidden: Tensor | None = None,
    *,
    layers: int | None = None,
    length: int | None = None,
) -> Leakage:
    """Find what the outputs of a network under a mask must not depend on and do.

    Args:
        mask: one for all layers, a `Mask`, its text or a keep-mask tensor; or a list of them, first layer first.
            A list takes turns where there are more layers; `config.mask` wants one per layer.
        forbidden: bool or 0-1, (T, T) or (B, T, T), True at (q, k) where the output of q must not depend on the input
            of k. None forbids whatever no layer's mask allows: what is then reported are relays.
        layers: the number of layers, a multiple of the number of masks; None for any number under one mask, for one
            layer per mask otherwise.
        length: the number of slots, needed unless a tensor has it.

    Returns:
        A `Leakage`, truthy when something leaks; it prints a path for each of the first leaks.

    Raises:
        TypeError, ValueError: one line naming the argument, what was expected, what came and what to do.
    """
    masks = read_masks(mask)
    if layers is not None and check_integer("layers", layers, low=1) % len(masks):
        raise ValueError(f"layers: expected a multiple of the {len(masks)} masks, which take turns, got {layers}")
    forbidden = None if forbidden is None else _read_forbidden(forbidden)
    size = _length(masks, forbidden, length)
    forbidden = None if forbidden is None else _forbidden(forbidden, size)
    rows = max([one.count_rows() for one in masks] + ([] if forbidden is None else [len(forbidden)]))
    seen = [one.dense(size, batch=rows).any(1) for one in masks]  # (B, T, T) each
    if len(masks) == 1:
        reach = reach_of(seen[0], layers)
    else:
        layers = len(masks) if layers is None else layers
        reach = reach_through([seen[layer % len(seen)] for layer in range(layers)])
    if forbidden is None:
        own = torch.eye(size, dtype=torch.bool, device=reach.device)
        forbidden = ~(own | torch.stack(seen[: layers or 1]).any(0))
    where = reach & forbidden.to(reach.device)
    first = where.nonzero()[:_LISTED].tolist()
    leaks = tuple(_leak([step[row] for step in seen], (row, q, k), layers=layers, rows=rows) for row, q, k in first)
    return Leakage(int(where.sum()), leaks, layers, where)


def _leak(seen: list[Tensor], pair: tuple[int, int, int], *, layers: int | None, rows: int) -> Leak:
    row, query, key = pair
    if len(seen) == 1:
        # under one mask any layer will do: the walk stops at the key
        slots, _ = _shortest(((0, seen[0]) for _ in range(len(seen[0]))), query, key, stop=True)
        return Leak(slots, None, row if rows > 1 else None)
    assert layers is not None
    downwards = ((layer, seen[layer % len(seen)]) for layer in reversed(range(layers)))
    slots, taken = _shortest(downwards, query, key, stop=False)
    return Leak(slots, taken, row if rows > 1 else None)


def _shortest(
    layers: Iterable[tuple[int, Tensor]], query: int, key: int, *, stop: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    # from the query down through the layers, last one first: the fewest steps to each slot, and where they came from
    steps: Tensor | None = None
    trail: list[tuple[int, Tensor, Tensor]] = []
    for layer, seen in layers:
        if steps is None:
            steps = torch.full((len(seen),), torch.inf, device=seen.device)
            steps[query] = 0
        if stop and steps[key] < torch.inf:
            break
        fewest, source = torch.where(seen, steps[:, None] + 1, torch.inf).min(0)  # (T,) each
        trail.append((layer, fewest < steps, source))
        steps = torch.minimum(fewest, steps)
    slots: list[int] = [key]
    taken: list[int] = []
    for layer, is_better, source in reversed(trail):
        if is_better[slots[0]]:
            slots.insert(0, int(source[slots[0]]))
            taken.insert(0, layer)
    return tuple(slots), tuple(taken)


def _length(masks: list[Mask], forbidden: Tensor | None, length: int | None) -> int:
    if length is not None:
        return length
    known = set().union(*(own_lengths(mask) for mask in masks))
    known |= set() if forbidden is None else {int(forbidden.shape[-1])}
    if len(known) != 1:
        got = f"got {' and '.join(map(str, sorted(known)))}" if known else "no tensor has it"
        raise ValueError(f"length: expected one number of slots, {got}; pass length=")
    return known.pop()


def own_lengths(mask: Mask) -> set[int]:
    """The numbers of slots that the tensors inside a mask cover; empty for a rule over indices."""
    tables = [getattr(mask, one.name) for one in fields(mask)] if mask.takes_tensors else []  # type: ignore[arg-type]
    own = {int(table.shape[-1]) for table in tables if isinstance(table, Tensor) and table.dim()}
    return own.union(*(own_lengths(operand) for operand in mask.operands()))


def _read_forbidden(value: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"forbidden: expected a tensor of bool or 0-1, (T, T) or (B, T, T), got {type(value).__name__}; wrap it in "
            "torch.tensor(...)"
        )
    if value.dim() not in (2, 3) or value.numel() == 0:
        raise ValueError(f"forbidden: expected shape (T, T) or (B, T, T), got {tuple(value.shape)}")
    if not bool(((value == 0) | (value == 1)).all()):
        raise ValueError("forbidden: expected only 0 and 1, 1 where an output must not depend on an input")
    return value != 0


def _forbidden(value: Tensor, size: int) -> Tensor:
    if tuple(value.shape[-2:]) != (size, size):
        raise ValueError(f"forbidden: expected shape (T, T) or (B, T, T) with T = {size}, got {tuple(value.shape)}")
    return value[None] if value.dim() == 2 else value


def _table(name: str, value: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype.is_floating_point or value.is_complex():
        got = f"dtype {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        advice = "" if isinstance(value, Tensor) else "; wrap it in torch.tensor(...)"
        raise TypeError(f"{name}: expected an integer tensor (T,) or (B, T), got {got}{advice}")
    if value.dim() not in (1, 2) or value.numel() == 0:
        raise ValueError(f"{name}: expected shape (T,) or (B, T), got {tuple(value.shape)}")
    return (value[None] if value.dim() == 1 else value).long()
