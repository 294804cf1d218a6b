"""Through the real Trainer, eight rows one at a time make the step that two times four rows make."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from tests.model.twins import ours_alone, tokens
from tests.networks import far

Row = dict[str, Tensor]


def ragged_rows() -> list[Row]:
    """Eight rows; the number of scored labels differs from row to row."""
    ids = tokens(8, 10)
    rows = [{"input_ids": row, "labels": row.clone()} for row in ids]
    for number, row in enumerate(rows):
        row["labels"][1 : number + 2] = -100
    return rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[dict[str, Tensor], float]]:
    """A function (batch, accumulation, **options) -> weights and logged loss after one step over all eight rows."""

    def train(batch: int, accumulation: int, **options: Any) -> tuple[dict[str, Tensor], float]:
        folder: Path = tmp_path_factory.mktemp("run")
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            learning_rate=0.5,
            optim="sgd",
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
            **options,
        )
        trainer = Trainer(model=ours_alone(), args=arguments, train_dataset=ragged_rows())
        trainer.train()
        return dict(trainer.model.state_dict()), trainer.state.log_history[0]["loss"]

    return train


def test_eight_times_one_row_is_two_times_four(trained: Callable[..., Any]) -> None:
    before = ours_alone().state_dict()
    (one, one_loss), (four, four_loss) = trained(1, 8), trained(4, 2)
    assert max(far(one[name], before[name]) for name in one) > 1e-2
    assert max(far(one[name], four[name]) for name in one) <= 1e-12
    assert one_loss == pytest.approx(four_loss, abs=1e-6)


def test_accumulation_is_the_step_of_the_whole_batch(trained: Callable[..., Any]) -> None:
    (parts, _), (whole, _) = trained(2, 4), trained(8, 1)
    assert max(far(parts[name], whole[name]) for name in parts) <= 1e-12


def test_the_logged_loss_is_the_mean_over_scored_labels(trained: Callable[..., Any]) -> None:
    _, logged = trained(1, 8)
    rows = ragged_rows()
    ids, labels = (torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels"))
    with torch.no_grad():
        loss = float(ours_alone()(ids, labels=labels).loss)
    assert logged == pytest.approx(loss, abs=1e-4)


def test_gradient_checkpointing_by_the_trainers_flag_makes_the_same_step(trained: Callable[..., Any]) -> None:
    # the flag's name since 5.23, and before
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    flag = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if n in names)
    (plain, _), (checkpointed, _) = trained(4, 2), trained(4, 2, **{flag: True})
    assert max(far(plain[name], checkpointed[name]) for name in plain) <= 1e-12
