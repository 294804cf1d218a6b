"""Options that are honoured change what they should, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

# some thirty short runs; what is refused and warned of is tested by itself
pytestmark = pytest.mark.long

RUN: dict[str, Any] = {"max_steps": 8, "save_strategy": "no"}
RESTARTS = {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 1}}
SGD = {"optim": "sgd", "optim_args": "momentum=0.1"}
SHORT_BATCH = {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 1}

# what a run has beside RUN, and what is changed
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "max_grad_norm": ({"optim": "sgd"}, {"max_grad_norm": 1e-3}),
    "lr_scheduler_type": ({}, {"lr_scheduler_type": "constant"}),
    "lr_scheduler_kwargs": (RESTARTS, {"lr_scheduler_kwargs": {"num_cycles": 3}}),
    "warmup_steps": ({}, {"warmup_steps": 4}),
    "learning_rate": ({}, {"learning_rate": 1e-3}),
    "weight_decay": ({}, {"weight_decay": 0.5}),
    "optim": ({}, {"optim": "adafactor"}),
    "optim_args": (SGD, {"optim_args": "momentum=0.9"}),
    "adam_beta1": ({}, {"adam_beta1": 0.5}),
    "adam_beta2": ({}, {"adam_beta2": 0.5}),
    "adam_epsilon": ({}, {"adam_epsilon": 0.1}),
    "neftune_noise_alpha": ({}, {"neftune_noise_alpha": 5.0}),
    "gradient_accumulation_steps": ({}, {"gradient_accumulation_steps": 1}),
    "bf16": ({}, {"bf16": True}),
    "seed": ({}, {"seed": 6}),
    "data_seed": ({}, {"data_seed": 6}),
    "train_sampling_strategy": ({}, {"train_sampling_strategy": "sequential"}),
    "dataloader_drop_last": (SHORT_BATCH, {"dataloader_drop_last": True}),
    "per_device_train_batch_size": ({}, {"per_device_train_batch_size": 3}),
}

SAME: list[dict[str, Any]] = [
    {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 3},
    {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
    {"per_device_eval_batch_size": 3, "eval_strategy": "steps", "eval_steps": 3, "eval_on_start": True},
    {"logging_strategy": "epoch", "logging_first_step": True, "include_num_input_tokens_seen": "all"},
    {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 1},
    {"skip_memory_metrics": False},
    {"debug": "underflow_overflow"},
    {"ddp_bucket_cap_mb": 5, "ddp_broadcast_buffers": True},
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, micro_trainer, rows, weights_of):
    """A function from options to the digest of the weights of a run with them and its trainer."""
    known: dict[str, Any] = {}

    def train(**options: Any) -> Any:
        key = repr(sorted(options.items()))
        if key not in known:
            folder = tmp_path_factory.mktemp("run")
            trainer = micro_trainer(folder, **RUN | options, eval_dataset=rows(4))
            trainer.train()
            known[key] = weights_of(trainer), trainer
        return known[key]

    return train


@pytest.mark.parametrize("name", CHANGES)
def test_an_option_that_is_honoured_changes_the_weights(trained, name: str) -> None:
    beside, changed = CHANGES[name]
    assert trained(**beside)[0] != trained(**beside | changed)[0]


@pytest.mark.parametrize("options", SAME, ids=lambda options: " ".join(options))
def test_an_option_of_loading_logging_and_memory_changes_no_weight(trained, options: dict[str, Any]) -> None:
    assert trained()[0] == trained(**options)[0]


def test_an_evaluation_on_start_is_logged_at_step_0(trained) -> None:
    history = trained(eval_strategy="steps", eval_steps=4, eval_on_start=True)[1].state.log_history
    assert [line["step"] for line in history if "eval_loss" in line] == [0, 4, 8]


def test_evaluations_may_be_delayed(trained) -> None:
    history = trained(eval_strategy="steps", eval_steps=2, eval_delay=5)[1].state.log_history
    assert [line["step"] for line in history if "eval_loss" in line] == [6, 8]


def test_as_many_checkpoints_as_asked_for_are_kept(trained) -> None:
    trainer = trained(save_strategy="steps", save_steps=2, save_total_limit=2)[1]
    assert sorted(path.name for path in Path(trainer.args.output_dir).glob("checkpoint-*")) == [
        "checkpoint-6",
        "checkpoint-8",
    ]


def test_a_checkpoint_may_hold_the_model_alone(trained) -> None:
    trainer = trained(save_strategy="steps", save_steps=8, save_only_model=True)[1]
    assert not (Path(trainer.args.output_dir) / "checkpoint-8" / "optimizer.pt").exists()


def test_tokens_are_counted_where_asked_to(trained) -> None:
    assert trained(include_num_input_tokens_seen="all")[1].state.num_input_tokens_seen == 8 * 4 * 12
    assert trained()[1].state.num_input_tokens_seen == 0


def test_workers_may_be_spawned(trained) -> None:
    options = {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "spawn"}
    assert trained(**options)[0] == trained()[0]


# torch's compiler looks at gradients while it traces
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_network_learns_the_same(trained) -> None:
    losses = [
        [line["loss"] for line in trained(**options)[1].state.log_history if "loss" in line]
        for options in ({}, {"torch_compile_backend": "eager"})
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
