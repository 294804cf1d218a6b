"""The text form of a task: the values in it, how it is written, and how it is read; nothing is evaluated.

task     = term {"+" term}
term     = [number "*"] name ["(" [argument {"," argument}] ")"]
argument = [name "="] value
value    = number | number ".." number | "[" [number {"," number}] "]"
number   = ["-"] digits ["." digits] ["e" ["-"] digits]
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple, NoReturn

from ..errors import brief
from ..model.masks.text import check_text, fits_call, nearest

# the longest number that python writes has fewer characters
MAX_NUMBER = 30
MAX_INTEGER = 2**31 - 1

_TOKEN = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?|[A-Za-z_][A-Za-z_0-9]*|\.\.|[-+*(),=\[\]]")
# what people write that has another form here
_ADVICE = {"order": "temporal order is the default, random=1 asks in random order"}


class Range(NamedTuple):
    """Numbers from `low` to `high`, both included; its text form is `low..high`, or the number when they are equal."""

    low: float
    high: float


def parse_task(
    text: str, tasks: Mapping[str, type[Any]], mix: Callable[[Sequence[Any], Sequence[float] | None], Any]
) -> Any:
    """Build the task that `text` describes out of the dataclasses in `tasks`, by name; `mix` makes one of several.

    `mix` takes the tasks of a sum and their weights, None when none is written.

    Raises:
        TypeError: not a text. ValueError: anything but the grammar above with known names and fit values; one line.
    """
    check_text("task", text)
    return _Reader(text, tasks, _tokens(text)).read(mix)


def write_value(value: object) -> str:
    """The text form of a number, a `Range` or a list of positions."""
    if value is None:
        return "..."
    if isinstance(value, Range):
        low, high = write_value(value.low), write_value(value.high)
        return low if low == high else f"{low}..{high}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(write_value(one) for one in value)}]"
    # 1 and 1.0 are the same share
    return str(int(value)) if isinstance(value, float) and value.is_integer() else repr(value)


def write_call(name: str, task: Any) -> str:
    """The text form of a task under the name `name`: fields without a default by place, others where they differ."""
    arguments = []
    for one in _fields(task):
        value = getattr(task, one.name)
        if one.default is dataclasses.MISSING:
            arguments.append(write_value(value))
        elif value != one.default:
            arguments.append(f"{one.name}={write_value(value)}")
    return f"{name}({', '.join(arguments)})" if arguments else name


def usage(name: str, kind: type[Any]) -> str:
    """What a call of the task `kind` looks like, for errors: `expected spans(length, share=0.15..0.5, random=0)`."""
    wanted = [
        one.name if one.default is dataclasses.MISSING else f"{one.name}={write_value(one.default)}"
        for one in _fields(kind)
    ]
    return f"expected {name}({', '.join(wanted)})"


def describe(value: object) -> str:
    """What came instead, for errors."""
    return _shown(value) if isinstance(value, Range) else f"{_shown(value)} ({type(value).__name__})"


def read_number(argument: str, value: Any, *, high: float = 1.0) -> float:
    """A number from 0 to `high` as a float. `argument`, as `causal(random)`, is for the TypeError or ValueError."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{argument}: expected a number from 0 to 1, got {describe(value)}")
    # not a number lies nowhere
    if not 0 <= value <= high:  # type: ignore[operator]
        raise ValueError(f"{argument}: expected a number from 0 to 1, got {brief(value, 40)}")
    return float(value)


def read_share(argument: str, value: Any) -> Range:
    """A share, or a pair of them, as a `Range` within 0..1."""
    ends = value if isinstance(value, tuple) and len(value) == 2 else (value, value)
    if not all(isinstance(end, Real) and not isinstance(end, bool) for end in ends):
        raise TypeError(f"{argument}: expected a share or a range of shares as 0..0.4, got {describe(value)}")
    return _ordered(argument, Range(read_number(argument, ends[0]), read_number(argument, ends[1])))


