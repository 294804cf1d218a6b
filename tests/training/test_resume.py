"""A resumed run ends with the very weights of the uninterrupted one."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import TrainerCallback


class _Crash(TrainerCallback):
    """Raises in the middle of a step, as a bug or a lost machine would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise ConnectionError("lost")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="accumulation and dropout"),
        pytest.param({"gradient_accumulation_steps": 1}, id="no accumulation"),
        pytest.param({"dataloader_num_workers": 2}, id="two workers"),
        pytest.param({"dataloader_num_workers": 2, "dataloader_persistent_workers": True}, id="persistent workers"),
        pytest.param({"eval_strategy": "steps", "eval_steps": 3}, id="evaluations between"),
        pytest.param(
            {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "eval_strategy": "steps",
             "eval_steps": 1}, id="persistent evaluation workers"),
        pytest.param({"lr_scheduler_type": "cosine", "warmup_steps": 3}, id="schedule"),
        pytest.param({"save_steps": 3}, id="at the end of an epoch"),
    ],
)
def test_resumed_weights_are_bit_equal(tmp_path: Path, micro_trainer, weights_of, rows, options) -> None:
    options = {**options, "eval_dataset": rows(3)} if "eval_steps" in options else options
    whole = micro_trainer(tmp_path / "whole", **options)
    whole.train()
    with pytest.raises(ConnectionError):
        micro_trainer(tmp_path / "cut", **options, callbacks=[_Crash(7)]).train()
    resumed = micro_trainer(tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=True)
    assert weights_of(resumed) == weights_of(whole)
