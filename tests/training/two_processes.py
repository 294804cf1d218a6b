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

from conftest import OPTIONS, micro_model, token_rows
from transformers import TrainerCallback, TrainingArguments

from arbprob_hf.training.safety import Stopped
from arbprob_hf.training.trainer import ArbProbTrainer, NonFiniteError

RANK = int(os.environ["RANK"])


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


def trainer_in(folder: Path, *callbacks: TrainerCallback) -> ArbProbTrainer:
    options = {**OPTIONS, "per_device_train_batch_size": 1, "max_steps": 8, "per_device_eval_batch_size": 2}
    arguments = TrainingArguments(output_dir=str(folder), ddp_backend="gloo", **options)
    return ArbProbTrainer(model=micro_model(), train_dataset=token_rows(24), args=arguments, callbacks=list(callbacks))


def digest(trainer: ArbProbTrainer) -> str:
    values = (value.detach().numpy().tobytes() for _, value in sorted(trainer.model.named_parameters()))
    return hashlib.sha256(b"".join(values)).hexdigest()


def cut_and_resume(folder: Path, act, error: type[BaseException]) -> str:
    try:
        trainer_in(folder, _Act(act)).train()
    except error:
        resumed = trainer_in(folder)
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
    fresh = trainer_in(root / "evaluated")
    report["eval"] = {count: fresh.evaluate(token_rows(count))["eval_loss"] for count in (1, 2, 3, 5, 7, 8)}
    whole.save_model()
    return report


if __name__ == "__main__":
    # processes that wait for each other forever must not hang the tests
    faulthandler.dump_traceback_later(200, exit=True)
    outcome = main(Path(sys.argv[1]))
    if RANK == 0:
        (Path(sys.argv[1]) / "report.json").write_text(json.dumps(outcome))
