"""The class of mask classes: a pattern written like a mask, or called without its arguments, says what to do."""

import inspect
import re
from abc import ABCMeta
from typing import Any, NoReturn

from torch import Tensor

from .masks.text import fits_call, usage


class MaskClass(ABCMeta):
    """What `causal` is before it is called; `causal & window(3)` is refused with advice.

    `|` between classes, and with None, stays python's own: annotations are written with it.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Build a mask; wrong arguments are told in the pattern's own words."""
        try:
            return super().__call__(*args, **kwargs)
        except TypeError:
            if fits_call(cls, args, kwargs):
                raise
            name = text_name(cls)
            raise TypeError(f"{name}: {usage(name, cls).removeprefix(f'{name} ')}") from None

    @property
    def __signature__(cls) -> inspect.Signature:
        # python would show that of `__call__`
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    def __and__(cls, other: object) -> NoReturn:
        """Refuse a pattern that was not called."""
        raise TypeError(uncalled(cls))

    __rand__ = __and__

    def __invert__(cls) -> NoReturn:
        """Refuse a pattern that was not called."""
        raise TypeError(uncalled(cls))

    def __or__(cls, other: Any) -> Any:
        """Refuse a pattern that was not called, beside a mask; a union of types otherwise."""
        if isinstance(type(other), MaskClass):
            raise TypeError(uncalled(cls))
        return super().__or__(other)

    def __ror__(cls, other: Any) -> Any:
        """As `__or__`."""
        if isinstance(type(other), MaskClass):
            raise TypeError(uncalled(cls))
        return super().__ror__(other)


def text_name(kind: type) -> str:
    """The name that a built-in pattern's class has in texts, such as `block_diffusion`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()


def uncalled(kind: type) -> str:
    """What to say of a pattern that stands where a mask belongs."""
    return f"{text_name(kind)}: a pattern is called: write {_call(kind)}"


def kind_of(value: object) -> str:
    """What came instead of a mask, for errors: its type, or the pattern that was not called."""
    if isinstance(value, MaskClass):
        return f"the pattern {text_name(value)}; a pattern is called: write {_call(value)}"
    return type(value).__name__


def not_a_mask(other: object) -> str:
    """What to say of an operand of `& |` that is no mask."""
    if isinstance(other, MaskClass):
        return uncalled(other)
    advice = "masks are joined with masks"
    if isinstance(other, str):
        advice = f"write Mask.parse({other!r:.60})"
    elif isinstance(other, Tensor):
        advice = "write Mask.of(tensor)"
    return f"mask: expected a Mask on both sides of & and |, got {type(other).__name__}; {advice}"


def _call(kind: type) -> str:
    called = usage(text_name(kind), kind).removeprefix("expected ")
    return called if "(" in called else f"{text_name(kind)}()"
