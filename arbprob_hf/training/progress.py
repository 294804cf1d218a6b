"""What a run says while it goes: one readable line a logging step, with a bar or without, and how loud it is."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import datasets.utils
import huggingface_hub.utils
import transformers.utils.logging
from tqdm.auto import tqdm
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from .eval_modes import perplexity

_PACKAGE = logging.getLogger("arbprob_hf")
# of no use to a reader: how fast, and what the line says otherwise
_LEFT_OUT = ("total_flos", "num_input_tokens_seen", "epoch", "grad_norm", "loss", "learning_rate")
_SPEEDS = ("_runtime", "_per_second", "_preparation_time")


def use_progress_lines(trainer: Trainer) -> None:
    """Let `trainer` log in lines for people, not in transformers' raw dictionaries. The table of a notebook stays."""
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback) in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
            if type(callback) is ProgressCallback:
                trainer.add_callback(_Bar())
            trainer.add_callback(ProgressLines())


def say(text: str) -> None:
    """Write a line to stdout at once, above the bars that are shown."""
    tqdm.write(text)
    sys.stdout.flush()


def is_quiet(args: TrainingArguments) -> bool:
    """Whether this process says nothing but errors: `log_level` error or critical, or not the main process."""
    return args.process_index != 0 or args.get_process_log_level() > logging.WARNING


@contextlib.contextmanager
def loudness(args: TrainingArguments) -> Iterator[None]:
    """Let `disable_tqdm` and `log_level` of `args` hold for every library that a run uses; as before afterwards.

    The bars of transformers that would tear that of training, over files of weights, are off in any case. Of several
    processes the main one alone warns, unless `log_level_replica` asks for more.
    """
    level = args.get_process_log_level()
    if args.process_index != 0 and args.log_level_replica == "warning":
        level = logging.ERROR
    is_silent = args.disable_tqdm or args.process_index != 0
    before = _PACKAGE.level
    _PACKAGE.setLevel(level)
    with contextlib.ExitStack() as changed:
        changed.callback(_PACKAGE.setLevel, before)
        had_hub_bars = not huggingface_hub.utils.are_progress_bars_disabled()
        # called last
        changed.callback(_show_downloads, had_hub_bars)
        if transformers.utils.logging.is_progress_bar_enabled():
            # these two switch the bars of downloads, too
            transformers.utils.logging.disable_progress_bar()
            changed.callback(transformers.utils.logging.enable_progress_bar)
        _show_downloads(had_hub_bars and not is_silent)
        if is_silent and not datasets.utils.are_progress_bars_disabled():
            datasets.utils.disable_progress_bars()
            changed.callback(datasets.utils.enable_progress_bars)
        yield


def _show_downloads(shown: bool) -> None:
    library = huggingface_hub.utils
    if shown:
        library.enable_progress_bars()
    else:
        library.disable_progress_bars()


class Stopwatch:
    """Seconds spent in training steps, with evaluations, saves and drawing left out, and tokens a second of these."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._seconds, self._tokens = 0.0, 0.0

    def begin(self, tokens: float) -> None:
        """Training begins with `tokens` seen."""
        self._seconds, self._tokens = 0.0, tokens
        self.start()

    def start(self) -> None:
        """Go on after a pause."""
        self._since = time.perf_counter()

    def lap(self) -> None:
        """A step has ended."""
        now = time.perf_counter()
        self._seconds += now - self._since
        self._since = now

    def speed(self, tokens: float) -> float | None:
        """Tokens a second since this was last asked, with `tokens` seen by now; None where it cannot be known."""
        seconds, self._seconds = self._seconds, 0.0
        before, self._tokens = self._tokens, tokens
        return (tokens - before) / seconds if seconds > 0 and tokens else None


class _Bar(ProgressCallback):
    """transformers' bars without its dictionaries."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Say nothing: see `ProgressLines`."""


class ProgressLines(TrainerCallback):
    """Writes a line for each logging step and evaluation, on the main process: how far, the loss, the time left."""

    def __init__(self) -> None:
        self._stopwatch = Stopwatch()
        self._begun = time.perf_counter(), 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._begun = time.perf_counter(), state.global_step
        self._stopwatch.begin(state.num_input_tokens_seen)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._stopwatch.lap()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._stopwatch.start()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._stopwatch.start()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not is_quiet(args) and logs:
            is_step = "loss" in logs
            speed = self._stopwatch.speed(state.num_input_tokens_seen) if is_step else None
            say(progress_line(logs, state, speed=speed, seconds_left=self._seconds_left(state) if is_step else None))
        self._stopwatch.start()

    def _seconds_left(self, state: TrainerState) -> float | None:
        since, step = self._begun
        made = state.global_step - step
        return (time.perf_counter() - since) / made * (state.max_steps - state.global_step) if made > 0 else None


def progress_line(
    logs: Mapping[str, Any], state: TrainerState, *, speed: float | None = None, seconds_left: float | None = None
) -> str:
    """What `logs`, a line of transformers' log, says, for people; `speed` in tokens a second."""
    if "train_runtime" in logs and "loss" not in logs:
        plural = "s" * (state.global_step != 1)
        return f"{state.global_step:,} step{plural} done, this time in {duration(logs['train_runtime'])}"
    parts = [f"step {state.global_step:,}/{state.max_steps:,}"] if state.max_steps > 0 else []
    # a stream has no end that an epoch could be counted by
    if state.epoch is not None and 0 < state.num_train_epochs < 1e6 and state.max_steps > 0:
        parts.append(f"epoch {state.epoch:.2f}")
    if "loss" in logs:
        parts.append(f"loss {_number(logs['loss'])}")
    if "learning_rate" in logs:
        parts.append(f"learning rate {_number(logs['learning_rate'])}")
    parts += _evaluated(logs)
    if speed is not None:
        parts.append(f"{speed:,.0f} tokens/s")
    if seconds_left:
        parts.append(f"{_clock(seconds_left)} left")
    return " | ".join(parts)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours in words, about as exact as anybody wants them."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _evaluated(logs: Mapping[str, Any]) -> list[str]:
    """Everything else that was logged, as it is called; evaluations with the perplexity of their loss."""
    parts = ["evaluation"] if any(name.startswith("eval_") for name in logs) else []
    for name, value in logs.items():
        if name in _LEFT_OUT or name.endswith(_SPEEDS):
            continue
        plain = name.removeprefix("eval_").replace("_", " ")
        if plain.endswith("scored tokens"):
            parts.append(f"{value:,} tokens scored")
            continue
        parts.append(f"{plain} {_number(value)}")
        if name.startswith("eval_") and name.endswith("loss") and f"{name.removesuffix('loss')}perplexity" not in logs:
            parts.append(f"perplexity {_number(perplexity(value))}")
    return parts


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
