"""The text form of a mask, read by a walk over a syntax tree of five node kinds; nothing is evaluated."""

import ast
import difflib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from torch import Tensor

# hostile text is refused before it reaches the parser
MAX_TEXT = 2_000
MAX_DEPTH = 50
# deeper trees would exhaust the stack where they are printed and evaluated
MAX_OPERATORS = 100
MAX_INTEGER = 2**31 - 1
# of an error
MAX_LINE = 300

_READ = "only patterns, integers and & | ~ ( ) are read"


def parse_mask(text: str, patterns: Mapping[str, type[Any]]) -> Any:
    """Build the mask that `text` describes out of the classes in `patterns`, by name.

    A class whose `takes_tensors` is true has no text form. Masks are combined with their own `& | ~`.

    Raises:
        TypeError: not a text. ValueError: anything but known names, `& | ~`, calls with integers and masks; one line.
    """
    check_text("mask", text)
    return _Reader(text, patterns).read()


def check_text(what: str, text: object) -> None:
    """Raise unless `text` may be handed to the parser of `what`, a mask or a task: ASCII, and not too long.

    Raises:
        TypeError: not a text. ValueError: too long, or other letters; one line.
    """
    if not isinstance(text, str):
        raise TypeError(f"{what}: expected the text of a {what}, got {type(text).__name__}")
    if len(text) > MAX_TEXT:
        raise ValueError(f"{what}: expected at most {MAX_TEXT} characters, got {len(text)}")
    if not text.isascii():
        raise ValueError(f"{what}: expected ASCII text, got {_quote(text)}")


def check_integer(name: str, value: object, *, low: int, high: int = MAX_INTEGER, advice: str = "") -> None:
    """Raise TypeError or ValueError unless `value`, the argument `name`, is an integer from `low` to `high`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {value!r:.40} ({type(value).__name__}){advice}")
    if value < low:
        raise ValueError(f"{name}: expected at least {low}, got {value}{advice}")
    if value > high:
        raise ValueError(f"{name}: expected at most {high}, got {value!r:.40}{advice}")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Advice for a name that is unknown: the known one that is most like it; None where none is."""
    near = difflib.get_close_matches(name[:40].lower(), known, n=1)
    return f"did you mean {near[0]}?" if near else None


