"""Masks obey the laws of boolean algebra, and every exit (dense, mask_mod, slices) tells the same."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arbprob_hf import Mask, causal, full, prefix, window
from arbprob_hf.model.masks.mask import PATTERNS
from tests.masks.expressions import (
    ANY,
    BATCH,
    HEADS,
    LEAVES,
    MASKS,
    WRITABLE,
    Pair,
    Rule,
    T,
    brute_force,
    dense,
    expressions,
)


def test_the_expressions_are_made_of_every_pattern() -> None:
    assert {name.removeprefix("limited ") for name in LEAVES} == {*PATTERNS, "tensor"}
    assert set(WRITABLE) == {name for name, kind in PATTERNS.items() if not kind.takes_tensors}


@pytest.mark.parametrize("name", LEAVES)
def test_a_pattern_means_its_rule(name: str) -> None:
    mask, rule = LEAVES[name]
    assert torch.equal(dense(mask), brute_force(rule))


@given(ANY)
def test_an_expression_means_what_its_parts_mean(pair: tuple[Mask, Rule]) -> None:
    mask, rule = pair
    assert dense(mask).dtype == torch.bool
    assert torch.equal(dense(mask), brute_force(rule))


@given(MASKS, MASKS)
def test_de_morgan(a: Mask, b: Mask) -> None:
    assert torch.equal(dense(~(a & b)), dense(~a | ~b))
    assert torch.equal(dense(~(a | b)), dense(~a & ~b))


@given(MASKS)
def test_twice_denied_is_said(a: Mask) -> None:
    assert torch.equal(dense(~~a), dense(a))


@given(MASKS, MASKS)
def test_absorption_and_commutation(a: Mask, b: Mask) -> None:
    assert torch.equal(dense(a & (a | b)), dense(a))
    assert torch.equal(dense(a | (a & b)), dense(a))
    assert torch.equal(dense(a & b), dense(b & a))
    assert torch.equal(dense(a | b), dense(b | a))


@given(MASKS, MASKS, MASKS)
def test_distribution_and_association(a: Mask, b: Mask, c: Mask) -> None:
    assert torch.equal(dense(a & (b | c)), dense(a & b | a & c))
    assert torch.equal(dense(a | (b & c)), dense((a | b) & (a | c)))
    assert torch.equal(dense((a & b) & c), dense(a & (b & c)))


@given(MASKS)
def test_full_and_nothing_are_the_bounds(a: Mask) -> None:
    assert torch.equal(dense(a & full()), dense(a))
    assert torch.equal(dense(a | ~full()), dense(a))
    assert not dense(a & ~a).any()
    assert dense(a | ~a).all()


@given(MASKS, st.integers(0, T - 1), st.integers(1, T))
def test_an_offset_selects_rows_of_the_whole(a: Mask, offset: int, rows: int) -> None:
    rows = min(rows, T - offset)
    part = a.dense(rows, batch=BATCH, heads=HEADS, offset=offset)
    assert torch.equal(part, dense(a)[:, :, offset : offset + rows, : offset + rows])
    wide = a.dense(rows, T, batch=BATCH, heads=HEADS, offset=offset)
    assert torch.equal(wide, dense(a)[:, :, offset : offset + rows])


@settings(max_examples=25)
@given(MASKS)
def test_torch_reads_mask_mod_as_dense(a: Mask) -> None:
    from torch.nn.attention.flex_attention import create_mask

    assert torch.equal(create_mask(a.mask_mod, BATCH, HEADS, T, T, device="cpu"), dense(a))


def test_torch_makes_a_block_mask_of_mask_mod() -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    mask = causal() & window(40) | prefix(5)
    blocks = create_block_mask(mask.mask_mod, 1, 1, 256, 256, device="cpu", BLOCK_SIZE=128)
    tiles = mask.dense(256)[0, 0].view(2, 128, 2, 128).any(3).any(1)
    assert torch.equal(blocks.to_dense()[0, 0].bool(), tiles)


@given(expressions(WRITABLE))
def test_parsing_undoes_printing(pair: Pair) -> None:
    mask, _ = pair
    assert Mask.parse(str(mask)) == mask
    assert torch.equal(dense(Mask.parse(str(mask))), dense(mask))
    assert hash(Mask.parse(str(mask))) == hash(mask)
    assert repr(mask) == str(mask)


@given(MASKS, MASKS)
def test_equal_masks_allow_the_same(a: Mask, b: Mask) -> None:
    if a == b:
        assert torch.equal(dense(a), dense(b))
    assert a == a
    assert a != ~a


@pytest.mark.parametrize(
    "use",
    [
        lambda m: bool(m),
        lambda m: m and full(),
        lambda m: m or full(),
        lambda m: not m,
        lambda m: 1 if m else 0,
    ],
    ids=["bool", "and", "or", "not", "if"],
)
def test_a_mask_has_no_truth_value(use: Callable[[Mask], object]) -> None:
    with pytest.raises(TypeError, match="use & | ~ instead of and, or, not"):
        use(causal())


@pytest.mark.parametrize(
    "other", [3, "causal", None, torch.ones(2, 2, dtype=torch.bool)], ids=lambda x: type(x).__name__
)
def test_a_mask_combines_only_with_masks(other: object) -> None:
    with pytest.raises(TypeError):
        causal() & other
    with pytest.raises(TypeError):
        causal() | other
    assert causal() != other


def test_masks_are_frozen() -> None:
    with pytest.raises(AttributeError, match="cannot assign to field 'size'"):
        window(3).size = 4
