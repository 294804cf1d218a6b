"""Tokens, embeddings and positions that the network cannot take are refused in one line that says what to do."""

from typing import Any

import pytest
import torch

from arbprob_hf import Mask
from tests.model.twins import ours_alone, tokens
from tests.networks import far
from tests.tables import quick

IDS = tokens()
EMBEDS = torch.zeros(2, 12, 24, dtype=torch.float64)


def with_one(value: int) -> torch.Tensor:
    ids = IDS.clone()
    ids[1, 3] = value
    return ids


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no input": (dict(), "input_ids, inputs_embeds: expected exactly one of them, got none"),
    "both inputs": (dict(input_ids=IDS, inputs_embeds=EMBEDS), "input_ids, inputs_embeds: .* got both"),
    "id above": (dict(input_ids=with_one(101)), r"input_ids: expected 0 to 100, got 101; .*vocab_size"),
    "id below": (dict(input_ids=with_one(-1)), "input_ids: expected 0 to 100, got -1"),
    "padding label as id": (dict(input_ids=with_one(-100)), "input_ids: expected 0 to 100, got -100"),
    "float ids": (dict(input_ids=IDS.float()), r"input_ids: expected dtype torch\.int64 or .* convert with \.long\(\)"),
    "bool ids": (dict(input_ids=IDS > 3), r"input_ids: expected dtype torch\.int64"),
    "list of ids": (dict(input_ids=[[1, 2]]), "input_ids: expected an integer tensor .* got list"),
    "one row without batch": (dict(input_ids=IDS[0]), r"input_ids: expected shape \(batch, tokens\).* got \(12,\)"),
    "no token": (dict(input_ids=IDS[:, :0]), r"input_ids: expected shape .* not empty, got \(2, 0\)"),
    "too long": (dict(input_ids=tokens(2, 33)), r"input_ids: expected at most n_positions=32 tokens, got 33; shorten"),
    "position above": (
        dict(input_ids=IDS, position_ids=torch.arange(12)[None] + 21),
        "position_ids: expected 0 to 31, got 32",
    ),
    "position below": (dict(input_ids=IDS, position_ids=torch.arange(12)[None] - 1), "position_ids: .* got -1"),
    "float positions": (
        dict(input_ids=IDS, position_ids=torch.zeros(1, 12)),
        "position_ids: expected an integer tensor",
    ),
    "positions of three rows": (
        dict(input_ids=IDS, position_ids=torch.zeros(3, 12, dtype=torch.long)),
        r"position_ids: expected shape \(batch or 1, tokens\) = \(2, 12\), got \(3, 12\)",
    ),
    "narrow embeddings": (dict(inputs_embeds=EMBEDS[..., :8]), r"inputs_embeds: expected shape .*n_embd=24"),
    "integer embeddings": (dict(inputs_embeds=EMBEDS.long()), r"inputs_embeds: expected a .*got torch\.int64"),
}


@pytest.mark.parametrize(("given", "message"), WRONG.values(), ids=WRONG)
def test_it_is_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{message}") as raised:
        ours_alone()(**given)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) <= 300


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(atention_mask=IDS), "atention_mask: not an argument of forward; did you mean attention_mask"),
        (dict(document_id=IDS), "document_id: not an argument of forward; did you mean document_ids"),
        (dict(attn_mask=IDS), "attn_mask: not an argument of forward, and would be ignored; leave it out"),
        (dict(token_type_ids=IDS), "token_type_ids: not an argument of forward, and would be ignored"),
        (dict(label=IDS), "label: not an argument of forward"),
        (dict(ignore_index=0), "ignore_index: not an argument of forward, and would be ignored; leave it out"),
        (dict(head_mask=IDS), "head_mask: not an argument of forward, and would be ignored"),
        (dict(sliding_window=4), "sliding_window: not an argument of forward, and would be ignored"),
        (dict(seq_lengths=IDS), "seq_lengths: not an argument of forward; pass document_ids= for packed documents"),
        (dict(attention=Mask.parse("full")), "attention: not an argument of forward"),
        (dict(pattern="full"), "pattern: not an argument of forward, and would be ignored; leave it out"),
        (dict(causal=False), "causal: not an argument of forward"),
        (dict(bidirectional=True), "bidirectional: not an argument of forward, and would be ignored"),
        (dict(window=2), "window: not an argument of forward, and would be ignored"),
        (dict(docs=[[0] * 12] * 2), "docs: not an argument of forward"),
        (dict(mask_function=lambda b, h, q, k: True), "mask_function: not an argument of forward"),
        (dict(cache_position=5), r"cache_position: expected an integer tensor .tokens,., got int"),
        (dict(cache_position=IDS), r"cache_position: expected shape .tokens,. = .12,., got \(2, 12\)"),
        (
            dict(cache_position=torch.arange(1, 13)),
            r"cache_position: expected 0 to 11, as 0 tokens are cached, got \[1, 2, .*; leave it out",
        ),
        (dict(is_causal=False), "is_causal: not an argument of forward; say mask='full'"),
        (dict(logits_to_keep=-1), "logits_to_keep: expected a count from 0 or a 1-D tensor of slot indices, got -1"),
        (dict(logits_to_keep=1.5), "logits_to_keep: expected a count from 0 .* got 1.5"),
        (dict(logits_to_keep=IDS), r"logits_to_keep: expected a count from 0 .* got \(2, 12\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_option_that_would_have_no_effect_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        ours_alone()(IDS, **given)


IGNORED: dict[str, dict[str, Any]] = {
    "misspelt": dict(attenton_mask=IDS),
    "of other models": dict(is_causal=False),
    "a tensor": dict(token_type_ids=IDS),
    "a word": dict(pattern="full"),
}


@pytest.mark.parametrize("name", quick(IGNORED, ["misspelt", "of other models"]))
def test_a_graph_refuses_such_an_option_too(name: str) -> None:
    torch.compiler.reset()
    given = IGNORED[name]
    compiled = torch.compile(ours_alone(n_layer=1), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=f"{next(iter(given))}: not an argument of forward"):
        compiled(IDS, use_cache=False, **given)


@torch.no_grad()
@pytest.mark.parametrize(
    "given",
    [
        dict(cache_position=torch.arange(12)),
        dict(special_tokens_mask=torch.zeros_like(IDS), length=torch.tensor([12, 12])),
        dict(head_mask=None, token_type_ids=None, is_causal=None),
        dict(return_loss=True, skip_logits=None, output_router_logits=False),
        dict(max_length_q=12, max_length_k=12),
    ],
    ids=lambda given: next(iter(given)),
)
def test_what_changes_no_answer_is_taken(given: dict[str, Any]) -> None:
    model = ours_alone()
    assert torch.equal(model(IDS, **given).logits, model(IDS).logits)


@torch.no_grad()
def test_cache_position_counts_on_from_the_cache() -> None:
    model = ours_alone()
    cache = model(IDS[:, :8], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="cache_position: expected 8 to 11, as 8 tokens are cached, got .0, 1, 2, 3"):
        model(IDS[:, 8:], past_key_values=cache, cache_position=torch.arange(4))
    found = model(IDS[:, 8:], past_key_values=cache, cache_position=torch.arange(8, 12)).logits
    assert far(found, model(IDS).logits[:, 8:]) <= 1e-10


def test_the_longest_sequence_and_the_last_token_are_taken() -> None:
    ids = torch.full((1, 32), 100)
    assert ours_alone()(ids, labels=ids).loss.isfinite()
