"""The text of `train_hf.py --help`."""

import dataclasses
import textwrap
from collections.abc import Collection, Iterable
from typing import Any

from .options import ALIASES

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


def help_text(groups: Iterable[type], *, withheld: Collection[str]) -> str:
    """All options: ours and the common ones with their defaults and one line each, the others by name."""
    parts = [_INTRODUCTION]
    for group in groups:
        fields = [f for f in dataclasses.fields(group) if f.init and f.name not in withheld]
        common = [f for f in fields if not _is_trainer(group) or f.name in _COMMON]
        parts.append(f"\n{_title(group)}\n" + "".join(map(_line, common)))
        others = ", ".join(sorted(f.name for f in fields if f not in common))
        if others:
            parts.append(
                "\n  Also, as transformers documents them:\n"
                + textwrap.indent(textwrap.fill(others, 92), "    ")
                + "\n"
            )
    classic = ", ".join(f"{old} -> {new}" for old, new in ALIASES.items())
    parts.append(
        "\nClassic names are understood too:\n"
        + textwrap.indent(textwrap.fill(classic, 92, break_on_hyphens=False), "  ")
        + "\n"
    )
    return "".join(parts)


def _is_trainer(group: type) -> bool:
    return group.__name__ == "TrainingArguments"


def _title(group: type) -> str:
    return {
        "ModelArguments": "Model",
        "DataArguments": "Data",
        "TrainingArguments": "Training",
        "RunArguments": "Run",
    }[group.__name__]


def _line(field: "dataclasses.Field[Any]") -> str:
    text = _COMMON.get(field.name) or field.metadata.get("help", "")
    default = "" if field.default in (None, dataclasses.MISSING) else f" [{field.default}]"
    return f"  --{field.name:<30} {text}{default}\n"
