"""Sealed checkpoints, and the one to resume from: a checkpoint is complete and verifiable, or it is not there at all.

A checkpoint is written into a hidden staging folder of the output folder, listed with the SHA-256 of every file
in `manifest.json`, flushed to the disk, and only then renamed to `checkpoint-<step>`. Nothing here needs torch.

    OUTPUT/checkpoint-<step>/manifest.json      sealed checkpoints
    OUTPUT/.arbprob/{lock,staging,final,trash}  work in progress; empty and gone when no run is active
    OUTPUT/_set_aside/                          damaged or foreign things that were in the way, kept for a look
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from ..atomic_write import flush
from ..errors import RunError

logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
PRIVATE_NAME = ".arbprob"
ASIDE_NAME = "_set_aside"

_CHECKPOINT_NAME = re.compile(r"checkpoint-(0|[1-9][0-9]*)")
_PICKLED_NAME = re.compile(r"(pytorch_model|adapter_model)(-[0-9]+-of-[0-9]+)?\.bin(\.index\.json)?")
_WEIGHTS_NAME = re.compile(r"model(-[0-9]+-of-[0-9]+)?\.safetensors(\.index\.json)?")


class CheckpointError(RunError):
    """A checkpoint could not be written; the earlier ones are as they were."""


def staging(output_dir: Path) -> Path:
    """The hidden folder of `output_dir` in which a checkpoint is written before it is sealed."""
    return output_dir / PRIVATE_NAME / "staging"


def is_staged(checkpoint: Path) -> bool:
    """Whether the folder `checkpoint` lies in the staging folder of some output folder."""
    return checkpoint.parent.parts[-2:] == staging(Path()).parts


def seal(staged: Path, output_dir: Path) -> Path:
    """Turn the finished folder `staged` (named `checkpoint-<step>`) into a sealed checkpoint of `output_dir`.

    Writes the manifest, flushes every file and folder, then renames. An older checkpoint of the same step is
    replaced; anything else under that name is set aside. Returns the new path. Raises OSError when the disk does.
    """
    _write_manifest(staged)
    for path in [*_files(staged), *(p for p in staged.rglob("*") if p.is_dir()), staged]:
        flush(path)
    return _put_in_place(staged, output_dir)


def verify(checkpoint: Path) -> str | None:
    """Compare every file of `checkpoint` with its manifest: None when all is well, else what is wrong."""
    try:
        listed = _read_manifest(checkpoint)
        if not isinstance(listed, dict):
            return listed
        for name, (size, _) in listed.items():
            if not (checkpoint / name).is_file():
                return f"{name} is missing"
            found = (checkpoint / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes, sealed with {size}"
        for name, (_, digest) in listed.items():
            if sha256(checkpoint / name) != digest:
                return f"{name} is not the file that was sealed (its SHA-256 differs)"
    except OSError as error:
        return f"it cannot be read ({error})"
    return None


def is_sealed(checkpoint: Path) -> bool:
    """Whether `checkpoint` has a readable manifest of its own step (its files are not hashed)."""
    try:
        return isinstance(_read_manifest(checkpoint), dict)
    except OSError:
        return False


def sealed_names(checkpoint: Path) -> set[str]:
    """The names of the files that the manifest of a verified `checkpoint` lists, with / between folders."""
    listed = _read_manifest(checkpoint)
    assert isinstance(listed, dict), "the checkpoint does not verify"
    return set(listed)


def unlisted_names(checkpoint: Path) -> list[str]:
    """The names of the files in a verified `checkpoint` that it was not sealed with."""
    found = {path.relative_to(checkpoint).as_posix() for path in _files(checkpoint)}
    return sorted(found - sealed_names(checkpoint) - {MANIFEST_NAME})


def numbered(folder: Path) -> list[Path]:
    """Everything in `folder` that is named `checkpoint-<step>`, whatever it is, lowest step first."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _step_of(p.name) is not None), key=lambda p: _step_of(p.name) or 0)


def newest(output_dir: Path, *, repair: bool = True) -> Path | None:
    """The checkpoint of the highest step that verifies, or None.

    What is found above it and does not verify is set aside with one line, or with `repair=False` (a folder that
    this run does not own) only named and passed over.
    """
    for path in reversed(numbered(output_dir)):
        problem = verify(path)
        if problem is None:
            return path
        if repair:
            quarantine(path, problem)
        else:
            logger.warning("%s is passed over: %s", path, problem)
    return None