def read_lengths(argument: str, value: Any) -> Range:
    """A length in tokens, or a pair of them, as a `Range` of integers."""
    ends = value if isinstance(value, tuple) and len(value) == 2 else (value, value)
    if not all(isinstance(end, Integral) and not isinstance(end, bool) for end in ends):
        raise TypeError(f"{argument}: expected an integer or a range of integers as 3..10, got {describe(value)}")
    if not all(1 <= end <= MAX_INTEGER for end in ends):
        raise ValueError(f"{argument}: expected 1 to {MAX_INTEGER}, got {_shown(value)}")
    return _ordered(argument, Range(int(ends[0]), int(ends[1])))


def read_positions(argument: str, value: Any) -> tuple[int, ...]:
    """A list of positions as a set: sorted, those from the end last, none twice."""
    positions = read_sequence(argument, value, "positions as [1, -1]")
    if not all(isinstance(one, Integral) and not isinstance(one, bool) for one in positions):
        raise TypeError(f"{argument}: expected integers, got {brief(list(positions), 40)}")
    if not all(-MAX_INTEGER <= one <= MAX_INTEGER for one in positions):
        raise ValueError(f"{argument}: expected positions up to {MAX_INTEGER}, got {brief(list(positions), 40)}")
    return tuple(sorted({int(one) for one in positions}, key=lambda one: (one < 0, one)))


def read_sequence(argument: str, value: Any, what: str) -> tuple[Any, ...]:
    """A list, a set or the like as a tuple."""
    if isinstance(value, Range) or not isinstance(value, list | tuple | set | frozenset | range):
        raise TypeError(f"{argument}: expected a list of {what}, got {describe(value)}")
    return tuple(value)


class _Token(NamedTuple):
    text: str
    # of its first character in the whole text
    place: int


def _tokens(text: str) -> list[_Token]:
    tokens, place = [], 0
    while place < len(text):
        # a line break, as in a folded YAML value, is a space
        if text[place].isspace():
            place += 1
            continue
        found = _TOKEN.match(text, place)
        if found is None:
            near = text[max(place - 1, 0) : place + 2]
            is_number = text[place] == "." and any(sign.isdigit() for sign in near)
            advice = "; write 0.5 for .5 and two dots between the ends of a range" if is_number else ""
            raise ValueError(f"task: unexpected {text[place]!r} in {brief(text, 60)}{advice}")
        if text[place].isdigit() and len(found[0]) > MAX_NUMBER:
            raise ValueError(f"task: expected numbers of at most {MAX_NUMBER} characters in {brief(text, 60)}")
        tokens.append(_Token(found[0], place))
        place = found.end()
    return tokens


