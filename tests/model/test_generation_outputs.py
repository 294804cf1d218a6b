"""What generate returns beside the sequences, step by step: scores, attentions, hidden states and a cache."""

from typing import Any

import pytest
import torch

from tests.model.twins import left_padded, tokens, twins
from tests.networks import far

NEW = 4
IDS, KEEP = left_padded((3, 6), 6)
DECODING: dict[str, dict[str, Any]] = {
    "greedy": dict(do_sample=False),
    "sampled": dict(do_sample=True, top_k=20, temperature=0.7),
    "beams": dict(num_beams=2, num_return_sequences=2, length_penalty=2.0, do_sample=False),
    "sampled beams": dict(num_beams=2, do_sample=True),
}
CACHES: dict[str, dict[str, Any]] = {
    "dynamic": dict(),
    "static": dict(cache_implementation="static"),
    "uncached": dict(use_cache=False),
}


@pytest.fixture(scope="module")
def pair() -> Any:
    models = twins(backend="eager")
    for model in models:
        # random weights would end some sequences early
        model.generation_config.eos_token_id = None
    return models


def generated(model: Any, *args: Any, **options: Any) -> Any:
    torch.manual_seed(3)
    asked = dict(output_scores=True, output_logits=True, output_attentions=True, output_hidden_states=True)
    return model.generate(*args, max_new_tokens=NEW, return_dict_in_generate=True, **asked, **options)


def flat(steps: Any) -> list[torch.Tensor]:
    return [steps] if isinstance(steps, torch.Tensor) else [tensor for step in steps for tensor in flat(step)]


@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
@pytest.mark.parametrize("way", DECODING.values(), ids=DECODING)
def test_what_every_step_returns_is_gpt2s(pair: Any, way: dict[str, Any], cache: dict[str, Any]) -> None:
    own, reference = (generated(model, IDS, attention_mask=KEEP, **way, **cache) for model in pair)
    assert type(own) is type(reference)
    assert own.keys() == reference.keys()
    assert own.sequences.equal(reference.sequences)
    for name in ("scores", "logits", "hidden_states"):
        found, expected = flat(own[name]), flat(reference[name])
        assert [one.shape for one in found] == [one.shape for one in expected]
        # a padded row holds no token, and stock GPT-2 has it look at what it may not
        real = [(a.nan_to_num(neginf=0), b.nan_to_num(neginf=0)) for a, b in zip(found, expected, strict=True)]
        real = [(a[:, -3:], b[:, -3:]) if a.dim() == 3 else (a, b) for a, b in real]
        assert max(far(a, b) for a, b in real) <= 2e-6
    assert len(own.attentions) == len(reference.attentions) == NEW
    for found, expected in zip(flat(own.attentions), flat(reference.attentions), strict=True):
        assert found.shape == expected.shape
        assert far(found[:, :, -3:], expected[:, :, -3:]) <= 2e-6


def test_a_returned_cache_is_gone_on_from(pair: Any) -> None:
    ours, ids = pair[0], tokens(2, 5)
    first = ours.generate(ids, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True)
    options = dict(max_new_tokens=NEW, do_sample=False, past_key_values=first.past_key_values)
    assert ours.generate(first.sequences, **options).equal(ours.generate(ids, max_new_tokens=2 * NEW, do_sample=False))


@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
@pytest.mark.parametrize("way", [DECODING["greedy"], DECODING["beams"]], ids=["greedy", "beams"])
def test_embeddings_are_gone_on_from_as_tokens_are(pair: Any, way: dict[str, Any], cache: dict[str, Any]) -> None:
    ours = pair[0]
    embeds = ours.get_input_embeddings()(IDS).detach()
    options = dict(max_new_tokens=NEW, attention_mask=KEEP, **way, **cache)
    assert ours.generate(inputs_embeds=embeds, **options).equal(ours.generate(IDS, **options)[:, IDS.shape[1] :])
    # tokens beside them are returned, and not read
    both = ours.generate(IDS, inputs_embeds=embeds * 2, **options)
    assert both.equal(torch.cat([IDS.repeat_interleave(len(both) // len(IDS), 0), both[:, IDS.shape[1] :]], 1))
    assert not both.equal(ours.generate(IDS, **options))


def test_positions_that_are_given_are_those_that_padding_implies(pair: Any) -> None:
    options = dict(attention_mask=KEEP, max_new_tokens=NEW, do_sample=False)
    positions = (KEEP.cumsum(1) - 1).clamp(min=0)
    assert pair[0].generate(IDS, position_ids=positions, **options).equal(pair[0].generate(IDS, **options))
