"""Makes data loaders safe to resume and to stop: no draws from the global random stream, no deaths in mid-step.

Starting to iterate a torch loader draws a seed from the global generator. How often that happens differs between a
run that goes through and one that is resumed (persistent workers start once), and dropout would then differ too.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import Trainer

from ..data import StreamedBlocks
from ..data.shares import ReaderState
from .options.checks import warn_of_idle_in_streams
from .signals import IDLE, STOPPING, StopSignal

# of a batch of a stream: the number and the state of its reader
READER = "reader"
# how long a worker waits for the main process to notice the signal that both may have got
_PATIENCE_SECONDS = 60.0


def isolate(loader: DataLoader[Any], generator: torch.Generator, stop: StopSignal) -> DataLoader[Any]:
    """Let `loader` seed its workers from `generator`, and its workers work on while `stop` ends the run.

    A batch system sends SIGTERM to every process of a job. A worker that died of it would crash the main process
    before that has finished its step and saved.
    """
    # accelerate wraps the loader that iterates
    inner = getattr(loader, "base_dataloader", loader)
    inner.generator = generator
    before = inner.worker_init_fn
    # a loader with persistent workers comes by again for every evaluation
    if inner.num_workers > 0 and getattr(before, "func", None) is not _start_worker:
        inner.worker_init_fn = functools.partial(_start_worker, before=before, state=stop.state)
    return loader


def stream_loader(trainer: Trainer, *, with_states: bool) -> DataLoader[Any]:
    """The training loader over a stream that is shared out already: every process makes batches of what it reads.

    accelerate would have the main process read everything, or every process read everything and keep a part.
    `with_states`: a batch also has `READER`, who read it and the state of that reader behind it. Workers are ahead of
    the training, but what comes with a batch is of that batch.
    """
    args, blocks = trainer.args, trainer.train_dataset
    assert isinstance(blocks, StreamedBlocks), "other data sets are loaded by transformers"
    if args.process_index == 0:
        warn_of_idle_in_streams(args)
    collate = trainer.data_collator
    loader = DataLoader(
        _WithStates(blocks) if with_states else blocks,
        batch_size=args.train_batch_size,
        collate_fn=functools.partial(_collate_with_state, collate=collate) if with_states else collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory and args.device.type != "cpu",
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        multiprocessing_context=args.dataloader_multiprocessing_context,
    )
    prepared: DataLoader[Any] = prepare_data_loader(
        loader, args.device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
    )
    return prepared


@contextlib.contextmanager
def whole_sets(trainer: Trainer, *, keeps_logits: bool) -> Iterator[None]:
    """Let the loaders that `trainer` makes in the block give every row of a set once, in order, over all processes.

    The options of the training loader (a last batch that is dropped or filled up, rows sorted by length, batches that
    one process reads for all) would leave rows out or count some twice. Where logits are kept, processes are given
    equally many rows, as gathering wants, and transformers takes the surplus off again.
    """
    args, config = trainer.args, trainer.accelerator.dataloader_config
    with contextlib.ExitStack() as held:
        for owner, values in (
            (args, {"dataloader_drop_last": False, "train_sampling_strategy": "random"}),
            (config, {"even_batches": keeps_logits, "split_batches": False, "dispatch_batches": None}),
        ):
            for name, value in values.items():
                held.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, value)
        yield


class _WithStates(torch.utils.data.IterableDataset[tuple[Any, int, ReaderState]]):
    def __init__(self, blocks: StreamedBlocks) -> None:
        self.blocks = blocks

    def __iter__(self) -> Iterator[tuple[Any, int, ReaderState]]:
        return self.blocks.with_states()


def _collate_with_state(
    rows: Sequence[tuple[Any, int, ReaderState]], collate: Callable[[list[Any]], Any]
) -> dict[str, Any]:
    return {**collate([block for block, _, _ in rows]), READER: rows[-1][1:]}


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for the workers of one epoch, the same in a resumed run; `seed` and `epoch` count from 0."""
    return (seed * 1_000_003 + epoch) % (1 << 63)


def _start_worker(worker_id: int, before: Callable[[int], None] | None, state: Any) -> None:
    def obey_unless_stopping(number: int, frame: FrameType | None) -> None:
        # the main process may be in the middle of a long call and note its own signal only after that
        give_up = time.monotonic() + _PATIENCE_SECONDS
        while state.value != IDLE and time.monotonic() < give_up:
            if state.value == STOPPING:
                return
            time.sleep(0.01)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, obey_unless_stopping)
    if before is not None:
        before(worker_id)
