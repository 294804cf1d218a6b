"""Folders that other people's tools load: ours, ours under a window, and transformers' GPT-2, one set of weights."""

from pathlib import Path

import pytest
from transformers import GPT2LMHeadModel

from arbprob_hf import ArbProbForCausalLM
from tests.clients.micro import byte_tokenizer, gpt2, ours_from

WINDOW = "causal & window(4)"


@pytest.fixture(scope="session")
def theirs() -> GPT2LMHeadModel:
    """transformers' GPT-2."""
    return gpt2()


@pytest.fixture(scope="session")
def ours(theirs: GPT2LMHeadModel) -> ArbProbForCausalLM:
    """Ours with its weights."""
    return ours_from(theirs)


@pytest.fixture(scope="session")
def windowed(theirs: GPT2LMHeadModel) -> ArbProbForCausalLM:
    """The same under a window."""
    return ours_from(theirs, mask=WINDOW)


@pytest.fixture(scope="session")
def folders(
    tmp_path_factory: pytest.TempPathFactory,
    ours: ArbProbForCausalLM,
    windowed: ArbProbForCausalLM,
    theirs: GPT2LMHeadModel,
) -> dict[str, Path]:
    """Their checkpoints by name, tokenizer included."""
    root = tmp_path_factory.mktemp("clients")
    made = {"ours": ours, "windowed": windowed, "theirs": theirs}
    for name, model in made.items():
        model.save_pretrained(root / name)
        byte_tokenizer().save_pretrained(root / name)
    return {name: root / name for name in made}
