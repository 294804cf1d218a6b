"""A small network that answers questions, and transformers' GPT-2 with its weights."""

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
from arbprob_hf.data import load_tokenizer

SIZES: dict[str, Any] = dict(n_positions=96, n_embd=24, n_layer=2, n_head=3)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return load_tokenizer("gpt2")


@pytest.fixture(scope="session")
def network() -> ArbProbForCausalLM:
    """Not to be changed; every weight is random, dropout is high."""
    config = ArbProbConfig(**SIZES, mask_token=True, given_sees="all", attn_pdrop=0.5, resid_pdrop=0.5)
    network = ArbProbForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.3)
    return network


@pytest.fixture(scope="session")
def theirs(network: ArbProbForCausalLM) -> GPT2LMHeadModel:
    model = GPT2LMHeadModel(GPT2Config(**SIZES, attn_implementation="eager")).eval()
    weights = {name: weight for name, weight in network.state_dict().items() if "wme" not in name}
    model.load_state_dict(weights)
    return model
