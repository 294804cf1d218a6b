"""One part of a run for test_changing_processes.py: trains from the last checkpoint on, and notes the blocks it has."""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments, set_seed

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
from arbprob_hf.data import BlockCollator, StreamedBlocks
from arbprob_hf.data.collators import QuestionCollator
from arbprob_hf.data.streaming import Streamed
from arbprob_hf.data.tasks import Task
from arbprob_hf.errors import exit_on_user_error
from arbprob_hf.training.callbacks import SetEpochCallback
from arbprob_hf.training.trainer import ArbProbTrainer
from tests.micro_runs import OPTIONS, Numbers

ROWS, LENGTH = 47, 12


class StopAt(TrainerCallback):
    """Ends the run at a step, which is saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


class DieAt(TrainerCallback):
    """Kills one process and the agent that started it in the middle of a step, as a machine that is lost."""

    def __init__(self, step: int, rank: int) -> None:
        self.step, self.rank = step, rank

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and args.process_index == self.rank:
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)


class Noting(ArbProbTrainer):
    """Notes epoch, block and targets of every question that this process trains on."""

    def training_step(self, model, inputs, *rest):
        # the largest token of a block is its number
        for ids, labels in zip(inputs["input_ids"], inputs["labels"], strict=True):
            self.seen.append([self.epoch, int(ids.max()), labels.tolist()])
        return super().training_step(model, inputs, *rest)

    def _run_epoch(self, *args, **kwargs):
        self.epoch = kwargs["epoch"]
        super()._run_epoch(*args, **kwargs)


def block(number: int) -> dict[str, Any]:
    tokens = np.full(LENGTH, 1)
    # only the largest, the first, is given in any question
    tokens[0] = 10 + number
    tokens[1:] = 1 + np.arange(LENGTH - 1) % 8
    return {"input_ids": tokens, "document_ids": np.zeros(LENGTH, int), "index": number}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--until", type=int, required=True)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--streams", action="store_true")
    parser.add_argument("--dies", type=int, help="the process that is killed within step 3")
    given = parser.parse_args()
    options = {**OPTIONS, "max_steps": -1, "num_train_epochs": 2, "save_steps": 1, "save_total_limit": 2}
    options["remove_unused_columns"] = False
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if size > 1:
        options["ddp_backend"] = "gloo"
    if given.streams:
        options["max_steps"] = 40
    arguments = TrainingArguments(output_dir=str(given.folder), dataloader_num_workers=given.workers, **options)
    collator = QuestionCollator("two_stream", given_sees="all", task=Task.parse("uniform"), seed=5)
    parts: dict[str, Any] = {
        "train_dataset": [block(number) for number in range(ROWS)],
        "data_collator": collator,
        "callbacks": [SetEpochCallback(collator)],
    }
    if given.streams:
        texts = [str(10 + number) for number in range(ROWS)]
        text = Streamed(Dataset.from_dict({"text": texts}).to_iterable_dataset(num_shards=4), "here")
        stream = StreamedBlocks(text, Numbers(), block_size=6, seed=0, buffer=3, process=(rank, size))
        parts = {"train_dataset": stream, "data_collator": BlockCollator()}
    set_seed(3)
    config = ArbProbConfig.preset("nano", vocab_size=80, n_positions=2 * LENGTH, n_embd=8, n_layer=1, mask_token=True)
    trainer = Noting(model=ArbProbForCausalLM(config), args=arguments, **parts)
    trainer.add_callback(StopAt(given.until))
    if given.dies is not None:
        trainer.add_callback(DieAt(3, given.dies))
    trainer.seen = []
    with exit_on_user_error("train"):
        trainer.train(resume_from_checkpoint=True)
    seen = gather_object(trainer.seen)
    if os.environ.get("RANK", "0") == "0":
        weights = b"".join(value.detach().numpy().tobytes() for value in trainer.model.parameters())
        found = {"seen": seen, "epoch": trainer.state.epoch, "weights": hashlib.sha256(weights).hexdigest()}
        (given.folder / "seen.json").write_text(json.dumps(found))


if __name__ == "__main__":
    # processes that wait for each other forever must not hang the tests
    faulthandler.dump_traceback_later(200, exit=True)
    main()
