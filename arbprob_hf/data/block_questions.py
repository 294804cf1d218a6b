"""A question about a block, drawn from a task for each of its documents, and the random numbers it is drawn with."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from numpy.random.bit_generator import ISeedSequence

from ..errors import check_integer
from .tasks import Task

Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.integer]
# what a block has beside its tokens when a question about it is stored
QUESTION_COLUMNS = ("given", "target", "step", "scored")


@dataclass(frozen=True)
class BlockQuestion:
    """A question about one block of T tokens, with a part for each of its documents.

    Attributes:
        given, target: bool (T,); the first token of each document is given.
        step: int64 (T,), 1, 2, ... on the targets of each document in the order asked, 0 elsewhere.
        scored: bool (T,), the targets that count: all of them, but in modes 4 and 5.
    """

    given: Bools
    target: Bools
    step: Integers
    scored: Bools

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The attributes by name, as columns of a data set."""
        return {name: getattr(self, name) for name in QUESTION_COLUMNS}


def draw_question(
    task: Task, document_ids: Integers, random: np.random.Generator, *, length: int | None = None
) -> BlockQuestion:
    """A question for each document of a block, one after the other; a document of one token has none to ask.

    `document_ids`: integers (T,), equal within a document. `length`: tokens that are not padding, all when None.
    """
    size = len(document_ids)
    given, target = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    step = np.zeros(size, np.int64)
    length = size if length is None else int(length)
    bounds = np.flatnonzero(np.diff(document_ids[:length])) + 1
    for begin, end in zip([0, *bounds], [*bounds, length], strict=True):
        if end - begin < 2:
            given[begin:end] = True
            continue
        drawn = task.draw(int(end - begin), random)
        given[begin:end], target[begin:end], step[begin:end] = drawn.given, drawn.target, drawn.step
    return BlockQuestion(given, target, step, target.copy())


def left_to_right(document_ids: Integers, scored: Bools | None = None, *, length: int | None = None) -> BlockQuestion:
    """Every token but the first of a document, given those before it; only `scored` ones count, all when None.

    `length`: tokens that are not padding, all when None.
    """
    begins = np.ones(len(document_ids), np.bool_)
    begins[1:] = document_ids[1:] != document_ids[:-1]
    index = np.arange(len(document_ids))
    is_text = index < (len(index) if length is None else length)
    step = np.where(is_text, index - np.maximum.accumulate(np.where(begins, index, 0)), 0)
    target = ~begins & is_text
    return BlockQuestion(begins & is_text, target, step, target if scored is None else scored & target)


def question_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator that draws the question about sequence `index` in one epoch, the same in every process.

    Nothing that was drawn before matters: `seed` and `epoch` are the key of a Philox generator (Salmon et al. 2011),
    `index` is where its counter starts, 2**192 blocks from the next, so that streams of one key never overlap.

    Raises:
        TypeError: no integers. ValueError: not from 0 to 2**64 - 1.
    """
    seed, epoch, index = (
        check_integer(f"question_rng({name})", value, low=0, high=2**64 - 1)
        for name, value in (("seed", seed), ("epoch", epoch), ("index", index))
    )
    key = _Key(np.array([seed, epoch], np.uint64))
    return np.random.Generator(np.random.Philox(cast(Any, key), counter=np.array([0, 0, 0, index], np.uint64)))


@dataclass(frozen=True, eq=False)
class _Key(ISeedSequence):
    # Philox(key=...) would ask the system for randomness it does not use, which takes longer than a draw

    key: npt.NDArray[np.uint64]

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Any:
        return self.key
