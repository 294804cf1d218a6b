"""Hyperparameter search by optuna: the lowest evaluation loss wins, and every trial is a run of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from transformers import default_data_collator

from arbprob_hf.runs.record import RECORD_NAME
from arbprob_hf.training.arguments import TrainingArguments
from arbprob_hf.training.trainer import ArbProbTrainer
from tests.micro_runs import OPTIONS, micro_model, token_rows

RATES = [0.0, 1e-2]


def searching(folder: Path, **changes: Any) -> ArbProbTrainer:
    options = {**OPTIONS, "max_steps": 6, "save_steps": 3, "eval_steps": 6, **changes}
    return ArbProbTrainer(
        model_init=lambda trial: micro_model(),
        args=TrainingArguments(output_dir=str(folder), **options),
        train_dataset=token_rows(24),
        eval_dataset=token_rows(24),
        data_collator=default_data_collator,
    )


def search(trainer: ArbProbTrainer, **options: Any) -> Any:
    return trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", RATES)},
        backend="optuna",
        n_trials=2,
        sampler=optuna.samplers.GridSampler({"learning_rate": RATES}, seed=0),
        **options,
    )


@pytest.mark.long
def test_the_run_with_the_lowest_loss_is_the_best(tmp_path: Path) -> None:
    best = search(searching(tmp_path))
    assert best.hyperparameters == {"learning_rate": 1e-2}
    # nats per token of 40 tokens, no sum of counts and speeds
    assert 3.0 < best.objective < 3.8
    records = [json.loads(path.read_text()) for path in tmp_path.glob(f"run-*/checkpoint-6/{RECORD_NAME}")]
    assert {record["learning_rate"] for record in records} == set(RATES)
    # a second search does not write into the runs of the first
    with pytest.raises(ValueError, match=r"output_dir .*run-0 already holds a run \(it has checkpoint-6\)"):
        search(searching(tmp_path))


def test_an_objective_of_ones_own_is_taken(tmp_path: Path) -> None:
    trainer = searching(tmp_path, save_strategy="no")
    best = search(trainer, direction="maximize", compute_objective=lambda metrics: metrics["eval_perplexity"])
    assert best.hyperparameters == {"learning_rate": 0.0}


def test_a_search_that_would_end_at_the_highest_loss_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^direction: the evaluation loss is made small, got 'maximize'; give"):
        search(searching(tmp_path), direction="maximize")


def test_a_search_without_anything_to_evaluate_is_refused(tmp_path: Path) -> None:
    trainer = searching(tmp_path)
    trainer.eval_dataset = None
    with pytest.raises(ValueError, match="^eval_dataset: a search compares evaluations, got none"):
        search(trainer)
