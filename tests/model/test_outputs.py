"""What else a forward pass gives or takes: kept logits, hidden states, attention weights, embeddings, positions."""

import pytest
import torch

from arbprob_hf import Mask
from tests.model.twins import ours_alone, tokens, twins
from tests.networks import far

backends = pytest.mark.parametrize("backend", ["eager", "sdpa"])


@pytest.mark.parametrize("count", [1, 3, 12])
def test_logits_to_keep_gives_the_last_ones(count: int) -> None:
    model, ids = ours_alone(), tokens()
    kept = model(ids, logits_to_keep=count).logits
    assert kept.shape == (2, count, 101)
    assert far(kept, model(ids).logits[:, -count:]) <= 1e-12


def test_logits_to_keep_takes_indices() -> None:
    model, ids = ours_alone(), tokens()
    chosen = torch.tensor([0, 7, 3])
    assert far(model(ids, logits_to_keep=chosen).logits, model(ids).logits[:, chosen]) <= 1e-12


@backends
def test_hidden_states_are_gpt2s(backend: str) -> None:
    ours, theirs = twins(backend=backend)
    ids = tokens()
    own, reference = (model(ids, output_hidden_states=True).hidden_states for model in (ours, theirs))
    assert len(own) == len(reference) == 4
    assert max(far(a, b) for a, b in zip(own, reference, strict=True)) <= 1e-10


@backends
def test_attention_weights_are_eager_gpt2s_whatever_the_model_runs_on(backend: str) -> None:
    ours, _ = twins(backend=backend)
    _, theirs = twins(backend="eager")
    ids = tokens()
    own, reference = (model(ids, output_attentions=True).attentions for model in (ours, theirs))
    assert len(own) == len(reference) == 3
    assert max(far(a, b) for a, b in zip(own, reference, strict=True)) <= 1e-10


@backends
def test_asking_for_attention_weights_changes_no_logit(backend: str) -> None:
    model, ids = ours_alone(backend=backend), tokens()
    assert far(model(ids, output_attentions=True).logits, model(ids).logits) <= 1e-10


def test_attention_weights_are_zero_where_the_mask_forbids_and_sum_to_one() -> None:
    model, ids = ours_alone(), tokens()
    allowed = Mask.parse("causal & window(3)").dense(12)[0, 0]
    for weights in model(ids, mask="causal & window(3)", output_attentions=True).attentions:
        assert torch.equal(weights > 0, allowed.expand_as(weights))
        assert far(weights.sum(-1), torch.ones(2, 3, 12)) <= 1e-12


def test_the_configuration_can_ask_for_hidden_states() -> None:
    model, ids = ours_alone(output_hidden_states=True), tokens()
    assert len(model(ids).hidden_states) == 4


def test_the_configuration_of_an_eager_model_can_ask_for_attention_weights() -> None:
    model, ids = ours_alone(backend="eager", output_attentions=True, attn_implementation="eager"), tokens()
    assert [w.shape for w in model(ids).attentions] == [(2, 3, 12, 12)] * 3


def test_nothing_is_recorded_unless_asked_for() -> None:
    out = ours_alone()(tokens())
    assert out.hidden_states is None
    assert out.attentions is None


def test_embeddings_may_be_given_in_place_of_tokens() -> None:
    ours, theirs = twins()
    ids = tokens()
    embeds = ours.get_input_embeddings()(ids)
    assert torch.equal(ours(inputs_embeds=embeds).logits, ours(ids).logits)
    assert far(ours(inputs_embeds=embeds).logits, theirs(inputs_embeds=embeds).logits) <= 1e-10


def test_gradients_reach_given_embeddings() -> None:
    ours, theirs = twins()
    ids = tokens()
    gradients = []
    for model in (ours, theirs):
        embeds = ours.transformer.wte(ids).detach().requires_grad_()
        logits = model(inputs_embeds=embeds).logits
        logits.square().mean().backward()
        gradients.append(embeds.grad)
    assert far(*gradients) <= 1e-10


@pytest.mark.parametrize("rows", [1, 2])
def test_position_ids_are_gpt2s(rows: int) -> None:
    ours, theirs = twins()
    ids = tokens()
    positions = (torch.arange(12) * 7 % 31)[None].expand(rows, -1)
    assert far(ours(ids, position_ids=positions).logits, theirs(ids, position_ids=positions).logits) <= 1e-10
    assert far(ours(ids, position_ids=positions).logits, ours(ids).logits) > 1e-3


def test_int32_tokens_and_positions_give_the_same_logits() -> None:
    model, ids = ours_alone(), tokens()
    positions = torch.arange(12)[None]
    assert torch.equal(model(ids.int(), position_ids=positions.int()).logits, model(ids).logits)


@pytest.mark.parametrize("mask", ["causal", "causal & window(4)"])
def test_an_attention_bias_is_added_to_the_scores(mask: str) -> None:
    bias = torch.randn(1, 3, 12, 12, dtype=torch.float64)
    ids = tokens()
    eager, sdpa = (ours_alone(backend=backend, mask=mask) for backend in ("eager", "sdpa"))
    plain = sdpa(ids).logits
    assert far(eager(ids, attention_bias=bias).logits, sdpa(ids, attention_bias=bias).logits) <= 1e-10
    assert far(sdpa(ids, attention_bias=bias).logits, plain) > 1e-3
    # a softmax does not see what is added to all of a row
    assert far(sdpa(ids, attention_bias=bias[..., :1]).logits, plain) <= 1e-10


def test_a_tuple_is_given_when_asked_for() -> None:
    model, ids = ours_alone(), tokens()
    out = model(ids, use_cache=False, return_dict=False)
    assert isinstance(out, tuple)
    assert torch.equal(out[0], model(ids).logits)
