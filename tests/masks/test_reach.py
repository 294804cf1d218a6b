"""Reach over layers: a walk over the graph finds the same, for one mask, for one per layer, and for any number."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from arbprob_hf import Mask, causal, full, heads, window
from arbprob_hf.model.masks.reach import reach_of, reach_through


def walked(tables: list[list[list[bool]]]) -> list[list[bool]]:
    """What arrives where: every slot hands on what it holds, layer after layer, first layer first."""
    size = len(tables[0])
    held = [{q} for q in range(size)]
    for table in tables:
        held = [set().union(held[q], *(held[k] for k in range(size) if table[q][k])) for q in range(size)]
    return [[k in held[q] for k in range(size)] for q in range(size)]


def random_masks(count: int, size: int, seed: int, density: float) -> Tensor:
    return torch.rand(count, 2, size, size, generator=torch.Generator().manual_seed(seed)) < density


sizes = st.sampled_from([1, 2, 5, 63, 64, 65, 70])
depths = st.integers(1, 13)
densities = st.sampled_from([0.02, 0.1, 0.4])


@given(sizes, depths, st.integers(0, 10_000), densities)
def test_reach_is_what_a_walk_finds(size: int, layers: int, seed: int, density: float) -> None:
    seen = random_masks(1, size, seed, density)[0]
    reach = reach_of(seen, layers)
    assert reach.dtype == torch.bool
    assert reach.tolist() == [walked([row] * layers) for row in seen.tolist()]


@given(sizes, st.integers(1, 5), st.integers(0, 10_000), densities)
def test_a_mask_per_layer_is_read_from_the_last_one(size: int, layers: int, seed: int, density: float) -> None:
    steps = random_masks(layers, size, seed, density)
    reach = reach_through(list(steps))
    assert reach.tolist() == [walked([step[row].tolist() for step in steps]) for row in range(2)]


@given(sizes, st.integers(0, 10_000), densities)
def test_any_number_of_layers_is_as_many_as_there_are_slots(size: int, seed: int, density: float) -> None:
    seen = random_masks(1, size, seed, density)[0]
    assert reach_of(seen, None).equal(reach_of(seen, size))


def test_the_order_of_the_layers_matters() -> None:
    first, last = torch.zeros(2, 1, 3, 3, dtype=torch.bool)
    first[0, 1, 0] = last[0, 2, 1] = True
    assert reach_through([first, last])[0, 2, 0]
    assert not reach_through([last, first])[0, 2, 0]


def test_a_chain_of_many_slots_is_followed_to_its_end() -> None:
    chain = window(2) & causal()
    assert chain.reach(200)[0].equal(causal().dense(200)[0, 0])
    assert chain.reach(200, 12)[0].equal((causal() & window(13)).dense(200)[0, 0])


def test_heads_are_united_and_rows_are_not() -> None:
    per_head = heads(causal(), ~causal())
    assert per_head.reach(5, 1)[0].equal(full().dense(5)[0, 0])
    rows = Mask.of(torch.stack([torch.ones(4, 4).tril(), torch.ones(4, 4)]))
    assert rows.reach(4).tolist() == [torch.ones(4, 4).tril().bool().tolist(), torch.ones(4, 4).bool().tolist()]
    assert causal().reach(4, 2, batch=3).shape == (3, 4, 4)


def test_fewer_than_one_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^layers: expected at least 1, got 0; None means any number$"):
        causal().reach(4, 0)


def shuffled_chain(length: int) -> Mask:
    order = torch.randperm(length)
    seen = torch.zeros(length, length, dtype=torch.bool)
    seen[order[1:], order[:-1]] = True
    return Mask.of(seen)


@pytest.mark.parametrize("layers", [12, None], ids=["12 layers", "closure"])
@pytest.mark.parametrize("name", ["window(2)", "sparse", "chain"])
def test_a_thousand_slots_take_little_time(name: str, layers: int | None) -> None:
    """Measured: 7 to 20 ms on one thread; the bound leaves room for a busy machine."""
    sparse = Mask.of(torch.rand(1024, 1024) < 0.001)
    mask = {"window(2)": window(2), "sparse": sparse, "chain": shuffled_chain(1024)}[name]
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        mask.reach(1024, layers)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.2
