"""How networks learn sources: steps of momentum made orthogonal, and threads that share the rows of a step."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from arbprob_hf.oracles.muon import Muon, orthogonalise
from arbprob_hf.oracles.registry import load_source
from arbprob_hf.oracles.train import Recipe, Workers, build, draw, train_on

SHAPES = [(16, 16), (16, 64), (64, 16), (3, 12, 8)]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def polynomial(values: Tensor) -> Tensor:
    """What five iterations make of singular values, from Jordan's coefficients."""
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return values


def expected(matrices: Tensor) -> Tensor:
    """`orthogonalise` by a singular value decomposition, in float64."""
    left, values, right = torch.linalg.svd(matrices.double(), full_matrices=False)
    norm = matrices.double().norm(dim=(-2, -1))[..., None]
    return left @ torch.diag_embed(polynomial(values / norm)) @ right


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_go_through_the_polynomial_and_singular_vectors_stay(shape: tuple[int, ...]) -> None:
    matrices = drawn(*shape)
    assert (orthogonalise(matrices) - expected(matrices)).abs().max().item() < 1e-4


def test_singular_values_that_are_not_small_become_about_one() -> None:
    shares = torch.linspace(0.01, 1, 2000, dtype=torch.float64)
    assert polynomial(shares).min().item() > 0.65
    assert polynomial(shares).max().item() < 1.25
    assert polynomial(torch.tensor(1e-4)).item() < 0.1
    assert torch.equal(orthogonalise(torch.zeros(3, 5)), torch.zeros(3, 5))


@pytest.mark.parametrize("shape", [(16, 16), (16, 64), (64, 16)])
def test_steps_are_momentum_made_orthogonal_with_the_size_of_adams(shape: tuple[int, int]) -> None:
    weight = torch.nn.Parameter(drawn(*shape))
    optimizer = Muon([weight], lr=0.02, momentum=0.9, weight_decay=0.1)
    wanted, momentum = drawn(*shape).double(), torch.zeros(shape, dtype=torch.float64)
    for step in range(3):
        gradient = drawn(*shape, seed=step)
        weight.grad = gradient.clone()
        optimizer.step()
        momentum = 0.9 * momentum + 0.1 * gradient
        update = expected(0.9 * momentum + 0.1 * gradient)
        wanted = (1 - 0.02 * 0.1) * wanted - 0.02 * 0.2 * math.sqrt(max(shape)) * update
    assert (weight - wanted).abs().max().item() < 1e-5


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


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_rows_of_a_step_without_changing_its_gradients(threads: int) -> None:
    source = load_source("markov", length=6)
    batch = draw(source, 10, torch.Generator().manual_seed(0), random=0.0)
    model = build(source, Recipe(width=16, heads=2))
    with Workers(model, threads) as workers:
        loss = workers.differentiate(batch)
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    wanted = -model.log_prob(batch.tokens, batch.ask()).sum() / batch.target.sum()
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    for name, weight in model.named_parameters():
        scale = max(1e-3, weight.grad.abs().max().item())
        assert (found[name] - weight.grad).abs().max().item() < 1e-4 * scale, name


@pytest.fixture
def two_kernel_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_kernel_threads")
def test_equal_numbers_of_threads_make_equal_networks_and_leave_torch_as_it_was() -> None:
    source = load_source("markov", length=6)
    one, two = (train_on(source, Recipe(steps=4, width=16, heads=2, threads=3)) for _ in range(2))
    assert torch.get_num_threads() == 2
    assert all(a.equal(b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.usefixtures("two_kernel_threads")
def test_no_threads_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="threads: expected an integer of at least 1, got 0"):
        train_on(load_source("markov", length=6), Recipe(steps=1, threads=0))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("name", "layers"), [("markov", 2), ("hmm", 3), ("pcfg", 4), ("ldpc", 4)])
def test_networks_are_as_deep_as_their_source_asks_unless_told(name: str, layers: int) -> None:
    source = load_source(name)
    assert build(source, Recipe()).config.n_layer == layers
    assert build(source, Recipe(layers=1)).config.n_layer == 1
