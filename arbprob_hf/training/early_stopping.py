"""Ends a run that no longer gets better."""

from __future__ import annotations

import logging
from typing import Any

from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


class EarlyStopping(EarlyStoppingCallback):
    """Ends a run whose figure has not become better in `early_stopping_patience` evaluations.

    transformers' own, which keeps its count when a run is resumed, and waits for the figure where several sets are
    evaluated one after another.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.early_stopping_patience_counter = 0
        # states of callbacks by their class's name: those of the checkpoint, where the run is resumed
        saved: Any = state.stateful_callbacks
        if state.global_step and type(self).__name__ in saved:
            counted = saved[type(self).__name__]["attributes"]
            self.early_stopping_patience_counter = counted["early_stopping_patience_counter"]
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            logger.warning("the run stopped early with step %d: nothing is left to train", state.global_step)
            control.should_training_stop = True

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        name = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
        if metrics is None or name not in metrics:
            return
        super().on_evaluate(args, state, control, metrics, **kwargs)
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            logger.warning(
                "stopped early with step %d: %s was not better in the last %d evaluations",
                state.global_step,
                name.removeprefix("eval_"),
                self.early_stopping_patience_counter,
            )
            # what is resumed later stops at once
            control.should_save = True
