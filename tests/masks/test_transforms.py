"""The paths of sdpa under function transforms, under autocast and on broken values."""

import copy

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap

from tests.masks.oracles import micro, random_ids

LENGTHS = pytest.mark.parametrize("length", [8, 320])


@LENGTHS
@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching rule")
def test_networks_are_run_side_by_side(length: int) -> None:
    models = [micro(seed=seed, mask="causal & window(4)", n_positions=320) for seed in (1, 2)]
    weights, buffers = stack_module_state(models)
    skeleton, ids = copy.deepcopy(models[0]), random_ids(1, length)

    def logits(own: dict, held: dict) -> torch.Tensor:
        return functional_call(skeleton, (own, held), (ids,), {"use_cache": False}).logits

    with torch.no_grad():
        both = vmap(logits)(weights, buffers)
        for model, got in zip(models, both, strict=True):
            torch.testing.assert_close(got, model(ids).logits, atol=1e-4, rtol=0)


@LENGTHS
def test_gradients_are_taken_by_functions(length: int) -> None:
    model, ids = micro(mask="causal & window(4)", n_positions=320), random_ids(1, length)
    weights = {name: value.detach() for name, value in model.named_parameters()}

    def score(own: dict) -> torch.Tensor:
        return functional_call(model, own, (ids,), {"use_cache": False}).logits.square().mean()

    found = torch.func.grad(score)(weights)
    model(ids).logits.square().mean().backward()
    for name, value in model.named_parameters():
        torch.testing.assert_close(found[name], value.grad, atol=1e-4, rtol=1e-3)


@LENGTHS
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_autocast_leaves_float64_alone(backend: str, length: int) -> None:
    model, ids = micro(backend=backend, mask="causal & window(4)", n_positions=320).double(), random_ids(1, length)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(ids)


@LENGTHS
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_keys_that_are_infinite_show_in_the_output(backend: str, length: int) -> None:
    """A network that has diverged must not look sound on one path."""
    model = micro(backend=backend, mask="causal & window(4)", n_positions=320)
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.bias[16:32] = torch.inf
        assert model(random_ids(1, length)).logits.isnan().any()
