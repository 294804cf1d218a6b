"""How a run treats each field of transformers' TrainingArguments, and what part it has in the identity of a run.

A field without a remark does what transformers documents. What depends on several fields is in `checks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from ..errors import one_line


class Resume(Enum):
    """What happens when a run is resumed with another value than its checkpoint was trained with."""

    REFUSED = "it would be another run"
    RESTORED = "refused: the checkpoint's own value, in the state of the optimizer, would be used in silence"
    SCHEDULE = "told of: length, schedule or batches are others from here"
    TOLD = "told of: it takes effect from here"
    FREE = "nothing: it changes no weight"


@dataclass(frozen=True)
class Row:
    """One option.

    Attributes:
        resume: its part in the identity of a run.
        only: the values that are taken; any other is refused because of `why`. None: all.
        in_run: `only` holds for `train`, whose text, collator and metrics are known, not for every ArbProbTrainer.
        idle: why any other value than the default has no effect in a run, which is warned of; None where it has one.
    """

    resume: Resume = Resume.FREE
    only: tuple[Any, ...] | None = None
    why: str = ""
    in_run: bool = False
    idle: str | None = None


_FREE, _REFUSED, _TOLD = Row(), Row(Resume.REFUSED), Row(Resume.TOLD)
_RESTORED, _SCHEDULE = Row(Resume.RESTORED), Row(Resume.SCHEDULE)
_NO_LOGITS = Row(idle="the evaluations of a run keep no logits")


def _refused(row: Row, *only: Any, why: str, in_run: bool = False) -> Row:
    return replace(row, only=only, why=why, in_run=in_run)


TABLE: dict[str, Row] = {
    "output_dir": _FREE,
    # learning rate
    "learning_rate": _RESTORED,
    "lr_scheduler_type": _SCHEDULE,
    "lr_scheduler_kwargs": _SCHEDULE,
    "warmup_steps": _SCHEDULE,
    # length, batches
    "max_steps": _SCHEDULE,
    "num_train_epochs": _SCHEDULE,
    "per_device_train_batch_size": _SCHEDULE,
    "gradient_accumulation_steps": _SCHEDULE,
    "auto_find_batch_size": _FREE,
    "average_tokens_across_devices": _TOLD,
    # optimizer
    "optim": _RESTORED,
    "optim_args": _RESTORED,
    "optim_target_modules": _RESTORED,
    "weight_decay": _RESTORED,
    "adam_beta1": _RESTORED,
    "adam_beta2": _RESTORED,
    "adam_epsilon": _RESTORED,
    "max_grad_norm": _TOLD,
    "label_smoothing_factor": _REFUSED,
    "neftune_noise_alpha": _REFUSED,
    # numbers and speed
    "bf16": _TOLD,
    "fp16": _TOLD,
    "bf16_full_eval": _FREE,
    "fp16_full_eval": _FREE,
    "tf32": _TOLD,
    "activation_checkpointing": _FREE,
    "activation_checkpointing_kwargs": _FREE,
    "gradient_checkpointing": _FREE,
    "gradient_checkpointing_kwargs": _FREE,
    "torch_compile": _TOLD,
    "torch_compile_backend": _TOLD,
    "torch_compile_mode": _TOLD,
    "use_liger_kernel": _refused(
        _FREE, False, why="it has no kernels for this network, whose loss is computed in chunks already", in_run=True
    ),
    "liger_kernel_config": Row(idle="there are no Liger kernels for this network"),
    "use_cache": _FREE,
    "torch_empty_cache_steps": _FREE,
    "use_cpu": _TOLD,
    "full_determinism": _TOLD,
    # log
    "logging_strategy": _FREE,
    "logging_steps": _FREE,
    "logging_first_step": _FREE,
    "log_on_each_node": _FREE,
    "logging_nan_inf_filter": Row(idle="a loss that is not finite ends the run"),
    "include_num_input_tokens_seen": _refused(
        _FREE, "all", "no", why="the batches of a run do not say which tokens are padding", in_run=True
    ),
    "log_level": _FREE,
    "log_level_replica": _FREE,
    "disable_tqdm": _FREE,
    "report_to": _FREE,
    "run_name": _FREE,
    "project": _FREE,
    "trackio_space_id": _FREE,
    "trackio_bucket_id": _FREE,
    "trackio_static_space_id": _FREE,
    # evaluation
    "eval_strategy": _FREE,
    "eval_steps": _FREE,
    "eval_delay": _FREE,
    "eval_on_start": _FREE,
    "per_device_eval_batch_size": _FREE,
    "prediction_loss_only": _refused(
        _FREE,
        True,
        why="a run computes its figures from the loss; for others give ArbProbTrainer compute_metrics in Python",
        in_run=True,
    ),
    "eval_do_concat_batches": _NO_LOGITS,
    "eval_use_gather_object": _NO_LOGITS,
    "eval_accumulation_steps": _NO_LOGITS,
    "include_for_metrics": _NO_LOGITS,
    "batch_eval_metrics": _NO_LOGITS,
    # checkpoints
    "save_strategy": _FREE,
    "save_steps": _FREE,
    "save_only_model": _FREE,
    "save_total_limit": _FREE,
    "save_on_each_node": _refused(_FREE, False, why="one main process seals a checkpoint on a shared disk"),
    "enable_jit_checkpoint": _refused(_FREE, False, why="SIGTERM already saves at the end of the step"),
    "load_best_model_at_end": _FREE,
    "metric_for_best_model": _REFUSED,
    "greater_is_better": _REFUSED,
    "ignore_data_skip": _TOLD,
    "restore_callback_states_from_checkpoint": _FREE,
    "resume_from_checkpoint": _FREE,
    # the Hub
    "push_to_hub": _FREE,
    "hub_token": _FREE,
    "hub_private_repo": _FREE,
    "hub_model_id": _FREE,
    "hub_strategy": _FREE,
    "hub_always_push": _FREE,
    "hub_revision": _FREE,
    # order and loading of the text
    "seed": _REFUSED,
    "data_seed": _REFUSED,
    "train_sampling_strategy": _refused(
        _REFUSED, "random", "sequential", why="all blocks of a run have one size: there is nothing to sort", in_run=True
    ),
    "length_column_name": Row(idle="all blocks of a run have one size"),
    "dataloader_drop_last": _REFUSED,
    "dataloader_num_workers": _FREE,
    "dataloader_pin_memory": _FREE,
    "dataloader_persistent_workers": _FREE,
    "dataloader_prefetch_factor": _FREE,
    "dataloader_multiprocessing_context": _FREE,
    "dataloader_in_order": _refused(
        _FREE, True, why="batches in the order in which they are ready cannot be resumed bit for bit", in_run=True
    ),
    "remove_unused_columns": _refused(
        _FREE, False, why="the collator reads columns that the network does not take", in_run=True
    ),
    "label_names": _refused(_FREE, None, why="the batches of a run name their labels themselves", in_run=True),
    "accelerator_config": _REFUSED,
    # several processes
    "parallelism_config": _refused(
        _FREE, None, why="masks are over whole sequences, which it may split among processes"
    ),
    "ddp_find_unused_parameters": _FREE,
    "ddp_bucket_cap_mb": _FREE,
    "ddp_broadcast_buffers": _FREE,
    "ddp_static_graph": _FREE,
    "ddp_backend": _FREE,
    "ddp_timeout": _FREE,
    "fsdp": _TOLD,
    "fsdp_config": _FREE,
    "deepspeed": _TOLD,
    "local_rank": _FREE,
    # the rest
    "debug": _FREE,
    "skip_memory_metrics": _FREE,
    "do_train": _FREE,
    "do_eval": _FREE,
    "do_predict": _refused(
        _FREE, False, why="a run has no test set; --do_train false --do_eval true scores validation text", in_run=True
    ),
}


def refuse_values(args: Any, *, in_run: bool) -> None:
    """Raise ValueError, naming the option, for a value of `args` that is not taken; `in_run`: by a whole run."""
    for name, row in TABLE.items():
        if row.only is None or row.in_run != in_run or not hasattr(args, name):
            continue
        value = plain(getattr(args, name))
        if value not in row.only:
            taken = " or ".join(_word(one) for one in row.only)
            raise ValueError(f"{name} must be {taken}, got {one_line(_word(value)):.60}: {row.why}")


def idle_options(args: Any, defaults: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each option of `args` that differs from `defaults` and has no effect, with the reason.

    That is also told of a field that this table does not know: its transformers is newer.
    """
    for name, default in defaults.items():
        value = getattr(args, name)
        if value == default:
            continue
        if name not in TABLE:
            yield name, "this version of arbprob_hf does not know it, so its effect here was never tried"
        elif (reason := TABLE[name].idle) is not None:
            yield name, reason


def with_role(*roles: Resume) -> tuple[str, ...]:
    """The options whose part in the identity of a run is one of `roles`."""
    return tuple(name for name, row in TABLE.items() if row.resume in roles)


def identity(args: Any) -> dict[str, Any]:
    """The options of `args` that are noted with a checkpoint, by name, as values of JSON."""
    noted = (name for name, row in TABLE.items() if row.resume is not Resume.FREE and hasattr(args, name))
    return {name: plain(getattr(args, name)) for name in noted}


def plain(value: Any) -> Any:
    """`value` as JSON holds it: members of enumerations are their texts, other objects what they say of themselves."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return plain(value.to_dict()) if hasattr(value, "to_dict") else str(value)


def _word(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
