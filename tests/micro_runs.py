"""Micro runs for the tests of training: a GPT-2 of a few hundred weights on random tokens, well under a second each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback, TrainingArguments, set_seed

from arbprob_hf.training.trainer import ArbProbTrainer

OPTIONS: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 10,
    "save_steps": 2,
    "learning_rate": 1e-2,
    "seed": 5,
    "use_cpu": True,
    "disable_tqdm": True,
    "logging_steps": 1,
    "report_to": "none",
}


class Crash(TrainerCallback):
    """Raises in the middle of a step, as a bug or a lost machine would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise ConnectionError("lost")


class Numbers:
    """A tokenizer of texts that are numbers; five times over, with a separator, each fills a block of six."""

    eos_token_id = 0

    def __call__(self, texts: list[str], **options: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [5 * [int(text)] for text in texts]}


def token_rows(count: int, *, length: int = 12, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """`count` rows of random tokens below 40, labels equal to the tokens."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randint(40, (count, length), generator=random)
    return [{"input_ids": row, "labels": row.clone()} for row in rows]


def micro_model(dropout: float = 0.1) -> GPT2LMHeadModel:
    set_seed(3)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=40,
            n_positions=16,
            n_embd=8,
            n_layer=1,
            n_head=2,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


@pytest.fixture(scope="session")
def micro_trainer() -> Callable[..., ArbProbTrainer]:
    """A function (output_dir, *, model, train_dataset, callbacks, eval_dataset, **options) -> ArbProbTrainer.

    24 rows, 4 to a step: 6 steps an epoch, 10 steps, a checkpoint every 2.
    """

    def build(output_dir: Path, **given: Any) -> ArbProbTrainer:
        names = ("eval_dataset", "callbacks", "compute_metrics", "compute_loss_func", "data_collator", "summary")
        names += ("preprocess_logits_for_metrics",)
        parts = {name: given.pop(name) for name in names if name in given}
        return ArbProbTrainer(
            model=given.pop("model", None) or micro_model(),
            train_dataset=given.pop("train_dataset", None) or token_rows(24),
            args=TrainingArguments(output_dir=str(output_dir), **{**OPTIONS, **given}),
            **parts,
        )

    return build


@pytest.fixture(scope="session")
def rows() -> Callable[..., list[dict[str, torch.Tensor]]]:
    """`token_rows`, for tests that need rows of their own."""
    return token_rows


@pytest.fixture(scope="session")
def weights_of() -> Callable[[ArbProbTrainer], str]:
    """A function from a trainer to the SHA-256 of its weights: equal digests, bit-equal weights."""

    def digest(trainer: ArbProbTrainer) -> str:
        values = (value.detach().numpy().tobytes() for _, value in sorted(trainer.model.named_parameters()))
        return hashlib.sha256(b"".join(values)).hexdigest()

    return digest


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory, micro_trainer, weights_of) -> tuple[Path, str]:
    """The default micro run from start to end: its output folder (not to be changed) and the SHA-256 of its weights."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = micro_trainer(folder)
    trainer.train()
    return folder, weights_of(trainer)