@dataclass(frozen=True)
class _Reader:
    # one text, and the classes its names stand for

    text: str
    patterns: Mapping[str, type[Any]]

    def read(self) -> Any:
        self._refuse_hostile()
        try:
            # a line break, as in a folded YAML value, is a space
            tree = ast.parse(" ".join(self.text.split()), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self._unreadable(f"{error.args[0]}; write e.g. 'causal & window(256)'") from None
        return self._mask(tree.body)

    def _refuse_hostile(self) -> None:
        text, quoted = self.text, _quote(self.text)
        if "<tensor" in text:
            raise ValueError(f"mask: {quoted} holds a tensor, which has no text form; pass it to forward as mask=")
        depth = 0
        for sign in text:
            depth += (sign == "(") - (sign == ")")
            if depth > MAX_DEPTH:
                raise ValueError(f"mask: expected at most {MAX_DEPTH} nested brackets in {quoted}")
        # the parser warns of stray escapes and of letters after a digit: they are refused before it
        odd = re.search(r"[^\w\s&|~(),=]|\b\d+[A-Za-z]\w*", text)
        if odd:
            raise ValueError(f"mask: unexpected {odd.group()!r:.40} in {quoted}; {_READ}")
        if len(re.findall(r"[&|~]", text)) > MAX_OPERATORS:
            raise ValueError(f"mask: expected at most {MAX_OPERATORS} operators & | ~ in {quoted}")
        if re.search(r"\d{11}", text):
            raise ValueError(f"mask: too large an integer in {quoted}; integers go up to {MAX_INTEGER}")

    def _mask(self, node: ast.expr) -> Any:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
            left, right = self._mask(node.left), self._mask(node.right)
            return left & right if isinstance(node.op, ast.BitAnd) else left | right
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
            return ~self._mask(node.operand)
        if isinstance(node, ast.Name):
            return self._pattern(node.id, [], {})
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            named = {str(keyword.arg): self._argument(keyword.value) for keyword in node.keywords}
            if len(named) < len(node.keywords):
                raise self._unreadable("an argument is given twice")
            return self._pattern(node.func.id, [self._argument(value) for value in node.args], named)
        raise ValueError(f"mask: {_quote(self.text)} holds {_in_words(node)}; {_READ}")

    def _argument(self, node: ast.expr) -> Any:
        if not isinstance(node, ast.Constant):
            return self._mask(node)
        if type(node.value) is not int or node.value > MAX_INTEGER:
            got = f"{node.value!r:.40}"
            raise ValueError(f"mask: expected an integer up to {MAX_INTEGER} in {_quote(self.text)}, got {got}")
        return node.value

    def _pattern(self, name: str, positional: list[Any], named: dict[str, Any]) -> Any:
        if name not in self.patterns:
            unknown = f"mask: unknown pattern {name!r:.40} in {_quote(self.text)}; "
            raise ValueError(unknown + self._advice(name, MAX_LINE - len(unknown)))
        kind = self.patterns[name]
        if kind.takes_tensors:
            raise ValueError(
                f"mask: {name} needs a tensor, which has no text form; pass {name}(...) to forward as mask="
            )
        try:
            return kind(*positional, **named)
        except TypeError as error:
            # a pattern's own words name it and its parameter
            is_own = fits_call(kind, positional, named) and str(error).startswith((f"{name}(", f"{name}: "))
            raise self._unreadable(str(error) if is_own else usage(name, kind)) from None

    def _advice(self, name: str, room: int) -> str:
        near = nearest(name, self.patterns)
        if near:
            return near
        known = ", ".join(sorted(name for name, kind in self.patterns.items() if not kind.takes_tensors))
        ways = "define your own with @pattern first (--patterns FILE), or load with "
        ways += "AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)"
        room = min(90, room - len(f"known: ; {ways}"))
        known = known if len(known) <= room else f"{known[: room - 3]}..."
        return f"known: {known}; {ways}"

    def _unreadable(self, why: str) -> ValueError:
        return ValueError(f"mask: cannot read {_quote(self.text)}: {why}")


def fits_call(kind: type[Any], positional: Sequence[Any], named: Mapping[str, Any]) -> bool:
    """Whether python could call `kind` so: as many arguments as it takes, of the right names."""
    try:
        inspect.signature(kind).bind(*positional, **named)
    except TypeError:
        return False
    return True


def usage(name: str, kind: type[Any]) -> str:
    """What a call of the pattern `kind` looks like, for errors: `expected window(size)`."""
    parameters = inspect.signature(kind).parameters.values()
    wanted = ", ".join(str(one.replace(annotation=inspect.Parameter.empty)) for one in parameters)
    return f"expected {name}({wanted})" if wanted else f"{name} takes no arguments"


# what a person wrote, where python's grammar has its own word for it; other operators never get here
_WORDS: dict[type[ast.AST], str] = {
    ast.And: "the word and",
    ast.Or: "the word or",
    ast.Not: "the word not",
    ast.IfExp: "the word if",
    ast.GeneratorExp: "the word for",
    ast.Await: "the word await",
    ast.Yield: "the word yield",
    ast.YieldFrom: "the word yield",
    ast.Compare: "a comparison",
    ast.Tuple: "a comma outside of a call",
    ast.Call: "a call of what is no name",
}


def _in_words(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return f"{node.value!r:.40} where a mask belongs"
    return _WORDS[type(node.op if isinstance(node, ast.BoolOp | ast.UnaryOp) else node)]


def _quote(text: str) -> str:
    # cut after quoting: an escaped character takes up to ten
    quoted = repr(text)
    return quoted if len(quoted) <= 62 else f"{quoted[:58]}...{quoted[-1]}"


def text_name(kind: type) -> str:
    """The name that a built-in pattern's class has in texts, such as `block_diffusion`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()


def kind_of(value: object) -> str:
    """What came instead of a mask, for errors: its type, or the pattern that was not called."""
    if _is_pattern(value):
        return f"the pattern {text_name(value)}; a pattern is called: write {_call(value)}"
    return type(value).__name__


def not_a_mask(other: object) -> str:
    """What to say of an operand of `& |` that is no mask."""
    if _is_pattern(other):
        return f"{text_name(other)}: a pattern is called: write {_call(other)}"
    advice = "masks are joined with masks"
    if isinstance(other, str):
        advice = f"write Mask.parse({other!r:.60})"
    elif isinstance(other, Tensor):
        advice = "write Mask.of(tensor)"
    return f"mask: expected a Mask on both sides of & and |, got {type(other).__name__}; {advice}"


def _is_pattern(value: object) -> TypeGuard[type[Any]]:
    # a class of masks that was not called, known by what it has: masks are built on this file
    return isinstance(value, type) and hasattr(value, "takes_tensors")


def _call(kind: type) -> str:
    called = usage(text_name(kind), kind).removeprefix("expected ")
    return called if "(" in called else f"{text_name(kind)}()"
