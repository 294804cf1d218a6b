"""The head that finds an answer in a text: GPT-2's numbers, through AutoModelForQuestionAnswering."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, GPT2Config, GPT2ForQuestionAnswering

from arbprob_hf import ArbProbForQuestionAnswering
from tests.clients.micro import SIZES, tokens
from tests.networks import far, randomised

SPAN = {"start_positions": torch.tensor([0, 5]), "end_positions": torch.tensor([3, 11])}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """Ours, read from GPT-2's checkpoint; theirs; and the checkpoint of ours."""
    root = tmp_path_factory.mktemp("answers")
    theirs = randomised(GPT2ForQuestionAnswering(GPT2Config(**SIZES))).eval()
    theirs.save_pretrained(root / "theirs")
    ours, found = ArbProbForQuestionAnswering.from_pretrained(root / "theirs", output_loading_info=True)
    assert {name: keys for name, keys in found.items() if keys} == {}
    ours.save_pretrained(root / "ours")
    return ours.eval(), theirs, root / "ours"


def scores(model: Any, **options: Any) -> torch.Tensor:
    """Both scores of every token (2, B, T)."""
    with torch.no_grad():
        out = model(tokens(), **options)
    return torch.stack([out.start_logits, out.end_logits])


def test_scores_and_loss_are_those_of_gpt2(pair: tuple[Any, Any, Path]) -> None:
    ours, theirs, _ = pair
    assert far(scores(ours), scores(theirs)) < 1e-4
    assert ours(tokens(), **SPAN).loss.item() == pytest.approx(theirs(tokens(), **SPAN).loss.item(), rel=1e-5)


def test_masks_go_through_the_head(pair: tuple[Any, Any, Path]) -> None:
    ours, _, folder = pair
    windowed = ArbProbForQuestionAnswering.from_pretrained(folder, mask="causal & window(2)")
    assert far(scores(ours, mask="causal & window(2)"), scores(windowed)) < 1e-5
    assert far(scores(ours), scores(windowed)) > 0.1


def test_the_head_comes_back_with_its_own_code_and_numbers(pair: tuple[Any, Any, Path]) -> None:
    ours, _, folder = pair
    loaded = AutoModelForQuestionAnswering.from_pretrained(folder, trust_remote_code=True)
    assert type(loaded).__module__.startswith("transformers_modules.")
    assert far(scores(loaded), scores(ours)) == 0
    assert loaded.get_input_embeddings() is loaded.transformer.wte


def test_the_head_goes_on_a_language_model_and_takes_new_tokens(folders: dict[str, Path]) -> None:
    model = AutoModelForQuestionAnswering.from_pretrained(folders["ours"], trust_remote_code=True)
    model.resize_token_embeddings(300)
    assert model.transformer.wte.weight.shape == (300, SIZES["n_embd"])
    model(tokens(), **SPAN).loss.backward()
    assert model.qa_outputs.weight.grad.abs().sum() > 0
