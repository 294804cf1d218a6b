"""Makes data loaders safe to resume: they draw nothing from the global random stream, and outlive a SIGTERM.

Starting to iterate a torch loader draws a seed from the global generator. How often that happens differs between a
run that goes through and one that is resumed (persistent workers start once), and dropout would then differ too.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader


def isolate(loader: DataLoader[Any], generator: torch.Generator) -> DataLoader[Any]:
    """Let `loader` seed its workers from `generator`, and its workers leave SIGTERM to the main process."""
    # accelerate wraps the loader that iterates
    inner = getattr(loader, "base_dataloader", loader)
    inner.generator = generator
    before = inner.worker_init_fn
    # a loader with persistent workers comes by again for every evaluation
    if inner.num_workers > 0 and getattr(before, "func", None) is not _start_worker:
        inner.worker_init_fn = functools.partial(_start_worker, before=before)
    return loader


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for the workers of one epoch, the same in a resumed run; `seed` and `epoch` count from 0."""
    return (seed * 1_000_003 + epoch) % (1 << 63)


def _start_worker(worker_id: int, before: Callable[[int], None] | None) -> None:
    # a batch system signals the whole process group: a worker that obeyed would crash the run in mid-step.
    # it still ends with the main process, which it watches
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if before is not None:
        before(worker_id)
