"""Eager and sdpa against the reference on random masks, and queries that see nothing."""

from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from arbprob_hf import HIDDEN, ArbProbForCausalLM, Mask
from arbprob_hf.model.attention.backends import BACKENDS, prepare_attention
from arbprob_hf.model.masks.tiles import Sizes
from tests.masks.oracles import masked_attention, micro, random_ids, reference_hidden, reference_logits, whole

# relative to the largest logit; bf16 keeps 8 bits, and 0.017 was measured
BF16_TOLERANCE = 0.04
CASES = 150


def random_case(number: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The keep-mask meant (B, 2, T, T), and arguments that say so: 3-D, per head, padded, ranked; rows may be empty."""
    torch.manual_seed(number)
    batch, length = int(torch.randint(1, 4, ())), int(torch.randint(1, 12, ()))
    density = [0.1, 0.5, 0.9][number % 3]
    shape = [(batch,), (1,), (batch, 2), (1, 2), (batch, 1)][number % 5]
    keep = torch.rand(*shape, length, length) < density
    arguments: dict[str, Tensor] = {"mask": keep}
    meant = whole(keep, batch, 2)
    if number % 2:
        exists = torch.rand(batch, length) < 0.7
        arguments["attention_mask"] = exists
        meant = meant & exists[:, None, None, :]
    if number % 7 == 0:
        ranks = torch.randint(0, 3, (batch, length))
        ranks[torch.rand(batch, length) < 0.2] = HIDDEN
        arguments["ranks"] = ranks
        seen = (ranks[:, None] <= ranks[:, :, None]) & (ranks < HIDDEN)[:, None]
        meant = meant & (seen | torch.eye(length, dtype=torch.bool))[:, None]
    return meant, arguments


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_masks_agree_with_the_reference(backend: str) -> None:
    model = micro(backend=backend)
    worst = 0.0
    for number in range(CASES):
        meant, arguments = random_case(number)
        ids = random_ids(meant.shape[0], meant.shape[-1])
        with torch.no_grad():
            got = model(ids, **arguments).logits
        assert got.isfinite().all()
        worst = max(worst, float((got - reference_logits(model, ids, meant)).abs().max()))
    assert worst <= 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_masks_agree_with_the_reference_in_bf16(backend: str) -> None:
    model = micro(backend=backend).bfloat16()
    worst = 0.0
    for number in range(CASES // 2):
        meant, arguments = random_case(number)
        ids = random_ids(meant.shape[0], meant.shape[-1])
        expected = reference_logits(model, ids, meant)
        with torch.no_grad():
            got = model(ids, **arguments).logits
        assert got.isfinite().all()
        worst = max(worst, float((got - expected).abs().max() / expected.abs().max()))
    assert worst <= BF16_TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_under_random_masks_agree_with_the_reference(backend: str) -> None:
    model = micro(backend=backend)
    for number in range(40):
        meant, arguments = random_case(number)
        embeds = torch.randn(meant.shape[0], meant.shape[-1], 16, requires_grad=True)
        direction = torch.randn_like(embeds)
        got = model.transformer(inputs_embeds=embeds, **arguments).last_hidden_state
        (ours,) = torch.autograd.grad((got * direction).sum(), embeds)
        (theirs,) = torch.autograd.grad((reference_hidden(model, embeds, meant) * direction).sum(), embeds)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def attend(backend: str, keep: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output of a backend, (B, H, T, D), on random queries, keys and values that take gradients."""
    batch, heads, length, _ = keep.shape
    query, key, value = (torch.randn(batch, heads, length, 8, dtype=dtype, requires_grad=True) for _ in range(3))
    sizes = Sizes(batch, heads, length, length, 0, keep.device)
    plan = prepare_attention(Mask.of(keep), sizes, backend=backend, dtype=dtype)
    return plan.attend(query, key, value, scaling=8**-0.5, dropout=0.0)[0], query, key, value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_that_sees_nothing_outputs_zero_and_teaches_nothing(backend: str, dtype: torch.dtype) -> None:
    keep = torch.rand(2, 2, 7, 7) < 0.5
    keep[0, :, 3], keep[1, 1, :2], keep[:, :, 0, 0] = False, False, True
    keep[1, 1, 0] = False
    blind = ~keep.any(-1)
    out, query, key, value = attend(backend, keep, dtype)
    assert (out[blind] == 0).all()
    assert out.isfinite().all()
    gradients = torch.autograd.grad(out[blind].sum(), (query, key, value))
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_blind_queries_leave_the_gradients_of_the_others_alone(backend: str, dtype: torch.dtype) -> None:
    keep = torch.rand(1, 1, 7, 7) < 0.6
    keep[..., 3, :] = False
    out, query, key, value = attend(backend, keep, dtype)
    gradients = torch.autograd.grad(out.square().sum(), (query, key, value))
    doubles = [x.detach()[0, 0].double().requires_grad_() for x in (query, key, value)]
    expected_out = masked_attention(*doubles, keep[0, 0], None)
    expected = torch.autograd.grad(expected_out.square().sum(), doubles)
    # rounding to 24, 8 and 11 bits
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.01}[dtype]
    torch.testing.assert_close(out[0, 0].double(), expected_out, atol=tolerance, rtol=0)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours[0, 0].double(), theirs, atol=tolerance, rtol=tolerance)
    assert (gradients[0][0, 0, 3] == 0).all()


