"""The lock of an output folder: one process a folder, and no run over another."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from .checkpoints import PRIVATE_NAME, numbered, staging, sweep, verify

# what a run leaves at the top of its output folder, beside checkpoint-<step>
_RUN_FILES = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "training_args.bin",
    "logs/training_log.csv",
)

# how often a folder may vanish between its making and the opening of its lock
_TRIES = 100

# folder -> descriptor of its lock, for every folder that this process holds
_held: dict[Path, int] = {}


@contextlib.contextmanager
def lock_run_folder(path: str | Path, *, resume: bool, is_main: bool = True) -> Iterator[None]:
    """Hold the output folder `path` for this process while the block runs.

    The folder is made if need be. The lock is the operating system's (`flock`): it ends with the process, however
    that ends, and data loader workers do not inherit it. What a killed run left half-done is removed.
    Folders that were made for a run that wrote nothing are removed again.
    Within one process the block may be nested; with `is_main=False` (the other processes of a run) it does nothing.

    Raises ValueError when another process holds the folder, when it holds another run and `resume` is False (it is
    left as it is), when it cannot be made or written to, or when its file system has no locks.
    """
    folder = Path(path).resolve()
    if not is_main or folder in _held:
        yield
        return
    new_folders = [one for one in (folder, *folder.parents) if not one.exists()]
    _held[folder] = _lock(folder)
    try:
        if not resume:
            _refuse_another_run(folder)
        sweep(folder)
        yield
    finally:
        _unlock(folder, _held.pop(folder))
        # a refused run leaves no trace: what is not empty stays
        with contextlib.suppress(OSError):
            for one in new_folders:
                one.rmdir()


def lock_owner(path: str | Path) -> str | None:
    """What the lock of the output folder `path` says of its owner; None where there is none, as seen from here."""
    try:
        return (Path(path) / PRIVATE_NAME / "lock").read_text(encoding="utf-8")
    except OSError:
        return None


def _refuse_another_run(folder: Path) -> None:
    # a complete stage is a checkpoint whose run was killed before it could be put in place
    checkpoints = [*numbered(folder), *(path for path in numbered(staging(folder)) if verify(path) is None)]
    traces = [path.name for path in checkpoints] + [name for name in _RUN_FILES if (folder / name).exists()]
    if traces:
        raise ValueError(
            f"output_dir {folder} already holds a run (it has {traces[-1]}): resume it with "
            "--resume_from_checkpoint true, or name an empty or new folder"
        )


@functools.cache
def _close_locks_in_forks() -> None:
    # a worker that outlives its killed parent would otherwise keep the folder locked for seconds
    os.register_at_fork(after_in_child=_close_locks)


def _close_locks() -> None:
    while _held:
        os.close(_held.popitem()[1])


def _lock(folder: Path) -> int:
    _close_locks_in_forks()
    lock = folder / PRIVATE_NAME / "lock"
    while True:
        descriptor = _open(lock, folder)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 200).decode("utf-8", "replace")
            os.close(descriptor)
            raise ValueError(
                f"output_dir {folder} is in use by another run ({owner or 'just started'}): "
                "wait until it ends, or name another folder"
            ) from None
        except OSError as error:
            _unlock(folder, descriptor)
            raise ValueError(
                f"output_dir {folder} is on a file system without locks ({error.strerror}): name one on another disk"
            ) from None
        if _is_same_file(descriptor, lock):
            break
        os.close(descriptor)  # it was removed by its last owner between our open and our lock
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return descriptor


def _open(lock: Path, folder: Path) -> int:
    for _ in range(_TRIES):
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            return os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue  # another run has just ended and taken its folder away, or there can be no folder here
        except (FileExistsError, NotADirectoryError):
            raise ValueError(f"output_dir must be a folder, got {folder}: a file is in the way") from None
        except OSError as error:
            raise ValueError(
                f"output_dir {folder} cannot be written to ({error.strerror}): name a folder that can"
            ) from None
    raise ValueError(f"output_dir {folder} cannot be made: name a folder on a disk that can be written to")


def _unlock(folder: Path, descriptor: int) -> None:
    # removed before it is released: whoever locks the removed file sees that it is no longer the named one
    with contextlib.suppress(OSError):
        (folder / PRIVATE_NAME / "lock").unlink()
    os.close(descriptor)
    for name in ("staging", "final", "trash", "."):
        with contextlib.suppress(OSError):
            (folder / PRIVATE_NAME / name).resolve().rmdir()


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
