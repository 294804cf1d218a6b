"""Every command takes a checkpoint with a custom pattern where it is trusted, and refuses it in one line elsewhere."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, pattern
from arbprob_hf.cli import app
from arbprob_hf.data import load_tokenizer
from arbprob_hf.demo.main import main
from arbprob_hf.demo.network import load_with_tokenizer
from arbprob_hf.model.masks.mask import PATTERNS
from arbprob_hf.pattern_file import read_patterns
from arbprob_hf.training.arguments import ModelArguments
from arbprob_hf.training.model_setup import build_model

REFUSAL = "the pattern 'leaping' is a function in custom_arbprob.py of "
ADVICE = "add trust_remote_code=True (--trust_remote_code on a command line)"


def leaping(b, h, q, k, step):
    return (q - k) % step == 0


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network under a custom pattern, with its tokenizer, made where the pattern was known."""
    folder = tmp_path_factory.mktemp("leaping") / "model"
    pattern(leaping)
    torch.manual_seed(0)
    config = ArbProbConfig(n_layer=1, n_head=1, n_embd=4, n_positions=32, mask="causal & leaping(2)")
    ArbProbForCausalLM(config).save_pretrained(folder)
    load_tokenizer("gpt2").save_pretrained(folder)
    del PATTERNS["leaping"]
    return folder


@pytest.fixture(autouse=True)
def unknown(saved: Path) -> Any:
    PATTERNS.pop("leaping", None)
    yield
    PATTERNS.pop("leaping", None)


def start_from(folder: Path, **options: Any) -> ArbProbForCausalLM:
    return build_model(ModelArguments(init_from=str(folder), **options), load_tokenizer("gpt2"))


LOADS: dict[str, Callable[..., Any]] = {
    "from_pretrained": ArbProbForCausalLM.from_pretrained,
    "init_from": start_from,
    "page": lambda folder, **options: load_with_tokenizer(str(folder), **options).model,
}


@pytest.mark.parametrize("way", LOADS)
def test_it_loads_where_it_is_trusted_and_only_there(way: str, saved: Path) -> None:
    with pytest.raises(ValueError, match=REFUSAL) as caught:
        LOADS[way](saved)
    assert ADVICE in str(caught.value)
    assert "\n" not in str(caught.value)
    model = LOADS[way](saved, trust_remote_code=True)
    model(torch.arange(6)[None])


@pytest.mark.parametrize("way", LOADS)
def test_it_loads_where_its_file_was_given_as_patterns(way: str, saved: Path) -> None:
    read_patterns(saved / "custom_arbprob.py")
    model = LOADS[way](saved)
    assert model.config.mask == "causal & leaping(2)"
    before = model(torch.tensor([[0, 1, 2, 3, 4, 5]])).logits
    # position 5 sees 1, 3 and itself
    assert torch.equal(model(torch.tensor([[9, 1, 9, 3, 9, 5]])).logits[0, 5], before[0, 5])
    assert not torch.equal(model(torch.tensor([[0, 9, 2, 3, 4, 5]])).logits[0, 5], before[0, 5])


def test_the_export_to_gpt2_asks_for_trust_too(saved: Path, tmp_path: Path) -> None:
    words = ["export-gpt2", str(saved), str(tmp_path / "out"), "--force"]
    refused = CliRunner().invoke(app, words)
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert REFUSAL in refused.stderr
    assert not (tmp_path / "out").exists()
    for options in (["--patterns", str(saved / "custom_arbprob.py")], ["--trust_remote_code"]):
        PATTERNS.pop("leaping", None)
        done = CliRunner().invoke(app, [*words[:2], str(tmp_path / options[0]), "--force", *options])
        assert done.exit_code == 0, done.output


def test_the_comparison_does_so_before_any_model_answers(saved: Path, tmp_path: Path) -> None:
    other = shutil.copytree(saved, tmp_path / "other")
    refused = CliRunner().invoke(app, ["compare", str(saved), str(other)])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert REFUSAL in refused.stderr
    trusted = CliRunner().invoke(app, ["compare", str(saved), str(other), "--trust-remote-code"])
    # what is wrong with them beside is found next
    assert "name one with --questions" in trusted.stderr


def test_the_page_says_so_and_ends(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(saved)]) == 2
    assert REFUSAL in capsys.readouterr().err
