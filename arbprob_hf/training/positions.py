"""Where a run is in its blocks, counted in blocks: it goes on there with any number of processes and any batch.

transformers counts batches. Of another size, they lie elsewhere in an epoch: blocks would come again or be left out.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers.trainer
from accelerate.data_loader import DataLoaderDispatcher
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Sampler

from ..data import StreamedBlocks
from ..data.shares import ReaderState, StreamPosition, deal, first_states
from .dataloaders import READER

POSITION_NAME = "position.json"

# what `Trainer.set_initial_training_values` gives
Lengths = tuple[int, int, int, int, int, "int | None", int]


@dataclass(frozen=True)
class Position:
    """A place in the order of an epoch: `blocks` of its `rows` were had by step `step`, all processes together."""

    epoch: int
    blocks: int
    rows: int
    step: int

    def save(self, checkpoint: Path) -> None:
        """Put it into the folder of a checkpoint that is not sealed yet."""
        text = json.dumps({"format": 1, **asdict(self)}, indent=1)
        (checkpoint / POSITION_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, checkpoint: Path) -> Position | None:
        """That of a verified checkpoint; None where it was saved before positions were."""
        path = checkpoint / POSITION_NAME
        if not path.is_file():
            return None
        saved = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{name: int(saved[name]) for name in cls.__dataclass_fields__})


class BlockCounter:
    """Counts the blocks of a run, and says where the epoch that it resumes goes on.

    A batch here is that of all processes together, of `batch` blocks; `accumulation` of them make a step.
    """

    def __init__(self, begin: Position | None = None) -> None:
        self._begin = begin
        self._epoch, self._batches = (0, 0) if begin is None else (begin.epoch, 0)
        self.rows = self.batch = self.accumulation = 0
        self.drops_last = False

    def measure(self, loader: DataLoader[Any], order: EpochOrder, *, accumulation: int, drop_last: bool) -> None:
        """Take the sizes of the training loader over `order`, which accelerate has shared out to the processes."""
        self.rows, self.batch = len(order), _total_batch_size(loader)
        self.accumulation, self.drops_last = accumulation, drop_last
        begin = self._begin
        if begin is not None and begin.rows != self.rows:
            self._begin = None
        elif begin is not None and not self._batches_left(begin.blocks):
            self._begin = Position(begin.epoch + 1, 0, self.rows, begin.step)

    def start_in_batches(self, epoch: int, batches: int, step: int) -> None:
        """Go on behind so many batches of an epoch, where nothing else is known of the checkpoint."""
        if self._begin is None:
            self._begin = Position(epoch, batches * self.batch, self.rows, step)

    @property
    def counts(self) -> bool:
        """Whether the run takes its blocks in an order that is known: no stream, no loader of others."""
        return self.rows > 0

    @property
    def is_resumed(self) -> bool:
        """Whether the blocks that were had are known."""
        return self._begin is not None

    def blocks_before(self, epoch: int) -> int:
        """How many blocks of an epoch a run had before it was resumed."""
        return self._begin.blocks if self._begin is not None and self._begin.epoch == epoch else 0

    def begun(self) -> tuple[int, int]:
        """The epoch to go on with, and how many batches of it count as made: whole steps of this run's size."""
        assert self._begin is not None, "asked of a resumed run"
        step = self.batch * self.accumulation
        return self._begin.epoch, self._begin.blocks // step * self.accumulation

    def epoch_lengths(self) -> tuple[int, int]:
        """Batches and steps of the epoch that `begun` names, those that count as made included."""
        assert self._begin is not None, "asked of a resumed run"
        made, left = self.begun()[1], self._batches_left(self._begin.blocks)
        return made + left, made // self.accumulation + math.ceil(left / self.accumulation)

    def lengths(self, usual: Lengths, *, epochs: float | None) -> Lengths:
        """The lengths of a run that transformers would give as `usual`, as they are where it goes on.

        `epochs`: how many to train; None where a number of steps decides.
        """
        if self._begin is None or not self.counts:
            return usual
        number, each, *rest, most = usual
        epoch, made = self.begun()
        made, whole = made // self.accumulation, self.epoch_lengths()[1]
        if epochs is None:
            number = epoch + 1 + math.ceil((most - self._begin.step - (whole - made)) / each)
        else:
            this_epoch = whole - each if epochs >= epoch + 1 else 0
            most = self._begin.step + math.ceil(epochs * each) - (epoch * each + made) + this_epoch
        return number, each, *rest, most  # type: ignore[return-value]

    def start_epoch(self, epoch: int) -> None:
        """Count the batches of another epoch."""
        self._epoch, self._batches = epoch, 0

    def add(self, batches: int) -> None:
        """Note that so many batches were drawn for a step."""
        self._batches += batches

    def position(self, step: int) -> Position:
        """Where the run is after `step`."""
        blocks = self.blocks_before(self._epoch) + self._batches * self.batch
        if self._batches_left(blocks) <= 0:
            return Position(self._epoch + 1, 0, self.rows, step)
        return Position(self._epoch, blocks, self.rows, step)

    def _batches_left(self, blocks: int) -> int:
        left = (self.rows - blocks) / self.batch
        return math.floor(left) if self.drops_last else math.ceil(left)


