"""Folders of one name that carry different rules of one name are told apart in one process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, pattern
from arbprob_hf.model.masks.mask import PATTERNS

SIZES = dict(n_layer=2, n_head=2, n_embd=16, n_positions=16, vocab_size=31, initializer_range=0.3)


@pytest.fixture(autouse=True)
def _registered_for_one_test() -> Iterator[None]:
    kept = dict(PATTERNS)
    yield
    PATTERNS.clear()
    PATTERNS.update(kept)


def near(b, h, q, k):
    return (k <= q) & (q - k < 2)


def far(b, h, q, k):
    return (k <= q) & (q - k != 1)


@pytest.mark.filterwarnings("ignore")
def test_each_folder_is_computed_with_its_own_rule(tmp_path: Path) -> None:
    ids = torch.randint(31, (1, 12))
    expected = {}
    for run, rule in (("a", near), ("b", far)):
        PATTERNS.pop("stripes", None)
        pattern(name="stripes")(rule)
        torch.manual_seed(0)
        model = ArbProbForCausalLM(ArbProbConfig(mask="stripes", bos_token_id=0, eos_token_id=0, **SIZES)).eval()
        model.save_pretrained(tmp_path / run / "final")
        with torch.no_grad():
            expected[run] = model(ids).logits
    assert not torch.equal(expected["a"], expected["b"])
    for run in ("a", "b", "a"):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / run / "final", trust_remote_code=True).eval()
        with torch.no_grad():
            assert torch.equal(loaded(ids).logits, expected[run]), run
