"""What is said of blanks: against the network's own forward pass and log_prob, and its refusals."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from arbprob_hf import Conditional
from arbprob_hf.demo.network import Network
from arbprob_hf.demo.passage import Passage, read_passage, toggled
from arbprob_hf.demo.questions import Distribution, ask, infills, layouts
from arbprob_hf.model.questions.sampling import METHODS
from tests.demo.micro_networks import micro_network

TEXT = "Return the number of items in the list."


def blanked(network: Network, *positions: int, text: str = TEXT) -> Passage:
    """A text with blanks clicked."""
    passage = read_passage(text, network)
    for position in positions:
        passage = toggled(passage, position, network)
    return passage


@torch.no_grad()
def by_forward(network: Network, passage: Passage, position: int, given: Sequence[int]) -> Tensor:
    """P of every token at a position, (V,): the given tokens all see one another, and the one before it predicts."""
    ids = torch.tensor([[passage.tokens[one] for one in given]])
    logits = network.model(ids, position_ids=torch.tensor([list(given)]), mask="full").logits
    return logits[0, list(given).index(position - 1)].softmax(0)


def shares(found: Distribution, side: str) -> list[float]:
    return [getattr(one, side) for one in found.likely]


@pytest.fixture(scope="module")
def by_text(network: Network) -> dict[str, int]:
    """Each token by its text; a few that are less than a character share one."""
    return {network.decode([token]): token for token in range(50257)}


def expected(by_text: dict[str, int], found: Distribution, probabilities: Tensor) -> list[float]:
    """The same tokens' probabilities, found by their texts."""
    return [probabilities[by_text[one.text]].item() for one in found.likely]


def test_distributions_are_those_of_a_forward_pass_over_the_given_tokens(
    network: Network, by_text: dict[str, int]
) -> None:
    passage = blanked(network, 3, 5)
    answer = ask(network, passage, layout="two_stream", top=4)
    assert [one.position for one in answer.distributions] == [3, 5]
    for found in answer.distributions:
        both = by_forward(network, passage, found.position, [0, 1, 2, 4, 6, 7, 8, 9])
        left = by_forward(network, passage, found.position, [one for one in (0, 1, 2, 4) if one < found.position])
        assert shares(found, "both_sides") == pytest.approx(expected(by_text, found, both), rel=1e-4)
        assert shares(found, "left_only") == pytest.approx(expected(by_text, found, left), rel=1e-4)
        assert shares(found, "both_sides")[:4] == pytest.approx(both.topk(4).values.tolist(), rel=1e-4)


def test_the_original_token_is_told_behind_the_likeliest(network: Network) -> None:
    (found,) = ask(network, blanked(network, 3), layout="two_stream", top=3).distributions
    assert [one.is_original for one in found.likely] == [False, False, False, True]
    assert found.likely[-1].text == " number"


def test_tokens_on_the_right_change_both_sides_alone(network: Network) -> None:
    first, second = (
        ask(network, blanked(network, 3, text=text), layout="two_stream", top=20).distributions[0]
        for text in ("Return the number of items", "Return the number in list")
    )
    left = [{one.text: one.left_only for one in found.likely}[" number"] for found in (first, second)]
    both = [{one.text: one.both_sides for one in found.likely}[" number"] for found in (first, second)]
    assert left[0] == pytest.approx(left[1], rel=1e-5)
    assert both[0] != pytest.approx(both[1], rel=1e-2)


@pytest.mark.parametrize("layout", ["two_stream", "prefix", "sigma"])
def test_the_joint_is_what_log_prob_says(layout: str, network: Network) -> None:
    passage = blanked(network, 3, 4, 8)
    answer = ask(network, passage, layout=layout)
    nats = network.model.log_prob(
        torch.tensor([passage.tokens]), Conditional([0, 1, 2, 5, 6, 7, 9], [3, 4, 8]), layout=layout
    )
    assert answer.log_probs == pytest.approx(nats[0, [3, 4, 8]].tolist(), abs=1e-5)


@pytest.mark.parametrize("layout", ["two_stream", "prefix", "sigma", "masked"])
def test_one_blank_has_the_same_probability_by_itself_and_jointly(layout: str, network: Network) -> None:
    answer = ask(network, blanked(network, 5), layout=layout)
    assert answer.log_probs is not None
    alone = answer.distributions[0].likely[-1]
    assert alone.is_original
    assert torch.tensor(alone.both_sides).log().item() == pytest.approx(sum(answer.log_probs), abs=1e-4)


@pytest.mark.parametrize("layout", ["two_stream", "prefix", "sigma", "masked"])
def test_what_a_blank_hides_has_no_influence(layout: str, network: Network) -> None:
    clicked = ask(network, blanked(network, 3, 5), layout=layout, top=3)
    typed = ask(network, read_passage("Return the [M] of [M] in the list.", network), layout=layout, top=3)
    assert typed.log_probs is None
    for one, other in zip(clicked.distributions, typed.distributions, strict=True):
        assert one.likely[:3] == pytest.approx(other.likely)
        assert not any(likely.is_original for likely in other.likely)


