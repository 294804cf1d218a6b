"""transformers' TrainingArguments with the defaults of this package, and its refusals."""

import logging
import sys
from collections.abc import Collection
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import torch
import transformers
from transformers.trainer_utils import IntervalStrategy, SchedulerType
from transformers.utils import is_in_notebook

from ..runs.option_table import idle_options, refuse_values
from .hub import refuse_hub_options
from .options.checks import idle_combinations, refuse_combinations, refuse_early
from .options.command_line import FALSE, TRUE
from .options.validation import refuse_integrations, refuse_numbers, refuse_options

logger = logging.getLogger(__name__)


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' own training options; only the defaults below differ, and `hub_training_state` is added.

    What each field does in a run is in `runs.option_table`. Raises ValueError or ImportError for what cannot be done
    here, and warns of what has no effect.
    """

    output_dir: str | None = "outputs/run"
    # a run that reports nothing for 500 steps looks broken
    logging_steps: float = 10
    logging_first_step: bool = True
    eval_strategy: IntervalStrategy | str = "steps"
    eval_steps: float | None = 200
    save_steps: float = 200
    save_total_limit: int | None = 2
    lr_scheduler_type: SchedulerType | str = "cosine"
    # perplexity needs no logits; (rows, T, vocabulary) of them would not fit
    prediction_loss_only: bool = True
    # the blocks hold only what the model takes
    remove_unused_columns: bool = False
    # a loss that is not finite must be seen, not averaged away
    logging_nan_inf_filter: bool = False
    include_num_input_tokens_seen: str | bool = "all"
    # every parameter takes part in every step; looking for idle ones costs time and warns
    ddp_find_unused_parameters: bool | None = False
    do_train: bool = True
    # None: wherever eval_strategy says
    do_eval: bool | None = None  # type: ignore[assignment]
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "evaluations without a better figure after which the run ends"}
    )
    early_stopping_threshold: float = field(default=0.0, metadata={"help": "by how much a better figure must differ"})
    hub_training_state: bool = field(
        default=False,
        metadata={"help": "push optimizer, random states and options with checkpoints too, to resume from them"},
    )

    def __post_init__(self) -> None:
        # transformers refuses bfloat16, pins memory and picks a backend for GPUs unless use_cpu is set
        if not torch.accelerator.is_available():
            self.use_cpu = True
        # a bar is for somebody who watches: in a file it would be thousands of lines in one
        if self.disable_tqdm is None and not (sys.stderr.isatty() or is_in_notebook()):
            self.disable_tqdm = True
        # before transformers replaces eval_steps of 0 by another number
        refuse_numbers(self)
        if self.do_eval is False and self.do_train:
            self.eval_strategy = "no"
        if self.early_stopping_patience is not None and self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"
        metric = self.metric_for_best_model
        if self.greater_is_better is None and metric is not None and metric.endswith(("perplexity", "bits_per_byte")):
            # transformers takes all that is no loss for a score
            self.greater_is_better = False
        if isinstance(self.fsdp, str) and self.fsdp.lower() in (*TRUE, *FALSE):
            self.fsdp = self.fsdp.lower() in TRUE or None  # type: ignore[assignment]
        given = {name for name, default in _defaults(type(self)).items() if getattr(self, name) != default}
        # none and false ask for nothing; asked now, as transformers changes some on a CPU
        self._like_default = {name for name in _defaults(type(self)) if getattr(self, name)} - given
        asked = {name for name in given if getattr(self, name) is not None and getattr(self, name) is not False}
        refuse_early(self)
        super().__post_init__()
        if self.do_eval is None:
            self.do_eval = self.eval_strategy != IntervalStrategy.NO
        refuse_options(self)
        refuse_values(self, in_run=True)
        refuse_hub_options(self)
        refuse_integrations(self)
        refuse_combinations(self)
        if self.process_index == 0:
            for name, why in idle_options(self, _defaults(type(self))):
                logger.warning("%s: has no effect: %s", name, why)
        self._warn_of_idle(asked)

    def note_typed(self, names: Collection[str]) -> None:
        """Warn of those among `names`, given on the command line, that have no effect, though they are the defaults."""
        self._warn_of_idle(self._like_default.intersection(names))

    def _warn_of_idle(self, given: set[str]) -> None:
        if self.process_index == 0:
            for name, why in idle_combinations(self, given):
                logger.warning("%s: has no effect: %s", name, why)


def _defaults(group: type) -> dict[str, Any]:
    """The fields that transformers has, with the defaults of this package."""
    theirs = {one.name for one in fields(transformers.TrainingArguments)}
    return {
        one.name: one.default_factory() if one.default_factory is not MISSING else one.default
        for one in fields(group)
        if one.name in theirs
    }
