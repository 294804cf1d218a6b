"""What each of two processes does for test_processes.py: train, fall over, resume, stop, evaluate, report."""

from __future__ import annotations

import faulthandler
import hashlib
import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments

from arbprob_hf.data import StreamedBlocks
from arbprob_hf.data.streaming import Streamed
from arbprob_hf.training.signals import Stopped
from arbprob_hf.training.trainer import ArbProbTrainer, NonFiniteError
from tests.micro_runs import OPTIONS, Numbers, micro_model, token_rows
from tests.training import test_eval_rows

RANK = int(os.environ.get("RANK", 0))


class _Act(TrainerCallback):
    def __init__(self, act):
        self.act = act

    def on_substep_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 4:
            self.act(model)


def crash(model):
    raise ConnectionError("lost")


def terminate_one(model):
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGTERM)


def poison_one(model):
    if RANK == 1:
        model.lm_head.register_forward_hook(lambda module, inputs, output: output * math.nan)


class Noting(ArbProbTrainer):
    """Notes which documents this process trains on."""

    def training_step(self, model, inputs, *rest):
        self.seen = [*getattr(self, "seen", []), *inputs["input_ids"][:, 1].tolist()]
        return super().training_step(model, inputs, *rest)


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    tokens = torch.stack([torch.from_numpy(row["input_ids"]) for row in rows])
    return {"input_ids": tokens, "labels": tokens}


def trainer_in(folder: Path, *callbacks: TrainerCallback, streams: bool = False, **given: Any) -> ArbProbTrainer:
    options = {**OPTIONS, "per_device_train_batch_size": 1, "max_steps": 8, "per_device_eval_batch_size": 2, **given}
    parts: dict[str, Any] = {"train_dataset": token_rows(24)}
    if streams:
        options["dataloader_num_workers"] = 2
        # as many documents as the eight steps of the two processes take
        text = Dataset.from_dict({"text": [str(number) for number in range(1, 33)]}).to_iterable_dataset(num_shards=4)
        stream = StreamedBlocks(Streamed(text, "here"), Numbers(), block_size=6, seed=0, buffer=3, process=(RANK, 2))
        parts = {"train_dataset": stream, "data_collator": collate}
    arguments = TrainingArguments(output_dir=str(folder), ddp_backend="gloo", **options)
    return Noting(model=micro_model(), args=arguments, callbacks=list(callbacks), **parts)


def digest(trainer: ArbProbTrainer) -> str:
    values = (value.detach().numpy().tobytes() for _, value in sorted(trainer.model.named_parameters()))
    return hashlib.sha256(b"".join(values)).hexdigest()


def cut_and_resume(folder: Path, act, error: type[BaseException], *, streams: bool = False) -> str:
    try:
        trainer_in(folder, _Act(act), streams=streams).train()
    except error:
        resumed = trainer_in(folder, streams=streams)
        resumed.train(resume_from_checkpoint=True)
        return digest(resumed)
    raise AssertionError(f"{error.__name__} was not raised")


def main(root: Path) -> dict[str, Any]:
    whole = trainer_in(root / "whole")
    whole.train()
    report = {
        "whole": digest(whole),
        "crashed": cut_and_resume(root / "crashed", crash, ConnectionError),
        "terminated": cut_and_resume(root / "terminated", terminate_one, Stopped),
        "poisoned": cut_and_resume(root / "poisoned", poison_one, NonFiniteError),
    }
    streamed = trainer_in(root / "streamed", streams=True)
    streamed.train()
    report["streamed"] = digest(streamed)
    report["documents"] = gather_object(streamed.seen)
    report["streamed and crashed"] = cut_and_resume(root / "cut", crash, ConnectionError, streams=True)
    fresh = trainer_in(root / "evaluated")
    report["eval"] = {count: fresh.evaluate(token_rows(count))["eval_loss"] for count in (1, 2, 3, 5, 7, 8)}
    report["eval of options"] = {
        name: trainer_in(root / "evaluated", **test_eval_rows.options_of(name)).evaluate(
            token_rows(test_eval_rows.ROWS)
        )
        for name in test_eval_rows.OPTIONS
    }
    whole.save_model()
    return report


if __name__ == "__main__":
    # processes that wait for each other forever must not hang the tests
    faulthandler.dump_traceback_later(200, exit=True)
    outcome = main(Path(sys.argv[1]))
    if RANK == 0:
        (Path(sys.argv[1]) / "report.json").write_text(json.dumps(outcome))
