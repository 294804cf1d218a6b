"""Hyperparameter search: each trial is a run of its own, and the one with the lowest evaluation loss is the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .hub import PublishingTrainer


class SearchingTrainer(PublishingTrainer):
    """A Trainer that searches by the evaluation loss; transformers' own adds up all metrics, counts of tokens too."""

    def hyperparameter_search(  # type: ignore[override]
        self,
        hp_space: Callable[[Any], dict[str, Any]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        **kwargs: Any,
    ) -> Any:
        """As Trainer's; each trial is locked, recorded and refused to overwrite another in `output_dir/run-<number>`.

        Args:
            hp_space: what to try, a function from a trial to values of TrainingArguments.
            compute_objective: from the metrics of an evaluation to what is made small; `eval_loss`, if left out.
            n_trials: runs to make.
            kwargs: `direction`, `backend`, `hp_name` and options of the backend.

        Raises ValueError where the evaluation loss would be made large, or there is nothing to evaluate.
        """
        if compute_objective is None and kwargs.get("direction", "minimize") != "minimize":
            raise ValueError(
                f"direction: the evaluation loss is made small, got {kwargs['direction']!r:.60}; give "
                "compute_objective what is to be made large"
            )
        if self.eval_dataset is None:
            raise ValueError("eval_dataset: a search compares evaluations, got none")
        return super().hyperparameter_search(
            hp_space=hp_space, compute_objective=compute_objective or evaluation_loss, n_trials=n_trials, **kwargs
        )


def evaluation_loss(metrics: Mapping[str, float]) -> float:
    """`eval_loss`, in nats per token; with a task, that of the run's own mode."""
    return metrics["eval_loss"]
