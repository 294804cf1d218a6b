"""Under bf16 the numbers stay as near to fp32 as GPT-2's own do."""

import pytest
import torch

from arbprob_hf import ArbProbForCausalLM
from arbprob_hf.model.lm_head import linear_cross_entropy
from tests.model.twins import ours_alone, tokens, twins
from tests.networks import far

backends = pytest.mark.parametrize("backend", ["eager", "sdpa"])
IDS = tokens(4, 24)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


@backends
def test_the_loss_is_near_the_fp32_loss(backend: str) -> None:
    model = ours_alone(dtype=torch.float32, backend=backend)
    exact = model(IDS, labels=IDS).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(IDS, labels=IDS).loss
    assert loss.dtype == torch.float32
    assert 0 < far(loss, exact) <= 0.01 * float(exact.detach())


@backends
def test_logits_are_as_near_to_fp32_as_gpt2s(backend: str) -> None:
    ours, theirs = twins(dtype=torch.float32, backend=backend)
    exact = theirs(IDS).logits
    with torch.autocast("cpu", torch.bfloat16):
        own, reference = ours(IDS).logits, theirs(IDS).logits
    assert own.dtype == reference.dtype == torch.bfloat16
    assert far(own, exact) <= 1.5 * far(reference, exact)


@backends
def test_every_gradient_is_as_near_to_fp32_as_gpt2s(backend: str) -> None:
    ours, theirs = twins(dtype=torch.float32, backend=backend)
    theirs(IDS, labels=IDS).loss.backward()
    exact = gradients(theirs)
    found = []
    for model in (ours, theirs):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(IDS, labels=IDS).loss
        loss.backward()
        found.append(gradients(model))
    own, reference = ({n: float((g[n] - exact[n]).norm()) for n in exact} for g in found)
    assert {n: (own[n], reference[n]) for n in exact if own[n] > 2 * reference[n] + 1e-4} == {}
    assert sum(own.values()) <= 1.2 * sum(reference.values())


@backends
@pytest.mark.parametrize("mask", ["causal & window(5)", "full"])
def test_masks_hold_under_autocast(mask: str, backend: str) -> None:
    model = ours_alone(dtype=torch.float32, backend=backend, mask=mask)
    exact = model(IDS).logits
    with torch.autocast("cpu", torch.bfloat16):
        near = model(IDS).logits
    assert far(near, exact) <= 0.05 * float(exact.detach().abs().max())


@backends
def test_a_model_in_bf16_gives_gpt2s_logits_as_nearly(backend: str) -> None:
    ours, theirs = twins(dtype=torch.float32, backend=backend)
    exact = theirs(IDS).logits
    own, reference = ours.to(torch.bfloat16)(IDS).logits, theirs.to(torch.bfloat16)(IDS).logits
    assert own.dtype == torch.bfloat16
    assert far(own, exact) <= 1.5 * far(reference, exact)


def test_a_model_in_bf16_trains() -> None:
    model = ours_alone(dtype=torch.bfloat16).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(8):
        loss = model(IDS, labels=IDS).loss
        losses.append(loss.item())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert losses[-1] < losses[0] - 0.3


def test_the_dtype_can_be_chosen_when_loading(tmp_path: pytest.TempPathFactory) -> None:
    ours_alone(dtype=torch.float32).save_pretrained(tmp_path)
    assert ArbProbForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert ArbProbForCausalLM.from_pretrained(tmp_path).dtype == torch.float32


def test_gradients_of_confident_tokens_are_not_rounded_away() -> None:
    # where p is almost 1, p - 1 is all the gradient there is, and bf16 cannot tell p from 1
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 16, generator=generator)
    targets = torch.randint(0, 50, (64,), generator=generator)
    hidden = 1.5 * weight[targets] + 0.1 * torch.randn(64, 16, generator=generator)
    errors = {}
    exact = head_gradient(hidden.double(), weight.double(), targets, chunked=False)
    for chunked in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            found = head_gradient(hidden, weight, targets, chunked=chunked)
        errors[chunked] = float((found - exact).norm() / exact.norm())
    assert errors[True] <= 1.5 * errors[False]
    assert errors[True] < 0.2


def head_gradient(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, *, chunked: bool) -> torch.Tensor:
    hidden = hidden.clone().requires_grad_()
    if chunked:
        loss = linear_cross_entropy(hidden, weight, targets)
    else:
        logits = torch.nn.functional.linear(hidden, weight)
        logits = logits.float() if logits.dtype == torch.bfloat16 else logits
        loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    loss.backward()
    assert hidden.grad is not None
    return hidden.grad
