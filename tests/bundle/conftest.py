"""The model that stays at home, its checkpoint, and the journeys the checkpoint makes, each made once."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import set_seed

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
from tests.bundle.travel_helpers import HUB_NAME, Journey, made_once, put_in_hub_cache, saved_once, travel

MASK = "causal & window(4) | prefix(1)"


def micro_model() -> ArbProbForCausalLM:
    """GPT-2's vocabulary, 24 wide; weights so large that what is generated depends on everything."""
    set_seed(11)
    config = ArbProbConfig(
        n_layer=2, n_head=2, n_embd=24, n_positions=64, mask=MASK, initializer_range=0.4, eos_token_id=None
    )
    return ArbProbForCausalLM(config).eval()


@pytest.fixture(scope="session")
def model() -> ArbProbForCausalLM:
    """The model at home, from which the checkpoint was saved."""
    return micro_model()


@pytest.fixture(scope="session")
def shared(session_folder: Path) -> Path:
    """Where journeys are kept for all processes: one takes seconds."""
    folder = session_folder / "travel"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def checkpoint(model: ArbProbForCausalLM, shared: Path) -> Path:
    """Its checkpoint, tokenizer included."""
    return saved_once(model, shared / "checkpoint")


@pytest.fixture(scope="session")
def journeys(checkpoint: Path, shared: Path) -> Callable[[str], Journey]:
    """A function: the journey `folder`, `hub`, `again` (what `hub` saved) or `twice` (what `again` saved)."""

    def make(name: str, folder: Path) -> Journey:
        if name == "folder":
            return travel(str(checkpoint), folder)
        if name == "hub":
            put_in_hub_cache(checkpoint, folder / "cache")
            return travel(HUB_NAME, folder)
        return travel(str(journey({"again": "hub", "twice": "again"}[name]).saved_again), folder)

    def journey(name: str) -> Journey:
        return made_once(shared / name, lambda folder: make(name, folder))

    return journey
