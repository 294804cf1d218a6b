"""Questions about a sequence: which positions are given, which are asked, and in which order.

A question is resolved on the CPU, where looking at it costs nothing; the tokens it is about never leave their device.
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SEES = ("all", "earlier")
ORDERS = ("temporal", "random")

# bool (T,) or (B, T), positions of one sequence, or the positions of each row
Positions = Tensor | Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class ResolvedConditional:
    """A question about sequences of a known length, on the CPU.

    Attributes:
        given, target: bool (B, T), disjoint; what is neither is unseen.
        step: long (B, T), 1, 2, ... on the targets of a document in the order they are asked, 0 elsewhere.
        given_sees: "all": given tokens see one another; "earlier": only the given ones before them.
        documents: long (B, T), which of several independent sequences a token belongs to; None for one a row.
    """

    given: Tensor
    target: Tensor
    step: Tensor
    given_sees: str
    documents: Tensor | None = None

    def rows(self, index: Tensor) -> "ResolvedConditional":
        """The question about some of its rows; `index`: long (rows,), on the CPU."""
        documents = None if self.documents is None else self.documents[index]
        return ResolvedConditional(self.given[index], self.target[index], self.step[index], self.given_sees, documents)

    def one_by_one(self) -> "list[ResolvedConditional]":
        """Each target asked alone: a question for the first ones of all rows, one for the second ones, and so on."""
        return [
            ResolvedConditional(
                self.given, self.step == step, (self.step == step).long(), self.given_sees, self.documents
            )
            for step in range(1, int(self.step.amax()) + 1)
        ]

    @property
    def is_temporal(self) -> bool:
        """Whether every target is asked after those at earlier positions."""
        latest = torch.where(self.target, self.step, 0)
        if self.documents is not None:
            latest = latest + self.documents * (self.step.shape[1] + 1)
        earlier = latest.cummax(1).values
        return bool((latest == earlier)[self.target].all())


@dataclass(frozen=True, eq=False)
class Conditional:
    """Which tokens of a sequence are given and which are asked: P(x_target | x_given), the rest unseen.

    Args:
        given: bool (B, T) or (T,), or a list of positions (of every row), or a list of such lists, one a row.
            Position 0, the start of the text, is always given.
        target: the same; everything that is not given when None.
        order: in which order the chain rule takes the targets: "temporal", "random", a list of the target positions
            (or one list a row), or an integer tensor (B, T) or (T,) whose values at the targets say which comes first.
        given_sees: "all": given tokens see one another, wherever they stand; "earlier": only the given ones before
            them, and a prompt is read as GPT-2 reads it. None for the model's own habit, `config.given_sees`. With
            "earlier" and the layout two_stream (or causal), log P(A) + log P(B | A) = log P(A then B) exactly, where A
            is asked from left to right and stands behind all that is given.

    Raises:
        ValueError, TypeError: in one line, where a set cannot be; what needs the length is checked when it is asked.
    """

    given: Positions
    target: Positions | None = None
    order: Positions | str = "temporal"
    given_sees: str | None = None

    def __post_init__(self) -> None:
        for name in ("given", "target"):
            value = getattr(self, name)
            if value is not None or name == "given":
                object.__setattr__(self, name, _positions(name, value))
        object.__setattr__(self, "order", _order(self.order))
        if self.given_sees not in (None, *SEES):
            raise ValueError(f"given_sees: expected one of {', '.join(SEES)}, got {self.given_sees!r:.40}")

    def resolve(
        self, batch: int, length: int, *, given_sees: str = "all", generator: torch.Generator | None = None
    ) -> ResolvedConditional:
        """The question about `batch` sequences of `length` tokens; `given_sees` where the question leaves it open.

        A random order is drawn anew at each call, from `generator` or torch's global one.

        Raises:
            ValueError: given and target overlap, lie outside the sequence, or lack position 0 or any target.
        """
        given = _mask("given", self.given, batch, length)
        target = ~given if self.target is None else _mask("target", self.target, batch, length)
        _refuse(~given[:, 0], "given: position 0, the start of the text, must be given; it is not")
        both = given & target
        _refuse(both.any(1), "given, target: expected disjoint positions; both hold position {}", both)
        _refuse(~target.any(1), "target: expected at least one position that is asked; there is none")
        step = dense_steps(target, self._order_values(target, generator))
        return ResolvedConditional(given, target, step, self.given_sees or given_sees)

    # the name by which the code of checkpoints with 37 files calls it
    settle = resolve

    def _order_values(self, target: Tensor, generator: torch.Generator | None) -> Tensor:
        # integers (B, T); among the targets of a row, the smallest is asked first
        batch, length = target.shape
        order = self.order
        if isinstance(order, str):
            if order == "random":
                return torch.rand(batch, length, generator=_on_cpu(generator)).argsort(1)
            return torch.arange(length).expand(batch, length)
        if isinstance(order, Tensor):
            values = _rows("order", order, batch, length).long()
            repeated = _repeated(values, target)
            _refuse(repeated.any(1), "order: expected another number at each target; position {} repeats one", repeated)
            return values
        return _from_lists(list(order), target)


def _on_cpu(generator: torch.Generator | None) -> torch.Generator | None:
    # a question is resolved on the CPU, whatever device the tokens are drawn on
    if generator is None or generator.device.type == "cpu":
        return generator
    seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
    return torch.Generator().manual_seed(int(seed))


def dense_steps(target: Tensor, order: Tensor, documents: Tensor | None = None) -> Tensor:
    """1, 2, ... on the targets by increasing `order`, counted in each document; 0 elsewhere.

    Args:
        target: bool (B, T). order: integers (B, T), distinct on the targets of a document.
        documents: integers (B, T) from 0, non-decreasing along a row; None for one document a row.
    """
    length = target.shape[1]
    # targets first, by order; then by document, which keeps that order within each
    by_order = torch.where(target, order, torch.iinfo(torch.long).max).argsort(dim=1, stable=True)
    document = torch.zeros_like(by_order) if documents is None else documents.long()
    key = torch.where(target, document, length + 1).gather(1, by_order)
    columns = by_order.gather(1, key.argsort(dim=1, stable=True))  # (B, T), targets of a document side by side
    key = torch.where(target, document, length + 1).gather(1, columns)
    index = torch.arange(length).expand_as(key)
    begins = torch.ones_like(key, dtype=torch.bool)
    begins[:, 1:] = key[:, 1:] != key[:, :-1]
    counted = index - torch.where(begins, index, 0).cummax(1).values + 1
    steps = torch.zeros_like(counted).scatter(1, columns, counted)
    return torch.where(target, steps, 0)


def _positions(name: str, value: Any) -> Positions:
    if isinstance(value, Tensor):
        if value.dtype != torch.bool or value.dim() not in (1, 2):
            raise TypeError(
                f"{name}: expected a bool tensor (batch, tokens), or lists of positions, got a tensor of "
                f"{value.dtype}, shape {tuple(value.shape)}"
            )
        return value.cpu()
    return _listed(name, value)


def _listed(name: str, value: Any, *, is_row: bool = False) -> list[Any]:
    if name == "order" and isinstance(value, set | frozenset):
        raise TypeError(f"order: expected a list of positions, got a set, which has no order: {value!r:.60}")
    # an array of numpy without dimensions has an iterator that fails
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | dict) or getattr(value, "ndim", 1) == 0:
        tensor = "an integer tensor" if name == "order" else "a bool tensor"
        raise TypeError(f"{name}: expected {tensor} (batch, tokens) or a list of positions, got {value!r:.60}")
    rows = list(value)
    if not is_row and rows and all(isinstance(row, Iterable) and not isinstance(row, str | Tensor) for row in rows):
        return [_listed(name, row, is_row=True) for row in rows]
    for index, one in enumerate(rows):
        # numbers of numpy are integers too, its truth values are not
        if hasattr(one, "__index__") and not isinstance(one, bool | Tensor):
            rows[index] = operator.index(one)
        else:
            raise TypeError(
                f"{name}: expected positions, which are integers, got {one!r:.40}; a mask of True and False goes in as "
                "a bool tensor"
            )
    if len(set(rows)) < len(rows):
        twice = next(one for one in rows if rows.count(one) > 1)
        raise ValueError(f"{name}: expected each position once, got {twice} twice")
    return rows


def _order(value: Any) -> Any:
    if isinstance(value, str):
        if value not in ORDERS:
            raise ValueError(f"order: expected temporal, random, positions or a tensor, got {value!r:.40}")
        return value
    if isinstance(value, Tensor):
        if value.dtype not in (torch.int64, torch.int32) or value.dim() not in (1, 2):
            raise TypeError(
                f"order: expected an integer tensor (batch, tokens), got {value.dtype}, shape {tuple(value.shape)}"
            )
        return value.cpu()
    return _listed("order", value)


def _mask(name: str, value: Any, batch: int, length: int) -> Tensor:
    # -> bool (B, T)
    if isinstance(value, Tensor):
        return _rows(name, value, batch, length)
    lists = _lists(name, value, batch)
    mask = torch.zeros(len(lists), length, dtype=torch.bool)
    for row, positions in enumerate(lists):
        outside = next((one for one in positions if not 0 <= one < length), None)
        if outside is not None:
            raise ValueError(f"{name}: expected positions 0 to {length - 1}, got {outside}")
        mask[row, positions] = True
    return mask.expand(batch, length)


def _lists(name: str, value: list[Any], batch: int) -> list[list[int]]:
    # one for each row, or a single one for all of them
    if not value or not isinstance(value[0], list):
        return [value]
    if len(value) not in (1, batch):
        raise ValueError(f"{name}: expected a list of positions for each of {batch} rows, got {len(value)} lists")
    return value


def _rows(name: str, value: Tensor, batch: int, length: int) -> Tensor:
    table = value[None] if value.dim() == 1 else value
    if table.shape[0] not in (1, batch) or table.shape[1] != length:
        raise ValueError(f"{name}: expected shape (batch, tokens) = {(batch, length)}, got {tuple(value.shape)}")
    return table.expand(batch, length)


def _from_lists(order: list[Any], target: Tensor) -> Tensor:
    lists = _lists("order", order, target.shape[0])
    # a large batch often asks the same of every row
    rows = target[:1] if len(lists) == 1 and bool((target == target[:1]).all()) else target
    values = torch.zeros(rows.shape, dtype=torch.long)
    for row, positions in enumerate(lists if len(lists) == len(rows) else lists * len(rows)):
        asked = rows[row].nonzero().squeeze(1).tolist()
        if sorted(positions) != asked:
            where = f" of row {row}" if target.shape[0] > 1 else ""
            raise ValueError(
                f"order: expected the target positions{where}, {asked!s:.60}, each once, got {positions!s:.60}"
            )
        values[row, positions] = torch.arange(len(positions))
    return values.expand(target.shape)


def _repeated(values: Tensor, target: Tensor) -> Tensor:
    # bool (B, T): targets whose number another target of the row has, too
    columns = torch.where(target, values, torch.iinfo(torch.long).min).argsort(dim=1, stable=True)
    ordered, asked = values.gather(1, columns), target.gather(1, columns)
    same = torch.zeros_like(asked)
    same[:, 1:] = (ordered[:, 1:] == ordered[:, :-1]) & asked[:, 1:] & asked[:, :-1]
    return torch.zeros_like(same).scatter(1, columns, same)


def _refuse(rows: Tensor, problem: str, where: Tensor | None = None) -> None:
    # `rows`: bool (B,), the rows that have the problem; `where`: bool (B, T), at which positions
    if not bool(rows.any()):
        return
    row = int(rows.nonzero()[0])
    if where is not None:
        problem = problem.format(int(where[row].nonzero()[0]))
    raise ValueError(problem + (f" (row {row})" if len(rows) > 1 else ""))
