"""Custom patterns work where neither the package nor the file that defined them is."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import set_seed

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, pattern
from arbprob_hf.model.masks.mask import PATTERNS
from tests.bundle import traveller
from tests.bundle.travel_helpers import HUB_NAME, Journey, made_once, put_in_hub_cache, saved_once, travel

MASKS = ["causal & (window(2) | travelled(3))", "heads(causal, causal & ~striped(4, 1) | window(1))"]
PASSES = ["logits", "padded logits", "causal logits", "3-D logits", "rank logits", "loss"]
ANSWERS = ["log_prob", "several log_prob", "marginals", "sampled log_prob", "filled in"]
WAYS = ["greedy", "uncached", "static", "sampled", "beams", "several beams", "masked", "prompt mask"]


def travelled(b, h, q, k, step):
    # what a comment says goes along
    return (q - k) % step == 0


def stripes(b, h, q: torch.Tensor, k: torch.Tensor, step: int, phase: int = 0) -> torch.Tensor:
    far = torch.maximum(q, k) - torch.minimum(q, k)
    return (far + phase) % step == 0


@pytest.fixture(scope="module")
def own() -> Iterator[ArbProbForCausalLM]:
    """The model at home, its patterns registered while this module is tested."""
    kept = dict(PATTERNS)
    pattern(travelled)
    pattern(name="striped")(stripes)
    set_seed(12)
    config = ArbProbConfig(
        n_layer=2, n_head=2, n_embd=24, n_positions=64, mask=MASKS, initializer_range=0.4, eos_token_id=None
    )
    yield ArbProbForCausalLM(config).eval()
    PATTERNS.clear()
    PATTERNS.update(kept)


@pytest.fixture(scope="module")
def own_checkpoint(own: ArbProbForCausalLM, shared: Path) -> Path:
    return saved_once(own, shared / "own-checkpoint")


@pytest.fixture(scope="module")
def own_journeys(own_checkpoint: Path, shared: Path) -> Callable[[str], Journey]:
    """A function: the journey `hub`, from a download, or `again`, from the folder that `hub` saved."""

    def make(name: str, folder: Path) -> Journey:
        if name == "again":
            return travel(str(journey("hub").saved_again), folder)
        put_in_hub_cache(own_checkpoint, folder / "cache")
        return travel(HUB_NAME, folder)

    def journey(name: str) -> Journey:
        return made_once(shared / f"own-{name}", lambda folder: make(name, folder))

    return journey


@pytest.fixture(params=["hub", pytest.param("again", marks=pytest.mark.long)])
def own_journey(request: pytest.FixtureRequest, own_journeys: Callable[[str], Journey]) -> Journey:
    return own_journeys(request.param)


def test_nothing_of_home_was_there(own_journey: Journey) -> None:
    assert own_journey.facts["importable"] is False
    assert own_journey.facts["modules of the package"] == []
    assert own_journey.facts["mask"] == MASKS


def test_every_pass_and_way_of_generating_gives_what_it_gives_at_home(own: Any, own_journey: Journey) -> None:
    batch = {name: own_journey.tensors[name] for name in ("input_ids", "attention_mask")}
    at_home = {**traveller.logits(own, batch), **traveller.generated(own, batch)}
    assert set(PASSES + ANSWERS + WAYS) == set(at_home)
    assert [name for name in at_home if not torch.equal(own_journey.tensors[name], at_home[name])] == []


def test_the_masks_matter(own: Any, own_journeys: Callable[[str], Journey]) -> None:
    tensors = own_journeys("hub").tensors
    assert not torch.allclose(tensors["logits"], tensors["causal logits"], atol=1e-2)
    plain = {"mask": ["causal & window(2)", "heads(causal, causal & window(1))"]}
    others = ArbProbForCausalLM(ArbProbConfig(**{**own.config.to_dict(), **plain})).eval()
    others.load_state_dict(own.state_dict())
    with torch.no_grad():
        assert not torch.allclose(tensors["logits"], others(tensors["input_ids"]).logits, atol=1e-2)


def test_what_is_saved_there_is_what_was_saved_here(own_checkpoint: Path, own_journey: Journey) -> None:
    assert "# what a comment says goes along" in (own_checkpoint / "custom_arbprob.py").read_text()
    assert {path.name: path.read_bytes() for path in own_journey.saved_again.glob("*.py")} == {
        path.name: path.read_bytes() for path in own_checkpoint.glob("*.py")
    }
