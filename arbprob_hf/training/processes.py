"""What the processes of one run do together, and what transformers does not allow for when they are several."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers import Trainer, TrainingArguments

from ..runs.fingerprint import write_fingerprint
from ..runs.lock import lock_owner

T = TypeVar("T")
_PATIENCE_SECONDS = 30.0


def from_main(work: Callable[[], T], args: TrainingArguments) -> T:
    """Let the main process `work`; every process returns the result, or raises the error."""
    if args.world_size <= 1:
        return work()
    outcome: list[Any] = [None, None]
    if args.process_index == 0:
        try:
            outcome[0] = work()
        except Exception as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def refuse_folders_apart(folder: Path, args: TrainingArguments) -> None:
    """Raise ValueError on every process where one does not see the output folder that the main process has locked."""
    if args.world_size <= 1:
        return
    owner = from_main(lambda: lock_owner(folder), args)
    give_up = time.monotonic() + _PATIENCE_SECONDS
    # a network's file system may take a while to show what another machine has made
    while lock_owner(folder) != owner and time.monotonic() < give_up:
        time.sleep(0.1)
    own = None if lock_owner(folder) == owner else f"process {args.process_index} on {socket.gethostname()}"
    apart = [one for one in gather_object([own]) if one is not None]
    if apart:
        raise ValueError(
            f"output_dir is not one folder for all processes: {apart[0]} does not see the main process's {folder}; "
            "name a folder on a disk that all machines share, by its whole path"
        )


def largest(values: torch.Tensor, args: TrainingArguments) -> list[float]:
    """The largest that any process has, of each of `values` (N,): the same list on all of them."""
    if args.world_size > 1:
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX)
    numbers: list[float] = values.tolist()
    return numbers


@contextlib.contextmanager
def cpu_without_index(args: TrainingArguments) -> Iterator[None]:
    """Let `args.device` be "cpu" in place of "cpu:0" for a run on the CPU.

    transformers before 5.23 hands it to torch.load on several processes, which refuses an index.
    """
    device = args.device
    if device.type == "cpu":
        # where the cached property keeps its value
        args.__dict__["_setup_devices"] = torch.device("cpu")
    try:
        yield
    finally:
        args.__dict__["_setup_devices"] = device


def note_fingerprint(trainer: Trainer, folder: Path) -> None:
    """Note what `trainer` has saved in `folder`, and what its network says, for `arbprob verify`."""
    if not trainer.args.should_save or not (folder / "config.json").is_file():
        return
    # of one that is spread over processes, none can ask alone
    is_whole = not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)
    write_fingerprint(folder, trainer.accelerator.unwrap_model(trainer.model) if is_whole else None)