def quarantine(path: Path, why: str) -> Path:
    """Move `path` (a file, a link or a folder) to `_set_aside/` beside it, saying `why` in one line."""
    target = _free_name(path.parent / ASIDE_NAME / path.name)
    os.rename(path, target)
    logger.warning("%s is set aside as %s: %s", path, target.relative_to(path.parent), why)
    return target


def rotate(output_dir: Path, limit: int | None, protected: Collection[str], in_use: Collection[str] = ()) -> None:
    """Delete the oldest sealed checkpoints beyond `limit` (None or <= 0: keep all), never a name in `protected`.

    One whose turn it is stays while it is `in_use`; no other leaves in its place, and the next rotation takes it.
    Folders without a manifest are neither counted nor touched. Each checkpoint leaves its name at once, by a
    rename, so that a killed run never leaves half of one.
    """
    if limit is None or limit <= 0:
        return
    sealed = [path for path in numbered(output_dir) if is_sealed(path)]
    excess = len(sealed) - max(limit, sum(path.name in protected for path in sealed))
    for path in [path for path in sealed if path.name not in protected][: max(excess, 0)]:
        if path.name not in in_use:
            _discard(path)


def sweep(output_dir: Path) -> None:
    """Clean up after a killed run: a staged checkpoint that is complete is put in place, all else is removed.

    Only for a process that holds the lock of `output_dir`.
    """
    for staged in numbered(staging(output_dir)):
        if verify(staged) is None:
            _put_in_place(staged, output_dir)
    for name in ("staging", "final", "trash"):
        remove(output_dir / PRIVATE_NAME / name)


