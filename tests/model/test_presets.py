"""The named sizes have the widths of DESIGN and exactly the parameters that the formula gives."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM

# layers, heads, width, positions, dropout
SIZES = {
    "nano": (1, 2, 64, 128, 0.0),
    "tiny": (2, 4, 128, 256, 0.1),
    "distilgpt2": (6, 12, 768, 1024, 0.1),
    "gpt2": (12, 12, 768, 1024, 0.1),
}
# distilgpt2 and gpt2 as published, the others as counted once by hand
PARAMETERS = {"nano": 3_274_752, "tiny": 6_862_464, "distilgpt2": 81_912_576, "gpt2": 124_439_808}

presets = pytest.mark.parametrize("name", SIZES)


def on_paper(layers: int, width: int, positions: int, vocabulary: int = 50257) -> int:
    """Embeddings; per block an attention of 4 and an MLP of 8 widths squared, nine biases, two norms; a norm."""
    block = (4 + 8) * width**2 + (3 + 1 + 4 + 1) * width + 2 * 2 * width
    return (vocabulary + positions) * width + layers * block + 2 * width


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@presets
def test_sizes_are_those_of_the_design(name: str) -> None:
    config = ArbProbConfig.preset(name)
    assert (config.n_layer, config.n_head, config.n_embd, config.n_positions, config.resid_pdrop) == SIZES[name]
    assert (config.vocab_size, config.mask) == (50257, "causal")
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop


@presets
def test_parameters_are_counted_right(name: str) -> None:
    layers, _, width, positions, _ = SIZES[name]
    with torch.device("meta"):
        model = ArbProbForCausalLM(ArbProbConfig.preset(name))
    assert parameters(model) == model.num_parameters() == PARAMETERS[name] == on_paper(layers, width, positions)


@presets
def test_parameters_are_as_many_as_gpt2s(name: str) -> None:
    layers, heads, width, positions, _ = SIZES[name]
    with torch.device("meta"):
        theirs = GPT2LMHeadModel(GPT2Config(n_layer=layers, n_head=heads, n_embd=width, n_positions=positions))
    assert parameters(theirs) == PARAMETERS[name]


def test_overrides_replace_fields() -> None:
    config = ArbProbConfig.preset("nano", n_layer=3, mask="full", vocab_size=300)
    assert (config.n_layer, config.mask, config.vocab_size, config.n_embd) == (3, "full", 300, 64)


def test_dropout_sets_all_three_and_each_can_differ() -> None:
    config = ArbProbConfig.preset("nano", dropout=0.3, attn_pdrop=0.0)
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.3, 0.3, 0.0)


def test_using_a_preset_leaves_it_as_it_was() -> None:
    ArbProbConfig.preset("nano", n_layer=7, dropout=0.5)
    assert ArbProbConfig.preset("nano").n_layer == 1


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match="^preset: expected one of nano, tiny, distilgpt2, gpt2, got 'medium'$"):
        ArbProbConfig.preset("medium")


def test_a_misspelt_override_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^n_layers: not a field of ArbProbConfig; did you mean n_layer\?$"):
        ArbProbConfig.preset("nano", n_layers=3)
