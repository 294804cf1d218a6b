"""What a mask says of a tile without looking at its pairs is true of every pair, and sharp where it can be."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arbprob_hf import (
    HIDDEN,
    Mask,
    block_diffusion,
    blocks,
    causal,
    dilated,
    documents,
    full,
    heads,
    order,
    padding,
    prefix,
    sinks,
    strided,
    tree,
    window,
)
from arbprob_hf.model.masks.tiles import Tiling
from tests.masks.expressions import BATCH, HEADS, LEAVES, MASKS, T

sizes = st.sampled_from([1, 2, 3, 4, 7, 8])
starts = st.lists(st.lists(st.integers(0, 4), min_size=T, max_size=T), min_size=1, max_size=1) | st.lists(
    st.lists(st.integers(0, 4), min_size=T, max_size=T), min_size=BATCH, max_size=BATCH
)


def told(mask: Mask, tiling: Tiling, batch: int) -> tuple[Tensor, Tensor]:
    """`some` and `every` of each tile, bool (batch, heads, query tiles, key tiles)."""
    counts = (-(-tiling.q_len // tiling.size), -(-tiling.kv_len // tiling.size))
    some, every = (part.expand(batch, tiling.heads, *counts) for part in mask.tiles(tiling))
    assert (some.dtype, every.dtype) == (torch.bool, torch.bool)
    return some, every


def looked_at(mask: Mask, tiling: Tiling, batch: int) -> tuple[Tensor, Tensor]:
    """The same by looking at every pair of the dense mask."""
    allowed = mask.dense(tiling.q_len, tiling.kv_len, batch=batch, heads=tiling.heads, offset=tiling.offset)
    rows = [row.split(tiling.size, dim=3) for row in allowed.split(tiling.size, dim=2)]
    some, every = ([[f(tile.flatten(2), 2) for tile in row] for row in rows] for f in (torch.any, torch.all))
    return tuple(torch.stack([torch.stack(row, 2) for row in part], 2) for part in (some, every))


def assert_true(mask: Mask, tiling: Tiling, batch: int) -> None:
    (some, every), (any_pair, all_pairs) = told(mask, tiling, batch), looked_at(mask, tiling, batch)
    assert not (any_pair & ~some).any(), "a tile said to be empty holds a pair"
    assert not (every & ~all_pairs).any(), "a tile said to be full lacks a pair"


def assert_sharp(mask: Mask, tiling: Tiling, batch: int = 1) -> None:
    (some, every), (any_pair, all_pairs) = told(mask, tiling, batch), looked_at(mask, tiling, batch)
    assert torch.equal(some, any_pair)
    assert torch.equal(every, all_pairs)


@st.composite
def tilings(draw: st.DrawFn, heads: int = HEADS, length: int = T) -> Tiling:
    """Tiles of part of `length` tokens, lengths that are no multiple of the tile among them."""
    offset = draw(st.integers(0, length - 1))
    q_len = draw(st.integers(1, length - offset))
    return Tiling(draw(sizes), heads, q_len, draw(st.integers(1, length)), offset)


@pytest.mark.parametrize("name", LEAVES)
@given(tiling=tilings())
def test_what_a_pattern_says_of_its_tiles_is_true(name: str, tiling: Tiling) -> None:
    assert_true(LEAVES[name][0], tiling, BATCH)


@pytest.mark.parametrize("name", LEAVES)
@given(tiling=tilings(), starts=starts)
def test_it_is_true_of_patterns_counted_from_elsewhere(name: str, tiling: Tiling, starts: list[list[int]]) -> None:
    assert_true(LEAVES[name][0].shifted(torch.tensor(starts)), tiling, BATCH)


@settings(max_examples=200)
@given(mask=MASKS, tiling=tilings())
def test_what_an_expression_says_of_its_tiles_is_true(mask: Mask, tiling: Tiling) -> None:
    assert_true(mask, tiling, BATCH)


@settings(max_examples=200)
@given(mask=MASKS, other=MASKS, tiling=tilings(), starts=starts)
def test_it_is_true_of_expressions_counted_from_elsewhere(
    mask: Mask, other: Mask, tiling: Tiling, starts: list[list[int]]
) -> None:
    assert_true(~mask.shifted(torch.tensor(starts)) & other, tiling, BATCH)


RULES = [causal(), full(), *map(prefix, (0, 1, 8, 13, 40)), *map(sinks, (0, 1, 8, 13, 40))]
RULES += [*map(window, (1, 2, 5, 8, 40)), *map(strided, (1, 2, 5, 8)), *map(blocks, (1, 2, 5, 8, 40))]
RULES += [dilated(size, step) for size in (1, 2, 5) for step in (1, 2, 3, 7)]
RULES += [block_diffusion(length, size) for length in (15, 16, 24) for size in (1, 2, 5, 8, 30)]
RULES += [causal() & window(size) for size in (1, 2, 5, 8)]
TILINGS = [
    Tiling(size, 3, q_len, kv_len, offset)
    for size in (1, 2, 3, 8, 16)
    for offset, q_len in ((0, 30), (7, 20), (29, 1))
    for kv_len in (30, 17)
]


@pytest.mark.parametrize("mask", [form for rule in RULES for form in (rule, ~rule)], ids=str)
def test_rules_over_indices_know_their_tiles_exactly(mask: Mask) -> None:
    for tiling in TILINGS:
        assert_sharp(mask, tiling)


@pytest.mark.parametrize(("first", "second"), [(window(2), prefix(8)), (causal(), ~blocks(5))], ids=str)
def test_heads_know_their_tiles_where_each_head_does(first: Mask, second: Mask) -> None:
    for tiling in TILINGS:
        assert_sharp(heads(first, second, first), tiling)


rows = st.lists(st.lists(st.integers(0, 5), min_size=30, max_size=30), min_size=1, max_size=2).map(torch.tensor)


@given(ids=rows, tiling=tilings(1, 30))
def test_documents_of_sorted_runs_know_their_tiles_exactly(ids: Tensor, tiling: Tiling) -> None:
    assert_sharp(documents(ids.sort().values), tiling, len(ids))


@given(rank=rows, tiling=tilings(1, 30))
def test_an_order_of_sorted_ranks_knows_its_tiles_exactly(rank: Tensor, tiling: Tiling) -> None:
    assert_sharp(order(rank.sort().values), tiling, len(rank))


@given(rank=rows, limit=rows, tiling=tilings(1, 30))
def test_any_order_knows_its_empty_tiles_exactly(rank: Tensor, limit: Tensor, tiling: Tiling) -> None:
    mask, batch = order(rank.where(rank < 5, HIDDEN), limit), max(len(rank), len(limit))
    assert_true(mask, tiling, batch)
    assert torch.equal(told(mask, tiling, batch)[0], looked_at(mask, tiling, batch)[0])


@given(keep=rows, tiling=tilings(1, 30))
def test_padding_knows_its_tiles_exactly(keep: Tensor, tiling: Tiling) -> None:
    assert_sharp(padding(keep > 0), tiling, len(keep))


@settings(max_examples=30)
@given(seed=st.integers(0, 99), share=st.sampled_from([0.05, 0.5, 0.95]), tiling=tilings(2, 30))
def test_a_tensor_knows_its_tiles_exactly(seed: int, share: float, tiling: Tiling) -> None:
    generator = torch.Generator().manual_seed(seed)
    assert_sharp(Mask.of(torch.rand(2, 2, 30, 30, generator=generator) < share), tiling, 2)


def test_a_tree_skips_what_comes_later_and_other_branches() -> None:
    """Two chains of eight under one root: tiles of one chain say nothing of the other."""
    chains = tree(torch.tensor([-1, *range(7), -1, *range(8, 15)]))
    some, every = told(chains, Tiling(4, 1, 16, 16), 1)
    assert some[0, 0].tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, True, True],
    ]
    assert every[0, 0].nonzero().tolist() == [[1, 0], [3, 2]]
