"""With copied weights our network gives GPT-2's numbers: logits, loss and the gradient of every parameter."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.model.twins import left_padded, tokens, twins
from tests.networks import far

ACCURACY = {torch.float64: 1e-10, torch.float32: 1e-5}

dtypes = pytest.mark.parametrize("dtype", ACCURACY, ids=["fp64", "fp32"])
backends = pytest.mark.parametrize("backend", ["eager", "sdpa"])

# configurations that change the arithmetic
VARIANTS: dict[str, dict[str, Any]] = {
    "inner width": dict(n_inner=40),
    "exact gelu": dict(activation_function="gelu"),
    "relu": dict(activation_function="relu"),
    "silu": dict(activation_function="silu"),
    "unscaled": dict(scale_attn_weights=False),
    "scaled by layer": dict(scale_attn_by_inverse_layer_idx=True),
    "untied": dict(tie_word_embeddings=False),
    "coarse norm": dict(layer_norm_epsilon=0.1),
    "one head": dict(n_head=1),
}


def labels_of(ids: Tensor) -> Tensor:
    labels = ids.clone()
    labels[0, :5] = -100
    labels[1, -2:] = -100
    return labels


def reference_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """GPT-2's loss in the dtype of the logits: transformers' own rounds fp64 logits to fp32."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


@dtypes
@backends
def test_logits_are_gpt2s(dtype: torch.dtype, backend: str) -> None:
    ours, theirs = twins(dtype=dtype, backend=backend)
    ids = tokens()
    assert far(ours(ids).logits, theirs(ids).logits) <= ACCURACY[dtype]


@dtypes
@backends
def test_loss_is_gpt2s(dtype: torch.dtype, backend: str) -> None:
    ours, theirs = twins(dtype=dtype, backend=backend)
    ids = tokens()
    labels = labels_of(ids)
    loss = ours(ids, labels=labels).loss
    assert far(loss, reference_loss(theirs(ids).logits, labels)) <= ACCURACY[dtype]
    assert far(loss, theirs(ids, labels=labels).loss) <= 1e-5


@dtypes
@backends
def test_gradient_of_every_parameter_is_gpt2s(dtype: torch.dtype, backend: str) -> None:
    ours, theirs = twins(dtype=dtype, backend=backend)
    ids = tokens()
    labels = labels_of(ids)
    ours(ids, labels=labels).loss.backward()
    reference_loss(theirs(ids).logits, labels).backward()
    own, reference = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert own.keys() == reference.keys()
    assert all(parameter.grad.abs().max() > 0 for parameter in reference.values())
    distances = {name: far(own[name].grad, reference[name].grad) for name in own}
    assert {name: d for name, d in distances.items() if not d <= ACCURACY[dtype]} == {}


@backends
@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_every_option_of_the_configuration_means_what_it_means_in_gpt2(fields: dict[str, Any], backend: str) -> None:
    ours, theirs = twins(backend=backend, **fields)
    ids = tokens()
    ours(ids, labels=ids).loss.backward()
    reference_loss(theirs(ids).logits, ids).backward()
    assert far(ours(ids).logits, theirs(ids).logits) <= 1e-10
    assert far(ours.transformer.wte.weight.grad, theirs.transformer.wte.weight.grad) <= 1e-10


@dtypes
@backends
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_give_gpt2s_logits_at_real_tokens(side: str, dtype: torch.dtype, backend: str) -> None:
    ours, theirs = twins(dtype=dtype, backend=backend)
    ids, keep = left_padded((5, 12, 9), 12)
    if side == "right":
        ids, keep = ids.flip(1), keep.flip(1)
    positions = (keep.cumsum(1) - 1).clamp(min=0)
    own = ours(ids, attention_mask=keep, position_ids=positions).logits
    reference = theirs(ids, attention_mask=keep, position_ids=positions).logits
    assert own.isfinite().all()
    assert far(own[keep.bool()], reference[keep.bool()]) <= ACCURACY[dtype]


@backends
def test_padded_batches_give_gpt2s_gradients(backend: str) -> None:
    ours, theirs = twins(backend=backend)
    ids, keep = left_padded((5, 12, 9), 12)
    labels = ids.masked_fill(keep == 0, -100)
    # the slot before the first real token predicts it, and what it attends to is not defined in GPT-2
    labels[torch.arange(3), (keep == 0).sum(1)] = -100
    positions = (keep.cumsum(1) - 1).clamp(min=0)
    ours(ids, attention_mask=keep, position_ids=positions, labels=labels).loss.backward()
    logits = theirs(ids, attention_mask=keep, position_ids=positions).logits
    reference_loss(logits, labels).backward()
    reference = dict(theirs.named_parameters())
    distances = {n: far(p.grad, reference[n].grad) for n, p in ours.named_parameters()}
    assert {name: d for name, d in distances.items() if not d <= 1e-10} == {}


@backends
def test_a_padded_row_gives_the_logits_of_the_row_alone(backend: str) -> None:
    ours, _ = twins(backend=backend)
    ids, keep = left_padded((5, 12), 12)
    positions = (keep.cumsum(1) - 1).clamp(min=0)
    padded = ours(ids, attention_mask=keep, position_ids=positions).logits
    assert far(padded[:1, -5:], ours(ids[:1, -5:]).logits) <= 1e-10


def test_eager_and_sdpa_agree() -> None:
    eager, sdpa = (twins(backend=backend)[0] for backend in ("eager", "sdpa"))
    ids = tokens()
    assert far(eager(ids).logits, sdpa(ids).logits) <= 1e-10


def test_dropout_is_off_in_evaluation_and_on_in_training() -> None:
    ours, _ = twins(resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
    ids = tokens()
    assert torch.equal(ours(ids).logits, ours(ids).logits)
    ours.train()
    assert not torch.equal(ours(ids).logits, ours(ids).logits)


def test_dropout_of_the_same_random_state_is_gpt2s() -> None:
    ours, theirs = twins(backend="eager", resid_pdrop=0.1, embd_pdrop=0.2, attn_pdrop=0.3)
    ids = tokens()
    torch.manual_seed(4)
    own = ours.train()(ids).logits
    torch.manual_seed(4)
    assert far(own, theirs.train()(ids).logits) <= 1e-10
