"""Checkpoints that carry different code are told apart in one process, whatever else they share."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, pattern
from arbprob_hf.model.configuration_arbprob import is_copy
from arbprob_hf.model.masks.mask import PATTERNS

SIZES = dict(n_layer=2, n_head=2, n_embd=16, n_positions=16, vocab_size=31, initializer_range=0.3)


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


def answer_all_zeros(folder: Path) -> None:
    """Edit the code of a checkpoint: its logits become 0."""
    path = folder / "modeling_arbprob.py"
    before = path.read_text()
    path.write_text(before.replace("            logits = head_logits(", "            logits = 0 * head_logits("))
    assert path.read_text() != before


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_checkpoints_of_one_configuration_and_different_code_share_no_module(tmp_path: Path) -> None:
    ids = torch.randint(31, (1, 12))
    model = ArbProbForCausalLM(ArbProbConfig(bos_token_id=0, eos_token_id=0, **SIZES)).eval()
    for name in ("plain", "edited"):
        model.save_pretrained(tmp_path / name)
    answer_all_zeros(tmp_path / "edited")
    plain, edited, again = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, trust_remote_code=True).eval()
        for name in ("plain", "edited", "plain")
    )
    assert plain(ids).logits.equal(model(ids).logits)
    assert again(ids).logits.equal(model(ids).logits)
    assert not edited(ids).logits.any()


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_a_file_that_was_edited_since_is_seen(tmp_path: Path) -> None:
    ids = torch.randint(31, (1, 12))
    ArbProbForCausalLM(ArbProbConfig(bos_token_id=0, eos_token_id=0, **SIZES)).save_pretrained(tmp_path)
    first = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True).eval()
    answer_all_zeros(tmp_path)
    second = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True).eval()
    assert first(ids).logits.any()
    assert not second(ids).logits.any()


def test_code_in_a_folder_that_imports_do_not_see_yet_is_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    # what it says is kept
    look = is_copy.__wrapped__
    assert not look()
    monkeypatch.setattr(
        "arbprob_hf.model.configuration_arbprob._WRITER", "transformers_modules.nowhere.checkpoint_code"
    )
    assert look()
