"""Training under custom patterns: what could not be saved is refused first, and every checkpoint holds them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, pattern
from arbprob_hf.data import load_tokenizer
from arbprob_hf.training.arguments import ModelArguments
from arbprob_hf.training.model_setup import build_model

STEP = 3
SIZES: dict[str, Any] = dict(n_layer=1, n_head=1, n_embd=4, n_positions=8)


def every_third(b, h, q, k):
    return (q - k) % 3 == 0


def leans_on_its_file(b, h, q, k):
    return (q - k) % STEP == 0


@pytest.fixture(autouse=True)
def _registered() -> None:
    pattern(every_third)
    pattern(leans_on_its_file)


def test_a_run_whose_mask_cannot_be_saved_is_refused_before_there_is_a_network() -> None:
    tokenizer = load_tokenizer("gpt2")
    build_model(ModelArguments(mask="causal & every_third", **SIZES), tokenizer)
    with pytest.raises(ValueError, match="pattern leans_on_its_file: cannot go with a saved model: it uses STEP"):
        build_model(ModelArguments(mask="causal & leans_on_its_file", **SIZES), tokenizer)


def test_so_is_one_that_goes_on_from_saved_weights(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("gpt2")
    build_model(ModelArguments(mask="causal", **SIZES), tokenizer).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pattern leans_on_its_file: cannot go with a saved model"):
        build_model(ModelArguments(init_from=str(tmp_path), mask="causal & leans_on_its_file"), tokenizer)


def test_every_checkpoint_holds_the_functions(tmp_path: Path, micro_trainer: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    config = ArbProbConfig(**{**SIZES, "n_positions": 16}, vocab_size=40, bos_token_id=0, eos_token_id=0)
    config.mask = "causal & every_third"
    trainer = micro_trainer(tmp_path, model=ArbProbForCausalLM(config), max_steps=2)
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-2"):
        assert 'RULES["every_third"] = every_third' in (folder / "custom_arbprob.py").read_text()
