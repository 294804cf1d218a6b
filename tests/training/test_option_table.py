"""Every field of transformers' TrainingArguments is honoured, refused or warned of, before a text is read."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import transformers

from arbprob_hf.runs import option_table
from arbprob_hf.runs.option_table import TABLE, Resume
from arbprob_hf.training.arguments import TrainingArguments, parse

# of other versions of transformers than this one
ELSEWHERE = {"activation_checkpointing", "activation_checkpointing_kwargs"}


def names(value: dict[str, Any] | str) -> str:
    return " ".join(value) if isinstance(value, dict) else ""


def made(**options: Any) -> TrainingArguments:
    return TrainingArguments(output_dir="nowhere", **options)


def test_the_table_has_every_field_of_the_installed_transformers() -> None:
    installed = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    assert installed - TABLE.keys() == set(), "say in arbprob_hf/runs/option_table.py what these do"
    assert TABLE.keys() - installed <= ELSEWHERE


def test_every_refusal_of_the_table_says_why() -> None:
    assert {name for name, row in TABLE.items() if bool(row.only) != bool(row.why)} == set()


def test_the_defaults_of_a_run_are_taken_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    args = made()
    assert (args.do_train, args.do_eval, args.eval_strategy) == (True, True, "steps")
    assert caplog.text == ""


def test_an_option_of_a_newer_transformers_is_told_of(monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(option_table, "TABLE", {name: row for name, row in TABLE.items() if name != "eval_on_start"})
    made()
    assert caplog.text == ""
    made(eval_on_start=True)
    assert "eval_on_start: has no effect: this version of arbprob_hf does not know it" in caplog.text


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"fp16": True}, "^fp16: float16 is trained on a GPU, and this run is on the CPU; give bf16 true"),
    ({"bf16_full_eval": True}, "^bf16_full_eval: has no effect on the evaluations of a run that trains, .* give bf16"),
    ({"fp16_full_eval": True}, "^fp16_full_eval: has no effect on the evaluations of a run that trains, .* give fp16"),
    (
        {"do_train": False, "eval_strategy": "no"},
        "^do_train: neither do_train nor do_eval is true, so there is no",
    ),
    (
        {"do_train": False, "resume_from_checkpoint": "true"},
        "^resume_from_checkpoint: without training nothing is resumed; name the checkpoint to evaluate as init_from",
    ),
    ({"do_predict": True}, "^do_predict must be false, got true: a run has no test set; --do_train false --do_eval"),
    (
        {"train_sampling_strategy": "group_by_length"},
        "^train_sampling_strategy must be random or sequential, got grou",
    ),
    ({"train_sampling_strategy": "shuffled"}, "^train_sampling_strategy must be random or sequential, got shuffled"),
    ({"optim": "adamw_8bit"}, "^optim: adamw_8bit: .*install `bitsandbytes`.*; give another, such as adamw_torch$"),
    ({"optim": "lomo"}, "^optim: lomo: You need to install `lomo_optim`"),
    ({"optim": "schedule_free_adamw"}, "^optim: schedule_free_adamw: You need to install `schedulefree`"),
    ({"optim": "grokadamw"}, "^optim: grokadamw: Please install grokadamw"),
    ({"optim": "stable_adamw"}, "^optim: stable_adamw: You need to install `torch-optimi`"),
    ({"optim": "adamw_anyprecision"}, "^optim: adamw_anyprecision: Please install .*torchdistx"),
    ({"optim": "galore_adamw"}, r"^optim: galore_adamw projects gradients of nn\.Linear layers, .* have none; give"),
    ({"optim": "apollo_adamw"}, r"^optim: apollo_adamw projects gradients of nn\.Linear layers, .* have none; give"),
    ({"adam_beta1": 1.5}, "^optim: adamw_torch_fused: Invalid beta parameter at index 0: 1.5"),
    ({"optim": "sgd", "optim_args": "momentum=abc"}, "^optim: sgd: could not convert string to float: 'abc'"),
    ({"optim": "sgd", "optim_args": "momentun=0.9"}, "^optim_args: the optimizer sgd does not take momentun$"),
    ({"optim_args": "momentum=0.9"}, "^optim_args: the optimizer adamw_torch_fused does not take momentum$"),
    ({"lr_scheduler_kwargs": {"num_cycle": 2}}, "^lr_scheduler_kwargs: cosine: .*unexpected keyword .*'num_cycle'"),
    ({"lr_scheduler_kwargs": "num_cycles"}, "^lr_scheduler_kwargs: expected names with values in braces, got 'num_c"),
    (
        {"lr_scheduler_type": "warmup_stable_decay"},
        "^lr_scheduler_kwargs: the schedule warmup_stable_decay needs num_decay_steps; give --lr_scheduler_kwargs '{",
    ),
    ({"ddp_backend": "gloo"}, "^ddp_backend: several processes talk through it, and this is one; start it with torchr"),
    (
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrantt": True}},
        "^gradient_checkpointing_kwargs: unknown name 'use_reentrantt'; did you mean use_reentrant",
    ),
    ({"data_seed": 2**70}, "^data_seed: expected 0 to 4294967295, got 1180591620717411303424"),
    (
        {"accelerator_config": {"splitbatches": True}},
        "^accelerator_config: unknown name 'splitbatches'; did you mean s",
    ),
    ({"accelerator_config": {"zzz": True}}, "^accelerator_config: unknown name 'zzz'; expected among split_batches, "),
    ({"accelerator_config": __file__}, "^accelerator_config: .*test_option_table.* cannot be read as JSON: "),
    (
        {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"power": 2}},
        "^lr_scheduler_kwargs: the schedule constant takes none, got power$",
    ),
    (
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1.0}},
        r"^lr_scheduler_kwargs: polynomial: lr_end \(1.0\) must be smaller than initial lr",
    ),
    ({"save_strategy": "best"}, "^save_strategy: best needs metric_for_best_model; give loss, or save_strategy steps"),
    (
        {"load_best_model_at_end": True, "eval_strategy": "no", "save_strategy": "no"},
        "^load_best_model_at_end: a run that is never evaluated has no best model; give eval_strategy steps",
    ),
    ({"metric_for_best_model": "loss", "eval_strategy": "no"}, "^metric_for_best_model: a run that is never evaluated"),
    ({"fsdp": "true"}, "^fsdp: shards the weights among several processes, and this is one; start it with torchrun"),
    ({"ddp_backend": "glue"}, "^ddp_backend: expected one of nccl, gloo, mpi, xccl, hccl, cncl, mccl, got 'glue'"),
    ({"accelerator_config": "no.json"}, "^accelerator_config: expected a JSON file or names with values in braces, "),
    ({"torch_compile_backend": "inducer"}, "^torch_compile_backend: expected one of .*inductor.*, got 'inducer'"),
    ({"torch_compile_mode": "fast"}, "^torch_compile_mode: expected one of default, .*, got 'fast'"),
    ({"dataloader_persistent_workers": True}, "^dataloader_persistent_workers: there are no workers; add --dataloader"),
    (
        {"dataloader_multiprocessing_context": "spoon", "dataloader_num_workers": 1},
        "^dataloader_multiprocessing_context: expected fork, spawn or forkserver, got 'spoon'",
    ),
    (
        {"dataloader_prefetch_factor": 0, "dataloader_num_workers": 1},
        "^dataloader_prefetch_factor: expected at least 1 batch a worker, got 0",
    ),
    ({"dataloader_in_order": False}, "^dataloader_in_order must be true, got false: batches in the order in which"),
    ({"log_level": "loud"}, "^log_level: expected one of .*warning.*, got 'loud'"),
    ({"include_num_input_tokens_seen": "non_padding"}, "^include_num_input_tokens_seen must be all or no, got non_pad"),
    ({"use_liger_kernel": True}, "^use_liger_kernel must be false, got true: it has no kernels for this network"),
    (
        {"prediction_loss_only": False},
        "^prediction_loss_only must be true, got false: .*ArbProbTrainer compute_metric",
    ),
    ({"remove_unused_columns": True}, "^remove_unused_columns must be false, got true: the collator reads columns"),
    ({"label_names": ["labels"]}, "^label_names must be none, got .*labels.*: the batches of a run name their labels"),
    ({"save_on_each_node": True}, "^save_on_each_node must be false, got true: one main process"),
    ({"enable_jit_checkpoint": True}, "^enable_jit_checkpoint must be false, got true: SIGTERM already saves"),
    ({"save_total_limit": 0}, "^save_total_limit: expected at least 1, got 0"),
    ({"max_grad_norm": -1.0}, r"^max_grad_norm: expected at least 0, got -1\.0"),
    ({"eval_delay": -1.0}, r"^eval_delay: expected at least 0, got -1\.0"),
]


@pytest.mark.parametrize(
    ("options", "message"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, dict) else ""
)
def test_what_cannot_be_done_here_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        made(**options)
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) <= 400


def test_a_plan_that_splits_sequences_is_refused() -> None:
    from accelerate.parallelism_config import ParallelismConfig

    with pytest.raises(ValueError, match="^parallelism_config must be none, got .*: masks are over whole sequences"):
        made(parallelism_config=ParallelismConfig())


IDLE: list[tuple[dict[str, Any], str]] = [
    ({"eval_accumulation_steps": 2}, "eval_accumulation_steps: has no effect: the evaluations of a run keep no logits"),
    ({"eval_do_concat_batches": False}, "eval_do_concat_batches: has no effect"),
    ({"eval_use_gather_object": True}, "eval_use_gather_object: has no effect"),
    ({"batch_eval_metrics": True}, "batch_eval_metrics: has no effect"),
    ({"include_for_metrics": ["loss"]}, "include_for_metrics: has no effect"),
    ({"logging_nan_inf_filter": True}, "logging_nan_inf_filter: has no effect: a loss that is not finite ends the run"),
    ({"liger_kernel_config": {"rope": True}}, "liger_kernel_config: has no effect"),
    ({"length_column_name": "n"}, "length_column_name: has no effect: all blocks of a run have one size"),
    ({"lr_scheduler_type": "constant", "warmup_steps": 5}, "warmup_steps: has no effect: the schedule constant has no"),
    ({"optim": "sgd", "adam_beta1": 0.8}, "adam_beta1: has no effect: the optimizer sgd has no such number"),
    ({"optim": "sgd", "adam_beta2": 0.8}, "adam_beta2: has no effect"),
    ({"optim": "sgd", "adam_epsilon": 0.8}, "adam_epsilon: has no effect"),
    ({"optim_target_modules": "all-linear"}, "optim_target_modules: has no effect: the optimizer adamw_torch_fused"),
    ({"run_name": "first"}, "run_name: has no effect: report_to names no integration"),
    ({"project": "mine"}, "project: has no effect: report_to does not name trackio"),
    ({"trackio_space_id": "me/it"}, "trackio_space_id: has no effect"),
    ({"hub_model_id": "me/it"}, "hub_model_id: has no effect: nothing is pushed without push_to_hub"),
    ({"hub_private_repo": True}, "hub_private_repo: has no effect"),
    ({"fsdp_config": {"version": 2}}, "fsdp_config: has no effect: fsdp is off"),
    ({"ddp_timeout": 60}, "ddp_timeout: has no effect: processes on a CPU wait"),
    ({"torch_empty_cache_steps": 5}, "torch_empty_cache_steps: has no effect: a CPU has no such cache"),
    ({"debug": "tpu_metrics_debug"}, "debug: has no effect: tpu_metrics_debug is of TPUs"),
    ({"do_eval": False, "eval_delay": 3}, "eval_delay: has no effect: nothing is evaluated while training"),
    ({"do_eval": True, "eval_strategy": "no", "eval_delay": 3}, "eval_delay: has no effect"),
    ({"eval_strategy": "epoch", "eval_steps": 3}, "eval_steps: has no effect: eval_strategy is epoch"),
    ({"save_strategy": "epoch", "save_steps": 3}, "save_steps: has no effect: save_strategy is epoch"),
    (
        {"save_strategy": "best", "metric_for_best_model": "loss", "save_steps": 3},
        "save_steps: has no effect: save_strategy is best",
    ),
    ({"logging_strategy": "epoch", "logging_steps": 3}, "logging_steps: has no effect: logging_strategy is epoch"),
    (
        {"save_strategy": "no", "save_total_limit": 5},
        "save_total_limit: has no effect: save_strategy is no, and only a",
    ),
    ({"save_strategy": "no", "save_only_model": True}, "save_only_model: has no effect: save_strategy is no"),
    ({"eval_strategy": "no", "per_device_eval_batch_size": 3}, "per_device_eval_batch_size: has no effect: nothing is"),
    ({"ddp_bucket_cap_mb": 10}, "ddp_bucket_cap_mb: has no effect: this is one process"),
    ({"ddp_static_graph": True}, "ddp_static_graph: has no effect"),
    ({"ddp_find_unused_parameters": True}, "ddp_find_unused_parameters: has no effect"),
    ({"ddp_broadcast_buffers": True}, "ddp_broadcast_buffers: has no effect"),
    ({"greater_is_better": True}, "greater_is_better: has no effect: there is no metric_for_best_model"),
]


@pytest.mark.parametrize(
    ("options", "message"), IDLE, ids=lambda value: " ".join(value) if isinstance(value, dict) else ""
)
def test_what_has_no_effect_is_told_once(
    options: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    made(**options)
    assert caplog.text.count(message) == 1
    assert caplog.text.count("has no effect") == 1


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("--dataloader_pin_memory true", "dataloader_pin_memory: has no effect: batches stay on the CPU"),
        ("--eval_strategy epoch --eval_steps 200", "eval_steps: has no effect"),
        ("--save_strategy no --save_total_limit 2", "save_total_limit: has no effect"),
        ("--ddp_static_graph true", "ddp_static_graph: has no effect"),
        ('--gradient_checkpointing_kwargs {"use_reentrant":false}', "gradient_checkpointing_kwargs: has no effect"),
        ("--save_strategy no --save_only_model false --dataloader_pin_memory false", ""),
        ("--eval_strategy epoch", ""),
        ("--eval_steps none --logging_strategy epoch --logging_steps 5", ""),
    ],
)
def test_what_was_typed_without_effect_is_told_though_it_is_the_default(
    typed: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    parse(typed.split())
    assert told in caplog.text
    assert caplog.text.count("has no effect") == bool(told)


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_option_of_a_shipped_configuration_is_told_to_have_no_effect(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arbprob_hf.training.arguments._refuse_missing_paths", lambda given: None)
    parse(["--config", str(path)])
    assert "has no effect" not in caplog.text


@pytest.mark.parametrize("name", ["perplexity", "eval_bits_per_byte", "task_perplexity"])
def test_a_lower_perplexity_is_the_better_one(name: str) -> None:
    # transformers takes the greater of all that is not named loss
    assert made(metric_for_best_model=name).greater_is_better is False
    assert made(metric_for_best_model=name, greater_is_better=True).greater_is_better is True


def test_no_evaluation_asked_for_means_none() -> None:
    args = made(do_eval=False)
    assert (args.eval_strategy, args.do_eval) == ("no", False)


def test_optimizers_that_are_there_are_taken(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("adamw_torch", "sgd", "rmsprop", "adagrad", "adafactor"):
        made(optim=name)
    made(optim="sgd", optim_args="momentum=0.9,nesterov=true")
    made(optim="rmsprop", optim_args="alpha=0.9")
    assert caplog.text == ""


def test_schedules_that_can_be_are_taken(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("linear", "cosine_with_restarts", "inverse_sqrt", "constant_with_warmup", "reduce_lr_on_plateau"):
        made(lr_scheduler_type=name)
    made(lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs={"num_decay_steps": 10})
    made(lr_scheduler_type="reduce_lr_on_plateau", lr_scheduler_kwargs={"factor": 0.5})
    assert caplog.text == ""


def test_every_option_that_stands_in_the_optimizers_state_is_noted_with_a_checkpoint() -> None:
    noted = option_table.identity(made())
    assert {name for name, row in TABLE.items() if row.resume is not Resume.FREE} - ELSEWHERE == noted.keys()


def test_what_is_noted_is_plain() -> None:
    import json

    noted = option_table.identity(made(accelerator_config={"split_batches": True}, lr_scheduler_kwargs={}))
    assert json.loads(json.dumps(noted)) == noted
    assert noted["accelerator_config"]["split_batches"] is True
    assert noted["lr_scheduler_type"] == "cosine"
    assert noted["optim"] == "adamw_torch_fused"
