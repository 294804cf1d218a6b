"""A model that is saved and pushed in one call, or pushed by itself, has all its code on the Hub."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, pattern
from arbprob_hf.model.checkpoint_code import bundle
from arbprob_hf.model.masks.mask import PATTERNS
from tests.publishing.conftest import HubHere

# of the HTTP client, to huggingface_hub
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")

IDS = torch.arange(1, 13).view(1, 12)
WAYS: dict[str, Callable[[Any, Path, str], object]] = {
    "saved and pushed": lambda model, folder, name: model.save_pretrained(folder, push_to_hub=True, repo_id=name),
    "pushed": lambda model, folder, name: model.push_to_hub(name),
}


def leaping_far(b, h, q, k, step):
    return (q - k) % step == 0


@pytest.mark.parametrize("mask", ["causal & window(3)", "causal & leaping_far(2)"])
@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_what_is_pulled_gives_the_same_numbers(hub: HubHere, tmp_path: Path, way: str, mask: str) -> None:
    pattern(leaping_far)
    torch.manual_seed(0)
    sizes = dict(n_layer=1, n_head=2, n_embd=8, n_positions=16, vocab_size=30, bos_token_id=0, eos_token_id=0)
    model = ArbProbForCausalLM(ArbProbConfig(**sizes, mask=mask, initializer_range=0.4)).eval()
    name = f"tester/{way.replace(' ', '-')}-{len(mask)}"
    WAYS[way](model, tmp_path / "saved", name)
    del PATTERNS["leaping_far"]
    files = {one for one in hub.api.list_repo_files(name) if one.endswith(".py")}
    assert files == set(bundle()) | ({"custom_arbprob.py"} if "leaping" in mask else set())
    if way == "saved and pushed":
        # what did not change since the last save is sent all the same
        again = f"{name}-again"
        pattern(leaping_far)
        WAYS[way](model, tmp_path / "saved", again)
        del PATTERNS["leaping_far"]
        assert set(hub.api.list_repo_files(again)) == set(hub.api.list_repo_files(name))
    pulled = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True, cache_dir=tmp_path / "cache").eval()
    assert pulled(IDS).logits.equal(model(IDS).logits)
    ours = ArbProbForCausalLM.from_pretrained(name, trust_remote_code=True, cache_dir=tmp_path / "cache").eval()
    assert ours(IDS).logits.equal(model(IDS).logits)


def test_a_configuration_is_pushed_with_the_code_that_reads_it(hub: HubHere, tmp_path: Path) -> None:
    config = ArbProbConfig.preset("nano", mask="causal & window(3)")
    config.save_pretrained(tmp_path / "alone", push_to_hub=True, repo_id="tester/alone")
    assert set(hub.api.list_repo_files("tester/alone")) >= {"config.json", *bundle()}
    pulled = AutoConfig.from_pretrained("tester/alone", trust_remote_code=True, cache_dir=tmp_path / "cache")
    assert pulled.mask == config.mask
