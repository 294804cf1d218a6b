"""Tasks: distributions over the questions that are asked about a sequence.

A question says of each position of a sequence whether it is *given*, a *target*, or the *rest*, which nobody sees, and
in which *order* the targets are asked: the target of *step* 1 first. Position 0 is always given, so a share counts the
n - 1 positions after it. A share that is not a whole number of positions is rounded up or down at random, so that it is
met on average; one target at least is always left.

A task is a value with a text form: `uniform(given=0..0.4)` draws a share anew for each sequence, `uniform(given=0.4)`
keeps it. `0.5 * uniform(given=0..0.4) + 0.3 * spans(3) + 0.2 * causal` is a `Mixture`; without weights its tasks are
equally likely. Targets are asked from left to right (temporal order); every task takes `random=0.5`, the probability
that those of a sequence are asked in random order instead.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ..errors import brief, check_integer
from ..model.masks.text import MAX_TEXT
from .task_parser import (
    Range,
    describe,
    parse_task,
    read_lengths,
    read_number,
    read_positions,
    read_sequence,
    read_share,
    write_call,
    write_value,
)

# of the sum of the weights of a mixture to 1
TOLERANCE = 1e-6

Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]

_ANY, _ALL, _QUARTER, _SOME = Range(0.0, 1.0), Range(1.0, 1.0), Range(0.25, 0.25), Range(0.15, 0.5)
# what may be passed for a share or a length; kept as a Range
Share = Range | tuple[float, float] | float


@dataclass(frozen=True, eq=False)
class SampledQuestion:
    """A question about one sequence of n positions.

    `given`: bool (n,), true at position 0. `target`: bool (n,), never where given, true somewhere. `step`: int64 (n,),
    1..E on the E targets in the order they are asked, 0 elsewhere.
    """

    given: Bools
    target: Bools
    step: Integers


class Task:
    """A distribution over questions. `str(task)` is its text form, `Task.parse` reads it; equal by value."""

    @staticmethod
    def parse(text: str) -> "Task":
        """The task that `text` describes.

        Raises:
            TypeError: not a text. ValueError: a text that describes no task; one line.
        """
        task: Task = parse_task(text, TASKS, Mixture)
        return task

    def draw(self, length: int, random: np.random.Generator) -> SampledQuestion:
        """One question about a sequence of `length` positions; draws from `random` and nothing else.

        Raises:
            TypeError: `length` is not an integer, or `random` not a generator. ValueError: fewer than 2 positions, or a
            sequence that the positions of `fixed` do not fit.
        """
        # one given and one target at least
        length = check_integer("draw(length)", length, low=2)
        if not isinstance(random, np.random.Generator):
            advice = "use question_rng(seed, epoch, index)"
            raise TypeError(f"draw(random): expected a numpy Generator, got {describe(random)}; {advice}")
        return self._draw(length, random)

    @property
    def is_temporal(self) -> bool:
        """Whether targets are always asked from left to right."""
        raise NotImplementedError

    def _draw(self, length: int, random: np.random.Generator) -> SampledQuestion:
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class Leaf(Task):
    """A task without `+`. `random` is the probability that the targets are asked in random order."""

    random: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        self._check("random", read_number)

    def __str__(self) -> str:
        return write_call(_name(self), self)

    __repr__ = __str__

    @property
    def is_temporal(self) -> bool:
        return self.random == 0

    def _draw(self, length: int, random: np.random.Generator) -> SampledQuestion:
        given, target = self._choose(length, random)
        step = target.cumsum(dtype=np.int64)
        if self.random > 0 and random.random() < self.random:
            step[target] = random.permutation(int(step[-1])) + 1
        step *= target
        return SampledQuestion(given, target, step)

    def _choose(self, length: int, random: np.random.Generator) -> tuple[Bools, Bools]:
        # given and target, length >= 2; position 0 given and a target somewhere
        raise NotImplementedError

    def _check(self, argument: str, read: Any) -> None:
        # keep what `read` makes of an argument
        object.__setattr__(self, argument, read(f"{_name(self)}({argument})", getattr(self, argument)))


@dataclass(frozen=True, repr=False)
class Causal(Leaf):
    """given: position 0. target: all others. GPT-2's own task (Radford et al. 2019).

    With random=1, any order of all positions (Yang et al. 2019, XLNet).

        G T T T T T T T
    """

    def _choose(self, length: int, random: np.random.Generator) -> tuple[Bools, Bools]:
        return _from_runs(length, first=0, last=0)


@dataclass(frozen=True, repr=False)
class Uniform(Leaf):
    """given: a uniformly random subset. target: a uniformly random subset of the others. Uria et al. 2014, DeepNADE.

    `given` is the share of the positions after the first that is given, `asked` the share of those left that is a
    target; the rest is unseen. Drawn for given=0.3, asked=0.8:

        G T . T G T T G
    """

    given: Share = _ANY
    asked: Share = _ALL

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("given", read_share)
        self._check("asked", read_share)

    def _choose(self, length: int, random: np.random.Generator) -> tuple[Bools, Bools]:
        given_share, given_up, asked_share, asked_up = random.random(4).tolist()
        n_given = min(_count(self.given, given_share, length - 1, given_up), length - 2)
        left = length - 1 - n_given
        n_target = min(max(_count(self.asked, asked_share, left, asked_up), 1), left)
        shuffled = random.permutation(length - 1) + 1
        given, target = np.zeros(length, np.bool_), np.zeros(length, np.bool_)
        given[0] = True
        given[shuffled[:n_given]] = True
        target[shuffled[n_given : n_given + n_target]] = True
        return given, target


@dataclass(frozen=True, repr=False)
class Bernoulli(Leaf):
    """given: the others. target: each position with probability `rate`, independently. Devlin et al. 2018, BERT.

    One of a range is drawn for each sequence: bernoulli(0..1) as in Nie et al. 2025, LLaDA. Where no position is hit,
    one is chosen uniformly. Drawn for rate 0.3:

        G G T G G G T G
    """

    rate: Share

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("rate", read_share)

    def _choose(self, length: int, random: np.random.Generator) -> tuple[Bools, Bools]:
        # the first number is not used: position 0 is never a target
        numbers = random.random(length)
        target = numbers < _between(self.rate, float(numbers[0]))
        target[0] = False
        if not target.any():
            target[random.integers(1, length)] = True
        return ~target, target


@dataclass(frozen=True, repr=False)
class Spans(Leaf):
    """given: the others. target: spans of `length` neighbours. Joshi et al. 2020, SpanBERT; Raffel et al. 2020, T5.

    One of a range of lengths is drawn for each span, until `share` of the positions after the first is covered. At
    least one given position lies between two spans, and all places that allow it are equally likely. There is at least
    one span; a sequence too short for it is one shorter span. Drawn for length 2, share=0.6:

        G T T G G T T G
    """

    length: Range | tuple[int, int] | int
    share: Share = _SOME

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("length", read_lengths)
        self._check("share", read_share)
        mean = sum(cast(Range, self.length)) / 2
        most, share = mean / (mean + 1), cast(Range, self.share)
        if share.high > most + 1e-9:
            what = f"spans of {write_value(self.length)} tokens with a given one between cover at most"
            raise ValueError(f"spans(share): {what} {math.floor(1e4 * most) / 1e4:g}, got {write_value(share)}")

    def _choose(self, length: int, random: np.random.Generator) -> tuple[Bools, Bools]:
        room = length - 1
        low, high = (min(int(end), room) for end in cast(Range, self.length))
        share, last = random.random(2).tolist()
        wanted = _between(self.share, share) * room
        # random.integers takes twice as long
        lengths = low + (random.random(int(wanted / low) + 1) * (high + 1 - low)).astype(np.int64)
        covered = lengths.cumsum()
        # whole spans within the share; the one across its end is in so often that the share is met on average
        count = int(covered.searchsorted(wanted, "right"))
        over = wanted - (int(covered[count - 1]) if count else 0)
        count += count < len(lengths) and last * int(lengths[count]) < over
        fitting = int((covered + np.arange(len(lengths))).searchsorted(room, "right"))
        count = max(min(count, fitting), 1)
        # each span and the given position after it are one bar among the free positions
        starts = random.permutation(room + 1 - int(covered[count - 1]))[:count]
        starts.sort()
        starts[1:] += covered[: count - 1]
        starts += 1
        edges = np.zeros(length + 1, np.int8)
        edges[starts] = 1
        edges[starts + lengths[:count]] = -1
        target = edges[:-1].cumsum(dtype=np.int8).view(np.bool_)
        return ~target, target


@dataclass(frozen=True, repr=False)
class Boundary(Leaf):
    """given: the shares `start` and `end` at both ends. target: the middle. Infilling (Bavarian et al. 2022).

    Drawn for start=0.3, end=0.3:

        G G G T T T G G
    """

    start: Share = _QUARTER
    end: Share = _QUARTER

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("start", read_share)
        self._check("end", read_share)
        start, end = cast(Range, self.start), cast(Range, self.end)
        if start.high + end.high > 1 + 1e-9:
            got = f"{write_value(start.high)} + {write_value(end.high)}"
            raise ValueError(f"boundary(end): expected start and end of at most 1 together, got {got}")

    def _choose(self, length: int, random: np.random.Generator) -> tuple[Bools, Bools]:
        start, start_up, end, end_up = random.random(4).tolist()
        first = min(_count(self.start, start, length - 1, start_up), length - 2)
        last = min(_count(self.end, end, length - 1, end_up), length - 2 - first)
        return _from_runs(length, first=first, last=last)


@dataclass(frozen=True, repr=False)
class Prefix(Leaf):
    """given: the first `share`. target: all after it. Continuation, a prefix LM (Raffel et al. 2020, T5).

    Drawn for share=0.3:

        G G G T T T T T
    """

    share: Share = _ANY

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("share", read_share)

    def _choose(self, length: int, random: np.random.Generator) -> tuple[Bools, Bools]:
        share, up = random.random(2).tolist()
        return _from_runs(length, first=min(_count(self.share, share, length - 1, up), length - 2), last=0)


@dataclass(frozen=True, repr=False)
class Fixed(Leaf):
    """given: the positions named and position 0. target: those named, all others when none is.

    Both are sets of positions from 0, or from the end when negative: -1 is the last. What is in neither is the rest.
    A sequence that has not all of them is refused. Drawn for given=[1, -1], target=[2, 3, 5]:

        G G T T . T . G
    """

    given: Sequence[int] = ()
    target: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("given", read_positions)
        if self.target is not None:
            self._check("target", read_positions)
            if not self.target or 0 in self.target:
                advice = "leave target out to ask all others"
                raise ValueError(
                    f"fixed(target): expected positions other than 0, got {brief(list(self.target), 40)}; {advice}"
                )
        _check_written(self)

    def _choose(self, length: int, random: np.random.Generator) -> tuple[Bools, Bools]:
        given = self._mark("given", self.given, length)
        given[0] = True
        if self.target is None:
            target = ~given
            if not target.any():
                raise ValueError(f"fixed(given): all {length} positions are given, none is left to ask; give fewer")
            return given, target
        target = self._mark("target", self.target, length)
        both = given & target
        if both.any():
            place = int(np.argmax(both))
            raise ValueError(f"fixed(target): position {place} of {length} is given too; name it once")
        return given, target

    def _mark(self, argument: str, positions: Sequence[int], length: int) -> Bools:
        outside = next((one for one in positions if not -length <= one < length), None)
        if outside is not None:
            advice = "use longer sequences or other positions"
            raise ValueError(f"fixed({argument}): no position {outside} among {length}; {advice}")
        marked = np.zeros(length, np.bool_)
        marked[list(positions)] = True
        return marked


@dataclass(frozen=True, repr=False)
class Mixture(Task):
    """One of `tasks` for each sequence, with the probabilities `weights`; None: equally likely.

    Its text form is `0.7 * uniform + 0.3 * causal`, or `uniform + causal` when equally likely.

    Raises `ValueError` for fewer than two tasks and for weights that do not sum to 1 within `TOLERANCE`.
    """

    tasks: Sequence[Leaf]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        tasks = read_sequence("mixture(tasks)", self.tasks, "tasks")
        wrong = next((task for task in tasks if not isinstance(task, Leaf)), None)
        if wrong is not None:
            advice = "write causal() for causal" if isinstance(wrong, type) else "write one sum of all tasks"
            raise TypeError(f"mixture(tasks): expected tasks without +, got {describe(wrong)}; {advice}")
        if len(tasks) < 2:
            raise ValueError(f"mixture(tasks): expected at least 2 tasks, got {len(tasks)}")
        equal = (1 / len(tasks),) * len(tasks)
        weights = equal if self.weights is None else read_sequence("mixture(weights)", self.weights, "numbers")
        if len(weights) != len(tasks):
            raise ValueError(f"mixture(weights): expected one for each of {len(tasks)} tasks, got {len(weights)}")
        weights = tuple(read_number("mixture(weights)", weight, high=1 + TOLERANCE) for weight in weights)
        if min(weights) == 0:
            raise ValueError("mixture(weights): expected weights above 0, got 0; leave its task out")
        total = math.fsum(weights)
        # rounded: 0.333333 three times falls short by a hair more than 1e-6
        if round(abs(total - 1), 9) > TOLERANCE:
            advice = "make them sum to 1, or leave all out for equal ones"
            raise ValueError(f"mixture(weights): expected a sum of 1, got {total:.7g}; {advice}")
        object.__setattr__(self, "tasks", tasks)
        object.__setattr__(self, "weights", weights)
        _check_written(self)

    def __str__(self) -> str:
        weights = cast(tuple[float, ...], self.weights)
        if weights == (1 / len(weights),) * len(weights):
            return " + ".join(map(str, self.tasks))
        return " + ".join(f"{write_value(one)} * {task}" for one, task in zip(weights, self.tasks, strict=True))

    __repr__ = __str__

    @property
    def is_temporal(self) -> bool:
        return all(task.is_temporal for task in self.tasks)

    def _draw(self, length: int, random: np.random.Generator) -> SampledQuestion:
        ends = list(accumulate(cast(tuple[float, ...], self.weights)))
        # the sum is 1 only roughly; the last end is out, so that no rounding leads past it
        chosen = bisect.bisect(ends[:-1], random.random() * ends[-1])
        return self.tasks[chosen]._draw(length, random)


# the names people write
causal, uniform, bernoulli, spans, boundary, prefix, fixed = Causal, Uniform, Bernoulli, Spans, Boundary, Prefix, Fixed

TASKS: dict[str, type[Leaf]] = {
    kind.__name__.lower(): kind for kind in (Causal, Uniform, Bernoulli, Spans, Boundary, Prefix, Fixed)
}


def _name(task: Leaf) -> str:
    return type(task).__name__.lower()


def _check_written(task: Task) -> None:
    # every task has a text form that can be read again
    written = len(str(task))
    if written > MAX_TEXT:
        raise ValueError(f"task: expected a text form of at most {MAX_TEXT} characters, got {written}")


def _between(share: Share, uniform: float) -> float:
    low, high = cast(Range, share)
    return low + (high - low) * uniform


def _count(share: Share, drawn: float, positions: int, up: float) -> int:
    # as many of `positions` as the share drawn, rounded up with the probability of its fraction
    return int(_between(share, drawn) * positions + up)


def _from_runs(length: int, *, first: int, last: int) -> tuple[Bools, Bools]:
    # `first` positions after position 0 and the `last` ones are given, those between are targets
    target = np.zeros(length, np.bool_)
    target[1 + first : length - last] = True
    return ~target, target
