"""Masks as expressions: leaves are rules over indices, `& | ~` build nodes, tensors appear only at the exits.

A rule answers, for index tensors that broadcast together, whether query `q` of head `h` in batch row `b` may see key
`k`. The text form is the same everywhere: in YAML, on the command line, in `repr` and in config.json.
"""

import ast
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

# hostile text is refused before it reaches the parser
MAX_TEXT = 2_000
MAX_DEPTH = 50
# deeper trees would exhaust the stack where they are printed and evaluated
MAX_OPERATORS = 100
MAX_INTEGER = 2**31 - 1


class Mask(ABC):
    """Which keys each query may see. True means "may attend", everywhere."""

    @abstractmethod
    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Apply the rule to integer index tensors that broadcast together; bool, of the broadcast shape."""

    def operands(self) -> tuple["Mask", ...]:
        """The masks this one is made of; empty for a leaf."""
        return ()

    def shifted(self, starts: Tensor) -> "Mask":
        """The same mask with pattern indices counted from `starts`, long (B or 1, T), a first column per slot."""
        return Shifted(self, starts)

    def check_fits(self, *, batch: int, heads: int, q_len: int, kv_len: int, exact: bool = False) -> None:
        """Raise ValueError where a tensor inside the mask does not cover these sizes, or, if `exact`, exceeds them."""
        for operand in self.operands():
            operand.check_fits(batch=batch, heads=heads, q_len=q_len, kv_len=kv_len, exact=exact)

    def __and__(self, other: "Mask") -> "Mask":
        return And(self, other) if isinstance(other, Mask) else NotImplemented

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, other) if isinstance(other, Mask) else NotImplemented

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
        batch: int = 1,
        heads: int = 1,
        offset: int = 0,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Write the mask out as a tensor.

        Args:
            q_len: number of queries; they are the tokens `offset` to `offset + q_len - 1`.
            kv_len: number of keys, from token 0; `offset + q_len` when None.
            batch, heads: leading sizes of the result.

        Returns:
            bool (batch, heads, q_len, kv_len), True where the query may see the key.
        """
        kv_len = offset + q_len if kv_len is None else kv_len
        self.check_fits(batch=batch, heads=heads, q_len=offset + q_len, kv_len=kv_len)
        b, h, q, k = index_grid(batch, heads, q_len, kv_len, offset=offset, device=device)
        return self.allowed(b, h, q, k).expand(batch, heads, q_len, kv_len)

    def reach(self, length: int, layers: int, *, batch: int = 1) -> Tensor:
        """Which inputs can influence which outputs after `layers` layers: bool (batch, length, length).

        A residual stream carries every slot's own input along, so one layer's reach is the mask or the identity; heads
        are united. Exact for a generic network (DESIGN: `(M | I)^L`).
        """
        if layers < 1:
            raise ValueError(f"layers: expected at least 1, got {layers}")
        heads = max(1, count_heads(self))
        seen = self.dense(length, batch=batch, heads=heads).any(1)  # (B, T, T)
        step = (seen | torch.eye(length, dtype=torch.bool)).float()
        total = step
        for _ in range(layers - 1):
            total = ((total @ step) > 0).float()
        return total > 0

    @staticmethod
    def of(tensor: Tensor) -> "Mask":
        """A mask written out: bool or 0-1, (T_q, T_kv), (B, T_q, T_kv) or (B, H, T_q, T_kv)."""
        return Dense(keep_mask(tensor, "tensor", dims=(2, 3, 4)))

    @staticmethod
    def parse(text: str) -> "Mask":
        """Read the text form, such as `causal & window(256) | prefix(64)`; nothing is evaluated.

        Raises:
            ValueError: anything but registered names, `& | ~`, calls with integers and masks; one line.
        """
        return _parse(text)

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


