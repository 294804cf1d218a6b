"""Sends a checkpoint on a journey: a process of its own, an empty folder, a cache of its own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from arbprob_hf import ArbProbForCausalLM
from arbprob_hf.data import load_tokenizer

TRAVELLER = Path(__file__).with_name("traveller.py")
HUB_NAME = "somebody/micro-arbprob"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Journey:
    """What a process without the package found: plain facts, and tensors by name."""

    facts: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    saved_again: Path


def travel(source: str, folder: Path) -> Journey:
    """Run the traveller on a checkpoint's folder or Hub name, in an empty folder below `folder`."""
    empty = folder / "empty"
    empty.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", str(TRAVELLER), source, str(folder / "report"), str(folder / "saved-again")]
    done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return remembered(folder)


def remembered(folder: Path) -> Journey:
    """A journey that was made below `folder` before."""
    facts = json.loads((folder / "report.json").read_text())
    facts["left in the folder"] = [path.name for path in (folder / "empty").iterdir()]
    return Journey(facts, torch.load(folder / "report.pt"), folder / "saved-again")


def saved_once(model: ArbProbForCausalLM, folder: Path) -> Path:
    """The model's checkpoint in `folder`, tokenizer included; the first process to come saves it."""
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            model.save_pretrained(folder)
            load_tokenizer("gpt2").save_pretrained(folder)
    return folder


def made_once(folder: Path, make: Callable[[Path], Journey]) -> Journey:
    """The journey below `folder`, which `make` makes for the first process to come."""
    with FileLock(f"{folder}.lock"):
        return remembered(folder) if (folder / "report.pt").exists() else make(folder)


def put_in_hub_cache(checkpoint: Path, cache: Path) -> None:
    """Lay the checkpoint out as huggingface_hub does after a download."""
    repository = cache / "hub" / f"models--{HUB_NAME.replace('/', '--')}"
    shutil.copytree(checkpoint, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
