"""A text read under a mask: the numbers of forward passes, and which of them are no likelihoods."""

import pytest
import torch

from arbprob_hf import Mask
from arbprob_hf.demo.masks import compare_masks, own_mask
from arbprob_hf.demo.network import Network
from tests.demo.micro_networks import micro_network

TEXT = "Return the number of items in the list."
MASKS = ["causal", "full", "blocks(4)", "causal | prefix(3)", "causal & window(2)", "window(2)", "causal & ~window(1)"]


def token_ids(network: Network) -> torch.Tensor:
    return torch.tensor([[50256, *network.tokenizer.encode(TEXT)]])


@torch.no_grad()
def test_the_models_own_numbers_are_its_next_token_log_probabilities(network: Network) -> None:
    ids = token_ids(network)
    logits = network.model(ids).logits[0, :-1].log_softmax(-1)
    own = compare_masks(network, TEXT, "full").own
    assert own.log_probs == pytest.approx(logits.gather(1, ids[0, 1:, None])[:, 0].tolist(), abs=1e-4)
    assert own.total == pytest.approx(-network.model(ids, labels=ids).loss.item() * 9, abs=1e-3)


@torch.no_grad()
def test_numbers_under_a_mask_are_those_of_the_same_mask_written_by_hand(network: Network) -> None:
    ids = token_ids(network)
    rows = [[q - 2 < k <= q or k == 0 for k in range(10)] for q in range(10)]
    logits = network.model(ids, mask=torch.tensor(rows)).logits[0, :-1].log_softmax(-1)
    found = compare_masks(network, TEXT, "causal & window(2) | sinks(1)")
    assert found.mask == "causal & window(2) | sinks(1)"
    assert found.chosen.log_probs == pytest.approx(logits.gather(1, ids[0, 1:, None])[:, 0].tolist(), abs=1e-4)
    assert found.chosen.log_probs != pytest.approx(found.own.log_probs, abs=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("mask", MASKS)
def test_numbers_are_no_likelihoods_exactly_where_later_tokens_change_the_prediction(mask: str) -> None:
    network = micro_network()
    model = network.model.double()
    ids = token_ids(network)
    states = model.transformer(ids, mask=mask).last_hidden_state[0]
    changed = []
    for token in range(1, 10):
        # the token itself and those after it become others
        other = torch.cat([ids[:, :token], (ids[:, token:] + 7) % 50257], 1)
        moved = model.transformer(other, mask=mask).last_hidden_state[0]
        changed.append(bool((moved[token - 1] - states[token - 1]).abs().max() > 1e-9))
    assert list(compare_masks(network, TEXT, mask).chosen.is_informed) == changed


def test_a_mask_of_the_models_own_may_look_ahead_too() -> None:
    odd = micro_network(mask=["causal", "blocks(2)"])
    assert own_mask(odd) == "causal, then blocks(2)"
    found = compare_masks(odd, TEXT, "causal")
    assert not any(found.chosen.is_informed)
    assert any(found.own.is_informed)
    assert found.own_mask == "causal, then blocks(2)"


def test_the_picture_names_the_tokens(network: Network) -> None:
    (axes,) = compare_masks(network, "The cat sat\n on", "causal").picture.axes[:1]
    assert [label.get_text().strip() for label in axes.get_yticklabels()] == ["start", "The", "cat", "sat", r"\n", "on"]


def test_a_long_text_is_drawn_without_names() -> None:
    long = micro_network(n_positions=80)
    figure = compare_masks(long, "word " * 70, "causal").picture
    texts = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert "word" not in " ".join(texts)


def test_a_mask_may_span_lines(network: Network) -> None:
    assert compare_masks(network, TEXT, " causal &\n window(4) ").mask == str(Mask.parse("causal & window(4)"))


@pytest.mark.parametrize(
    ("text", "mask", "message"),
    [
        ("", "causal", "text: expected a text, got nothing"),
        ("The [M] sat", "causal", r"text: expected a whole text here, got one with blanks; write words in place"),
        ("word " * 50, "causal", "text: expected at most n_positions=40 tokens"),
        ("The cat", "", "mask: cannot read ''"),
        ("The cat", "casual", "mask: unknown pattern 'casual'"),
        ("The cat", "heads(causal, full, causal)", "heads: expected one mask per head, 2 in all, got 3"),
    ],
    ids=["empty", "blank", "long", "no mask", "misspelt", "heads"],
)
def test_what_cannot_be_read_is_refused_in_a_line(text: str, mask: str, message: str, network: Network) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        compare_masks(network, text, mask)
    assert "\n" not in str(caught.value)
