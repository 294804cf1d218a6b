"""How networks learn sources: steps of momentum made orthogonal, and threads that share the rows of a step."""

import pytest
import torch
from torch import Tensor

from arbprob_hf.evaluation.learning import Recipe, train_on
from arbprob_hf.evaluation.muon import Muon, orthogonalise
from arbprob_hf.evaluation.sources import load_source

SHAPES = [(16, 16), (16, 64), (64, 16), (3, 12, 8)]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_become_about_one_and_singular_vectors_stay(shape: tuple[int, ...]) -> None:
    matrices = drawn(*shape)
    found = orthogonalise(matrices)
    values = torch.linalg.svdvals(found)
    assert values.min().item() > 0.6
    assert values.max().item() < 1.25
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    middle = left.mT @ found @ right.mT
    assert (middle - torch.diag_embed(middle.diagonal(dim1=-2, dim2=-1))).abs().max().item() < 1e-4


@pytest.mark.parametrize("shape", [(16, 16), (16, 64), (64, 16)])
def test_steps_are_those_of_torch_within_the_precision_of_bfloat16(shape: tuple[int, int]) -> None:
    ours, theirs = torch.nn.Parameter(drawn(*shape)), torch.nn.Parameter(drawn(*shape))
    options = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    one = Muon([ours], **options)
    two = torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **options)
    for step in range(5):
        ours.grad, theirs.grad = drawn(*shape, seed=step), drawn(*shape, seed=step)
        one.step()
        two.step()
    moved = (theirs - drawn(*shape)).abs().max().item()
    assert (ours - theirs).abs().max().item() < 0.05 * moved


def test_queries_keys_and_values_get_steps_of_their_own() -> None:
    fused = torch.nn.Parameter(drawn(8, 24))
    parts = [torch.nn.Parameter(part.clone()) for part in drawn(8, 24).chunk(3, dim=1)]
    gradient = drawn(8, 24, seed=1)
    fused.grad = gradient.clone()
    for part, its in zip(parts, gradient.chunk(3, dim=1), strict=True):
        part.grad = its.clone()
    Muon([fused], lr=0.1).step()
    Muon(parts, lr=0.1).step()
    assert torch.allclose(fused, torch.cat(parts, dim=1), atol=1e-6)


def test_a_weight_without_a_gradient_stays() -> None:
    weight = torch.nn.Parameter(drawn(4, 4))
    Muon([weight], lr=0.1).step()
    assert torch.equal(weight, drawn(4, 4))


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_the_rows_of_a_step_without_changing_what_is_learnt(threads: int) -> None:
    source = load_source("markov", length=6)
    kernels = torch.get_num_threads()
    recipes = [Recipe(steps=4, width=16, heads=2, rows=10, threads=number) for number in (1, threads, threads)]
    alone, shared, again = (train_on(source, recipe) for recipe in recipes)
    assert torch.get_num_threads() == kernels
    for one, two, three in zip(alone.parameters(), shared.parameters(), again.parameters(), strict=True):
        assert torch.equal(two, three)
        assert (one - two).abs().max().item() < 1e-4