def index_grid(
    batch: int,
    heads: int,
    q_len: int,
    kv_len: int,
    *,
    offset: int | Tensor = 0,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Index tensors (B, 1, 1, 1), (1, H, 1, 1), (1, 1, T_q, 1), (1, 1, 1, T_kv), queries counted from `offset`."""
    b = torch.arange(batch, device=device)[:, None, None, None]
    h = torch.arange(heads, device=device)[None, :, None, None]
    q = (torch.arange(q_len, device=device) + offset)[None, None, :, None]
    k = torch.arange(kv_len, device=device)[None, None, None, :]
    return b, h, q, k


def keep_mask(tensor: Tensor, name: str, *, dims: tuple[int, ...]) -> Tensor:
    """Turn a 0-1 tensor of any dtype into bool, True = may attend; shape unchanged.

    Raises:
        TypeError: not a real tensor. ValueError: wrong number of dimensions, empty, or values other than 0 and 1.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"{name}: expected a tensor of bool or 0-1, got {type(tensor).__name__}; wrap it in torch.tensor(...)"
        )
    if tensor.dim() not in dims:
        expected = " or ".join(f"{d}" for d in dims).replace(" or ", ", ", len(dims) - 2)
        raise ValueError(f"{name}: expected {expected} dimensions, got shape {tuple(tensor.shape)}")
    if tensor.numel() == 0:
        raise ValueError(f"{name}: expected at least one element, got shape {tuple(tensor.shape)}")
    if tensor.dtype == torch.bool:
        return tensor
    if tensor.is_complex() or tensor.layout != torch.strided:
        got = tensor.dtype if tensor.is_complex() else tensor.layout
        raise TypeError(f"{name}: expected a dense tensor of bool or 0-1, got {got}; convert it first")
    if not torch.compiler.is_compiling():
        _check_zero_one(tensor, name)
    return tensor != 0


def _check_zero_one(tensor: Tensor, name: str) -> None:
    if not bool(((tensor == 0) | (tensor == 1)).all()):
        found = tensor[(tensor != 0) & (tensor != 1)].flatten()[0].item()
        raise ValueError(
            f"{name}: expected only 0 and 1 (1 = may attend), got {found}; an additive mask becomes a keep-mask by "
            "`mask == 0`, a score bias goes in as attention_bias="
        )
    if tensor.dtype.is_floating_point and not bool(tensor.any()):
        raise ValueError(
            f"{name}: all zeros in {tensor.dtype}: nothing allowed, or nothing added? Pass bool: "
            "torch.ones_like(mask, dtype=torch.bool) allows all, torch.zeros_like allows nothing"
        )


def count_heads(mask: Mask) -> int:
    """Number of heads the mask tells apart: 1 when it treats all heads alike."""
    own = mask.tensor.shape[1] if isinstance(mask, Dense) and mask.tensor.dim() == 4 else 1
    return max([own, *(count_heads(operand) for operand in mask.operands())])


@dataclass(frozen=True, eq=False, repr=False)
class And(Mask):
    """Query q sees key k when both masks let it."""

    left: Mask
    right: Mask

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.left.allowed(b, h, q, k) & self.right.allowed(b, h, q, k)

    def operands(self) -> tuple[Mask, ...]:
        return self.left, self.right

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


class TensorMask(Mask):
    """A leaf that holds per-row data; its indices are columns, so left padding does not shift it."""

    def shifted(self, starts: Tensor) -> Mask:
        return self


@dataclass(frozen=True, eq=False, repr=False)
class Dense(TensorMask):
    """Query q sees key k when the tensor says so: bool (T_q, T_kv), (B, T_q, T_kv) or (B, H, T_q, T_kv)."""

    tensor: Tensor

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        table = self.tensor.to(q.device)
        while table.dim() < 4:
            table = table[None] if table.dim() == 2 else table[:, None]
        # (B or 1, H or 1, T_q, T_kv)
        return table[b * (table.shape[0] > 1), h * (table.shape[1] > 1), q, k]

    def check_fits(self, *, batch: int, heads: int, q_len: int, kv_len: int, exact: bool = False) -> None:
        *lead, q_own, kv_own = self.tensor.shape
        lead_ok = all(own in (1, asked) for own, asked in zip(lead, (batch, heads), strict=False))
        too_short = q_own < q_len or kv_own < kv_len
        if not lead_ok or too_short or (exact and (q_own, kv_own) != (q_len, kv_len)):
            raise ValueError(
                f"mask: a tensor of shape {tuple(self.tensor.shape)} does not fit batch={batch}, heads={heads}, "
                f"{q_len} queries and {kv_len} keys"
            )


# the one name -> pattern table; patterns_arbprob fills it
PATTERNS: dict[str, type[Mask]] = {}


def _same(a: object, b: object) -> bool:
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
    values = [getattr(mask, field.name) for field in fields(mask)]  # type: ignore[arg-type]
    values = [value for value in values if value is not None]
    return f"{name}({', '.join(map(_value_text, values))})" if values else name


