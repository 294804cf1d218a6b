"""A worker of a data loader that is killed ends the run with a line that names it, and costs no checkpoint."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import TrainerCallback

from arbprob_hf.data import StreamedBlocks
from arbprob_hf.data.streaming import Streamed
from arbprob_hf.errors import exit_on_user_error
from arbprob_hf.runs.checkpoints import newest
from arbprob_hf.training.positions import Position
from arbprob_hf.training.trainer import ArbProbTrainer
from tests.micro_runs import Numbers
from tests.training.two_processes import collate


def kill_a_worker() -> None:
    """Kill one, and wait until that is noticed where it can be."""
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    for _ in range(20):
        time.sleep(0.01)


class KillAt(TrainerCallback):
    """Kills a worker at the end of a step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 4:
            kill_a_worker()


def stream() -> dict[str, Any]:
    text = Dataset.from_dict({"text": [str(number) for number in range(1, 33)]}).to_iterable_dataset(num_shards=4)
    blocks = StreamedBlocks(Streamed(text, "here"), Numbers(), block_size=6, seed=0, buffer=3)
    return {"train_dataset": blocks, "data_collator": collate}


@pytest.mark.parametrize("parts", [dict, stream], ids=["prepared", "streamed"])
def test_a_killed_worker_is_named_and_the_disk_is_not(tmp_path: Path, micro_trainer, parts, capsys) -> None:
    trainer = micro_trainer(tmp_path, dataloader_num_workers=2, callbacks=[KillAt()], **parts())
    with pytest.raises(SystemExit) as left, exit_on_user_error("train"):
        trainer.train()
    assert left.value.code == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("train: error: a data loader worker (process ")
    assert "--resume_from_checkpoint true goes on" in line
    assert "could not be" not in line
    assert "disk" not in line
    assert newest(tmp_path) == tmp_path / "checkpoint-4"


@pytest.mark.long
def test_a_worker_killed_during_a_save_costs_no_checkpoint(
    tmp_path: Path, micro_trainer, weights_of, whole_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Position.save

    def kill(self: Position, checkpoint: Path) -> None:
        if self.step == 2:
            kill_a_worker()
        save(self, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(Position, "save", kill)
        with pytest.raises(RuntimeError, match="DataLoader worker .* is killed by signal: Killed"):
            micro_trainer(tmp_path, dataloader_num_workers=2).train()
    assert newest(tmp_path) == tmp_path / "checkpoint-2"
    trainer: ArbProbTrainer = micro_trainer(tmp_path)
    trainer.train(resume_from_checkpoint=True)
    assert weights_of(trainer) == whole_run[1]
