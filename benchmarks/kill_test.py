"""Kills training runs with SIGKILL, half at random times and half inside a save, resumes them, compares the weights.

    python benchmarks/kill_test.py                 100 runs killed once, 30 runs killed three times in a row
    python benchmarks/kill_test.py --kills 6 --chains 0

A run passes when it resumes, ends with the bits of the run that was never killed, and no kill cost more than one
save interval. A tiny model on one thread; each run is a fork of a process that has already imported everything.
Prints a table and ends with status 1 unless every run passed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments, set_seed

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
from arbprob_hf.training.trainer import ArbProbTrainer

STEPS = 12
INTERVAL = 2


def main() -> int:
    options = _options()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as root:
        whole = _Run(Path(root) / "whole", keep=None, resume=False).watch(None)
        if whole.digest is None:
            print(whole.log, file=sys.stderr)
            return 1
        print(f"uninterrupted: {STEPS} steps in {whole.seconds:.2f} s, a save takes {1e3 * whole.save_seconds:.0f} ms")
        rows = [
            _series(_Row(case, runs), chain, how, draw, whole)
            for case, runs, chain, how in (
                ("one kill at a random time", options.kills - options.kills // 2, 1, "time"),
                ("one kill inside a save", options.kills // 2, 1, "save"),
                ("three kills in a row, one checkpoint kept", options.chains, 3, "both"),
            )
        ]
    print("\n| case | runs | kills | resumed | bit-equal | most steps lost (interval 2) |\n|---|---|---|---|---|---|")
    for row in rows:
        if row.runs:
            print(f"| {row.case} | {row.runs} | {row.kills} | {row.resumed} | {row.equal}/{row.runs} | {row.lost} |")
    passed = all(row.equal == row.runs and row.lost <= INTERVAL for row in rows)
    print("\nall passed" if passed else "\nFAILED")
    return 0 if passed else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=100, help="runs killed once")
    parser.add_argument("--chains", type=int, default=30, help="runs killed three times, save_total_limit 1")
    parser.add_argument("--seed", type=int, default=0, help="of the times at which runs are killed")
    return parser.parse_args()


@dataclass
class _Row:
    case: str
    wanted: int
    runs: int = 0
    kills: int = 0
    resumed: int = 0
    equal: int = 0
    lost: int = 0


def _series(row: _Row, chain: int, how: str, draw: random.Random, whole: _Seen) -> _Row:
    number = 0
    while row.runs < row.wanted:
        number += 1
        starts = _one(whole.folder.parent / f"{how}-{number}", chain, how, draw, whole)
        last = starts[-1]
        if last.failed:
            print(f"{row.case}, run {number}: died by itself\n{last.log}", file=sys.stderr)
        elif not all(seen.killed for seen in starts[:-1]):
            continue  # the run was faster than its killer: it does not count
        row.runs += 1
        row.kills += chain
        row.resumed += not last.failed
        row.equal += last.digest == whole.digest
        before = [seen for seen in starts if seen.begun is not None]
        row.lost = max([row.lost, *(one.reached - next_.begun for one, next_ in pairwise(before))])
    return row


def _one(folder: Path, chain: int, how: str, draw: random.Random, whole: _Seen) -> list[_Seen]:
    """Start a run and kill it, `chain` times over, then let it end; all that was seen, up to a run's own death."""
    starts: list[_Seen] = []
    for kill in range(chain + 1):
        reached = max((seen.reached for seen in starts), default=0)
        plan = _plan(draw.choice(["time", "save"]) if how == "both" else how, draw, whole, reached)
        run = _Run(folder, keep=1 if chain > 1 else None, resume=kill > 0)
        starts.append(run.watch(plan if kill < chain else None))
        if starts[-1].failed or (kill < chain and not starts[-1].killed):
            break
    return starts


@dataclass(frozen=True)
class _Plan:
    """Kill `delay` seconds after the start, or after the report of the given kind ("step 5", or the 2nd "save")."""

    delay: float
    kind: str = "start"
    count: int = 1


