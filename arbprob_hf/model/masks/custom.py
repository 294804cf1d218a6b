"""`@pattern`: a function becomes a custom mask pattern under a name, in Python and in the text form."""

import importlib
import inspect
import keyword
import pickle
import textwrap
from collections.abc import Callable
from dataclasses import field, fields, make_dataclass
from types import FunctionType
from typing import Any, ClassVar, overload

import torch
from torch import Tensor

from .mask import PATTERNS, Mask
from .patterns import BlockDiffusion, Blocks, Causal, Dilated, Full, Heads, Prefix, Sinks, Strided, Window
from .tensors import Documents, Order, Padding, Tree
from .text import check_integer
from .tiles import Grid

# what the package itself registers; their names are not for others
BUILT_IN: tuple[type[Mask], ...] = (
    *(Causal, Full, Window, Dilated, Strided, Prefix, Sinks),
    *(Blocks, BlockDiffusion, Heads, Documents, Padding, Order, Tree),
)
# small, both axes of another length; an answer may tell no rows or heads apart
_TRIAL = Grid(range(1), range(1), range(5), range(7))


# stands for `b` and `h`, which a rule may take and pass on but not use: nothing would know how many it tells apart.
# Whatever is computed from it is of its device, or raises
_WITHHELD = torch.empty((), dtype=torch.long, device="meta")