class ReaderTracker:
    """Keeps the states of this process's readers of a stream, as its batches bring them."""

    def __init__(self, blocks: StreamedBlocks, workers: int, begin: StreamPosition | None, *, skips: bool) -> None:
        """`begin`: where `blocks` go on; None from the first, or, where it `skips`, behind what is read again."""
        self._blocks, self.workers = blocks, max(1, workers)
        rank, self.processes = blocks.process
        self._turn, self._states = 0, dict[int, ReaderState]()
        self.is_resumed, self.is_changed = begin is not None, False
        readers = self.processes * self.workers
        if begin is not None:
            self.is_changed = (begin.processes, begin.workers) != (self.processes, self.workers)
            self._turn = 0 if self.is_changed else begin.turns[rank]
        if not skips:
            states = first_states(readers) if begin is None else deal(begin.states, readers)
            own = range(rank * self.workers, (rank + 1) * self.workers)
            self._states = {reader: states[reader] for reader in own}
        blocks.resume(None if begin is None else begin.states, self._turn)

    def skip(self, batches: int) -> None:
        """Note that so many batches of this process were read and left out."""
        self._turn = (self._turn + batches) % self.workers

    def take(self, batch: dict[str, Any]) -> None:
        """Take from a batch, which is about to be trained on, what it says of its reader."""
        reader, self._states[reader] = batch.pop(READER)
        self._turn = (self._turn + 1) % self.workers

    def position(self) -> StreamPosition | None:
        """Where the readers of all processes are, which all ask; None where that of one is not known yet."""
        found = gather_object([(self._turn, self._states)])
        states = {reader: state for _, own in found for reader, state in own.items()}
        if len(states) < self.processes * self.workers:
            return None
        turns = tuple(turn for turn, _ in found)
        return StreamPosition(self.processes, self.workers, turns, tuple(states[reader] for reader in sorted(states)))


class EpochOrder(Sampler[int]):
    """The blocks of an epoch in an order that `seed` and the epoch alone decide, from where the run goes on.

    Several processes take equally many batches: the epoch's first blocks fill up the last ones.
    """

    def __init__(self, sampler: Sampler[int], counter: BlockCounter, *, seed: int) -> None:
        self.sampler, self.counter, self.seed = sampler, counter, seed
        self.epoch = 0
        # blocks that are handed out together; 1 where what is left over need not be filled up
        self.together = 1

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be that of `epoch`, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        # transformers' samplers draw with it, or need none
        self.sampler.generator = torch.Generator().manual_seed(self.seed + self.epoch)  # type: ignore[attr-defined]
        order = list(self.sampler)
        left = order[self.counter.blocks_before(self.epoch) :]
        return itertools.chain(left, itertools.islice(itertools.cycle(order), -len(left) % self.together))


def _total_batch_size(loader: Any) -> int:
    if isinstance(loader, DataLoaderDispatcher):
        # it reads for all processes; its own total_batch_size asks the data set for one
        return int(loader.batch_sampler.batch_size * (1 if loader.split_batches else loader.state.num_processes))
    return int(loader.total_batch_size)


def epoch_order(loader: DataLoader[Any]) -> EpochOrder | None:
    """What decides on the order of a training loader; None where it is none of ours."""
    # of several processes, one sampler of batches deals out those of another
    batches = getattr(loader.batch_sampler, "batch_sampler", loader.batch_sampler)
    sampler = getattr(batches, "sampler", None)
    return sampler if isinstance(sampler, EpochOrder) else None


@contextlib.contextmanager
def skipping_nothing() -> Iterator[None]:
    """Let transformers, which would skip the batches that a resumed run has had, take the loader as it is."""
    name = "skip_first_batches"
    skip = getattr(transformers.trainer, name)
    setattr(transformers.trainer, name, lambda loader, count=0: loader)
    try:
        yield
    finally:
        setattr(transformers.trainer, name, skip)
