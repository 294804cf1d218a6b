"""Refuses options that depend on what is installed, on the device or on one another, before any text is read."""

from __future__ import annotations

import difflib
import inspect
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainingArguments
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, get_scheduler
from transformers.trainer_pt_utils import AcceleratorConfig

from ...errors import one_line
from ...runs.option_table import plain
from .command_line import resume_choice
from .deepspeed import uses_deepspeed

logger = logging.getLogger(__name__)

# optimizers of low-rank projections, which know nn.Linear alone
_LOW_RANK = ("galore", "apollo")
# schedules without a warm-up
_NO_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
_STEPS_TRIED = 1000
_DDP = ("ddp_bucket_cap_mb", "ddp_static_graph", "ddp_find_unused_parameters", "ddp_broadcast_buffers")
# what torchrun and MPI tell each of the processes that they start
_LAUNCHED = ("LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_OTHERWISE_GIVEN = ("optimizer", "num_warmup_steps", "num_training_steps", "kwargs")
_FIGURES = ("loss", "perplexity", "bits_per_byte")


def refuse_combinations(args: TrainingArguments) -> None:
    """Raise ValueError, in one line that names the option, for what `args` cannot do here and now."""
    for check in (_precision, _compiler, _loader, _processes, _log, _best, _optimizer, _schedule, _work):
        check(args)


def refuse_early(args: TrainingArguments) -> None:
    """Raise ValueError for what transformers would only meet, in other words, as it sets up devices and processes."""
    if args.deepspeed and find_spec("deepspeed") is None:
        raise ValueError("deepspeed: the package is not installed; install it with pip install deepspeed")
    known = ("nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl")
    if args.ddp_backend is not None and args.ddp_backend not in known:
        raise ValueError(f"ddp_backend: expected one of {', '.join(known)}, got {args.ddp_backend!r:.60}")
    if args.ddp_backend is not None and not any(map(os.environ.get, _LAUNCHED)):
        raise ValueError(
            "ddp_backend: several processes talk through it, and this is one; start it with torchrun "
            "--nproc_per_node 2, or leave ddp_backend out"
        )
    for name in ("deepspeed", "accelerator_config", "fsdp_config"):
        path = getattr(args, name)
        if isinstance(path, str) and not path.startswith("{") and not Path(path).is_file():
            raise ValueError(f"{name}: expected a JSON file or names with values in braces, got {path!r:.60}")
    _refuse_unknown_names(
        "accelerator_config", args.accelerator_config, [one.name for one in fields(AcceleratorConfig)]
    )
    # of what it takes, the first is the layer, and the rest is the layer's own
    taken = [*inspect.signature(checkpoint).parameters, "preserve_rng_state"]
    recomputing = [name for name in taken if name not in ("function", "args", "kwargs")]
    _refuse_unknown_names("gradient_checkpointing_kwargs", args.gradient_checkpointing_kwargs, recomputing)


def _refuse_unknown_names(option: str, given: Any, known: list[str]) -> None:
    if isinstance(given, str):
        try:
            given = json.loads(given if given.startswith("{") else Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{option}: {given:.60} cannot be read as JSON: {one_line(error):.100}") from error
    for name in given if isinstance(given, Mapping) else ():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            advice = f"did you mean {near[0]}?" if near else f"expected among {', '.join(known)}"
            raise ValueError(f"{option}: unknown name {name!r:.60}; {advice}")


def refuse_metric(args: TrainingArguments, modes: Iterator[str] | tuple[str, ...] = ()) -> None:
    """Raise ValueError where `metric_for_best_model` is no figure of a run, with `modes` of evaluation if any."""
    known = [*_FIGURES, *(f"{mode}_{figure}" for mode in modes for figure in _FIGURES)]
    metric = args.metric_for_best_model
    if metric is not None and metric.removeprefix("eval_") not in known:
        raise ValueError(f"metric_for_best_model: expected one of {', '.join(known)}, got {metric!r:.60}")


def idle_combinations(args: TrainingArguments, given: set[str]) -> Iterator[tuple[str, str]]:
    """Each option among `given` that the others leave without effect, with the reason."""
    on_cpu, reports = args.device.type == "cpu", args.report_to or []
    no_hub = "" if args.push_to_hub else "nothing is pushed without push_to_hub"
    trackio = "" if "trackio" in reports else "report_to does not name trackio"
    schedule = plain(args.lr_scheduler_type)
    reasons = {
        "warmup_steps": f"the schedule {schedule} has no warm-up" if schedule in _NO_WARMUP else "",
        "run_name": "" if reports else "report_to names no integration",
        "project": trackio,
        "trackio_space_id": trackio,
        "trackio_bucket_id": trackio,
        "trackio_static_space_id": trackio,
        "hub_model_id": no_hub,
        "hub_strategy": no_hub,
        "hub_private_repo": no_hub,
        "hub_always_push": no_hub,
        "hub_revision": no_hub,
        "fsdp_config": "" if args.fsdp else "fsdp is off",
        "ddp_timeout": "processes on a CPU wait for one another as long as it takes" if on_cpu else "",
        "torch_empty_cache_steps": "a CPU has no such cache" if on_cpu else "",
        "debug": "tpu_metrics_debug is of TPUs" if "tpu_metrics_debug" in map(plain, args.debug) else "",
        **_idle_intervals(args),
        **dict.fromkeys(_DDP, "" if args.world_size > 1 else "this is one process"),
        "dataloader_pin_memory": "batches stay on the CPU" if on_cpu else "",
        "greater_is_better": "" if args.metric_for_best_model else "there is no metric_for_best_model",
        "activation_checkpointing_kwargs": "" if args.gradient_checkpointing else "activation_checkpointing is off",
        "gradient_checkpointing_kwargs": "" if args.gradient_checkpointing else "gradient_checkpointing is off",
        "optim_target_modules": "" if _is_low_rank(args) else f"the optimizer {plain(args.optim)} takes all weights",
    }
    used = _tiny_optimizer(args)
    for name, word in (("adam_beta1", "betas"), ("adam_beta2", "betas"), ("adam_epsilon", "eps")):
        reasons[name] = "" if word in used else f"the optimizer {plain(args.optim)} has no such number"
    yield from ((name, reason) for name, reason in reasons.items() if reason and name in given)


def _idle_intervals(args: TrainingArguments) -> dict[str, str]:
    """The options of log, evaluations and checkpoints that the strategies leave without effect."""
    log, evaluation, save = (plain(getattr(args, f"{name}_strategy")) for name in ("logging", "eval", "save"))
    # transformers takes it for eval_steps where there are none
    serves_evaluation = evaluation == "steps" and args.eval_steps == args.logging_steps
    while_training = "nothing is evaluated while training" if args.do_train and evaluation == "no" else ""
    reasons = {
        "logging_steps": "" if log == "steps" or serves_evaluation else f"logging_strategy is {log}",
        "eval_steps": "" if evaluation == "steps" else f"eval_strategy is {evaluation}",
        "save_steps": "" if save == "steps" else f"save_strategy is {save}",
        "eval_delay": while_training,
        "per_device_eval_batch_size": "" if args.do_eval or args.eval_on_start else "nothing is evaluated",
    }
    if save == "no":
        saves_none = "save_strategy is no, and only a signal that stops the run saves a checkpoint"
        reasons |= dict.fromkeys(("save_total_limit", "save_only_model"), saves_none)
    return reasons


def warn_of_idle_in_streams(args: TrainingArguments) -> None:
    """Say which options of `args` are of a text with an order of its own, and not of a stream."""
    config: Any = args.accelerator_config
    for name, is_given in (
        ("train_sampling_strategy", plain(args.train_sampling_strategy) != "random"),
        ("dataloader_drop_last", args.dataloader_drop_last),
        ("data_seed", args.data_seed is not None),
        ("accelerator_config", config is not None and (config.split_batches or config.dispatch_batches)),
    ):
        if is_given:
            logger.warning("%s: has no effect: a stream is read in its own order, by each process its part", name)


def _precision(args: TrainingArguments) -> None:
    if args.fp16 and args.device.type == "cpu":
        raise ValueError("fp16: float16 is trained on a GPU, and this run is on the CPU; give bf16 true, or neither")
    for name in ("bf16_full_eval", "fp16_full_eval"):
        if getattr(args, name) and args.do_train:
            raise ValueError(
                f"{name}: has no effect on the evaluations of a run that trains, which are as precise as its steps; "
                f"give {name[:4]} true, or --do_train false --do_eval true"
            )


def _compiler(args: TrainingArguments) -> None:
    if not args.torch_compile:
        return
    import torch._dynamo
    import torch._inductor
    from accelerate.utils import DynamoBackend

    backend, mode = args.torch_compile_backend, args.torch_compile_mode
    # the ones for debugging too
    known = {name for name in torch._dynamo.list_backends(None) if name.upper() in DynamoBackend.list()}
    if backend not in known:
        raise ValueError(f"torch_compile_backend: expected one of {', '.join(sorted(known))}, got {backend!r:.60}")
    modes = list(torch._inductor.list_mode_options())
    if mode is not None and mode not in modes:
        raise ValueError(f"torch_compile_mode: expected one of {', '.join(modes)}, got {mode!r:.60}")
    if backend == "inductor" and args.device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise ValueError("torch_compile: the backend inductor needs a C++ compiler, and g++ is not installed")


def _loader(args: TrainingArguments) -> None:
    context = args.dataloader_multiprocessing_context
    if context not in (None, "fork", "spawn", "forkserver"):
        raise ValueError(f"dataloader_multiprocessing_context: expected fork, spawn or forkserver, got {context!r:.60}")
    if args.dataloader_num_workers == 0:
        for name in ("dataloader_persistent_workers", "dataloader_multiprocessing_context"):
            if getattr(args, name):
                raise ValueError(f"{name}: there are no workers; add --dataloader_num_workers 1, or leave it out")
    if args.dataloader_prefetch_factor is not None and args.dataloader_prefetch_factor < 1:
        raise ValueError(
            f"dataloader_prefetch_factor: expected at least 1 batch a worker, got {args.dataloader_prefetch_factor}"
        )


def _processes(args: TrainingArguments) -> None:
    if args.fsdp and args.world_size == 1:
        raise ValueError(
            "fsdp: shards the weights among several processes, and this is one; start it with torchrun "
            "--nproc_per_node 2, or leave fsdp out"
        )


def _log(args: TrainingArguments) -> None:
    from transformers.training_args import trainer_log_levels

    for name in ("log_level", "log_level_replica"):
        if getattr(args, name) not in trainer_log_levels:
            raise ValueError(
                f"{name}: expected one of {', '.join(trainer_log_levels)}, got {getattr(args, name)!r:.60}"
            )


def _best(args: TrainingArguments) -> None:
    if plain(args.save_strategy) == "best" and args.metric_for_best_model is None:
        raise ValueError("save_strategy: best needs metric_for_best_model; give loss, or save_strategy steps")
    patience, threshold = getattr(args, "early_stopping_patience", None), getattr(args, "early_stopping_threshold", 0)
    if patience is not None and patience < 1:
        raise ValueError(f"early_stopping_patience: expected at least 1 evaluation, got {patience}")
    if threshold < 0 or (threshold and patience is None):
        advice = "it needs early_stopping_patience, how many evaluations to wait; give it, or leave the threshold out"
        raise ValueError(f"early_stopping_threshold: expected at least 0, got {threshold}; {advice}")
    if args.metric_for_best_model is not None and plain(args.eval_strategy) == "no":
        names = ("early_stopping_patience", "load_best_model_at_end", "metric_for_best_model")
        wanting = [name for name in names if getattr(args, name, None)]
        raise ValueError(f"{wanting[0]}: a run that is never evaluated has no best model; give eval_strategy steps")


def _optimizer(args: TrainingArguments) -> None:
    if _is_low_rank(args):
        # nothing of the network but its head is an nn.Linear
        raise ValueError(
            f"optim: {plain(args.optim)} projects gradients of nn.Linear layers, and the blocks of this network have "
            "none; give another, such as adamw_torch"
        )
    try:
        _tiny_optimizer(args)
    except Exception as error:
        raise ValueError(
            f"optim: {plain(args.optim)}: {one_line(error):.300}; give another, such as adamw_torch"
        ) from error
    unread = _unread_optim_args(args)
    if unread:
        raise ValueError(f"optim_args: the optimizer {plain(args.optim)} does not take {', '.join(unread)}")


def _schedule(args: TrainingArguments) -> None:
    """Make the schedule once."""
    name, given = plain(args.lr_scheduler_type), args.lr_scheduler_kwargs
    if isinstance(given, str):
        raise ValueError(f"lr_scheduler_kwargs: expected names with values in braces, got {given!r:.60}")
    if given and name in ("constant", "constant_with_warmup"):
        raise ValueError(f"lr_scheduler_kwargs: the schedule {name} takes none, got {', '.join(given)}")
    # its first parameters are the optimizer and what other options say
    make: Any = TYPE_TO_SCHEDULER_FUNCTION[name]
    parameters = inspect.signature(make).parameters.values()
    needed = [one.name for one in parameters if one.default is one.empty and one.name not in _OTHERWISE_GIVEN]
    lacking = [one for one in needed if one not in (given or {})]
    if lacking:
        example = ", ".join(f"{one}: 100" for one in lacking)
        raise ValueError(
            f"lr_scheduler_kwargs: the schedule {name} needs {', '.join(lacking)}; give --lr_scheduler_kwargs "
            f"'{{{example}}}', for one, or another lr_scheduler_type"
        )
    steps = args.max_steps if args.max_steps > 0 else _STEPS_TRIED
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=args.learning_rate)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            schedule = get_scheduler(
                name,
                optimizer=optimizer,
                num_warmup_steps=args.get_warmup_steps(steps),
                num_training_steps=steps,
                scheduler_specific_kwargs=dict(given or {}),
            )
            if name not in ("reduce_lr_on_plateau", "greedy"):
                schedule.step()
    except Exception as error:
        option = "lr_scheduler_kwargs" if given else "lr_scheduler_type"
        raise ValueError(f"{option}: {name}: {one_line(error):.300}") from error


def _work(args: TrainingArguments) -> None:
    if not args.do_train and not args.do_eval:
        raise ValueError("do_train: neither do_train nor do_eval is true, so there is nothing to do")
    if not args.do_train and resume_choice(args.resume_from_checkpoint) is not False:
        raise ValueError(
            "resume_from_checkpoint: without training nothing is resumed; name the checkpoint to evaluate as init_from"
        )
    if not args.do_train and uses_deepspeed(args):
        raise ValueError("deepspeed: it evaluates in a run that trains alone; without training, leave it out")
    if not args.do_train and args.push_to_hub:
        raise ValueError("push_to_hub: without training nothing is pushed; arbprob publish sends a finished run")


def _is_low_rank(args: TrainingArguments) -> bool:
    return bool(plain(args.optim).startswith(_LOW_RANK))


def _tiny_optimizer(args: TrainingArguments) -> dict[str, Any]:
    """Make the optimizer of a network of two weights; what it was made with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network: Any = nn.Linear(1, 1).to(args.device)
        make, options = Trainer.get_optimizer_cls_and_kwargs(args, network)
        # lomo takes the network itself
        options = {"params": options.pop("model", None) or network.parameters(), **options}
        if isinstance(make, type):
            make(**options)
        return options


class _Noting(dict[str, str]):
    """Notes which of its names are looked for."""

    def __init__(self, items: dict[str, str]) -> None:
        super().__init__(items)
        self.read: set[str] = set()

    def get(self, name: Any, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def pop(self, name: Any, *default: Any) -> Any:
        self.read.add(name)
        return super().pop(name, *default)

    def __contains__(self, name: object) -> bool:
        self.read.add(str(name))
        return super().__contains__(name)


def _unread_optim_args(args: TrainingArguments) -> list[str]:
    """The names in `optim_args` that the optimizer does not look at."""
    if not args.optim_args:
        return []
    from transformers import trainer_optimizer

    given = trainer_optimizer._parse_optim_args(args.optim_args)
    noted, network = _Noting(given), cast(Any, nn.Linear(1, 1))
    context = trainer_optimizer.OptimizerContext(args, network, {"lr": args.learning_rate}, {}, noted)
    handler: Callable[[Any], Any] = trainer_optimizer._OPTIMIZER_HANDLERS[args.optim]
    handler(context)
    return [name for name in given if name not in noted.read]
