"""captum: which tokens of a prompt a continuation rests on, with and without a cache."""

from pathlib import Path

import pytest
import torch
from captum.attr import (
    FeatureAblation,
    LayerIntegratedGradients,
    LLMAttribution,
    LLMGradientAttribution,
    TextTokenInput,
)
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from tests.clients.micro import byte_tokenizer
from tests.networks import far

PROMPT, TARGET = "who sees", " whom"


@pytest.fixture(scope="module")
def expected(theirs: GPT2LMHeadModel) -> torch.Tensor:
    """What each token of the prompt adds to the log-probability of each of the target, by GPT-2 without a cache."""
    return attributed(theirs, use_cached_outputs=False)


def attributed(model: GPT2LMHeadModel, **options: bool) -> torch.Tensor:
    tokenizer = byte_tokenizer()
    ablation = LLMAttribution(FeatureAblation(model), tokenizer)
    return ablation.attribute(TextTokenInput(PROMPT, tokenizer), target=TARGET, **options).token_attr


@pytest.mark.parametrize("options", [{}, {"use_cached_outputs": False}], ids=["as it is", "uncached"])
def test_ablation_attributes_as_for_gpt2(
    folders: dict[str, Path], expected: torch.Tensor, options: dict[str, bool]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["ours"], trust_remote_code=True)
    # with a cache captum reads GPT-2's prompt twice: transformers leaves it to its caller to cut off what is cached
    assert far(attributed(model, **options), expected) <= 1e-4


@pytest.mark.filterwarnings("ignore:.*backward hook.*:UserWarning")
def test_integrated_gradients_are_those_of_gpt2(folders: dict[str, Path], theirs: GPT2LMHeadModel) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folders["ours"], trust_remote_code=True), byte_tokenizer()
    found = []
    for one in (model, theirs):
        gradients = LLMGradientAttribution(LayerIntegratedGradients(one, one.transformer.wte), tokenizer)
        prompt = TextTokenInput(PROMPT, tokenizer)
        found.append(gradients.attribute(prompt, target=TARGET, n_steps=4).seq_attr)
    assert far(*found) <= 1e-4
