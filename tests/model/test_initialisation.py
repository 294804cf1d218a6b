"""Fresh weights are distributed as GPT-2's, and the same seed gives the same ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, set_seed
from transformers.pytorch_utils import Conv1D

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM

SIZES: dict[str, Any] = dict(n_embd=96, vocab_size=500, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)


def test_initial_weights_spread_as_gpt2s() -> None:
    ours = ArbProbForCausalLM(ArbProbConfig(**SIZES)).state_dict()
    theirs = GPT2LMHeadModel(GPT2Config(**SIZES)).state_dict()
    assert ours.keys() == theirs.keys()
    spreads = {name: float(weight.std()) for name, weight in theirs.items()}
    assert {name: float(ours[name].std()) for name in spreads} == pytest.approx(spreads, rel=0.1)


@pytest.mark.parametrize("projection", ["attn", "mlp"])
def test_residual_projections_start_smaller_by_the_root_of_their_number(projection: str) -> None:
    model = ArbProbForCausalLM(ArbProbConfig(**SIZES))
    for block in model.transformer.h:
        spread = float(getattr(block, projection).c_proj.weight.detach().std())
        assert spread == pytest.approx(0.02 / (2 * SIZES["n_layer"]) ** 0.5, rel=0.05)


def test_biases_start_at_zero_and_gains_at_one() -> None:
    weights = ArbProbForCausalLM(ArbProbConfig(**SIZES)).state_dict()
    gains = [name for name in weights if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight"))]
    biases = [name for name in weights if name.endswith(".bias")]
    assert (len(gains), len(biases)) == (5, 13)
    assert all(bool((weights[name] == 1).all()) for name in gains)
    assert all(bool((weights[name] == 0).all()) for name in biases)


def test_initializer_range_is_the_standard_deviation() -> None:
    model = ArbProbForCausalLM(ArbProbConfig(**SIZES, initializer_range=0.3))
    assert float(model.transformer.wte.weight.detach().std()) == pytest.approx(0.3, rel=0.02)


def test_the_same_seed_gives_the_same_weights() -> None:
    weights = []
    for _ in range(2):
        set_seed(7)
        weights.append(ArbProbForCausalLM(ArbProbConfig(**SIZES)).state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_layers_that_wait_for_weights_are_those_that_have_some() -> None:
    # built without the constructors of torch and transformers, which would draw numbers
    def attributes(layer: torch.nn.Module) -> dict[str, Any]:
        own = {name: value for name, value in vars(layer).items() if name[0] != "_"}
        weights = {
            name: (weight.shape, weight.dtype, weight.requires_grad)
            for name, weight in layer._parameters.items()
            if weight is not None
        }
        return {"class": type(layer), "names": vars(layer).keys() - {"_is_hf_initialized"}, **own, **weights}

    config = ArbProbConfig(**SIZES, mask_token=True, target_positions=True)
    with torch.device("meta"):
        waiting = ArbProbForCausalLM(config)
    assert all(weight.is_meta for weight in waiting.parameters())
    there = dict(ArbProbForCausalLM(config).named_modules())
    kinds = (Conv1D, torch.nn.Embedding)
    for name, layer in waiting.named_modules():
        if isinstance(layer, kinds):
            assert attributes(layer) == attributes(there[name]), name


def test_a_network_that_waited_is_given_initial_weights() -> None:
    config = ArbProbConfig(**SIZES)
    with torch.device("meta"):
        model = ArbProbForCausalLM(config)
    model.to_empty(device="cpu").init_weights()
    spread = float(model.transformer.h[1].mlp.c_proj.weight.detach().std())
    assert spread == pytest.approx(0.02 / (2 * SIZES["n_layer"]) ** 0.5, rel=0.05)
    assert not model.transformer.h[0].attn.c_attn.bias.any()


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    ArbProbForCausalLM(ArbProbConfig(**SIZES)).save_pretrained(tmp_path)
    kept = load_file(tmp_path / "model.safetensors")
    del kept["transformer.h.1.mlp.c_proj.weight"]
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    message = (
        r"checkpoint: lacks 1 of the network's weights, such as transformer\.h\.1\.mlp\.c_proj\.weight; is it whole"
    )
    with pytest.raises(ValueError, match=message):
        ArbProbForCausalLM.from_pretrained(tmp_path)
    # who asks what was loaded is told
    _, found = ArbProbForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(found["missing_keys"]) == {"transformer.h.1.mlp.c_proj.weight"}
