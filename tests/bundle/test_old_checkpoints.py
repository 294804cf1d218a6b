"""Checkpoints of before 0.2, with 37 files of code, still load, generate, and are saved in today's form."""

import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from arbprob_hf import ArbProbForCausalLM
from arbprob_hf.model.checkpoint_code import bundle

# the network of this configuration as arbprob_hf 0.1.0 saved it
SAVED = Path(__file__).parent / "data" / "checkpoint_0_1.zip"
IDS = torch.arange(1, 19).view(2, 9)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with zipfile.ZipFile(SAVED) as archive:
        archive.extractall(tmp_path / "old")
    return tmp_path / "old"


def test_it_holds_the_code_of_then(old: Path) -> None:
    assert len(list(old.glob("*_arbprob.py"))) == 36
    assert "class Written(Plan)" in (old / "plans_arbprob.py").read_text()


def written(model: ArbProbForCausalLM) -> torch.Tensor:
    return model.generate(IDS, max_new_tokens=6, do_sample=False, pad_token_id=0)


@torch.no_grad()
def test_it_gives_the_same_numbers_with_its_own_code_in_the_package_and_saved_again(old: Path, tmp_path: Path) -> None:
    with_its_code = AutoModelForCausalLM.from_pretrained(old, trust_remote_code=True).eval()
    ours = ArbProbForCausalLM.from_pretrained(old).eval()
    ours.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True).eval()
    for model in (ours, again):
        for given in ({}, {"mask": "causal & window(2)"}, {"attention_mask": torch.ones(2, 9, 9)}):
            assert model(IDS, **given).logits.equal(with_its_code(IDS, **given).logits)
        assert written(model).equal(written(with_its_code))


def test_it_is_saved_in_the_new_form_into_its_own_folder_too(old: Path, tmp_path: Path) -> None:
    model = ArbProbForCausalLM.from_pretrained(old)
    for folder in (tmp_path / "new", old):
        model.save_pretrained(folder)
        assert sorted(path.name for path in folder.glob("*.py")) == sorted(bundle())


def test_a_model_loaded_with_its_own_code_saves_that(old: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(old, trust_remote_code=True).save_pretrained(tmp_path / "again")
    saved = {path.name: path.read_bytes() for path in (tmp_path / "again").glob("*.py")}
    assert saved == {path.name: path.read_bytes() for path in old.glob("*.py")}