def _nested(inner: Mask, outer: Mask, *, right: bool = False) -> str:
    # & and | are left-associative: a right operand of the same kind keeps its brackets
    level, limit = _LEVELS.get(type(inner), 3), _LEVELS[type(outer)]
    return f"({inner})" if level < limit or (right and level == limit) else str(inner)


def _value_text(value: object) -> str:
    return f"<tensor {tuple(value.shape)}>" if isinstance(value, Tensor) else str(value)


def _parse(text: str) -> Mask:
    if not isinstance(text, str):
        raise TypeError(f"mask: expected the text of a mask, got {type(text).__name__}")
    _refuse_hostile(text)
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"mask: cannot read {_quote(text)}: {error.args[0]}; write e.g. 'causal & window(256)'"
        ) from None
    return _build(tree.body, text)


def _refuse_hostile(text: str) -> None:
    if len(text) > MAX_TEXT:
        raise ValueError(f"mask: expected at most {MAX_TEXT} characters, got {len(text)}")
    if not text.isascii():
        raise ValueError(f"mask: expected ASCII text, got {_quote(text)}")
    if "<tensor" in text:
        raise ValueError(f"mask: {_quote(text)} holds a tensor, which has no text form; pass it to forward as mask=")
    depth = 0
    for sign in text:
        depth += (sign == "(") - (sign == ")")
        if depth > MAX_DEPTH:
            raise ValueError(f"mask: expected at most {MAX_DEPTH} nested brackets in {_quote(text)}")
    # the parser warns of stray escapes and of letters after a digit: they are refused before it
    odd = re.search(r"[^\w\s&|~(),=]|\b\d+[A-Za-z]\w*", text)
    if odd:
        raise ValueError(
            f"mask: unexpected {odd.group()!r:.40} in {_quote(text)}; only patterns, integers and & | ~ ( ) are read"
        )
    if len(re.findall(r"[&|~]", text)) > MAX_OPERATORS:
        raise ValueError(f"mask: expected at most {MAX_OPERATORS} operators & | ~ in {_quote(text)}")
    if re.search(r"\d{11}", text):
        raise ValueError(f"mask: too large an integer in {_quote(text)}; integers go up to {MAX_INTEGER}")


def _build(node: ast.expr, text: str) -> Mask:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
        left, right = _build(node.left, text), _build(node.right, text)
        return left & right if isinstance(node.op, ast.BitAnd) else left | right
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
        return ~_build(node.operand, text)
    if isinstance(node, ast.Name):
        return _leaf(node.id, [], {}, text)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        positional = [_argument(value, text) for value in node.args]
        named = {str(keyword.arg): _argument(keyword.value, text) for keyword in node.keywords}
        if len(named) < len(node.keywords):
            raise ValueError(f"mask: cannot read {_quote(text)}: an argument is given twice")
        return _leaf(node.func.id, positional, named, text)
    raise ValueError(
        f"mask: {_quote(text)} holds {type(node).__name__}; only patterns, integers and & | ~ ( ) are read"
    )


def _argument(node: ast.expr, text: str) -> int | Mask:
    if not isinstance(node, ast.Constant):
        return _build(node, text)
    if type(node.value) is not int or node.value > MAX_INTEGER:
        raise ValueError(f"mask: expected an integer up to {MAX_INTEGER} in {_quote(text)}, got {node.value!r:.40}")
    return node.value


def _leaf(name: str, positional: list[int | Mask], named: dict[str, int | Mask], text: str) -> Mask:
    if name not in PATTERNS:
        raise ValueError(f"mask: unknown pattern {name!r:.40} in {_quote(text)}; known: {', '.join(sorted(PATTERNS))}")
    kind = PATTERNS[name]
    if issubclass(kind, TensorMask):
        raise ValueError(f"mask: {name} needs a tensor, which has no text form; pass {name}(...) to forward as mask=")
    try:
        return kind(*positional, **named)
    except TypeError as error:
        wanted = ", ".join(field.name for field in fields(kind))  # type: ignore[arg-type]
        detail = str(error) if str(error).startswith(name) else f"expected {name}({wanted})"
        raise ValueError(f"mask: cannot read {_quote(text)}: {detail}") from None


def _quote(text: str) -> str:
    # cut after quoting: an escaped character takes up to ten
    quoted = repr(text)
    return quoted if len(quoted) <= 62 else f"{quoted[:58]}...{quoted[-1]}"
