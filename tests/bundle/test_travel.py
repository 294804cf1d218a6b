"""A checkpoint works where the package is not: loaded by every Auto class, it gives the numbers it gave at home."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from arbprob_hf import ArbProbForCausalLM
from arbprob_hf.model.checkpoint_code import bundle
from tests.bundle import traveller
from tests.bundle.travel_helpers import Journey
from tests.tables import quick

PLACES = ["folder", "hub", "again", "twice"]
WAYS = ["greedy", "uncached", "static", "sampled", "beams", "several beams", "masked", "prompt mask"]
PASSES = ["logits", "padded logits", "causal logits", "3-D logits", "rank logits", "loss"]
ANSWERS = ["log_prob", "several log_prob", "marginals", "sampled log_prob", "filled in"]


@pytest.fixture(params=quick(PLACES, ["folder", "hub"]))
def journey(request: pytest.FixtureRequest, journeys: Callable[[str], Journey]) -> Journey:
    return journeys(request.param)


@pytest.fixture(scope="session")
def at_home(model: ArbProbForCausalLM, journeys: Callable[[str], Journey]) -> dict[str, torch.Tensor]:
    """What the model at home makes of the same tokens."""
    tensors = journeys("folder").tensors
    batch = {name: tensors[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        base = {"base": model.transformer(batch["input_ids"]).last_hidden_state}
    return {**traveller.logits(model, batch), **traveller.generated(model, batch), **base}


def test_the_package_cannot_be_imported_there(journey: Journey) -> None:
    assert journey.facts["importable"] is False
    assert journey.facts["modules of the package"] == []
    assert journey.facts["module"] == "transformers_modules"
    assert journey.facts["left in the folder"] == []


def test_every_auto_class_finds_its_own(journey: Journey) -> None:
    config, model, base, fresh, tokenizer = journey.facts["classes"]
    assert (config, model, base) == ("ArbProbConfig", "ArbProbForCausalLM", "ArbProbModel")
    assert fresh == "ArbProbForCausalLM"
    assert tokenizer.startswith("GPT2Tokenizer")


def test_nothing_is_missing_or_unexpected(journey: Journey) -> None:
    assert {name: keys for name, keys in journey.facts["loading"].items() if keys} == {}
    assert journey.facts["tied"] is True


def test_a_downloaded_class_is_one_whose_labels_trainer_shifts(journey: Journey) -> None:
    assert journey.facts["labels are shifted"] is True


def test_the_mask_of_the_configuration_travels_and_applies(journey: Journey, model: ArbProbForCausalLM) -> None:
    assert (journey.facts["model type"], journey.facts["mask"]) == ("arbprob", model.config.mask)
    assert not torch.allclose(journey.tensors["logits"], journey.tensors["causal logits"], atol=1e-2)


@pytest.mark.parametrize("name", [*PASSES, "base"])
def test_a_pass_gives_the_bits_it_gives_at_home(journey: Journey, at_home: Any, name: str) -> None:
    assert torch.equal(journey.tensors[name], at_home[name])


@pytest.mark.parametrize("name", ANSWERS)
def test_questions_have_the_answers_they_have_at_home(journey: Journey, at_home: Any, name: str) -> None:
    assert torch.equal(journey.tensors[name], at_home[name])


def test_blanks_are_filled_and_scored_alike_everywhere(journey: Journey, journeys: Any) -> None:
    text, nats, scores = journey.facts["infilled"]
    assert text.startswith("The")
    assert nats < 0
    assert len(scores) == 2
    assert journey.facts["infilled"] == journeys("folder").facts["infilled"]


@pytest.mark.parametrize("way", WAYS)
def test_generation_gives_what_it_gives_at_home(journey: Journey, at_home: Any, way: str) -> None:
    assert torch.equal(journey.tensors[way], at_home[way])


def test_the_prompts_are_left_padded_and_the_ways_differ(at_home: dict[str, torch.Tensor], journeys: Any) -> None:
    keep = journeys("folder").tensors["attention_mask"]
    assert (keep[0, 0], keep[0, -1], keep[1].min()) == (0, 1, 1)
    assert torch.equal(at_home["greedy"], at_home["static"])
    assert torch.equal(at_home["greedy"], at_home["uncached"])
    assert not torch.equal(at_home["greedy"], at_home["sampled"])
    assert not torch.equal(at_home["greedy"], at_home["masked"])


def test_the_pipeline_writes_what_generate_writes(journey: Journey, journeys: Any) -> None:
    assert journey.facts["text"].startswith(traveller.PROMPTS[0])
    assert len(journey.facts["text"]) > len(traveller.PROMPTS[0])
    assert journey.facts["text"] == journey.facts["decoded"] == journeys("folder").facts["text"]


def test_a_checkpoint_carries_everything_and_saves_it_again(checkpoint: Path, journey: Journey) -> None:
    names = {path.name for path in checkpoint.iterdir()}
    needed = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    sources = {path.name for path in checkpoint.glob("*.py")}
    assert needed | sources <= names
    assert sources == set(bundle())
    assert set(journey.facts["saved files"]) == names


@pytest.mark.parametrize("place", quick(["again", "twice"], ["again"]))
def test_what_is_saved_again_holds_the_same_code_and_config(
    place: str, checkpoint: Path, journeys: Callable[[str], Journey]
) -> None:
    folder = journeys({"again": "hub", "twice": "again"}[place]).saved_again
    for source in checkpoint.glob("*.py"):
        assert (folder / source.name).read_bytes() == source.read_bytes()
    assert (folder / "config.json").read_text() == (checkpoint / "config.json").read_text()
    assert (folder / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
