"""An evaluation scores every row once, whatever the options of the training loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
from arbprob_hf.data.collators import QuestionCollator
from arbprob_hf.data.tasks import Task
from arbprob_hf.training.eval_modes import draw_eval_modes, modes_of_layout

ROWS, LENGTH = 7, 12
OPTIONS: dict[str, dict[str, Any]] = {
    "last batch dropped": {"dataloader_drop_last": True},
    "batch larger than the set": {"dataloader_drop_last": True, "per_device_eval_batch_size": 64},
    "grouped by length": {"train_sampling_strategy": "group_by_length"},
    "rebalanced": {"train_sampling_strategy": "batch_rebalance", "dataloader_drop_last": True},
    "batches split": {"accelerator_config": {"split_batches": True, "even_batches": True}},
    "dispatched": {"accelerator_config": {"dispatch_batches": True, "even_batches": True}},
    "persistent workers": {
        "dataloader_drop_last": True,
        "dataloader_num_workers": 1,
        "dataloader_persistent_workers": True,
        "dataloader_in_order": False,
    },
}
# the others score the five modes in the long run alone; plain rows are scored with all of them
QUICK = ("last batch dropped", "batches split", "dispatched")


def options_of(name: str) -> dict[str, Any]:
    return {"per_device_eval_batch_size": 4, "prediction_loss_only": True, **OPTIONS[name]}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_row_is_scored_once(tmp_path: Path, micro_trainer, rows, name: str) -> None:
    expected = micro_trainer(tmp_path / "plain").evaluate(rows(ROWS))["eval_loss"]
    trainer = micro_trainer(tmp_path / "other", **options_of(name))
    # again: a loader of persistent workers is kept
    for metrics in (trainer.evaluate(rows(ROWS)), trainer.evaluate(rows(ROWS))):
        assert metrics["eval_scored_tokens"] == ROWS * (LENGTH - 1)
        assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-6)


def test_predict_scores_every_row_once(tmp_path: Path, micro_trainer, rows) -> None:
    trainer = micro_trainer(tmp_path, **options_of("last batch dropped"))
    assert trainer.predict(rows(ROWS)).metrics["test_scored_tokens"] == ROWS * (LENGTH - 1)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in OPTIONS]
)
def test_every_question_of_the_five_modes_is_scored_once(tmp_path: Path, micro_trainer, name: str) -> None:
    tokens = np.random.default_rng(0).integers(1, 40, (ROWS, LENGTH))
    blocks = Dataset.from_dict({"input_ids": tokens, "document_ids": np.zeros_like(tokens)}).with_format("numpy")
    modes = draw_eval_modes(blocks, Task.parse("uniform(given=0..0.5, asked=0.5)"))
    assert modes.keys() == set(modes_of_layout("two_stream"))
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 40, "mask_token": True}
    trainer = micro_trainer(
        tmp_path,
        model=ArbProbForCausalLM(ArbProbConfig(**sizes)),
        eval_dataset=modes,
        data_collator=QuestionCollator("two_stream", given_sees="all"),
        remove_unused_columns=False,
        **options_of(name),
    )
    metrics = trainer.evaluate()
    assert {mode: metrics[f"eval_{mode}_scored_tokens"] for mode in modes} == {
        mode: int(np.stack(questions["scored"]).sum()) for mode, questions in modes.items()
    }