@dataclass
class _Reader:
    # one text, the classes its names stand for, and how far it is read

    text: str
    tasks: Mapping[str, type[Any]]
    tokens: list[_Token]
    done: int = 0

    def read(self, mix: Callable[[Sequence[Any], Sequence[float] | None], Any]) -> Any:
        terms = [self._term()]
        while self._skip("+"):
            terms.append(self._term())
        if self._next():
            self._fail("a weight goes before its task" if self._next() == "*" else "expected + or the end")
        weights = [weight for weight, _ in terms if weight is not None]
        if len(terms) == 1 and not weights:
            return terms[0][1]
        if len(terms) == 1:
            raise self._unreadable("a task alone takes no weight; leave it out, or add other tasks with +")
        if weights and len(weights) < len(terms):
            raise self._unreadable("give every task of a sum a weight, or none for equal weights")
        return self._call("mixture", mix, [task for _, task in terms], weights or None)

    def _term(self) -> tuple[float | None, Any]:
        weight = None
        if self._next()[:1].isdigit() or self._next() == "-":
            weight = self._number()
            if not self._skip("*"):
                self._fail("expected * after a weight")
        name = self._next()
        if name == "(":
            self._fail("brackets around tasks are not read, write one sum of weighted tasks")
        if not name.isidentifier():
            self._fail("expected the name of a task, e.g. uniform(given=0..0.4)")
        if name not in self.tasks:
            known = f"known: {', '.join(sorted(self.tasks))}"
            raise self._unreadable(f"unknown task {brief(name, 40)}; {nearest(name, self.tasks) or known}")
        self.done += 1
        return weight, self._task(name)

    def _task(self, name: str) -> Any:
        kind = self.tasks[name]
        positional: list[Any] = []
        named: dict[str, Any] = {}
        if self._skip("(") and not self._skip(")"):
            self._argument(name, positional, named)
            while self._skip(","):
                self._argument(name, positional, named)
            if not self._skip(")"):
                self._fail("expected , or )")
        if not fits_call(kind, positional, named):
            raise self._unreadable(usage(name, kind))
        return self._call(name, kind, *positional, **named)

    def _argument(self, task: str, positional: list[Any], named: dict[str, Any]) -> None:
        name = self._next()
        if not name.isidentifier():
            if named:
                self._fail("expected name=value after a named argument")
            positional.append(self._value())
            return
        fields = [one.name for one in dataclasses.fields(self.tasks[task])]
        if name not in fields:
            advice = _ADVICE.get(name) or nearest(name, fields) or usage(task, self.tasks[task])
            raise self._unreadable(f"{task} has no argument {brief(name, 40)}; {advice}")
        if name in named:
            raise self._unreadable(f"{task} has the argument {name} twice")
        self.done += 1
        if not self._skip("="):
            self._fail(f"expected = after {name}")
        named[name] = self._value()

    def _value(self) -> int | float | Range | list[int | float]:
        if self._skip("["):
            numbers: list[int | float] = []
            while not self._skip("]"):
                if numbers and not self._skip(","):
                    self._fail("expected , or ]")
                numbers.append(self._number())
            return numbers
        if not (self._next()[:1].isdigit() or self._next() == "-"):
            self._fail("expected a number, a range as 0..0.4 or a list as [1, 2]")
        low = self._number()
        return Range(low, self._number()) if self._skip("..") else low

    def _number(self) -> int | float:
        is_negative = self._skip("-")
        digits = self._next()
        if not digits[:1].isdigit():
            self._fail("expected a number")
        self.done += 1
        number = int(digits) if digits.isdigit() else float(digits)
        return -number if is_negative else number

    def _next(self) -> str:
        return self.tokens[self.done].text if self.done < len(self.tokens) else ""

    def _skip(self, sign: str) -> bool:
        is_next = self._next() == sign
        self.done += is_next
        return is_next

    def _call(self, name: str, kind: Callable[..., Any], *positional: Any, **named: Any) -> Any:
        try:
            return kind(*positional, **named)
        except TypeError as error:
            # a task's own words name it and its argument
            if not str(error).startswith(f"{name}("):
                raise
            raise self._unreadable(str(error)) from None

    def _fail(self, why: str) -> NoReturn:
        if self.done < len(self.tokens):
            token = self.tokens[self.done]
            raise self._unreadable(f"{why}; got {brief(token.text, 40)} at character {token.place + 1}")
        raise self._unreadable(f"{why}; got the end of the text")

    def _unreadable(self, why: str) -> ValueError:
        return ValueError(f"task: cannot read {brief(self.text, 60)}: {why}")


def _fields(task: Any) -> list[dataclasses.Field[Any]]:
    # as python takes them: what is given by name only comes last
    return sorted(dataclasses.fields(task), key=lambda one: bool(one.kw_only))


def _shown(value: object) -> str:
    return write_value(value) if isinstance(value, Range) else brief(value, 40)


def _ordered(argument: str, value: Range) -> Range:
    if value.low > value.high:
        raise ValueError(f"{argument}: expected a range from low to high, got {_shown(value)}")
    return value
