"""flex_attention: block masks out of tiles, what it refuses, and the compiled kernel."""

import re

import pytest
import torch
from torch import Tensor

from arbprob_hf import HIDDEN, Mask, causal, documents, full, heads, order, padding, prefix, window
from arbprob_hf.model.attention.flex import BLOCK, block_mask, flex_plan, fused
from arbprob_hf.model.attention.plan import eager_plan
from arbprob_hf.model.masks.tiles import Sizes
from tests.masks.oracles import micro, random_ids

LENGTH = 300
torch.manual_seed(0)
RANKS = torch.stack([torch.randperm(LENGTH), torch.arange(LENGTH) // 7])
MASKS: dict[str, Mask] = {
    "causal": causal(),
    "full": full(),
    "window": causal() & window(40),
    "prefix": causal() | prefix(150),
    "per head": heads(causal(), window(30)),
    "documents": causal() & documents(torch.stack([torch.arange(LENGTH) // 100, torch.arange(LENGTH) // 77])),
    "padding": causal() & padding(torch.arange(LENGTH).repeat(2, 1) > torch.tensor([[0], [170]])),
    "order": order(RANKS.masked_fill(RANKS % 5 == 0, HIDDEN), RANKS),
    "tensor": Mask.of(torch.rand(2, 2, LENGTH, LENGTH) < 0.1),
    "blind": causal() & window(5) & ~prefix(9),
}
# torch's compiler, on its first use
compiles = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
named = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


def sizes(q_len: int = LENGTH, offset: int = 0) -> Sizes:
    return Sizes(2, 2, q_len, offset + q_len, offset, torch.device("cpu"))


def states(q_len: int = LENGTH) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 2, q_len, 16), torch.randn(2, 2, LENGTH, 16), torch.randn(2, 2, LENGTH, 16)


def listed(counts: Tensor, numbers: Tensor) -> Tensor:
    """The tiles that a block mask lists, as bool (B, H, query tiles, key tiles)."""
    is_counted = torch.arange(numbers.shape[-1]) < counts[..., None]
    return torch.zeros(numbers.shape, dtype=torch.bool).scatter(-1, numbers.long(), is_counted)


@named
@pytest.mark.parametrize(("q_len", "offset"), [(LENGTH, 0), (130, 170)], ids=["whole", "continued"])
def test_a_block_mask_leaves_out_only_empty_tiles_and_calls_full_only_full_ones(
    mask: Mask, q_len: int, offset: int
) -> None:
    made = block_mask(mask, sizes(q_len, offset))
    assert made.full_kv_num_blocks is not None
    assert made.full_kv_indices is not None
    partial = listed(made.kv_num_blocks, made.kv_indices)
    filled = listed(made.full_kv_num_blocks, made.full_kv_indices)
    assert not (partial & filled).any()
    dense = mask.dense(q_len, LENGTH, batch=2, heads=2, offset=offset)
    for i in range(partial.shape[2]):
        for j in range(partial.shape[3]):
            tile = dense[:, :, i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]
            assert not (tile.any((2, 3)) & ~(partial | filled)[:, :, i, j]).any()
            assert not (~tile.all(3).all(2) & filled[:, :, i, j]).any()


@pytest.mark.parametrize(("mask", "share"), [(causal(), 6 / 9), (causal() & window(40), 5 / 9), (full(), 1.0)], ids=str)
def test_a_pattern_leaves_out_every_empty_tile(mask: Mask, share: float) -> None:
    made = block_mask(mask, sizes())
    assert made.full_kv_num_blocks is not None
    listed_tiles = made.kv_num_blocks.sum() + made.full_kv_num_blocks.sum()
    assert int(listed_tiles) == round(share * 9)


@named
@pytest.mark.parametrize(("q_len", "offset"), [(LENGTH, 0), (130, 170)], ids=["whole", "continued"])
def test_flex_equals_eager(mask: Mask, q_len: int, offset: int) -> None:
    given = states(q_len)
    plan = flex_plan(mask, sizes(q_len, offset), dtype=torch.float32)
    assert plan.path == "flex"
    got, _ = plan.attend(*given, scaling=0.25, dropout=0.0)
    expected, _ = eager_plan(mask, sizes(q_len, offset)).attend(*given, scaling=0.25, dropout=0.0)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_flex_takes_an_attention_bias() -> None:
    model, ids, bias = micro(backend="flex_attention"), random_ids(2, 20), torch.randn(1, 2, 20, 1)
    with torch.no_grad():
        got = model(ids, attention_bias=bias.expand(1, 2, 20, 20) * torch.arange(20)).logits
        assert model.transformer.attention_paths == ["flex", "flex"]
        expected = micro(backend="eager")(ids, attention_bias=bias.expand(1, 2, 20, 20) * torch.arange(20)).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_a_forbidden_key_beyond_all_bounds_changes_nothing() -> None:
    query, key, value = states()
    plan = flex_plan(causal(), sizes(), dtype=torch.float32)
    before, _ = plan.attend(query, key, value, scaling=0.25, dropout=0.0)
    key[:, :, 200], value[:, :, 200] = 1e38, 1e38
    after, _ = plan.attend(query, key, value, scaling=0.25, dropout=0.0)
    assert before[:, :, :200].equal(after[:, :, :200])


def test_short_steps_follow_the_plan_of_sdpa() -> None:
    model, ids = micro(backend="flex_attention"), random_ids(1, 20)
    with torch.no_grad():
        cache = model(ids[:, :19], use_cache=True).past_key_values
        model(ids[:, 19:], past_key_values=cache)
    assert model.transformer.attention_paths == ["open", "open"]


def test_flex_refuses_dropout() -> None:
    model = micro(backend="flex_attention", attn_pdrop=0.1).train()
    with pytest.raises(ValueError, match="attn_pdrop: expected 0 under flex_attention, which has no dropout, got 0.1"):
        model(random_ids(1, 20))


def test_flex_refuses_to_be_trained_on_the_cpu_and_names_sdpa() -> None:
    message = "flex_attention has no backward on the CPU; use 'sdpa' there, or torch.no_grad()"
    with pytest.raises(ValueError, match=re.escape(message)):
        micro(backend="flex_attention")(random_ids(1, 20))


@pytest.mark.long
@compiles
def test_the_compiled_kernel_takes_more_kinds_of_masks_than_torch_compiles_by_itself() -> None:
    """Beyond its limit torch would go on unfused with a warning, which is an error here."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=1):
        for name in ("window", "per head", "tensor"):
            query, key, value = states()
            made = block_mask(MASKS[name], sizes())
            got = fused(query, key, value, score_mod=None, block_mask=made, scale=0.25)
            expected, _ = eager_plan(MASKS[name], sizes()).attend(query, key, value, scaling=0.25, dropout=0.0)
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.long
@compiles
def test_a_network_compiled_for_the_cpu_follows_the_plan_of_sdpa_and_keeps_its_numbers() -> None:
    model = micro(backend="flex_attention", mask="causal & window(5) | prefix(3)")
    torch._dynamo.reset()
    compiled = torch.compile(model)
    for length in (40, 33):
        ids = random_ids(2, length)
        with torch.no_grad():
            expected = model(ids).logits
            assert set(model.transformer.attention_paths) == {"flex"}
            torch.testing.assert_close(compiled(ids).logits, expected, atol=1e-4, rtol=0)
            assert set(model.transformer.attention_paths) == {"additive"}
