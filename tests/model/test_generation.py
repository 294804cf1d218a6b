"""generate under the causal mask gives GPT-2's sequences, whichever way it decodes."""

from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel
from transformers.generation import StoppingCriteriaList

from arbprob_hf import ArbProbForCausalLM
from tests.model.twins import left_padded, tokens, twins
from tests.networks import far

NEW = 8
# ways to decode; None of them ends early unless it says so
WAYS: dict[str, dict[str, Any]] = {
    "greedy": dict(do_sample=False),
    "sampled": dict(do_sample=True, temperature=1.3, top_k=50),
    "nucleus": dict(do_sample=True, top_p=0.8, top_k=0),
    "beams": dict(num_beams=3, do_sample=False),
    "sampled beams": dict(num_beams=3, do_sample=True),
    "several sampled": dict(do_sample=True, num_return_sequences=3),
    "several beams": dict(num_beams=4, num_return_sequences=3, do_sample=False),
    "penalised": dict(do_sample=False, repetition_penalty=1.4, no_repeat_ngram_size=2),
}
CACHES: dict[str, dict[str, Any]] = {
    "dynamic": dict(),
    "static": dict(cache_implementation="static"),
    "uncached": dict(use_cache=False),
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
caches = pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)


@pytest.fixture(scope="module")
def pair() -> tuple[ArbProbForCausalLM, GPT2LMHeadModel]:
    models = twins()
    for model in models:
        # random weights would end some sequences early
        model.generation_config.eos_token_id = None
    return models


def generated(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    torch.manual_seed(3)
    return model.generate(ids, **{"max_new_tokens": NEW, **options})


@ways
@caches
def test_sequences_are_gpt2s(pair: Any, way: dict[str, Any], cache: dict[str, Any]) -> None:
    ids = tokens(2, 5)
    own, reference = (generated(model, ids, attention_mask=torch.ones_like(ids), **way, **cache) for model in pair)
    assert own.shape == (2 * way.get("num_return_sequences", 1), 5 + NEW)
    assert torch.equal(own, reference)


@ways
@caches
def test_sequences_of_left_padded_batches_are_gpt2s(pair: Any, way: dict[str, Any], cache: dict[str, Any]) -> None:
    ids, keep = left_padded((3, 7, 5), 7)
    own, reference = (generated(model, ids, attention_mask=keep, **way, **cache) for model in pair)
    assert torch.equal(own, reference)


@caches
def test_logits_of_every_step_are_gpt2s(pair: Any, cache: dict[str, Any]) -> None:
    ids, keep = left_padded((3, 7), 7)
    options = dict(attention_mask=keep, do_sample=False, output_logits=True, return_dict_in_generate=True, **cache)
    own, reference = (generated(model, ids, **options).logits for model in pair)
    # generate rounds the logits it reports to fp32
    assert max(far(a, b) for a, b in zip(own, reference, strict=True)) <= 2e-6


def test_a_left_padded_row_continues_as_it_does_alone(pair: Any) -> None:
    ids, keep = left_padded((3, 7), 7)
    batch = generated(pair[0], ids, attention_mask=keep, do_sample=False)
    alone = generated(pair[0], ids[:1, -3:], do_sample=False)
    assert torch.equal(batch[:1, -NEW:], alone[:, -NEW:])


def test_embeddings_may_be_the_prompt(pair: Any) -> None:
    ours, ids = pair[0], tokens(2, 5)
    embeds = ours.get_input_embeddings()(ids).detach()
    torch.manual_seed(3)
    new = ours.generate(inputs_embeds=embeds, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(new, generated(ours, ids, do_sample=False)[:, 5:])


def test_no_prompt_starts_from_the_first_token(pair: Any) -> None:
    own, reference = (model.generate(max_new_tokens=NEW, do_sample=False) for model in pair)
    assert own[0, 0] == 1
    assert torch.equal(own, reference)


def test_a_prompt_may_go_on_from_a_cache(pair: Any) -> None:
    ours, ids = pair[0], tokens(2, 9)
    prefix = ours(ids[:, :6], use_cache=True).past_key_values
    assert torch.equal(
        generated(ours, ids, past_key_values=prefix, do_sample=False), generated(ours, ids, do_sample=False)
    )


def test_prompts_read_in_chunks_give_the_same_sequence(pair: Any) -> None:
    ids = tokens(2, 9)
    chunked = generated(pair[0], ids, do_sample=False, prefill_chunk_size=4)
    assert torch.equal(chunked, generated(pair[0], ids, do_sample=False))


def test_looked_up_drafts_give_the_greedy_sequence(pair: Any) -> None:
    ids = tokens(1, 4).repeat(1, 3)
    drafted = generated(pair[0], ids, do_sample=False, prompt_lookup_num_tokens=3)
    assert torch.equal(drafted, generated(pair[0], ids, do_sample=False))


def test_generation_ends_at_the_end_token(pair: Any) -> None:
    ours, ids = pair[0], tokens(1, 5)
    free = generated(ours, ids, do_sample=False)[0, 5:].tolist()
    end = free[3]
    ended = generated(ours, ids, do_sample=False, eos_token_id=end)[0, 5:].tolist()
    assert ended == free[: free.index(end) + 1]


@caches
@pytest.mark.parametrize("beams", [1, 2], ids=["greedy", "beams"])
def test_generation_stops_at_the_last_position(pair: Any, beams: int, cache: dict[str, Any]) -> None:
    ours, ids = pair[0], tokens(2, 28)
    out = generated(ours, ids, max_new_tokens=100, do_sample=False, num_beams=beams, **cache)
    assert out.shape == (2, ours.config.n_positions)


def test_own_stopping_criteria_still_hold(pair: Any) -> None:
    class AtSeven:
        """Stop at seven tokens."""

        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 7)

    criteria = StoppingCriteriaList([AtSeven()])
    assert generated(pair[0], tokens(2, 5), do_sample=False, stopping_criteria=criteria).shape == (2, 7)
    assert len(criteria) == 1


@pytest.mark.parametrize("name", ["ranks", "limits", "document_ids", "attention_bias"])
def test_arguments_of_one_length_are_refused(pair: Any, name: str) -> None:
    ids = tokens(2, 5)
    with pytest.raises(ValueError, match=f"^{name}: not taken by generate") as raised:
        generated(pair[0], ids, **{name: torch.zeros_like(ids)})
    assert len(str(raised.value)) <= 300