@pytest.mark.parametrize("size", [1e4, 1e20, 1e38])
@pytest.mark.parametrize("backend", BACKENDS)
def test_forbidden_values_do_not_leak_however_large(backend: str, size: float) -> None:
    """Also where the score of a forbidden key overflows: a kernel that adds -inf to it gives NaN."""
    keep = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    sizes = Sizes(1, 1, 6, 6, 0, keep.device)
    plan = prepare_attention(Mask.of(keep), sizes, backend=backend, dtype=torch.float32)
    query, key, value = torch.randn(3, 1, 1, 6, 8).unbind()
    outputs = []
    for filler in (0.0, size, -size):
        key[..., 5, :], value[..., 5, :] = filler, filler
        outputs.append(plan.attend(query, key, value, scaling=1.0, dropout=0.0)[0][..., :5, :])
    assert outputs[0].equal(outputs[1])
    assert outputs[0].equal(outputs[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_that_sees_nothing_at_all_is_a_stack_of_perceptrons(backend: str) -> None:
    model, ids = micro(backend=backend), random_ids(2, 5)
    got = model(ids, mask=torch.zeros(5, 5, dtype=torch.bool)).logits
    expected = reference_logits(model, ids, torch.zeros(2, 2, 5, 5, dtype=torch.bool))
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=0)


def kernel_calls(model: ArbProbForCausalLM, ids: Tensor, **arguments: object) -> list[dict[str, object]]:
    with mock.patch.object(F, "scaled_dot_product_attention", wraps=F.scaled_dot_product_attention) as kernel:
        model(ids, **arguments)
    return [call.kwargs for call in kernel.call_args_list]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"attention_mask": torch.ones(2, 6)}, {"mask": "causal"}],
    ids=["nothing given", "all tokens exist", "text"],
)
def test_plain_causal_takes_the_causal_path_of_the_kernel(arguments: dict[str, object]) -> None:
    calls = kernel_calls(micro(layers=3), random_ids(2, 6), **arguments)
    assert [(call.get("is_causal", False), call.get("attn_mask")) for call in calls] == [(True, None)] * 3


def test_full_needs_no_mask_in_the_kernel() -> None:
    calls = kernel_calls(micro(layers=3, mask="full"), random_ids(2, 6))
    assert [(call.get("is_causal", False), call.get("attn_mask")) for call in calls] == [(False, None)] * 3


@pytest.mark.parametrize("layers", [1, 4])
def test_the_additive_form_is_made_once_a_forward_and_shared_by_the_layers(layers: int) -> None:
    with mock.patch("arbprob_hf.model.modeling_arbprob.prepare_attention", wraps=prepare_attention) as made:
        calls = kernel_calls(micro(layers=layers, mask="causal & window(3)"), random_ids(2, 6))
    assert made.call_count == 1
    assert len(calls) == layers
    first = calls[0]["attn_mask"]
    assert isinstance(first, Tensor)
    assert first.is_floating_point()
    assert all(call["attn_mask"] is first for call in calls)
    assert not any(call.get("is_causal") for call in calls)
