"""Masks as expressions: leaves are rules over indices, `& | ~` build nodes, tensors appear only at the exits.

A rule answers, for index tensors that broadcast together, whether query `q` of head `h` in batch row `b` may see key
`k`. The text form is the same everywhere: in YAML, on the command line, in `repr` and in config.json.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .keep import keep_mask
from .reach import reach_of
from .text import check_integer, not_a_mask, parse_mask
from .tiles import Grid, Tiles, Tiling


class Mask(ABC):
    """Which keys each query may see. True means "may attend", everywhere."""

    # whether an argument is a tensor: such a mask has no text form
    takes_tensors = False

    @abstractmethod
    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Apply the rule to integer index tensors that broadcast together; bool, of the broadcast shape."""

    def operands(self) -> tuple["Mask", ...]:
        """The masks this one is made of; empty for a leaf."""
        return ()

    def rebuilt(self, *operands: "Mask") -> "Mask":
        """The same combination of other operands, as many as `operands()` gives; a leaf is itself."""
        return type(self)(*operands) if operands else self

    def count_rows(self) -> int:
        """Number of batch rows the mask tells apart: 1 when it treats all rows alike."""
        return max((operand.count_rows() for operand in self.operands()), default=1)

    def count_heads(self) -> int:
        """Number of heads the mask tells apart: 1 when it treats all heads alike."""
        return max((operand.count_heads() for operand in self.operands()), default=1)

    def arguments(self) -> list[object]:
        """What stands between the brackets of the text form."""
        values = [getattr(self, field.name) for field in fields(self)]  # type: ignore[arg-type]
        return [value for value in values if value is not None]

    def evaluate(self, grid: Grid) -> Tensor:
        """The rule at every point of a grid: bool, broadcastable to (B, H, T_q, T_kv)."""
        return self.allowed(*grid.indices())

    def written(self, grid: Grid) -> Tensor:
        """As `evaluate`, under its former name; goes with the next release."""
        return self.evaluate(grid)

    def tiles(self, tiling: Tiling) -> Tiles:
        """What is known of each tile without looking at its pairs; nothing, unless a mask says more."""
        unknown = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tiling.device)
        return Tiles(unknown, ~unknown)

    def shifted(self, starts: Tensor) -> "Mask":
        """The same mask with pattern indices counted from `starts`, long (B or 1, T), a first column per slot."""
        return Shifted(self, starts)

    def check_fits(self, *, batch: int, heads: int, q_len: int, kv_len: int, exact: bool = False) -> None:
        """Raise ValueError where a tensor inside the mask does not cover these sizes, or, if `exact`, exceeds them."""
        for operand in self.operands():
            operand.check_fits(batch=batch, heads=heads, q_len=q_len, kv_len=kv_len, exact=exact)

    def __and__(self, other: "Mask") -> "Mask":
        if not isinstance(other, Mask):
            raise TypeError(not_a_mask(other))
        return And(self, other)

    def __or__(self, other: "Mask") -> "Mask":
        if not isinstance(other, Mask):
            raise TypeError(not_a_mask(other))
        return Or(self, other)

    def __rand__(self, other: object) -> "Mask":
        # reached only where the left side is no mask
        raise TypeError(not_a_mask(other))

    __ror__ = __rand__

    def __invert__(self) -> "Mask":
        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError("a Mask has no truth value: use & | ~ instead of and, or, not")

    @property
    def mask_mod(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """The rule as torch's `create_block_mask` and flex_attention take it: (b, h, q, k) -> bool."""

        def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            # torch counts the parameters of a plain function; a bound method shows one too many
            return self.allowed(b, h, q, k)

        return mask_mod

    def dense(
        self,
        q_len: int,
        kv_len: int | None = None,
        *,
        batch: int | None = None,
        heads: int | None = None,
        offset: int = 0,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Write the mask out as a tensor.

        Args:
            q_len: number of queries; they are the tokens `offset` to `offset + q_len - 1`.
            kv_len: number of keys, from token 0; `offset + q_len` when None.
            batch, heads: leading sizes of the result; as many as the mask tells apart when None.

        Returns:
            bool (batch, heads, q_len, kv_len), True where the query may see the key.

        Raises:
            TypeError, ValueError: a size that is no integer or too small, or that the mask's tensors do not cover.
        """
        for name, size in (("q_len", q_len), ("kv_len", kv_len), ("batch", batch), ("heads", heads)):
            check_integer(name, 1 if size is None else size, low=1)
        check_integer("offset", offset, low=0)
        kv_len = offset + q_len if kv_len is None else kv_len
        batch = self.count_rows() if batch is None else batch
        heads = self.count_heads() if heads is None else heads
        self.check_fits(batch=batch, heads=heads, q_len=offset + q_len, kv_len=kv_len)
        grid = Grid(range(batch), range(heads), range(offset, offset + q_len), range(kv_len), device)
        return self.evaluate(grid).expand(batch, heads, q_len, kv_len)

    def reach(self, length: int, layers: int | None = None, *, batch: int | None = None) -> Tensor:
        """Which inputs can influence which outputs after `layers` layers, or any number of them when None.

        A residual stream carries every slot's own input along, so one layer's reach is the mask or the identity; heads
        are united. Exact for a generic network (DESIGN: `(M | I)^L`).

        Returns:
            bool (batch, length, length), True at (b, q, k) where the output of q can depend on the input of k; as many
            rows as the mask tells apart when `batch` is None.
        """
        check_integer("length", length, low=1)
        check_integer("layers", 1 if layers is None else layers, low=1, advice="; None means any number")
        return reach_of(self.dense(length, batch=batch).any(1), layers)

    @staticmethod
    def of(tensor: Tensor) -> "Mask":
        """A mask written out: bool, 0-1 or additive, (T_q, T_kv), (B, T_q, T_kv) or (B, H, T_q, T_kv)."""
        return Dense(keep_mask(tensor, "tensor", dims=(2, 3, 4)))

    @staticmethod
    def parse(text: str) -> "Mask":
        """Read the text form, such as `causal & window(256) | prefix(64)`; nothing is evaluated.

        Raises:
            ValueError: anything but registered names, `& | ~`, calls with integers and masks; one line.
        """
        # a custom pattern may be defined anew, and is kept no longer than its user keeps it
        custom = [name for name, kind in PATTERNS.items() if hasattr(kind, "rule")]
        is_lasting = isinstance(text, str) and not any(name in text for name in custom)
        mask: Mask = _parsed(text) if is_lasting else parse_mask(text, PATTERNS)
        return mask

    def __str__(self) -> str:
        return _text(self)

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented if not isinstance(other, Mask) else False
        mine, theirs = ([getattr(m, f.name) for f in fields(m)] for m in (self, other))  # type: ignore[arg-type]
        return all(_same(a, b) for a, b in zip(mine, theirs, strict=True))

    def __hash__(self) -> int:
        return hash(str(self))


@dataclass(frozen=True, eq=False, repr=False)
class And(Mask):
    """Query q sees key k when both masks let it."""

    left: Mask
    right: Mask

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.left.allowed(b, h, q, k) & self.right.allowed(b, h, q, k)

    def operands(self) -> tuple[Mask, ...]:
        return self.left, self.right

    def evaluate(self, grid: Grid) -> Tensor:
        return self.left.evaluate(grid) & self.right.evaluate(grid)

    def tiles(self, tiling: Tiling) -> Tiles:
        left, right = self.left.tiles(tiling), self.right.tiles(tiling)
        return Tiles(left.any & right.any, left.all & right.all)

    def shifted(self, starts: Tensor) -> Mask:
        return And(self.left.shifted(starts), self.right.shifted(starts))


@dataclass(frozen=True, eq=False, repr=False)
class Or(Mask):
    """Query q sees key k when either mask lets it."""

    left: Mask
    right: Mask

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.left.allowed(b, h, q, k) | self.right.allowed(b, h, q, k)

    def operands(self) -> tuple[Mask, ...]:
        return self.left, self.right

    def evaluate(self, grid: Grid) -> Tensor:
        return self.left.evaluate(grid) | self.right.evaluate(grid)

    def tiles(self, tiling: Tiling) -> Tiles:
        left, right = self.left.tiles(tiling), self.right.tiles(tiling)
        return Tiles(left.any | right.any, left.all | right.all)

    def shifted(self, starts: Tensor) -> Mask:
        return Or(self.left.shifted(starts), self.right.shifted(starts))


@dataclass(frozen=True, eq=False, repr=False)
class Not(Mask):
    """Query q sees key k when the mask does not let it."""

    operand: Mask

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return ~self.operand.allowed(b, h, q, k)

    def operands(self) -> tuple[Mask, ...]:
        return (self.operand,)

    def evaluate(self, grid: Grid) -> Tensor:
        return ~self.operand.evaluate(grid)

    def tiles(self, tiling: Tiling) -> Tiles:
        some, every = self.operand.tiles(tiling)
        return Tiles(~every, ~some)

    def shifted(self, starts: Tensor) -> Mask:
        return Not(self.operand.shifted(starts))


@dataclass(frozen=True, eq=False, repr=False)
class Shifted(Mask):
    """A pattern whose indices count from a first column per slot: left padding, packed documents.

    `starts` is long (B or 1, T); slot t of row b is the pattern's token `t - starts[b, t]`.
    """

    pattern: Mask
    starts: Tensor

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        row = b * (self.starts.shape[0] > 1)
        return self.pattern.allowed(b, h, q - self.starts[row, q], k - self.starts[row, k])

    def operands(self) -> tuple[Mask, ...]:
        return (self.pattern,)

    def rebuilt(self, *operands: Mask) -> Mask:
        (pattern,) = operands
        return Shifted(pattern, self.starts)

    def count_rows(self) -> int:
        return max(self.pattern.count_rows(), self.starts.shape[0])

    def check_fits(self, *, batch: int, heads: int, q_len: int, kv_len: int, exact: bool = False) -> None:
        rows, slots = self.starts.shape
        if rows not in (1, batch) or slots < max(q_len, kv_len):
            raise ValueError(
                f"mask: shifted by a tensor of shape {tuple(self.starts.shape)}, expected {batch} rows (or 1) of "
                f"{max(q_len, kv_len)} slots"
            )
        self.pattern.check_fits(batch=batch, heads=heads, q_len=q_len, kv_len=kv_len)

    def tiles(self, tiling: Tiling) -> Tiles:
        return self.pattern.tiles(tiling.counted_from(self.starts))


class TensorMask(Mask):
    """A leaf that holds per-row data; its indices are columns, so left padding does not shift it."""

    takes_tensors = True

    def shifted(self, starts: Tensor) -> Mask:
        return self

    @abstractmethod
    def count_rows(self) -> int:
        """Number of batch rows its tensors tell apart."""


@dataclass(frozen=True, eq=False, repr=False)
class Dense(TensorMask):
    """Query q sees key k when the tensor says so: bool (T_q, T_kv), (B, T_q, T_kv) or (B, H, T_q, T_kv).

    The tensor's first row is query `first`: 0, or, inside a compiled static cache, the tensor that holds its number.
    """

    tensor: Tensor
    first: int | Tensor = 0

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        table = self._table().to(q.device)
        # one indexing expression: chained ones break compiled flex attention
        return table[b * (table.shape[0] > 1), h * (table.shape[1] > 1), q - self.first, k]

    def evaluate(self, grid: Grid) -> Tensor:
        if grid.offset is not self.first and (grid.offset is not None or isinstance(self.first, Tensor)):
            return super().evaluate(grid)
        table = self._table().to(grid.device if grid.device is not None else self.tensor.device)
        first = self.first if isinstance(self.first, int) else 0
        if table.shape[0] > 1:
            table = table[grid.rows.start : grid.rows.stop]
        if table.shape[1] > 1:
            table = table[:, grid.heads.start : grid.heads.stop]
        queries = slice(grid.queries.start - first, grid.queries.stop - first)
        return table[:, :, queries, grid.keys.start : grid.keys.stop]

    def tiles(self, tiling: Tiling) -> Tiles:
        assert isinstance(self.first, int)
        first = tiling.offset - self.first
        table = self._table()[:, :, first : first + tiling.q_len, : tiling.kv_len]
        return Tiles(_by_tile(table, tiling.size, is_any=True), _by_tile(table, tiling.size, is_any=False))

    def count_rows(self) -> int:
        return self._table().shape[0]

    def count_heads(self) -> int:
        return self._table().shape[1]

    def check_fits(self, *, batch: int, heads: int, q_len: int, kv_len: int, exact: bool = False) -> None:
        *lead, q_own, kv_own = self.tensor.shape
        lead_ok = all(own in (1, asked) for own, asked in zip(lead, (batch, heads), strict=False))
        too_short = q_own < q_len or kv_own < kv_len
        if not lead_ok or too_short or (exact and (q_own, kv_own) != (q_len, kv_len)):
            raise ValueError(
                f"mask: a tensor of shape {tuple(self.tensor.shape)} does not fit batch={batch}, heads={heads}, "
                f"{q_len} queries and {kv_len} keys"
            )

    def _table(self) -> Tensor:
        # the head axis is inserted by hand: torch would read (B, T, T) as per head when B = H
        table = self.tensor
        if table.dim() == 4:
            return table
        return table[None, None] if table.dim() == 2 else table[:, None]  # (B or 1, H or 1, T_q, T_kv)


def on_device(mask: Mask, device: torch.device) -> Mask:
    """The same mask with its tensors on a device; `mask` itself where they are, or where it holds none."""
    return _moved(mask, device, {})


def _moved(mask: Mask, device: torch.device, known: dict[int, Mask]) -> Mask:
    # a mask that several heads share stays one object
    if id(mask) not in known:
        operands = mask.operands()
        moved = [_moved(operand, device, known) for operand in operands]
        is_same = all(own is other for own, other in zip(operands, moved, strict=True))
        made = mask if is_same else mask.rebuilt(*moved)
        for name in [field.name for field in fields(made)]:  # type: ignore[arg-type]
            value = getattr(made, name)
            if isinstance(value, Tensor) and value.device != device:
                made = copy(made) if made is mask else made
                object.__setattr__(made, name, value.to(device))
        known[id(mask)] = made
    return known[id(mask)]


def _by_tile(table: Tensor, size: int, *, is_any: bool) -> Tensor:
    # (B, H, T_q, T_kv) -> whether any or all of each tile is True, (B, H, query tiles, key tiles)
    rows, columns = (-extent % size for extent in table.shape[-2:])
    if rows or columns:
        table = torch.nn.functional.pad(table, (0, columns, 0, rows), value=not is_any)
    # the extremes of bytes are found twenty times as fast as the any and all of bools, over rows first
    numbers = table.view(torch.uint8).unflatten(-2, (-1, size)).unflatten(-1, (-1, size))
    return (numbers.amax(-3).amax(-1) if is_any else numbers.amin(-3).amin(-1)) != 0


# the one name -> pattern table; patterns, tensors and custom fill it
PATTERNS: dict[str, type[Mask]] = {}


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> Mask:
    # one object for a text: what is remembered of a mask is found fastest by the same object
    mask: Mask = parse_mask(text, PATTERNS)
    return mask


def _same(a: object, b: object) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool((a.cpu() == b.cpu()).all())
    return bool(a == b)


_LEVELS: dict[type[Mask], int] = {Or: 0, And: 1, Not: 2}


def _text(mask: Mask) -> str:
    if isinstance(mask, And | Or):
        sign = "&" if isinstance(mask, And) else "|"
        return f"{_nested(mask.left, mask)} {sign} {_nested(mask.right, mask, right=True)}"
    if isinstance(mask, Not):
        return f"~{_nested(mask.operand, mask)}"
    if isinstance(mask, Dense):
        return _value_text(mask.tensor)
    if isinstance(mask, Shifted):
        return f"shifted({mask.pattern}, {_value_text(mask.starts)})"
    name = next((name for name, kind in PATTERNS.items() if kind is type(mask)), type(mask).__name__)
    values = mask.arguments()
    return f"{name}({', '.join(map(_value_text, values))})" if values else name


def _nested(inner: Mask, outer: Mask, *, right: bool = False) -> str:
    # & and | are left-associative: a right operand of the same kind keeps its brackets
    level, limit = _LEVELS.get(type(inner), 3), _LEVELS[type(outer)]
    return f"({inner})" if level < limit or (right and level == limit) else str(inner)


def _value_text(value: object) -> str:
    return f"<tensor {tuple(value.shape)}>" if isinstance(value, Tensor) else str(value)
