"""Slips of the pen are told what to write instead."""

import inspect
from collections.abc import Callable

import pytest
import torch

from arbprob_hf import ArbProbConfig, Mask, causal, documents, heads, order, plot_mask, tree, window
from arbprob_hf.model.masks.patterns import block_diffusion
from tests.masks.oracles import micro, random_ids

square = torch.ones(3, 3)
SLIPS: dict[str, tuple[Callable[[], object], str]] = {
    "a class first": (lambda: causal & window(3), r"^causal: a pattern is called: write causal\(\)$"),
    "a class second": (lambda: window(3) & causal, r"^causal: a pattern is called: write causal\(\)$"),
    "two classes": (lambda: causal & window, "unsupported operand"),
    "a class before |": (lambda: window | causal(), r"^window: a pattern is called: write window\(size\)$"),
    "a class after |": (lambda: causal() | window, r"^window: a pattern is called: write window\(size\)$"),
    "a class denied": (lambda: ~block_diffusion, "bad operand type for unary ~"),
    "a text second": (lambda: causal() & "window(3)", r"got str; write Mask.parse\('window\(3\)'\)$"),
    "a text first": (lambda: "causal" | window(3), r"got str; write Mask.parse\('causal'\)$"),
    "a tensor second": (lambda: causal() & square, r"got Tensor; write Mask.of\(tensor\)$"),
    "a tensor first": (lambda: square.bool() | causal(), r"got Tensor; write Mask.of\(tensor\)$"),
    "a number": (lambda: causal() & 3, "got int; masks are joined with masks$"),
    "no size": (lambda: window(), "missing 1 required positional argument: 'size'$"),
    "a size too few": (lambda: block_diffusion(3), "missing 1 required positional argument: 'size'$"),
    "a size too many": (lambda: causal(3), "Causal.. takes no arguments$|takes 1 positional argument"),
    "a list of documents": (lambda: documents([0, 0, 1]), r"^documents\(ids\): .* wrap it in torch.tensor\(...\)$"),
    "a list of ranks": (lambda: order([0, 1]), r"^order\(rank\): .* wrap it in torch.tensor\(...\)$"),
    "a list of parents": (lambda: tree([-1, 0]), r"^tree\(parents\): .* wrap it in torch.tensor\(...\)$"),
    "texts for heads": (lambda: heads("causal", "window(3)"), r'got str; write Mask.parse\("..."\)$'),
    "a list for heads": (lambda: heads([causal()]), r"got list; write heads\(\*masks\)$"),
    "a class for heads": (lambda: heads(causal, window(2)), r"write causal\(\)$"),
    "a Mask in a config": (lambda: ArbProbConfig(mask=causal() & window(2)), r"window\(2\); write str\(mask\)$"),
    "a class in a config": (lambda: ArbProbConfig(mask=causal), "Causal'>$"),
    "a tensor in a config": (lambda: ArbProbConfig(mask=causal() & Mask.of(square)), "passed to forward, not kept"),
    "None in a config": (lambda: ArbProbConfig(mask=None), "got None$"),
    "a dict in a config": (lambda: ArbProbConfig(mask={}), "got {}$"),
    "a list in a list": (lambda: ArbProbConfig(mask=[["causal"]]), r"got \[\['causal'\]\]$"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_told_what_to_write(slip: str) -> None:
    make, message = SLIPS[slip]
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("use", ["forward", "attention_mask", "generate", "plot_mask"])
def test_a_pattern_that_was_not_called_is_told_so_wherever_a_mask_goes(use: str) -> None:
    model, ids = micro(), random_ids(2, 6)
    calls: dict[str, Callable[[], object]] = {
        "forward": lambda: model(ids, mask=window),
        "attention_mask": lambda: model(ids, attention_mask=window),
        "generate": lambda: model.generate(ids, mask=window, max_new_tokens=1),
        "plot_mask": lambda: plot_mask(window, 6),
    }
    with pytest.raises(TypeError, match=r"got the pattern window; a pattern is called: write window\(size\)$"):
        calls[use]()


def test_an_own_error_of_a_pattern_stays_its_own() -> None:
    with pytest.raises(TypeError, match=r"^window\(size\): expected an integer, got '3' \(str\)$"):
        window("3")
    with pytest.raises(TypeError, match="abstract"):
        Mask()


def test_classes_still_make_annotations() -> None:
    assert isinstance(causal(), causal | None)
    assert not isinstance(causal(), None | window | str | torch.Tensor)
    assert not isinstance(causal(), torch.Tensor | window)
    assert list(inspect.signature(window).parameters) == ["size"]


def test_a_name_in_capitals_is_recognised() -> None:
    with pytest.raises(ValueError, match=r"unknown pattern 'CAUSAL' in .*; did you mean causal\?"):
        Mask.parse("CAUSAL & window(3)")


def test_a_text_may_span_lines() -> None:
    assert Mask.parse("causal &\n  (window(3)\n  | prefix(2))\n") == Mask.parse("causal & (window(3) | prefix(2))")
