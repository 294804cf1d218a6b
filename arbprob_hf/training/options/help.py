"""What `train_hf.py --help` prints."""

import textwrap
from collections.abc import Mapping

from .command_line import ALIASES
from .fields import Field

_INTRODUCTION = """\
usage: python train_hf.py --config configs/nano.yaml [--field value ...]

Trains a GPT-2 under the attention mask of your choice. Every field below may stand in the
YAML file (`field: value`) or on the command line (`--field value`), which wins.
"""

# the fields of transformers.TrainingArguments that a first run meets; the rest is listed by name
_COMMON = {
    "output_dir": "folder for checkpoints, logs, the model and its card",
    "resume_from_checkpoint": "true (the newest whole checkpoint of output_dir), false, or a folder",
    "num_train_epochs": "passes over the text",
    "max_steps": "optimizer steps; above 0 it wins over num_train_epochs",
    "per_device_train_batch_size": "blocks a step on each device",
    "per_device_eval_batch_size": "blocks at once in evaluations",
    "gradient_accumulation_steps": "batches added up before a step",
    "learning_rate": "highest learning rate",
    "lr_scheduler_type": "how it falls: cosine, linear, constant, ...",
    "warmup_steps": "steps of rising learning rate; below 1, a share of all steps",
    "weight_decay": "AdamW's weight decay",
    "max_grad_norm": "gradients are scaled down to this norm",
    "early_stopping_patience": "evaluations without a better figure after which the run ends",
    "bf16": "compute in bfloat16",
    "use_cpu": "stay on the CPU even where there is a GPU",
    "logging_steps": "steps between two lines of the log",
    "eval_steps": "steps between two evaluations",
    "save_steps": "steps between two checkpoints",
    "save_total_limit": "checkpoints kept",
    "dataloader_num_workers": "processes that prepare batches",
    "report_to": "none or tensorboard",
    "seed": "of weights, order, dropout and samples",
}


def help_text(groups: Mapping[str, Mapping[str, Field]]) -> str:
    """All options by their group's title: ours and the common ones with default and a line each, the others by name."""
    parts = [_INTRODUCTION]
    for title, fields in groups.items():
        shown = [name for name in fields if title != "Training" or name in _COMMON]
        parts.append(f"\n{title}\n" + "".join(_line(name, fields[name]) for name in shown))
        if others := ", ".join(sorted(set(fields).difference(shown))):
            parts.append(f"\n  Also, as transformers documents them:\n{_paragraph(others, '    ')}")
    classic = ", ".join(f"{old} -> {new}" for old, new in ALIASES.items())
    parts.append(f"\nClassic names are understood too:\n{_paragraph(classic, '  ')}")
    return "".join(parts)


def _paragraph(text: str, indent: str) -> str:
    return textwrap.indent(textwrap.fill(text, 92, break_on_hyphens=False), indent) + "\n"


def _line(name: str, field: Field) -> str:
    default = "" if field.default is None else f" [{field.default}]"
    return f"  --{name:<30} {_COMMON.get(name) or field.help}{default}\n"