def test_a_layout_without_a_joint_says_so_beside_its_marginals(network: Network) -> None:
    answer = ask(network, blanked(network, 3, 5), layout="masked")
    assert len(answer.distributions) == 2
    assert answer.log_probs is None
    assert any("layout: masked has no joint probability of several targets" in one for one in answer.remarks)


def test_what_weakens_an_answer_is_remarked(network: Network) -> None:
    plain = micro_network(mask_token=False)
    (remark,) = ask(plain, blanked(plain, 3), layout="two_stream").remarks
    assert remark.startswith("This network has no [MASK] vector")
    (remark,) = ask(network, blanked(network, 3), layout="prefix").remarks
    assert remark == "This network was trained in the layout two_stream, not in prefix."
    assert ask(network, blanked(network, 3), layout="two_stream").remarks == ()


def test_only_the_first_twelve_of_many_blanks_get_a_distribution(network: Network) -> None:
    answer = ask(network, read_passage("The [M:14] end", network), layout="two_stream")
    assert len(answer.distributions) == 12
    assert answer.remarks == ("Distributions are shown for the first 12 of 14 blanks.",)


@pytest.mark.parametrize("method", METHODS)
def test_infills_keep_the_given_tokens_and_have_the_probability_that_is_scored(method: str, network: Network) -> None:
    passage = blanked(network, 3, 4, 8)
    found, passes = infills(network, passage, layout="two_stream", samples=3, method=method, seed=7)
    assert len(found) == 3
    # all rows together: never more passes than targets
    assert 1 <= passes <= 3 * 3
    assert [one.log_prob for one in found] == sorted((one.log_prob for one in found), reverse=True)
    for one in found:
        assert [text for text, is_blank in one.pieces if not is_blank] == ["Return the", " items in the", "."]
        assert str(one).startswith("Return the")


def test_infills_score_as_log_prob_scores_them(network: Network, by_text: dict[str, int]) -> None:
    passage = blanked(network, 3)
    found, _ = infills(network, passage, layout="two_stream", samples=4)
    for one in found:
        token = by_text[one.pieces[1][0]]
        ids = torch.tensor([[*passage.tokens[:3], token, *passage.tokens[4:]]])
        nats = network.model.log_prob(ids, Conditional([0, 1, 2, 4, 5, 6, 7, 8, 9], [3]))
        assert one.log_prob == pytest.approx(nats.sum().item(), abs=1e-4)


def test_a_seed_decides_the_infills(network: Network) -> None:
    def texts(seed: int) -> list[str]:
        passage = blanked(network, 3, 5)
        return [str(one) for one in infills(network, passage, layout="two_stream", samples=4, seed=seed)[0]]

    first = texts(1)
    torch.manual_seed(99)
    assert texts(1) == first
    assert texts(2) != first


def test_no_temperature_takes_the_likeliest_token(network: Network) -> None:
    passage = blanked(network, 3)
    likeliest = ask(network, passage, layout="two_stream").distributions[0].likely[0].text
    found, _ = infills(network, passage, layout="two_stream", samples=3, temperature=0.0)
    assert [one.pieces[1][0] for one in found] == [likeliest] * 3


def test_a_network_is_asked_in_the_layouts_it_has_its_own_first(network: Network) -> None:
    assert layouts(network.model.config) == ["two_stream", "prefix", "sigma", "masked", "causal"]
    assert layouts(micro_network(layout="prefix").model.config) == ["prefix", "two_stream", "masked", "causal"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(samples=0), "samples: expected an integer from 1 to 16, got 0"),
        (dict(samples=17), "samples: expected an integer from 1 to 16, got 17"),
        (dict(seed=-1), r"seed: expected an integer from 0 to 9223372036854775807, got -1"),
        (dict(seed=None), "seed: expected an integer from 0 to .*, got None"),
        (dict(temperature=-1.0), "temperature: expected"),
        (dict(method="guess"), "method: expected"),
        (dict(layout="masked"), "layout: masked has no joint probability to sample from; use another layout"),
        (dict(layout="causal"), "layout: causal only continues a text"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(f"{k}={v}" for k, v in value.items()),
)
def test_samples_that_cannot_be_are_refused(options: dict[str, object], message: str, network: Network) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        infills(network, blanked(network, 3), **{"layout": "two_stream", **options})


def test_a_text_without_blanks_is_no_question(network: Network) -> None:
    passage = read_passage(TEXT, network)
    with pytest.raises(ValueError, match=r"text: has no blanks; click a token, or write \[M\] for one token"):
        ask(network, passage, layout="two_stream")
    with pytest.raises(ValueError, match="text: has no blanks"):
        infills(network, passage, layout="two_stream")


def test_more_rows_than_fit_are_refused(network: Network) -> None:
    with pytest.raises(ValueError, match="top: expected an integer from 1 to 20, got 21"):
        ask(network, blanked(network, 3), layout="two_stream", top=21)


def test_a_network_under_another_mask_refuses_questions() -> None:
    windowed = micro_network(mask="causal & window(4)")
    with pytest.raises(ValueError, match="config.mask: questions need a network whose mask is causal"):
        ask(windowed, blanked(windowed, 3), layout="two_stream")
