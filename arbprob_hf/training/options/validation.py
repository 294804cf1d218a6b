"""Refuses options that could not do what they say, in one line each, before anything is loaded."""

from __future__ import annotations

import difflib
import logging
from typing import TYPE_CHECKING, Any

from ...runs.option_table import refuse_values
from .deepspeed import refuse_engine

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

logger = logging.getLogger(__name__)

# option -> the least that means something
_LEAST: dict[str, float] = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "learning_rate": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "eval_delay": 0,
    # transformers would keep all of them for 0
    "save_total_limit": 1,
}
# the option that sets how often, and the strategy that says whether
_INTERVALS = {"logging_steps": "logging_strategy", "eval_steps": "eval_strategy", "save_steps": "save_strategy"}


def refuse_numbers(args: Any) -> None:
    """Raise ValueError for a number of `args` that has no meaning, such as a batch of 0 blocks or 0 epochs.

    `args` has the fields of TrainingArguments, which is not imported here: the command line asks first.
    """
    for name, least in _LEAST.items():
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise ValueError(f"{name}: expected at least {least}, got {getattr(args, name)}")
    # what torch and numpy take
    for name in ("seed", "data_seed"):
        if getattr(args, name) is not None and not 0 <= getattr(args, name) < 2**32:
            raise ValueError(f"{name}: expected 0 to {2**32 - 1}, got {getattr(args, name)}")
    # transformers would take the first for "no limit" and end a run of the second without a step
    if args.max_steps == 0 or args.max_steps < -1:
        raise ValueError(f"max_steps: expected at least 1, or -1 to train num_train_epochs, got {args.max_steps}")
    if args.max_steps < 0 and args.num_train_epochs <= 0:
        raise ValueError(f"num_train_epochs: expected more than 0 epochs, got {args.num_train_epochs:g}")
    for name, strategy in _INTERVALS.items():
        steps, when = getattr(args, name), getattr(args, strategy)
        # the other strategies do not look at the number
        if str(getattr(when, "value", when)) == "steps" and steps is not None and steps <= 0:
            raise ValueError(f"{name}: expected more than 0 steps, got {steps:g}; to do without, give {strategy} no")


def refuse_options(args: TrainingArguments) -> None:
    """Raise ValueError for an option of `args` that this package's Trainer cannot honour."""
    if args.label_smoothing_factor != 0:
        raise ValueError(
            f"label_smoothing_factor must be 0, got {args.label_smoothing_factor}: the smoothing would be computed "
            "from logits, which training does not make"
        )
    refuse_values(args, in_run=False)
    refuse_engine(args)
    if args.n_gpu > 1:
        raise ValueError(
            f"this one process has {args.n_gpu} GPUs, which it cannot share out: start it with "
            f"torchrun --nproc_per_node {args.n_gpu}, or let it see one (CUDA_VISIBLE_DEVICES=0)"
        )


def refuse_integrations(args: TrainingArguments) -> None:
    """Raise ValueError for a name in report_to that transformers does not know, or that is not installed."""
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    installed = get_available_reporting_integrations()
    for name in args.report_to or []:
        if name not in INTEGRATION_TO_CALLBACK:
            near = difflib.get_close_matches(name, INTEGRATION_TO_CALLBACK, n=1, cutoff=0.5)
            advice = f"did you mean {near[0]}?" if near else f"choose among none, all, {', '.join(installed)}"
            raise ValueError(f"report_to: transformers has no integration {name!r:.60}; {advice}")
        if name not in installed:
            try:
                # it says itself what to install
                INTEGRATION_TO_CALLBACK[name]()
            except (RuntimeError, ImportError, ValueError) as error:
                raise ValueError(f"report_to: {str(error).rstrip('.')}; without it, give report_to none") from None


def refuse_parts(trainer: Trainer) -> None:
    """Raise ValueError for something given to `trainer` in code that needs the logits of training, never made.

    Metrics of one's own are computed from the logits of evaluation, whatever the options say.
    """
    if trainer.compute_metrics is not None and trainer.args.prediction_loss_only:
        logger.warning("prediction_loss_only has no effect: compute_metrics is given, which takes logits")
        trainer.args.prediction_loss_only = False
    if trainer.compute_loss_func is not None:
        raise ValueError(
            "compute_loss_func must be None: training makes no logits to compute it from; the loss is the model's own"
        )
