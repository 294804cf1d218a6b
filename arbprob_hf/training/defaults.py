"""transformers' TrainingArguments with the defaults of this package, and its refusals."""

import sys
from dataclasses import dataclass, field

import torch
import transformers
from transformers.trainer_utils import IntervalStrategy, SchedulerType
from transformers.utils import is_in_notebook

from .hub import refuse_hub_options
from .options.validation import refuse_integrations, refuse_numbers, refuse_options


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' own training options; only the defaults below differ, and `hub_training_state` is added."""

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
        super().__post_init__()
        refuse_options(self)
        refuse_hub_options(self)
        refuse_integrations(self)
