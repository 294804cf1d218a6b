"""Pictures of attention: the weights are those of transformers' GPT-2, and what the mask hides is white."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from transformers import GPT2LMHeadModel

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, Mask, plot_attention
from arbprob_hf.plotting.masks import EARLIER, LATER

TEXT = "Return the number of items."
LENGTH = 7  # with the token that starts the text


def squares(figure: Figure) -> dict[str, Axes]:
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def drawn(axes: Axes) -> np.ndarray:
    """What is shown of both ramps, nan where neither is."""
    parts = [np.ma.filled(image.get_array().astype(float), np.nan) for image in axes.images]
    return np.where(np.isnan(parts[0]), parts[1], parts[0])


def their_weights(theirs: GPT2LMHeadModel, tokenizer: Any, allowed: torch.Tensor) -> np.ndarray:
    """(layers, H, T, T) under a mask that transformers takes as it is."""
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(TEXT)]])
    scores = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)
    with torch.no_grad():
        found = theirs(ids, attention_mask=scores, output_attentions=True).attentions
    return torch.cat(found).numpy()


@pytest.mark.parametrize(
    "mask",
    [None, "causal & window(3)", "prefix(4)", "heads(causal, full, causal & window(2))"],
    ids=["own", "window", "prefix", "per_head"],
)
def test_what_is_drawn_are_the_weights_of_gpt2_where_the_mask_allows(
    mask: str | None, network: ArbProbForCausalLM, theirs: GPT2LMHeadModel, tokenizer: Any
) -> None:
    figure = plot_attention(network, tokenizer, TEXT, mask=mask)
    allowed = Mask.parse(mask or "causal").dense(LENGTH)  # (1, 1 or H, T, T)
    expected = their_weights(theirs, tokenizer, allowed)
    shown = squares(figure)
    assert list(shown) == [f"layer {layer}, head {head}" for layer in range(2) for head in range(3)]
    for (layer, head), axes in zip(np.ndindex(2, 3), shown.values(), strict=True):
        here = allowed[0, head % allowed.shape[1]].numpy()
        assert (np.isnan(drawn(axes)) == ~here).all()
        np.testing.assert_allclose(drawn(axes)[here], expected[layer, head][here], atol=2e-6)


def test_a_tensor_is_a_mask_too(network: ArbProbForCausalLM, tokenizer: Any) -> None:
    allowed = torch.eye(LENGTH, dtype=torch.bool)
    (axes,) = squares(plot_attention(network, tokenizer, TEXT, mask=allowed, layer=1, head=2)).values()
    assert (drawn(axes)[allowed.numpy()] == 1).all()
    assert np.isnan(drawn(axes)).sum() == LENGTH * (LENGTH - 1)


def test_weights_on_later_keys_have_the_other_colour(network: ArbProbForCausalLM, tokenizer: Any) -> None:
    (axes,) = squares(plot_attention(network, tokenizer, TEXT, mask="full", layer=0, head=0)).values()
    earlier, later = (image.get_array().mask for image in axes.images)
    above = np.triu(np.ones((LENGTH, LENGTH), dtype=bool), 1)
    assert (earlier == above).all()
    assert (later == ~above).all()
    ends = [tuple(round(255 * part) for part in image.get_cmap()(1.0)[:3]) for image in axes.images]
    assert ends == [tuple(bytes.fromhex(colour[1:])) for colour in (EARLIER[0], LATER[0])]


def bars(figure: Figure) -> list[str]:
    return [axes.get_xlabel() for axes in figure.axes if axes.get_xlabel().startswith("weight")]


def test_a_scale_for_later_keys_is_there_only_where_some_are_seen(network: ArbProbForCausalLM, tokenizer: Any) -> None:
    assert bars(plot_attention(network, tokenizer, TEXT)) == ["weight"]
    assert bars(plot_attention(network, tokenizer, TEXT, mask="full")) == ["weight on a later key", "weight"]


def test_one_layer_or_one_head_is_drawn_by_itself(network: ArbProbForCausalLM, tokenizer: Any) -> None:
    assert list(squares(plot_attention(network, tokenizer, TEXT, layer=1))) == [
        f"layer 1, head {by}" for by in range(3)
    ]
    assert list(squares(plot_attention(network, tokenizer, TEXT, head=0))) == ["layer 0, head 0", "layer 1, head 0"]


def test_tokens_are_labels_and_the_title_is_the_mask(network: ArbProbForCausalLM, tokenizer: Any) -> None:
    figure = plot_attention(network, tokenizer, "a\nb  $x$", mask="causal & window(3)", layer=0, head=0)
    (axes,) = squares(figure).values()
    tokens = ["<|endoftext|>", "a", "\\n", "b", "\u2423", " $", "x", "$"]
    assert [label.get_text() for label in axes.get_xticklabels()] == tokens
    assert [label.get_text() for label in axes.get_yticklabels()] == tokens
    assert figure.get_suptitle() == "causal & window(3)"


@pytest.mark.parametrize(
    "arguments", [{}, {"layer": 0}, {"head": 0}, {"layer": 0, "head": 0}, {"mask": "full"}], ids=str
)
def test_labels_do_not_lie_over_one_another(
    arguments: dict[str, Any], network: ArbProbForCausalLM, tokenizer: Any
) -> None:
    figure = plot_attention(network, tokenizer, "Return the number of items in the internationalisation.", **arguments)
    figure.canvas.draw()
    for axes in squares(figure).values():
        for labels, ends in ((axes.get_xticklabels(), "x"), (axes.get_yticklabels(), "y")):
            boxes = [label.get_window_extent() for label in labels if label.get_visible() and label.get_text()]
            spans = sorted((getattr(box, f"{ends}0"), getattr(box, f"{ends}1")) for box in boxes)
            assert all(
                before[1] - after[0] < 0.4 * (before[1] - before[0]) for before, after in itertools.pairwise(spans)
            )
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    for first, second in itertools.combinations(boxes, 2):
        assert (
            min(first.x1, second.x1) - max(first.x0, second.x0) < 2
            or min(first.y1, second.y1) - max(first.y0, second.y0) < 2
        )


def test_masks_per_layer_are_each_drawn(tokenizer: Any) -> None:
    network = ArbProbForCausalLM(ArbProbConfig(n_embd=8, n_layer=2, n_head=1, mask=["causal & window(1)", "causal"]))
    first, second = squares(plot_attention(network, tokenizer, TEXT)).values()
    assert (~np.isnan(drawn(first)) == np.eye(LENGTH, dtype=bool)).all()
    assert (~np.isnan(drawn(second)) == np.tri(LENGTH, dtype=bool)).all()


def test_a_network_that_trains_is_drawn_without_dropout_and_goes_on(
    network: ArbProbForCausalLM, tokenizer: Any
) -> None:
    quiet = drawn(next(iter(squares(plot_attention(network, tokenizer, TEXT)).values())))
    network.train()
    try:
        np.testing.assert_array_equal(
            drawn(next(iter(squares(plot_attention(network, tokenizer, TEXT)).values()))), quiet
        )
        assert network.training
    finally:
        network.eval()


def test_many_heads_of_one_layer_take_several_rows(tokenizer: Any) -> None:
    network = ArbProbForCausalLM(ArbProbConfig(n_embd=12, n_layer=1, n_head=12))
    figure = plot_attention(network, tokenizer, "a", layer=0)
    assert figure.get_figwidth() < 10
    assert len({round(axes.get_position().y0, 3) for axes in squares(figure).values()}) == 3


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_it_is_written_whole(suffix: str, network: ArbProbForCausalLM, tokenizer: Any, tmp_path: Path) -> None:
    plot_attention(network, tokenizer, TEXT, layer=0, head=0, path=tmp_path / f"x{suffix}")
    (written,) = tmp_path.iterdir()
    assert written.read_bytes().startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "layer": ({"layer": 2}, ValueError, r"layer: expected an integer from 0 to 1, got 2"),
    "head": ({"head": -1}, ValueError, r"head: expected an integer from 0 to 2, got -1"),
    "head_kind": ({"head": "all"}, TypeError, r"head: expected an integer from 0 to 2, got 'all'"),
    "mask": ({"mask": "casual"}, ValueError, r"casual.*causal"),
    "shape": ({"mask": torch.ones(3, 3)}, ValueError, r"3.*7"),
    "two_masks": ({"mask": ["causal", "full"]}, TypeError, r"mask: expected one mask, got a list"),
    "path": ({"path": "x.jpg"}, ValueError, r"path: expected a name that ends in .png or .svg, got 'x.jpg'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_reported(name: str, network: ArbProbForCausalLM, tokenizer: Any) -> None:
    arguments, kind, message = WRONG[name]
    with pytest.raises(kind, match=message) as told:
        plot_attention(network, tokenizer, TEXT, **arguments)
    assert "\n" not in str(told.value)


def test_wrong_texts_and_tokenizers_are_reported(network: ArbProbForCausalLM, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"text: expected 1 to 63 tokens, got 64; shorten it"):
        plot_attention(network, tokenizer, " a" * 64)
    with pytest.raises(ValueError, match=r"text: expected 1 to 63 tokens, got 0; write something"):
        plot_attention(network, tokenizer, "")
    with pytest.raises(TypeError, match=r"text: expected a text, got list"):
        plot_attention(network, tokenizer, ["a"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"tokenizer: expected that of the network, got str; it comes before the text"):
        plot_attention(network, TEXT, tokenizer)
    with pytest.raises(TypeError, match=r"model: expected an ArbProbForCausalLM, got Linear"):
        plot_attention(torch.nn.Linear(1, 1), tokenizer, TEXT)  # type: ignore[arg-type]
    small = ArbProbForCausalLM(ArbProbConfig(n_embd=8, n_layer=1, n_head=1, vocab_size=10))
    with pytest.raises(ValueError, match=r"tokenizer: gives ids up to 50256, the network knows 10 tokens; use the tok"):
        plot_attention(small, tokenizer, TEXT)


def test_more_squares_than_a_picture_holds_are_refused(tokenizer: Any) -> None:
    many = ArbProbForCausalLM(ArbProbConfig(n_embd=10, n_layer=7, n_head=10))
    with pytest.raises(ValueError, match=r"layer, head: 7 layers of 10 heads, a picture holds 64 squares; choose one"):
        plot_attention(many, tokenizer, TEXT)
