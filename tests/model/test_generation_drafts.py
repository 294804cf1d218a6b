"""Drafted tokens are proposals: assisted decoding gives the greedy sequence, whatever the assistant draws under."""

from typing import Any

import pytest
import torch
from torch import Tensor

from arbprob_hf import Mask, causal
from tests.model.twins import ours_alone, tokens, twins
from tests.networks import far

NEW, PROMPT = 12, 10
TABLE = (torch.rand(1, 3, PROMPT, PROMPT, generator=torch.Generator().manual_seed(4)) < 0.5) | torch.eye(10).bool()
MASKS: dict[str, Any] = {
    "causal": "causal",
    "window": "causal & window(4)",
    "prefix that ends in the prompt": "causal | prefix(10)",
    "per head": "heads(causal, causal & window(2), causal)",
    "tensor": TABLE[:, 0].tril(),
    "tensor that looks ahead": TABLE[:, 0],
    "tensor per head": TABLE,
    "mixed": causal() & Mask.of(TABLE),
}
ASSISTANTS = ["ours", "ours with other heads", "ours that looks ahead", "transformers'", "itself", "its first layer"]


def quiet(model: Any) -> Any:
    model.generation_config.eos_token_id = None
    return model


def assistance(kind: str, model: Any) -> dict[str, Any]:
    if kind == "its first layer":
        return dict(assistant_early_exit=1)
    if kind == "transformers'":
        return dict(assistant_model=quiet(twins(n_layer=1)[1]))
    fields = {"ours with other heads": dict(n_head=2), "ours that looks ahead": dict(mask="full")}.get(kind, {})
    return dict(assistant_model=model if kind == "itself" else quiet(ours_alone(n_layer=1, **fields)))


def decode(model: Any, ids: Tensor, **options: Any) -> Tensor:
    return model.generate(ids, max_new_tokens=NEW, do_sample=False, **options)


# transformers hands the assistant options in two ways at once
@pytest.mark.filterwarnings("ignore:Passing `generation_config` together")
@pytest.mark.parametrize("kind", ASSISTANTS)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_assisted_decoding_gives_the_greedy_sequence(mask: Any, kind: str) -> None:
    model, ids = quiet(ours_alone()), tokens(1, 5).repeat(1, 2)
    assert torch.equal(decode(model, ids, mask=mask, **assistance(kind, model)), decode(model, ids, mask=mask))


@pytest.mark.parametrize("kind", ["ours", "its first layer"])
def test_the_configurations_mask_holds_in_assisted_decoding(kind: str) -> None:
    ids = tokens(1, 5).repeat(1, 2)
    for mask in ("causal & window(3)", "causal | prefix(10)"):
        model = quiet(ours_alone(mask=mask))
        assert torch.equal(decode(model, ids, **assistance(kind, model)), decode(model, ids))


def test_an_assistant_that_is_the_model_is_never_turned_down() -> None:
    model, ids = quiet(ours_alone()), tokens(1, PROMPT)
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *given: calls.append(1))
    decode(model, ids, mask="causal & window(4)", assistant_model=model)
    # drafts under another mask would be turned down, and every token need a pass of its own
    assert len(calls) <= NEW + 4


@pytest.mark.parametrize("name", ["assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit"])
def test_drafts_are_refused_under_a_mask_that_rules_a_cache_out(name: str) -> None:
    model = quiet(ours_alone())
    given = {"assistant_model": model, "prompt_lookup_num_tokens": 2, "assistant_early_exit": 1}[name]
    with pytest.raises(ValueError, match=f"^{name}: needs a cache, which a mask that lets earlier tokens see later"):
        decode(model, tokens(1, PROMPT), mask="full", **{name: given})


def test_the_first_layers_alone_are_a_shorter_network() -> None:
    model, short, ids = ours_alone(), ours_alone(n_layer=1), tokens(2, 6)
    short.load_state_dict(model.state_dict(), strict=False)
    model.transformer.config.n_layer = 1
    assert far(model(ids).logits, short(ids).logits) == 0.0
