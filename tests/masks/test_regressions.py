"""What transformers' own GPT-2 does wrong with masks today, shown against the reference, and ours does right.

Where a test of theirs fails after an upgrade, transformers has been repaired: drop that half, keep ours.
"""

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from arbprob_hf import ArbProbForCausalLM
from tests.masks.oracles import micro, random_ids, reference_logits, whole

T = 8
CLOSE, WRONG = 1e-5, 1e-2


def theirs(ours: ArbProbForCausalLM, backend: str) -> GPT2LMHeadModel:
    """transformers' GPT-2 with the same weights."""
    names = ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"]
    fields = {name: getattr(ours.config, name) for name in names}
    config = GPT2Config(**fields, bos_token_id=0, eos_token_id=0, attn_implementation=backend)
    model = GPT2LMHeadModel(config).eval()
    missing, unexpected = model.load_state_dict(ours.state_dict(), strict=False)
    assert (missing, unexpected) == ([], [])
    return model


def error(model: torch.nn.Module, ids: Tensor, expected: Tensor, **arguments: Tensor) -> float:
    with torch.no_grad():
        return float((model(ids, **arguments).logits - expected).abs().max())


def prefix_masks(batch: int) -> Tensor:
    """A prefix-LM mask of another length in every row, bool (B, T, T)."""
    lengths = torch.arange(2, 2 + batch)[:, None, None]
    return torch.ones(T, T, dtype=torch.bool).tril() | (torch.arange(T) < lengths)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_without_a_mask_both_are_right(backend: str) -> None:
    ours, ids = micro(backend=backend), random_ids(2, T)
    expected = reference_logits(ours, ids, whole(torch.ones(T, T).tril(), 2, 2))
    assert error(theirs(ours, backend), ids, expected) <= CLOSE
    assert error(ours, ids, expected) <= CLOSE


@pytest.mark.parametrize("dtype", [torch.bool, torch.long], ids=str)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_three_dimensions_are_flattened_there_and_obeyed_here(backend: str, dtype: torch.dtype) -> None:
    ours, ids, mask = micro(backend=backend), random_ids(2, T), prefix_masks(2)
    expected = reference_logits(ours, ids, whole(mask, 2, 2))
    assert error(theirs(ours, backend), ids, expected, attention_mask=mask.to(dtype)) > WRONG
    assert error(ours, ids, expected, attention_mask=mask.to(dtype)) <= CLOSE


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32], ids=str)
@pytest.mark.parametrize("heads", [1, 2])
def test_eager_adds_zeros_and_ones_to_the_scores_there_and_masks_here(dtype: torch.dtype, heads: int) -> None:
    ours, ids = micro(backend="eager"), random_ids(2, T)
    mask = prefix_masks(2)[:, None].repeat(1, heads, 1, 1)
    mask[:, -1, :, 1] = False
    expected = reference_logits(ours, ids, whole(mask, 2, 2))
    assert error(theirs(ours, "eager"), ids, expected, attention_mask=mask.to(dtype)) > WRONG
    assert error(ours, ids, expected, attention_mask=mask.to(dtype)) <= CLOSE


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_query_that_sees_nothing_reads_forbidden_keys_there_and_none_here(backend: str) -> None:
    ours, ids = micro(layers=1, backend=backend), random_ids(1, T)
    mask = torch.ones(1, 1, T, T, dtype=torch.bool).tril()
    mask[..., 3, :] = False
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    other = ids.clone()
    other[0, 7] = (ids[0, 7] + 1) % 31
    with torch.no_grad():
        model = theirs(ours, backend)
        before, after = (model(x, attention_mask=additive).logits[0, 3] for x in (ids, other))
        assert not before.allclose(after, atol=1e-3)
        before, after = (ours(x, attention_mask=mask).logits[0, 3] for x in (ids, other))
        assert before.equal(after)
    assert error(ours, ids, reference_logits(ours, ids, whole(mask, 1, 2)), attention_mask=mask) <= CLOSE


def test_a_query_that_sees_nothing_is_nan_in_eager_there_and_finite_here() -> None:
    ours, ids = micro(backend="eager"), random_ids(1, T)
    mask = torch.ones(1, 1, T, T, dtype=torch.bool).tril()
    mask[..., 3, :] = False
    additive = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    assert theirs(ours, "eager")(ids, attention_mask=additive).logits.isnan().any()
    ours(ids, attention_mask=mask).logits.sum().backward()
    assert all(weight.grad.isfinite().all() for weight in ours.parameters())


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_batch_rows_are_not_taken_for_heads(backend: str, batch: int) -> None:
    """torch broadcasts (B, T, T) against (B, H, T, T) from the right: for B = H each head would get a row's mask."""
    ours, ids, mask = micro(heads=batch, backend=backend), random_ids(batch, T), prefix_masks(batch)
    expected = reference_logits(ours, ids, whole(mask, batch, batch))
    as_heads = reference_logits(ours, ids, mask[None].expand(batch, batch, T, T))
    for name in ("attention_mask", "mask"):
        assert error(ours, ids, expected, **{name: mask}) <= CLOSE
    assert (float((expected - as_heads).abs().max()) > WRONG) == (batch > 1)


def test_torch_itself_takes_batch_rows_for_heads() -> None:
    query = torch.randn(2, 2, T, 4)
    mask = prefix_masks(2)
    attend = torch.nn.functional.scaled_dot_product_attention
    by_row = attend(query, query, query, attn_mask=mask[:, None])
    as_given, per_head = (attend(query, query, query, attn_mask=m) for m in (mask, mask[None]))
    torch.testing.assert_close(as_given, per_head)
    assert not as_given.allclose(by_row, atol=1e-3)
