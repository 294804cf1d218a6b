"""Refuses what a configuration of DeepSpeed would do in place of the options of the run, and what was not tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TrainingArguments

# what has no part in what is trained, or is checked below
_KNOWN = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "zero_optimization",
    "zero_allow_untested_optimizer",
    "fp16",
    "bf16",
    "steps_per_print",
    "wall_clock_breakdown",
}
# the run's own option in place of a part of the configuration
_OURS = {"optimizer": "optim", "scheduler": "lr_scheduler_type"}
_STAGES = (1, 2)


def uses_deepspeed(args: TrainingArguments) -> bool:
    """Whether DeepSpeed trains, by the option or by Accelerate's configuration."""
    return getattr(args, "deepspeed_plugin", None) is not None


def refuse_engine(args: TrainingArguments) -> None:
    """Raise ValueError, in one line, for the first part of DeepSpeed's configuration that cannot be honoured."""
    if uses_deepspeed(args):
        plugin: Any = args.deepspeed_plugin
        for problem in _problems(plugin.hf_ds_config.config, args):
            raise ValueError(f"deepspeed: {problem}; FSDP2 has no such limit, see docs/training.md")


def _problems(config: Mapping[str, Any], args: TrainingArguments) -> Iterator[str]:
    for name in sorted(config.keys() - _KNOWN):
        option = _OURS.get(name)
        instead = f"the run's is that of {option}" if option else "it was not tried here"
        yield f"its configuration has {name}, and {instead}: leave it out"
    zero = config.get("zero_optimization", {})
    if zero.get("stage") not in _STAGES:
        yield f"expected zero_optimization of stage 1 or 2, got {zero.get('stage')}"
    for name in ("offload_optimizer", "offload_param"):
        if (zero.get(name) or {}).get("device", "none") != "none":
            yield f"its configuration has {name}, and it was not tried here: leave it out"
    if args.bf16 or args.fp16 or any((config.get(name) or {}).get("enabled") is True for name in ("bf16", "fp16")):
        yield "it keeps and saves the weights in the precision that it computes in; expected float32"
    clipping, norm = config.get("gradient_clipping", 0), args.max_grad_norm
    if clipping not in ("auto", norm):
        yield f"it clips gradients by gradient_clipping of its configuration, {clipping}, not {norm}: give auto there"
