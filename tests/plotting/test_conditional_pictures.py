"""Pictures of conditionals: each cell is what the network gives, in its colour, and nothing lies over another."""

import itertools
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from transformers import GPT2LMHeadModel

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, Conditional, plot_conditionals
from arbprob_hf.plotting.conditionals import GIVEN, UNSEEN

TEXT = "Return the number of items."
LENGTH = 7  # with the token that starts the text


def cells(figure: Figure) -> list[tuple[str, tuple[float, ...]]]:
    """Number and colour of each cell, line by line, strip by strip."""
    axes = figure.axes[0]
    boxes = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    found = []
    for box in boxes:
        x, y = (float(part) for part in box.get_center())
        label = next(text for text in axes.texts if text.get_position() == pytest.approx((x, y)))
        found.append((label.get_text(), box.get_facecolor()))
    return found


def numbers(figure: Figure) -> np.ndarray:
    return np.array([float(label) for label, _ in cells(figure)])


def input_ids(tokenizer: Any) -> torch.Tensor:
    return torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(TEXT)]])


def test_from_left_to_right_the_numbers_are_those_of_gpt2(
    network: ArbProbForCausalLM, theirs: GPT2LMHeadModel, tokenizer: Any
) -> None:
    ids = input_ids(tokenizer)
    with torch.no_grad():
        logits = theirs(ids).logits[0, :-1]
    expected = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].numpy()
    np.testing.assert_allclose(numbers(plot_conditionals(network, tokenizer, TEXT))[: LENGTH - 1], expected, atol=0.06)


def test_given_the_rest_each_token_is_asked_by_itself(network: ArbProbForCausalLM, tokenizer: Any) -> None:
    ids = input_ids(tokenizer)
    expected = []
    for at in range(1, LENGTH):
        given = torch.arange(LENGTH)[None] != at
        with torch.no_grad():
            expected.append(float(network.marginals(ids, Conditional(given, ~given))[0, at, ids[0, at]]))
    drawn = numbers(plot_conditionals(network, tokenizer, TEXT))
    np.testing.assert_allclose(drawn[LENGTH - 1 :], expected, atol=0.06)
    assert abs(drawn[: LENGTH - 1] - expected).max() > 0.2


def test_the_colour_is_that_of_the_number_and_chance_is_the_darkest(
    network: ArbProbForCausalLM, tokenizer: Any
) -> None:
    worst = math.log(network.config.vocab_size)
    colours = matplotlib.colormaps["cividis"]
    for label, colour in cells(plot_conditionals(network, tokenizer, TEXT)):
        place = min(max(1 + float(label) / worst, 0), 1)
        assert colour == pytest.approx(colours(place), abs=0.02)


def test_questions_of_ones_own_are_strips(network: ArbProbForCausalLM, tokenizer: Any) -> None:
    ask = Conditional(given=[0, 1, 6], target=[3, 4])
    figure = plot_conditionals(network, tokenizer, TEXT, ask={"the middle": ask})
    with torch.no_grad():
        expected = network.log_prob(input_ids(tokenizer), ask)[0]
    found = cells(figure)
    assert [label for label, _ in found[:2]] == ["given", ""]
    assert [colour for _, colour in found[:2]] == [to_rgba(GIVEN), to_rgba(UNSEEN)]
    assert [float(label) for label, _ in found[2:4]] == pytest.approx(expected[3:5].tolist(), abs=0.06)
    assert [label for label, _ in found[4:]] == ["", "given"]
    assert figure.get_suptitle() == f"log P of each token in nats; mean: the middle {float(expected.sum()) / 2:.2f}"
    assert "the middle" in [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize(
    "text", [TEXT, "a\tb $x$\n    \n" * 7, "un" * 30 + " " + " ".join("abc" * 9)], ids=["short", "odd", "long"]
)
def test_nothing_lies_over_another_or_outside(text: str, network: ArbProbForCausalLM, tokenizer: Any) -> None:
    figure = plot_conditionals(network, tokenizer, text, ask={"a question with a very long name": Conditional([0])})
    figure.canvas.draw()
    boxes = [one.get_window_extent() for one in figure.axes[0].texts if one.get_text()]
    for first, second in itertools.combinations(boxes, 2):
        # descenders of a line may touch the box of the next, which is drawn with some space around
        assert not (
            min(first.x1, second.x1) - max(first.x0, second.x0) > 1
            and min(first.y1, second.y1) - max(first.y0, second.y0) > 1
        )
    assert min(box.x0 for box in boxes) >= 0
    assert max(box.x1 for box in boxes) <= figure.bbox.x1
    count = len(tokenizer.encode(text))
    assert len(figure.axes[0].patches) == count


def test_a_long_text_is_asked_in_parts_with_the_same_numbers(
    network: ArbProbForCausalLM, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = numbers(plot_conditionals(network, tokenizer, TEXT))
    monkeypatch.setattr("arbprob_hf.plotting.conditionals.MOST_SLOTS", 2 * LENGTH)
    np.testing.assert_allclose(numbers(plot_conditionals(network, tokenizer, TEXT)), whole, atol=0.11)


def test_the_layout_of_marginals_reads_from_left_to_right_too(network: ArbProbForCausalLM, tokenizer: Any) -> None:
    ids = input_ids(tokenizer)
    drawn = numbers(plot_conditionals(network, tokenizer, TEXT, layout="masked"))
    for at in (1, 4):
        with torch.no_grad():
            question = Conditional(list(range(at)), [at])
            expected = float(network.marginals(ids, question, layout="masked")[0, at, ids[0, at]])
        assert drawn[at - 1] == pytest.approx(expected, abs=0.06)


def test_a_network_that_trains_is_asked_without_dropout_and_goes_on(
    network: ArbProbForCausalLM, tokenizer: Any
) -> None:
    quiet = numbers(plot_conditionals(network, tokenizer, TEXT))
    network.train()
    try:
        np.testing.assert_array_equal(numbers(plot_conditionals(network, tokenizer, TEXT)), quiet)
        assert network.training
    finally:
        network.eval()


def test_it_is_written_whole(network: ArbProbForCausalLM, tokenizer: Any, tmp_path: Path) -> None:
    figure = plot_conditionals(network, tokenizer, TEXT, title="mine", path=tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert figure.get_suptitle() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "ask": ({"ask": Conditional([0])}, TypeError, r"ask: expected questions by name, such as \{'middle'"),
    "name": ({"ask": {0: Conditional([0])}}, TypeError, r"ask: expected questions by name"),
    "no_question": ({"ask": {}}, ValueError, r"ask: expected at least one question, got none"),
    "outside": ({"ask": {"x": Conditional([0], [9])}}, ValueError, r"target: .*9"),
    "layout": ({"layout": "sigma"}, ValueError, r"layout: sigma needs an embedding of target positions"),
    "path": ({"path": Path("x.gif")}, ValueError, r"path: expected a name that ends in .png or .svg, got 'x.gif'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_reported(name: str, network: ArbProbForCausalLM, tokenizer: Any) -> None:
    arguments, kind, message = WRONG[name]
    with pytest.raises(kind, match=message) as told:
        plot_conditionals(network, tokenizer, TEXT, **arguments)
    assert "\n" not in str(told.value)


def test_a_network_that_only_continues_texts_has_one_strip(tokenizer: Any) -> None:
    plain = ArbProbForCausalLM(ArbProbConfig(n_embd=8, n_layer=1, n_head=1, layout="causal"))
    figure = plot_conditionals(plain, tokenizer, TEXT)
    assert len(cells(figure)) == LENGTH - 1
    assert "given the rest" not in figure.get_suptitle()
