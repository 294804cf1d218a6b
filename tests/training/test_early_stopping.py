"""A run that no longer gets better ends, and counts on where it was when it is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arbprob_hf.training.arguments import TrainingArguments, parse
from arbprob_hf.training.trainer import ArbProbTrainer
from tests.micro_runs import OPTIONS, Crash, micro_model, token_rows


def trainer_in(
    folder: Path, *, callbacks: Any = None, eval_dataset: Any = None, compute_metrics: Any = None, **options: Any
) -> ArbProbTrainer:
    # nothing is learnt, so that no evaluation is better than the first
    given = {**OPTIONS, "learning_rate": 0.0, "eval_steps": 1, "save_steps": 1, "early_stopping_patience": 2, **options}
    return ArbProbTrainer(
        model=micro_model(),
        args=TrainingArguments(output_dir=str(folder), **given),
        train_dataset=token_rows(24),
        eval_dataset=eval_dataset or token_rows(2, seed=1),
        data_collator=collate,
        callbacks=callbacks,
        compute_metrics=compute_metrics,
    )


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def test_a_run_ends_after_so_many_evaluations_without_a_better_figure(tmp_path: Path, caplog) -> None:
    trainer = trainer_in(tmp_path, save_steps=100)
    trainer.train()
    assert trainer.state.global_step == 3
    assert "stopped early with step 3: loss was not better in the last 2 evaluations" in caplog.text
    # so that resuming finds where it ended
    assert (tmp_path / "checkpoint-3").is_dir()


def test_a_run_that_gets_better_goes_on(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, learning_rate=1e-3, eval_dataset=token_rows(24))
    trainer.train()
    assert trainer.state.global_step == 10


def test_what_is_better_by_less_than_the_threshold_does_not_count(tmp_path: Path) -> None:
    options = {"learning_rate": 1e-3, "eval_dataset": token_rows(24), "early_stopping_threshold": 1.0}
    trainer = trainer_in(tmp_path, **options)
    trainer.train()
    assert trainer.state.global_step == 3


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = trainer_in(tmp_path / "whole", early_stopping_patience=3)
    whole.train()
    with pytest.raises(ConnectionError):
        trainer_in(tmp_path / "cut", early_stopping_patience=3, callbacks=[Crash(3)]).train()
    resumed = trainer_in(tmp_path / "cut", early_stopping_patience=3)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 4
    assert resumed.state.stateful_callbacks == whole.state.stateful_callbacks
    assert [row.get("eval_loss") for row in resumed.state.log_history] == [
        row.get("eval_loss") for row in whole.state.log_history
    ]


def test_resuming_a_run_that_stopped_early_trains_nothing_and_says_so(tmp_path: Path, caplog) -> None:
    trainer_in(tmp_path).train()
    again = trainer_in(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3
    assert "the run stopped early with step 3: nothing is left to train" in caplog.text
    patient = trainer_in(tmp_path, early_stopping_patience=4)
    patient.train(resume_from_checkpoint=True)
    assert patient.state.global_step == 5


def test_the_metrics_of_several_sets_are_waited_for(tmp_path: Path, caplog) -> None:
    sets = {"one": token_rows(2, seed=1), "two": token_rows(2, seed=2)}
    trainer = trainer_in(tmp_path, eval_dataset=sets, metric_for_best_model="two_perplexity")
    trainer.train()
    assert trainer.state.global_step == 3
    assert "did not find" not in caplog.text


@pytest.mark.parametrize("name", ["perplexity", "eval_perplexity"])
def test_perplexity_is_a_metric_of_the_best_model(tmp_path: Path, name: str) -> None:
    trainer = trainer_in(tmp_path, metric_for_best_model=name, load_best_model_at_end=True, max_steps=2)
    trainer.train()
    assert trainer.state.best_metric == pytest.approx(trainer.evaluate()["eval_perplexity"])


def test_an_unknown_metric_is_one_line_that_names_the_known_ones(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, metric_for_best_model="accuracy")
    with pytest.raises(ValueError, match=r"^metric_for_best_model: expected .* \(loss, .*perplexity.*\), got 'accu"):
        trainer.train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"early_stopping_patience": 0}, "^early_stopping_patience: expected at least 1 evaluation, got 0"),
        ({"eval_strategy": "no"}, "^early_stopping_patience: a run that is never evaluated has no best model; give"),
        ({"early_stopping_threshold": -1.0}, "^early_stopping_threshold: expected at least 0, got -1.0"),
        (
            {"early_stopping_patience": None, "early_stopping_threshold": 0.1},
            "^early_stopping_threshold: .* it needs early_stopping_patience, how many evaluations to wait; give it",
        ),
    ],
)
def test_stopping_early_that_cannot_be_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer_in(tmp_path, **options)


def test_stopping_early_is_an_option_of_a_run() -> None:
    found = parse(["--source", "fallback", "--early_stopping_patience", "3"]).training
    assert (found.early_stopping_patience, found.metric_for_best_model, found.greater_is_better) == (3, "loss", False)


def test_stopping_early_may_be_added_to_a_run_that_goes_on(tmp_path: Path) -> None:
    trainer_in(tmp_path, early_stopping_patience=None, max_steps=2).train()
    trainer = trainer_in(tmp_path)
    trainer.train(resume_from_checkpoint=True)
    assert (trainer.state.global_step, trainer.state.stateful_callbacks["EarlyStopping"]["attributes"]) == (
        5,
        {"early_stopping_patience_counter": 2},
    )


def test_metrics_of_ones_own_are_computed_under_the_options_of_a_run(tmp_path: Path, caplog) -> None:
    trainer = trainer_in(tmp_path, compute_metrics=lambda found: {"rows": len(found.predictions)})
    assert trainer.evaluate()["eval_rows"] == 2
    assert "prediction_loss_only has no effect" in caplog.text