def remove(path: Path) -> None:
    """Remove a folder, or what lies in its place, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def install(staged: Path, folder: Path) -> None:
    """Move the finished files of `staged` into `folder`, each whole, the weights last; old weights of other names go.

    A process killed at any point leaves whole files only: a `model.safetensors` in `folder` is a finished one.
    """
    files = sorted(_files(staged), key=lambda p: (_weights_rank(p.name), p.name))
    for path in files:
        flush(path)
    for path in files:
        target = folder / path.relative_to(staged)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    flush(folder)
    written = {path.name for path in files}
    for path in list(folder.iterdir()):
        if _WEIGHTS_NAME.fullmatch(path.name) and path.name not in written:
            path.unlink()
    shutil.rmtree(staged, ignore_errors=True)


def _weights_rank(name: str) -> int:
    # a loader looks for the index or the single file: the shards it names come before it
    if not _WEIGHTS_NAME.fullmatch(name):
        return 0
    return 1 if "-of-" in name else 2


def _put_in_place(staged: Path, output_dir: Path) -> Path:
    target = output_dir / staged.name
    if os.path.lexists(target):
        # killed between these two renames, the run leaves a complete stage: `sweep` finishes the job
        if is_sealed(target):
            _discard(target)
        else:
            quarantine(target, "it is not a sealed checkpoint and was in the way of one")
    os.rename(staged, target)
    flush(output_dir)
    return target


def _discard(path: Path) -> None:
    trash = _free_name(path.parent / PRIVATE_NAME / "trash" / path.name)
    os.rename(path, trash)
    shutil.rmtree(trash, ignore_errors=True)


def _free_name(path: Path) -> Path:
    folder, count = path.parent, 1
    # a file may lie in the place of the folder, too
    while os.path.lexists(folder) and not folder.is_dir():
        folder, count = path.parent.with_name(f"{path.parent.name}.{count}"), count + 1
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / path.name
    candidate, count = path, 1
    while os.path.lexists(candidate):
        candidate, count = path.with_name(f"{path.name}.{count}"), count + 1
    return candidate


def _write_manifest(folder: Path) -> None:
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in _files(folder)
        if path != folder / MANIFEST_NAME
    }
    text = _dumped({"format": 1, "step": _step_of(folder.name), "files": files})
    (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")


def _dumped(manifest: object) -> str:
    # no final newline: a manifest that lost its last byte is not one
    return json.dumps(manifest, indent=1, sort_keys=True)


def _read_manifest(checkpoint: Path) -> dict[str, tuple[int, str]] | str:
    """The sealed files as name -> (bytes, SHA-256), or one line saying why there is no such list."""
    if not checkpoint.is_dir():
        return "it is not a folder"
    if not (checkpoint / MANIFEST_NAME).is_file():
        return f"it was never sealed (no {MANIFEST_NAME})"
    try:
        text = (checkpoint / MANIFEST_NAME).read_bytes().decode()
        manifest = json.loads(text)
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
        version, step = manifest["format"], manifest["step"]
        # of two equal names JSON keeps the last, and the file of the other would not be checked
        is_as_written = text == _dumped(manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST_NAME} is damaged"
    # JSON knows fractions, NaN and true, too
    are_sizes = all(type(size) is int and isinstance(digest, str) for size, digest in files.values())
    is_form = type(version) is int and version == 1 and type(step) in (int, type(None))
    if not is_as_written or not is_form or not files or not are_sizes:
        return f"{MANIFEST_NAME} is damaged"
    named = _step_of(checkpoint.name)
    if named is not None and named != step:
        return f"its {MANIFEST_NAME} is of step {step}"
    return files


def _step_of(name: str) -> int | None:
    match = _CHECKPOINT_NAME.fullmatch(name)
    return int(match.group(1)) if match else None


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def sha256(*paths: Path) -> str:
    """The SHA-256 of files, one after the other, in hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def choose_checkpoint(choice: str | bool, output_dir: Path) -> Path | None:
    """The checkpoint to resume from, verified; None to start from the beginning.

    `choice` is True, the path of one checkpoint, or the path of a folder of checkpoints. With True and nothing to
    resume from, the run starts from the beginning and says so (a job that may be killed can always pass true).
    Of `output_dir` what is damaged is set aside, and files that a checkpoint was not sealed with are told of.
    Raises ValueError when a path is named and no checkpoint there verifies, or one without an optimizer, or
    with weights in a pickle, is chosen.
    """
    if choice is False:
        return None
    if choice is True:
        found = newest(output_dir)
        if found is None:
            logger.warning("no checkpoint to resume from in %s: starting from the beginning", output_dir)
            return None
    else:
        found = _named(Path(str(choice)), output_dir)
    if not any(name.startswith(("optimizer", "global_step")) for name in sealed_names(found)):
        raise ValueError(
            f"{found} cannot be resumed from: it holds no optimizer state (saved with save_only_model); "
            "train with save_only_model: false"
        )
    if pickle := _pickled_weights(found):
        raise ValueError(
            f"{found} cannot be resumed from: its weights are in {pickle}, a pickle, and a resume takes safetensors "
            "alone; load them with from_pretrained, save_pretrained, and start from that folder (init_from)"
        )
    if others := unlisted_names(found):
        logger.warning("%s holds %d files that it was not sealed with: %s", found, len(others), ", ".join(others[:5]))
    return found


def _pickled_weights(checkpoint: Path) -> str | None:
    # transformers reads a pickle wherever the single safetensors file is not beside it, sealed or not
    for path in _files(checkpoint):
        match = _PICKLED_NAME.fullmatch(path.name)
        if match and not (path.parent / f"{match[1].replace('pytorch_', '')}.safetensors").is_file():
            return path.relative_to(checkpoint).as_posix()
    return None


def quarantine_later(source: Path, output_dir: Path) -> None:
    """Set aside the checkpoints of `output_dir` that are later than `source`, if that is one of them.

    They belong to a future that the run leaves: a later resume must not pick them.
    """
    if not _same_folder(source.parent, output_dir):
        return
    for later in reversed(numbered(output_dir)):
        if _same_folder(later, source):
            return
        quarantine(later, f"it is later than {source.name}, which was named to resume from")


def _named(path: Path, output_dir: Path) -> Path:
    own = _same_folder(path, output_dir)
    if numbered(path) and not (path / MANIFEST_NAME).exists():
        found = newest(path, repair=own)
        if found is None:
            raise ValueError(f"resume_from_checkpoint: no checkpoint in {path} verifies; name another folder")
        return found
    problem = verify(path) if path.exists() else "it does not exist"
    if problem is not None:
        raise ValueError(
            f"resume_from_checkpoint: {path} does not verify: {problem}; "
            "name another checkpoint, or true for the newest that verifies"
        )
    return path


def _same_folder(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
