"""Says in one line what a machine has run out of: memory, room on a disk, or a process that was killed."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([\w ]+)|exited unexpectedly)"
)
# what gloo and NCCL say of a process that is gone
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "remote process exited",
    "NCCL communicator was aborted",
)
_PREPARING = "subprocesses has abruptly died"
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory")
_SIZE = re.compile(r"(?:[Tt]ried to|Unable to) allocate ([\d.]+ ?\w+)")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
# safetensors and datasets say it in words; torch's writer knows only that bytes are missing
_NO_ROOM_WORDS = ("No space left on device", "Not enough disk space", "os error 28", "inline_container")
_RESUME = "--resume_from_checkpoint true goes on from the last checkpoint"
# what was done -> what to lower, by the names of functions, the innermost first
_LOWER = {
    "evaluation_loop": "per_device_eval_batch_size",
    "load_blocks": "num_train_samples (or give streaming: true)",
    "with_states": "shuffle_buffer",
    "training_step": "per_device_train_batch_size (and raise gradient_accumulation_steps by as much), or block_size",
}


def machine_error(error: BaseException) -> str | None:
    """What ran out, where, and what to do, in one line; None for an error of another kind."""
    for one in _causes(error):
        said = str(one)
        worker = _WORKER.search(said)
        if worker:
            return _worker_killed(worker)
        if isinstance(one, RuntimeError) and any(words in said for words in _LOST):
            return f"the connection to another process of the run is lost: see what that one says, if it can; {_RESUME}"
        if _PREPARING in said:
            return (
                "a process that prepared the text was killed; most often memory has run out: give fewer "
                "preprocessing_num_workers"
            )
        if is_full_disk(one):
            return full_disk(_place(error))
        if _is_out_of_memory(one):
            return _out_of_memory(error, said)
    return None


def is_full_disk(error: BaseException) -> bool:
    """Whether there was no room for what was written."""
    return getattr(error, "errno", None) in _NO_ROOM or any(words in str(error) for words in _NO_ROOM_WORDS)


def full_disk(place: Path | None) -> str:
    """The line for a disk that is full at `place`, or somewhere where that is not known."""
    if place is None:
        return f"the disk is full: make room there, or name an output_dir on another disk; {_RESUME}"
    existing = next((one for one in (place, *place.parents) if one.exists()), Path("/"))
    free = shutil.disk_usage(existing).free // 2**20
    return f"the disk is full: {place} could not be written ({free} MiB free): make room; {_RESUME}"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system that names no file, as one of writing does, name `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def _causes(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    while one is not None:
        yield one
        # "from None" says that what was being handled does not matter
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _worker_killed(found: re.Match[str]) -> str:
    number, signal = found.groups()
    if signal and "Bus error" in signal:
        return (
            f"a data loader worker (process {number}) has no shared memory left in /dev/shm: make that larger, or give "
            f"fewer dataloader_num_workers; {_RESUME}"
        )
    how = f"signal {signal.strip()}" if signal else "it ended by itself"
    return (
        f"a data loader worker (process {number}) was killed ({how}), most often because memory has run out: give "
        f"fewer dataloader_num_workers or, to a stream, a smaller shuffle_buffer; {_RESUME}"
    )


def _is_out_of_memory(error: BaseException) -> bool:
    # the class of torch, which is not imported here
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    is_memory = isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    return is_memory or getattr(error, "errno", None) == errno.ENOMEM


def _out_of_memory(error: BaseException, said: str) -> str:
    size = _SIZE.search(said)
    wanted = f" ({size.group(1)} more were asked for)" if size else ""
    names = set(_functions(error))
    lower = next((what for name, what in _LOWER.items() if name in names), "the size of the network, or of a batch")
    return f"memory has run out{wanted}: lower {lower}; {_RESUME}"


def _functions(error: BaseException) -> Iterator[str]:
    for one in _causes(error):
        # a worker's traceback comes as text
        yield from re.findall(r", line \d+, in (\w+)", str(one))
        trace = one.__traceback__
        while trace is not None:
            yield trace.tb_frame.f_code.co_name
            trace = trace.tb_next


def _place(error: BaseException) -> Path | None:
    names = [name for one in _causes(error) if (name := getattr(one, "filename", None)) is not None]
    if names:
        return Path(os.fsdecode(names[0]))
    if "load_blocks" in _functions(error):
        # what is prepared of a text lies in the cache of `datasets`
        import datasets

        return Path(str(datasets.config.HF_DATASETS_CACHE))
    return None