class Custom(Mask):
    """Query q sees key k when a registered function says so; each function has a class of its own.

    `rule` is the function, `source` its text as it was when registered, None where python does not know it. The
    function is not given rows and heads: it treats all alike.
    """

    rule: ClassVar[FunctionType]
    source: ClassVar[str | None]
    # how many times a function was registered: texts parsed before may mean something else since
    registrations: ClassVar[int] = 0

    def __post_init__(self) -> None:
        for one in fields(self):  # type: ignore[arg-type]
            check_integer(f"{type(self).__name__}({one.name})", getattr(self, one.name), low=0)
        # models are built under torch's device "meta", where everything looks withheld
        with torch.device("cpu"):
            self._try()

    def _try(self) -> None:
        b, h, q, k = _TRIAL.indices()
        try:
            result = type(self).rule(b, h, q, k, *self.arguments())
        except Exception as error:
            raise ValueError(f"pattern {str(self)[:60]}: {_reason(error)}") from error
        _check_result(str(self)[:60], result)
        for name, given in (("b", (_WITHHELD, h)), ("h", (b, _WITHHELD))):
            if not self._answers(*given, q, k):
                raise ValueError(
                    f"pattern {str(self)[:60]}: uses {name}, but treats all rows and heads alike; a rule for each head "
                    "is heads(mask, mask, ...), data for each row goes in as a tensor: documents, padding, order, "
                    "tree, Mask.of"
                )

    def _answers(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> bool:
        try:
            result = type(self).rule(b, h, q, k, *self.arguments())
        except Exception:
            return False
        return isinstance(result, Tensor) and not result.is_meta

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen: Tensor = type(self).rule(_WITHHELD, _WITHHELD, q, k, *self.arguments())
        if seen.is_meta and not q.is_meta:
            raise ValueError(f"pattern {str(self)[:60]}: uses b or h, but treats all rows and heads alike")
        return seen & (q == q) & (k == k)

    def __copy__(self) -> "Custom":
        return self

    def __deepcopy__(self, known: object) -> "Custom":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        kind = type(self)
        if PATTERNS.get(kind.__name__) is not kind:
            raise pickle.PicklingError(
                f"pattern {kind.__name__[:60]}: was defined anew after this mask was built; build the mask again"
            )
        return _unpickled, (kind.__module__, kind.__name__, str(self))


@overload
def pattern(rule: Callable[..., Any]) -> Callable[..., Mask]: ...


@overload
def pattern(*, name: str | None = None) -> Callable[[Callable[..., Any]], Callable[..., Mask]]: ...


def pattern(rule: Callable[..., Any] | None = None, *, name: str | None = None) -> Any:
    """Register a function `rule(b, h, q, k, ...)` as a pattern: a decorator, with or without a name.

    `q` and `k` are integer tensors that broadcast together; the function answers with a bool tensor that broadcasts
    with them, True where query `q` may see key `k`. It must be pure: the same answer for the same indices, always.
    `b` and `h` (row and head) are there for the form alone; using them is refused when a mask is built. A mask for each
    head is `heads(mask, mask, ...)`; what differs from row to row is a tensor: `documents`, `padding`, `order`, `tree`,
    `Mask.of`. Further parameters are integers from 0, with integer defaults or none. What comes back builds the mask:
    `zebra(3)`, or `zebra(3)` in a text.

    Defining the same function again replaces the pattern: texts mean the new one from then on, those of configurations
    included; masks built before keep the old rule, and cannot be pickled.

    Args:
        name: the name in the text form; the function's own when None.

    Raises:
        TypeError, ValueError: not such a function; or, when a mask is built of it, an answer that is not such a tensor.
    """
    if rule is None:
        return lambda rule: _enter(rule, name)
    return _enter(rule, name)


def _enter(rule: Callable[..., Any], name: str | None) -> type[Custom]:
    if not isinstance(rule, FunctionType):
        raise TypeError(
            f"pattern: expected a function, got {type(rule).__name__}; write @pattern or @pattern(name=...) above a def"
        )
    name = rule.__name__ if name is None else name
    _check_name(name, rule)
    namespace = {"rule": staticmethod(rule), "source": _source(rule), "__doc__": rule.__doc__}
    kind = make_dataclass(
        name, _parameters(name, rule), bases=(Custom,), namespace=namespace, frozen=True, eq=False, repr=False
    )
    kind.__module__, kind.__qualname__ = rule.__module__, rule.__qualname__
    PATTERNS[name] = kind
    Custom.registrations += 1
    return kind


def _unpickled(module: str, name: str, text: str) -> Mask:
    # as pickle does for classes: what defines the rule is imported where that has not happened
    if name not in PATTERNS:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError:
            raise ValueError(
                f"pattern {name[:60]}: is not registered in this process; define it with @pattern, or load its "
                "checkpoint with trust_remote_code=True, before it is unpickled"
            ) from None
    return Mask.parse(text)


def _check_name(name: str, rule: FunctionType) -> None:
    if not isinstance(name, str) or not name.isidentifier() or not name.isascii() or keyword.iskeyword(name):
        raise ValueError(f"pattern: expected a name of ASCII letters, digits and _, got {name!r:.60}; give name=")
    known = PATTERNS.get(name)
    if known in BUILT_IN:
        raise ValueError(f"pattern: the name {name!r} is taken by a pattern of the package; give another name=")
    if known is not None and (known.__module__, known.__qualname__) != (rule.__module__, rule.__qualname__):
        raise ValueError(
            f"pattern: the name {name!r:.60} is taken by {known.__qualname__[:60]} of {known.__module__[-60:]}; give "
            "another name="
        )


def _parameters(name: str, rule: FunctionType) -> list[tuple[str, type] | tuple[str, type, Any]]:
    signature = inspect.signature(rule)
    given = list(signature.parameters.values())
    positional = all(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in given)
    if [one.name for one in given[:4]] != ["b", "h", "q", "k"] or not positional:
        raise TypeError(
            f"pattern {name[:60]}: expected a function of (b, h, q, k) and then of integers by name, got "
            f"{str(signature)[:80]}"
        )
    found: list[tuple[str, type] | tuple[str, type, Any]] = []
    for one in given[4:]:
        if hasattr(Custom, one.name):
            raise ValueError(
                f"pattern {name[:60]}: the parameter {one.name!r} has the name of a part of Mask; rename it"
            )
        if one.default is not one.empty:
            check_integer(f"{name[:60]}({one.name})", one.default, low=0)
        found.append((one.name, int) if one.default is one.empty else (one.name, int, field(default=one.default)))
    return found


def _source(rule: FunctionType) -> str | None:
    # read now: the file may be edited while the rule runs
    try:
        return textwrap.dedent(inspect.getsource(rule))
    except (OSError, TypeError):
        return None


def _check_result(name: str, result: object) -> None:
    rows, heads, queries, keys = (len(axis) for axis in (_TRIAL.rows, _TRIAL.heads, _TRIAL.queries, _TRIAL.keys))
    if not isinstance(result, Tensor) or result.dtype != torch.bool:
        got = f"dtype {result.dtype}" if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(
            f"pattern {name}: expected a bool tensor, got {got}; compare the indices, as in k <= q, and join with & | ~"
        )
    try:
        torch.broadcast_to(result, (rows, heads, queries, keys))
    except RuntimeError:
        raise ValueError(
            f"pattern {name}: expected an answer that broadcasts with q and k to {(rows, heads, queries, keys)}, "
            f"got shape {tuple(result.shape)}"
        ) from None


def _reason(error: Exception) -> str:
    if "Boolean value of Tensor" in str(error):
        return (
            "asks a tensor for one truth value; write & | ~ for and, or, not, torch.where for if, and "
            "(a < b) & (b < c) for a < b < c"
        )
    said = " ".join(str(error).split())
    return f"its function raised {type(error).__name__}: {said[:120]}"