def _plan(how: str, draw: random.Random, whole: _Seen, reached: int) -> _Plan:
    if how == "save":
        left = max(1, (STEPS - reached) // INTERVAL)
        return _Plan(draw.uniform(0, 1.1 * whole.save_seconds), "save", draw.randint(1, left))
    # before its first step a fresh run has nothing to lose; a resumed one is busy with the checkpoint
    if reached and draw.random() < 0.25:
        return _Plan(draw.uniform(0, whole.begin_seconds))
    step_seconds = (whole.seconds - whole.begin_seconds) / STEPS
    return _Plan(draw.uniform(0, step_seconds), "step", draw.randint(1, max(1, STEPS - 1 - reached)))


class _Seen:
    """What the parent sees of one run, and the moment at which it is to kill it."""

    def __init__(self, folder: Path, plan: _Plan | None) -> None:
        self.folder = folder
        self.plan = plan
        self.start = self.save_start = time.monotonic()
        self.due = self.start + plan.delay if plan is not None and plan.kind == "start" else float("inf")
        self.kinds: Counter[str] = Counter()
        self.seconds = self.begin_seconds = 0.0
        self.begun: int | None = None
        self.reached = 0
        self.saves: list[float] = []
        self.digest: str | None = None
        self.killed = self.failed = False
        self.log = ""

    @property
    def save_seconds(self) -> float:
        return sorted(self.saves)[len(self.saves) // 2] if self.saves else 0.0

    def note(self, line: str) -> None:
        kind, _, value = line.partition(" ")
        now = time.monotonic()
        self.kinds[kind] += 1
        if self.plan is not None and (kind, self.kinds[kind]) == (self.plan.kind, self.plan.count):
            self.due = now + self.plan.delay
        if kind == "begin":
            self.begun = self.reached = int(value)
            self.begin_seconds = now - self.start
        elif kind == "step":
            self.reached = int(value)
        elif kind == "save":
            self.save_start = now
        elif kind == "saved":
            self.saves.append(now - self.save_start)
        elif kind == "digest":
            self.digest = value


@dataclass(frozen=True)
class _Run:
    """One training process. It reports begin, steps, saves and the final digest through a pipe, a line each."""

    folder: Path
    keep: int | None
    resume: bool

    def watch(self, plan: _Plan | None) -> _Seen:
        """Start it, kill it as planned (or leave it alone), and wait for its end."""
        self.folder.mkdir(exist_ok=True)
        log = self.folder.with_suffix(".log")
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            self._live(writer, log)
        os.close(writer)
        seen = _Seen(self.folder, plan)
        _listen(reader, child, seen)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        seen.seconds = time.monotonic() - seen.start
        seen.killed = status == -signal.SIGKILL
        seen.failed = status != 0 and not seen.killed
        seen.log = log.read_text()[-3000:] if log.exists() else ""
        return seen

    def _live(self, writer: int, log: Path) -> None:
        status = 1
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            trainer = _Reporting(self.folder, self.keep, writer)
            trainer.train(resume_from_checkpoint=self.resume)
            trainer.save_model()
            os.write(writer, f"digest {_digest(self.folder)}\n".encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)


def _listen(reader: int, child: int, seen: _Seen) -> None:
    """Note what the run reports until it ends, and kill it when that is due."""
    os.set_blocking(reader, False)
    pending = b""
    while True:
        if time.monotonic() >= seen.due:
            os.kill(child, signal.SIGKILL)
            seen.due = float("inf")
        try:
            block = os.read(reader, 4096)
        except BlockingIOError:
            time.sleep(0.0002)
            continue
        if not block:
            os.close(reader)
            return
        *lines, pending = (pending + block).split(b"\n")
        for line in lines:
            seen.note(line.decode())


class _Reporting(ArbProbTrainer):
    def __init__(self, folder: Path, keep: int | None, writer: int) -> None:
        torch.set_num_threads(1)
        set_seed(1)
        sizes: dict[str, Any] = dict(vocab_size=500, n_positions=16, n_embd=32, n_layer=1, n_head=2)
        rows = torch.randint(500, (32, 16), generator=torch.Generator().manual_seed(0))
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=STEPS,
            save_steps=INTERVAL,
            save_total_limit=keep,
            use_cpu=True,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            disable_tqdm=True,
            logging_strategy="no",
            report_to="none",
            seed=1,
        )
        super().__init__(
            model=ArbProbForCausalLM(ArbProbConfig(**sizes)),
            args=arguments,
            train_dataset=[{"input_ids": row, "labels": row} for row in rows],
            callbacks=[_Report(writer)],
        )
        self.writer = writer

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        os.write(self.writer, b"save\n")
        super()._save_checkpoint(model, trial)
        os.write(self.writer, b"saved\n")


class _Report(TrainerCallback):
    def __init__(self, writer: int) -> None:
        self.writer = writer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        os.write(self.writer, f"begin {state.global_step}\n".encode())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        os.write(self.writer, f"step {state.global_step}\n".encode())


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
