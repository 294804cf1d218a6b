"""Who reads what of a stream, and how far each is: what a run saves, so that it need not read again what it had.

A few numbers a reader are enough. The order of a shuffle depends on its random numbers alone, so what a buffer holds is
known from how many texts have left it, and `start` says from where on these are read again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

# the file of a checkpoint that holds them
READERS_NAME = "readers.json"

# a text by number, the place of its file in the order of a reading, and a row of that file
Start = tuple[int, int, int]
# numbers drawn at a time
_DRAWN = 1 << 20


@dataclass(frozen=True)
class Share:
    """The texts that reader `reader` of `readers` takes in its order, from text number `texts` of a reading on.

    Attributes:
        reading, last: which reading of the whole text, from 0, and the last one; None where there is no end.
        first, step: of these texts, only those whose number leaves `first` when it is divided by `step`.
        texts, tokens: the number of the next text, and how many tokens of it are in blocks already.
        total: how many texts this reading has, once that is known.
        start: no text that is still to come lies before.
    """

    reader: int
    readers: int
    reading: int = 0
    last: int | None = None
    first: int = 0
    step: int = 1
    texts: int = 0
    tokens: int = 0
    total: int | None = None
    start: Start = (0, 0, 0)

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is left, whatever the text."""
        return self.last is not None and self.reading > self.last

    def next_reading(self) -> Share:
        """The same share when the text is read once more."""
        return replace(self, reading=self.reading + 1, texts=0, tokens=0, total=None, start=(0, 0, 0))

    def split(self, parts: int) -> list[Share]:
        """Shares for so many readers, which take turns with the texts of this one."""
        found = [replace(self, first=self.first + self.step * part, step=self.step * parts) for part in range(parts)]
        # the one whose turn it is has the rest of the text that is in use
        return [one if self.texts % one.step == one.first else replace(one, tokens=0) for one in found]


@dataclass(frozen=True)
class ReaderState:
    """Where one reader is: what it reads, one share after the other, and the number of its next block."""

    shares: tuple[Share, ...]
    index: int


@dataclass(frozen=True)
class StreamPosition:
    """Where all readers of a run are, in the order of its `processes` and their loader `workers`.

    `turns`: for each process, the worker whose batch comes next.
    """

    processes: int
    workers: int
    turns: tuple[int, ...]
    states: tuple[ReaderState, ...]

    def save(self, checkpoint: Path) -> None:
        """Put it into the folder of a checkpoint that is not sealed yet."""
        text = json.dumps({"format": 1, **asdict(self)}, indent=1)
        (checkpoint / READERS_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, checkpoint: Path) -> StreamPosition | None:
        """That of a verified checkpoint; None where it was saved before readers were, or not of a stream."""
        path = checkpoint / READERS_NAME
        if not path.is_file():
            return None
        saved = json.loads(path.read_text(encoding="utf-8"))
        states = []
        for state in saved["states"]:
            shares = tuple(Share(**{**share, "start": tuple(share["start"])}) for share in state["shares"])
            states.append(ReaderState(shares, state["index"]))
        return cls(saved["processes"], saved["workers"], tuple(saved["turns"]), tuple(states))


def first_states(readers: int) -> list[ReaderState]:
    """Where readers are that have read nothing."""
    return [ReaderState((Share(reader, readers),), reader) for reader in range(readers)]


def deal(states: Sequence[ReaderState], readers: int) -> list[ReaderState]:
    """What so many readers go on with where others were at `states`: in each reading, each text still comes once.

    Readings that some of the others had begun are read to their end as these would have read them, each share by one
    reader, which may have several, or by several that take turns. The next reading is shared out anew.
    """
    if len(states) == readers:
        return list(states)
    shares = [share for state in states for share in state.shares]
    # a reading of which a reader has nothing yet is not begun
    endless = [share for share in shares if share.last is None]
    latest = max(share.reading if share.texts or share.tokens else share.reading - 1 for share in endless)
    rest = [replace(share, last=latest) if share.last is None else share for share in shares]
    # each new reader gets some of what comes first
    rest = sorted((share for share in rest if not share.is_over), key=lambda share: share.reading)
    index = max(state.index for state in states)
    found = []
    for reader in range(readers):
        if readers <= len(rest) or not rest:
            own = rest[reader::readers]
        else:
            number, part = reader % len(rest), reader // len(rest)
            own = [rest[number].split(len(range(number, readers, len(rest))))[part]]
        found.append(ReaderState((*own, Share(reader, readers, reading=latest + 1)), index + reader))
    return found


def buffered(
    size: int, share: Share, random: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
    """The texts, by number, in a shuffle buffer of `size` when `share.texts` have left it; takes what it drew by then.

    The second is None while there are further texts to read; then it is the order in which the last ones leave.
    """
    left, total = share.texts, share.total
    ends = total is not None and left > total - size
    if total is not None and ends:
        held, draws = np.arange(min(size, total)), max(0, total - size)
    else:
        held, draws = np.arange(size), left
    # of several texts in one place, the last one stays
    for begin in range(0, draws, _DRAWN):
        count = min(_DRAWN, draws - begin)
        held[random.integers(size, size=count)] = size + begin + np.arange(count)
    if not ends:
        return held, None
    order = held[random.permutation(len(held))][left - draws :]
    return order, order
