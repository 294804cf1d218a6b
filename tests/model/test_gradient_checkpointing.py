"""Gradient checkpointing changes the memory and nothing else."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from arbprob_hf import ArbProbForCausalLM
from tests.model.twins import left_padded, ours_alone, tokens
from tests.networks import far


def switch(model: ArbProbForCausalLM, state: str, **options: Any) -> None:
    """Enable or disable checkpointing, by the method's name since transformers 5.23 or by the one before."""
    name = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if hasattr(model, f"{n}_{state}"))
    getattr(model, f"{name}_{state}")(*([options] if options else []))


def loss_and_gradients(checkpointing: bool, **options: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    reentrant, ids = options.pop("reentrant", False), options.pop("ids", tokens())
    model = ours_alone(**options.pop("fields", {})).train()
    if checkpointing:
        switch(model, "enable", use_reentrant=reentrant)
        assert model.transformer.h[0].gradient_checkpointing
    torch.manual_seed(5)
    loss = model(ids, labels=ids, **options).loss
    loss.backward()
    return loss, {name: parameter.grad for name, parameter in model.named_parameters()}


KEEP = left_padded((7, 12), 12)
CASES: dict[str, dict[str, Any]] = {
    "causal": dict(),
    "window": dict(fields=dict(mask="causal & window(3)")),
    "per layer": dict(fields=dict(mask=["causal", "full", "causal & window(2)"])),
    "dropout": dict(fields=dict(resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2)),
    "eager": dict(fields=dict(backend="eager")),
    "padded": dict(ids=KEEP[0], attention_mask=KEEP[1]),
    "3-D mask": dict(mask=torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(0)) < 0.5),
    "reentrant": dict(reentrant=True),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_loss_and_gradients_are_the_same(case: dict[str, Any]) -> None:
    plain, plain_gradients = loss_and_gradients(False, **dict(case))
    checkpointed, gradients = loss_and_gradients(True, **dict(case))
    assert far(plain, checkpointed) <= 1e-12
    assert max(far(gradients[name], plain_gradients[name]) for name in gradients) <= 1e-12


def test_blocks_are_run_again_in_the_backward_pass() -> None:
    runs = {}
    for checkpointing in (False, True):
        model, ids = ours_alone().train(), tokens()
        if checkpointing:
            switch(model, "enable", use_reentrant=False)
        count: list[int] = []
        model.transformer.h[1].ln_1.register_forward_hook(lambda *_, count=count: count.append(1))
        model(ids, labels=ids).loss.backward()
        runs[checkpointing] = len(count)
    assert runs == {False: 1, True: 2}


def test_no_cache_is_kept_while_checkpointing() -> None:
    model = ours_alone().train()
    switch(model, "enable", use_reentrant=False)
    assert model(tokens(), use_cache=True).past_key_values is None


def test_a_given_cache_is_refused_while_checkpointing() -> None:
    model = ours_alone().train()
    switch(model, "enable", use_reentrant=False)
    with pytest.raises(ValueError, match="past_key_values: cannot be used while gradient checkpointing"):
        model(tokens(), past_key_values=DynamicCache(), use_cache=False)


def test_it_can_be_switched_off_again() -> None:
    model = ours_alone().train()
    switch(model, "enable", use_reentrant=False)
    switch(model, "disable")
    assert not model.transformer.h[0].gradient_checkpointing
