"""The callbacks of a run: its CSV log and curves, its evaluation sets, the epoch of its questions, and its stops."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import IntervalStrategy

from ..data.collators import QuestionCollator
from ..plotting.curves import draw_training_curves
from ..plotting.figures import save_whole
from ..runs.log import CURVES, CsvLog, Row, read_log
from . import eval_modes as modes
from .dataloaders import epoch_seed
from .eval_modes import bits_per_byte, perplexity
from .progress import Stopwatch
from .signals import Stopped, StopSignal

logger = logging.getLogger(__name__)


class CsvLogCallback(TrainerCallback):
    """Writes `training_log.csv` and redraws `training_curves.png`, the same after an interruption as without.

    It also asks for a log line at the last step and wherever a checkpoint is saved, so that a resumed run
    averages its losses over the same steps as an uninterrupted one; and for an evaluation at the last step of a
    run that makes any, so that the figures are those of the weights it leaves.
    Where `bytes_per_token` names modes of a task, an evaluation is one of these, and its line has the columns of all.

    Args:
        bytes_per_token: bytes of text per scored token of the validation set, or of each mode by name.
    """

    def __init__(self, folder: Path, *, bytes_per_token: float | Mapping[str, float], title: str) -> None:
        self.mode_bytes: Mapping[str, float] = {}
        if isinstance(bytes_per_token, Mapping):
            self.mode_bytes, bytes_per_token = bytes_per_token, bytes_per_token[modes.main_mode(bytes_per_token)]
        self.log = CsvLog(folder / "training_log.csv", modes.COLUMNS if self.mode_bytes else ())
        self.picture = folder / "training_curves.png"
        self.title = title
        self.bytes_per_token = bytes_per_token
        self._stopwatch = Stopwatch()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            if state.global_step:
                self.log.resume(state.global_step)
            else:
                self.log.start()
        self._stopwatch.begin(state.num_input_tokens_seen)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._stopwatch.lap()
        if control.should_save or state.global_step >= state.max_steps:
            control.should_log = True
        # with "epoch" the end of the epoch, which comes with the last step, is evaluated anyway
        if state.global_step >= state.max_steps and args.eval_strategy == IntervalStrategy.STEPS:
            control.should_evaluate = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_save:
            control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        row = self._row(logs or {}, state)
        if row is not None and state.is_world_process_zero:
            self.log.append(row)
        self._stopwatch.start()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        metrics = metrics or {}
        if not self.mode_bytes:
            self._draw(state)
        elif "eval_loss" in metrics:
            # the mode before was the last
            figures = modes.mode_figures(metrics, bytes_per_token=self.mode_bytes)
            if state.is_world_process_zero:
                self.log.append({**self._evaluated(metrics["eval_loss"], state), **figures})
            self._draw(state)
        self._stopwatch.start()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._stopwatch.start()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._draw(state)

    def _row(self, logs: Mapping[str, float], state: TrainerState) -> Row | None:
        if "eval_loss" in logs:
            # of the modes, `on_evaluate` knows all
            return None if self.mode_bytes else self._evaluated(logs["eval_loss"], state)
        if "loss" not in logs:
            return None
        seen = state.num_input_tokens_seen
        speed = self._stopwatch.speed(seen)
        given = {name: logs.get(name) for name in ("loss", "learning_rate", "grad_norm")}
        row = {"step": state.global_step, "epoch": state.epoch, **given}
        return {**row, "tokens_seen": seen or None, "tokens_per_second": speed}

    def _evaluated(self, loss: float, state: TrainerState) -> Row:
        return {
            "step": state.global_step,
            "epoch": state.epoch,
            "tokens_seen": state.num_input_tokens_seen or None,
            "eval_loss": loss,
            "perplexity": perplexity(loss),
            "bits_per_byte": bits_per_byte(loss, self.bytes_per_token),
        }

    def _draw(self, state: TrainerState) -> None:
        if state.is_world_process_zero:
            drawn = CURVES if self.mode_bytes else {}
            figure = draw_training_curves(read_log(self.log.path), title=self.title, modes=drawn)
            save_whole(figure, self.picture)


class SetEpochCallback(TrainerCallback):
    """Sets the epoch that a collator draws questions for, before the epoch's first batch is made."""

    def __init__(self, collator: QuestionCollator) -> None:
        self.collator = collator

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        # a run that is resumed within an epoch starts with a fraction
        self.collator.set_epoch(int(state.epoch or 0))


class SaveEvalSetsCallback(TrainerCallback):
    """Saves the questions with the run as training starts, when a run that is resumed is known to be the same."""

    def __init__(self, questions: Mapping[str, Dataset], folder: Path) -> None:
        self.questions, self.folder = questions, folder

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.is_world_process_zero:
            modes.save_eval_modes(self.questions, self.folder, is_resumed=state.global_step > 0)


class RisingRateCallback(TrainerCallback):
    """Says that the learning rate jumps up where a run is resumed with a longer schedule than it had.

    A schedule that falls to zero over 1,000 steps is in the middle of its fall at that step once there are 2,000.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        scheduler: Any = kwargs.get("lr_scheduler")
        # other schedulers than transformers' own go by what they see, or by nothing that can be asked
        rules = getattr(scheduler, "lr_lambdas", None)
        if not (rules and 0 < state.global_step < state.max_steps and state.is_world_process_zero):
            return
        before, after = scheduler.get_last_lr()[0], scheduler.base_lrs[0] * rules[0](state.global_step)
        if after > 1.01 * before:
            logger.warning(
                "the learning rate rises again at step %d, from %.3g to %.3g: its schedule (%s) is now one of %d "
                "steps, and a run of so many from the start would not have fallen so low here",
                state.global_step,
                before,
                after,
                getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type),
                state.max_steps,
            )


def enter_states(state: TrainerState, callbacks: Iterable[TrainerCallback]) -> None:
    """Give callbacks that the resumed checkpoint did not know a place among the states that are saved."""
    for callback in callbacks:
        if isinstance(callback, ExportableState):
            # transformers declares a list of callbacks, and keeps their states by name
            states: Any = state.stateful_callbacks
            states.setdefault(type(callback).__name__, callback.state())


class StepBoundaryCallback(TrainerCallback):
    """Saves and ends the run when a signal was agreed on; seeds the loader's workers; says what a start ignores."""

    def __init__(self, stop: StopSignal, random: torch.Generator) -> None:
        self.stop = stop
        self.random = random

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.ignore_data_skip and not state.global_step and state.is_world_process_zero:
            logger.warning("ignore_data_skip: has no effect: nothing is resumed")

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.random.manual_seed(epoch_seed(args.seed, int(state.epoch or 0)))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.stop.agreed:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.stop.agreed:
            logger.log(
                logging.WARNING if state.is_world_process_zero else logging.DEBUG,
                "stopped after step %d, saved as checkpoint-%d: go on with --resume_from_checkpoint true",
                state.global_step,
                state.global_step,
            )
            raise Stopped(self.stop.agreed)
