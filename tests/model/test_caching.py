"""A cache changes no logit, in however many parts a sequence is read, under any mask that does not look ahead."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from arbprob_hf import ArbProbForCausalLM, Mask, documents
from tests.model.twins import left_padded, ours_alone, tokens, twins
from tests.networks import far

LENGTH = 12
MASKS: dict[str, str | list[str]] = {
    "causal": "causal",
    "window": "causal & window(4)",
    "sink": "causal & (window(3) | prefix(1))",
    "prefix": "causal | prefix(3)",
    "per layer": ["causal", "causal & window(2)", "causal & window(5)"],
}
# how many tokens go through at each call; a prefix of three is read at once
CHUNKS: dict[str, list[int]] = {
    "one by one": [3] + [1] * 9,
    "two halves": [6, 6],
    "ragged": [5, 1, 4, 2],
    "at once": [12],
}
masks = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
chunks = pytest.mark.parametrize("sizes", CHUNKS.values(), ids=CHUNKS)
backends = pytest.mark.parametrize("backend", ["eager", "sdpa"])
kinds = pytest.mark.parametrize("kind", ["dynamic", "static"])


def new_cache(kind: str, model: ArbProbForCausalLM) -> Any:
    return (
        DynamicCache(config=model.config) if kind == "dynamic" else StaticCache(config=model.config, max_cache_len=20)
    )


def in_parts(model: ArbProbForCausalLM, ids: Tensor, cache: Any, sizes: list[int], **options: Any) -> Tensor:
    """Logits (B, T, V), `sizes` tokens at a time; per-token options are cut with them, masks of keys grow."""
    made, start = [], 0
    for size in sizes:
        end = start + size
        given = {}
        for name, value in options.items():
            if name in ("attention_mask", "ranks"):
                given[name] = value[:, :end]
            elif name == "mask":
                given[name] = value[..., start:end, :end]
            else:
                given[name] = value[:, start:end]
        made.append(model(ids[:, start:end], past_key_values=cache, use_cache=True, **given).logits)
        start = end
    return torch.cat(made, dim=1)


@backends
@masks
@chunks
@kinds
def test_cached_logits_are_uncached_logits(backend: str, mask: Any, sizes: list[int], kind: str) -> None:
    model, ids = ours_alone(backend=backend, mask=mask), tokens(2, LENGTH)
    assert far(in_parts(model, ids, new_cache(kind, model), sizes), model(ids).logits) <= 1e-10


@backends
@masks
@kinds
def test_cached_logits_are_uncached_logits_under_padding(backend: str, mask: Any, kind: str) -> None:
    model = ours_alone(backend=backend, mask=mask)
    ids, keep = left_padded((9, LENGTH), LENGTH)
    options = dict(attention_mask=keep, position_ids=(keep.cumsum(1) - 1).clamp(min=0))
    parts = in_parts(model, ids, new_cache(kind, model), [6, 1, 5], **options)
    assert far(parts, model(ids, **options).logits) <= 1e-10


@kinds
@pytest.mark.parametrize("shape", [(LENGTH, LENGTH), (2, LENGTH, LENGTH), (2, 3, LENGTH, LENGTH)], ids=len)
def test_a_mask_tensor_covers_cached_keys(shape: tuple[int, ...], kind: str) -> None:
    model, ids = ours_alone(), tokens(2, LENGTH)
    mask = (torch.rand(shape) < 0.6).tril()
    parts = in_parts(model, ids, new_cache(kind, model), [5, 1, 4, 2], mask=mask)
    assert far(parts, model(ids, mask=mask).logits) <= 1e-10


@kinds
def test_ranks_cover_cached_keys(kind: str) -> None:
    model, ids = ours_alone(), tokens(2, LENGTH)
    # nothing looks ahead of the chunk it is read in
    ranks = torch.tensor([[0, 2, 1, 3, 4, 4, 5, 7, 6, 6, 9, 8]]).expand(2, -1)
    parts = in_parts(model, ids, new_cache(kind, model), [4, 2, 4, 2], ranks=ranks)
    assert far(parts, model(ids, ranks=ranks).logits) <= 1e-10


@backends
def test_a_dynamic_cache_holds_gpt2s_keys_and_values(backend: str) -> None:
    ours, theirs = twins(backend=backend)
    own, reference = (model(tokens(), use_cache=True).past_key_values for model in (ours, theirs))
    assert own.get_seq_length() == reference.get_seq_length() == LENGTH
    for a, b in zip(own.layers, reference.layers, strict=True):
        assert max(far(a.keys, b.keys), far(a.values, b.values)) <= 1e-10


def test_the_cache_given_is_the_cache_returned() -> None:
    model = ours_alone()
    cache = new_cache("dynamic", model)
    assert model(tokens(), past_key_values=cache, use_cache=True).past_key_values is cache


def test_the_configuration_decides_whether_a_cache_is_made() -> None:
    ids = tokens()
    assert ours_alone()(ids).past_key_values is not None
    assert ours_alone(use_cache=False)(ids).past_key_values is None
    assert ours_alone()(ids, use_cache=False).past_key_values is None


def test_a_loss_keeps_no_cache_unless_asked_to() -> None:
    model, ids = ours_alone(), tokens()
    assert model(ids, labels=ids).past_key_values is None
    assert model(ids, labels=ids, use_cache=True).past_key_values is not None


def test_what_a_static_cache_has_not_filled_is_never_seen() -> None:
    model, ids = ours_alone(mask="full"), tokens()
    cache = new_cache("static", model)
    with torch.no_grad():
        model(ids, past_key_values=cache, use_cache=True)
        cache.reset()
        # what an earlier sequence left behind must not matter
        for layer in cache.layers:
            layer.keys.fill_(50.0)
            layer.values.fill_(50.0)
        assert far(model(ids, past_key_values=cache, use_cache=True).logits, model(ids).logits) <= 1e-10


def test_a_cached_sequence_longer_than_the_positions_is_refused() -> None:
    model = ours_alone()
    cache = new_cache("dynamic", model)
    model(tokens(2, 30), past_key_values=cache, use_cache=True)
    with pytest.raises(
        ValueError, match=r"input_ids: expected at most n_positions=32 tokens, got 3\d, \d+ of them cached"
    ):
        model(tokens(2, 5), past_key_values=cache, use_cache=True)


def test_packed_documents_cannot_go_on_from_a_cache() -> None:
    model, ids = ours_alone(), tokens()
    cache = new_cache("dynamic", model)
    model(ids, past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match="document_ids: packed documents cannot go on from a cache"):
        model(ids, past_key_values=cache, use_cache=True, document_ids=torch.zeros(2, 24, dtype=torch.long))


FORGETFUL: dict[str, dict[str, Any]] = {
    "config": dict(),
    "text": dict(mask="causal | prefix(8)"),
    "attention_mask": dict(attention_mask="window(2)"),
    "ranks": dict(ranks=torch.arange(LENGTH).flip(0).expand(2, -1)),
    "limits": dict(ranks=torch.zeros(2, LENGTH).long(), limits=torch.ones(2, LENGTH).long()),
    "documents": dict(mask=documents(torch.zeros(2, LENGTH).long())),
    "padded": dict(mask="causal | prefix(5)", attention_mask=left_padded((9, LENGTH), LENGTH)[1]),
}


@kinds
@pytest.mark.parametrize("options", FORGETFUL.values(), ids=FORGETFUL)
def test_a_cache_that_was_not_shown_what_it_should_have_seen_is_refused(options: dict[str, Any], kind: str) -> None:
    model, ids = ours_alone(mask="causal" if options else ["causal", "causal", "full"]), tokens(2, LENGTH)
    cache = new_cache(kind, model)
    model(ids[:, :6], past_key_values=cache, use_cache=True, mask="causal")
    with pytest.raises(ValueError, match="^past_key_values: holds 6 tokens that, under this mask, see later ones"):
        model(ids[:, 6:], past_key_values=cache, use_cache=True, **options)


FULL = "^past_key_values: the cache has room for 8 tokens, got {}; make it larger"


@pytest.mark.parametrize("is_told", [True, False], ids=["which are real", "all real"])
def test_a_static_cache_that_is_too_small_is_refused(is_told: bool) -> None:
    model, ids = ours_alone(), tokens(2, LENGTH)
    keep = {"attention_mask": torch.ones_like(ids)} if is_told else {}
    with pytest.raises(ValueError, match=FULL.format(12)):
        model(ids, past_key_values=StaticCache(config=model.config, max_cache_len=8), **keep)
    cache = StaticCache(config=model.config, max_cache_len=8)
    model(ids[:, :8], past_key_values=cache)
    with pytest.raises(ValueError, match=FULL.format(9)):
        model(ids[:, 8:9], past_key_values=cache, **{name: value[:, :9] for name, value in keep.items()})


@pytest.mark.parametrize(("prompt", "wanted"), [(7, 9), (8, 9), (9, 9), (12, 12)])
@pytest.mark.parametrize("is_padded", [True, False])
def test_generation_beyond_a_static_cache_is_refused(is_padded: bool, prompt: int, wanted: int) -> None:
    model, ids = ours_alone(), tokens(2, prompt) + 3
    ids = ids.clamp(max=100)
    if is_padded:
        ids[0, 0] = model.config.pad_token_id
    cache = StaticCache(config=model.config, max_cache_len=8)
    with pytest.raises(ValueError, match=FULL.format(wanted)):
        model.generate(ids, past_key_values=cache, max_new_tokens=4, min_new_tokens=4, do_sample=False)


def test_generation_may_fill_a_static_cache() -> None:
    model, ids = ours_alone(), (tokens(2, 7) + 3).clamp(max=100)
    options = dict(max_new_tokens=2, min_new_tokens=2, do_sample=False)
    cache = StaticCache(config=model.config, max_cache_len=8)
    assert torch.equal(model.generate(ids, past_key_values=cache, **options), model.generate(ids, **options))


SHOWN: dict[str, dict[str, Any]] = {
    "prefix": dict(mask="causal | prefix(6)"),
    "not a window": dict(mask="causal & ~(window(3) & ~window(2))"),
    "documents": dict(mask=documents(torch.tensor([[0] * 6 + [1] * 6]))),
    "ranks": dict(ranks=torch.tensor([[5, 4, 3, 2, 1, 0, 6, 7, 8, 9, 11, 10]]).expand(2, -1)),
    "padded": dict(mask="causal | prefix(3)", attention_mask=left_padded((9, LENGTH), LENGTH)[1]),
}


@kinds
@pytest.mark.parametrize("options", SHOWN.values(), ids=SHOWN)
def test_a_cache_that_was_shown_all_it_should_have_seen_is_gone_on_from(options: dict[str, Any], kind: str) -> None:
    model, ids = ours_alone(), tokens(2, LENGTH)
    whole = model(ids, **options).logits
    first = {name: first_six(value) for name, value in options.items()}
    cache = new_cache(kind, model)
    begun = model(ids[:, :6], past_key_values=cache, use_cache=True, **first).logits
    ended = model(ids[:, 6:], past_key_values=cache, use_cache=True, **options).logits
    assert far(torch.cat([begun, ended], dim=1), whole) <= 1e-10


def first_six(value: Any) -> Any:
    """An argument cut to the first six tokens."""
    if isinstance(value, str):
        return value
    return documents(value.ids[:, :6]) if isinstance(value, Mask) else value[:, :6]
