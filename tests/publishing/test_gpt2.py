"""Checkpoints as stock GPT-2: transformers' own network computes the same, or the export is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel
from typer.testing import CliRunner

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
from arbprob_hf.cli import app
from arbprob_hf.data import load_tokenizer
from arbprob_hf.publishing.gpt2 import export_gpt2, why_not_gpt2

SIZES: dict[str, Any] = dict(vocab_size=90, n_positions=24, n_embd=8, n_layer=2, n_head=2, initializer_range=0.5)


def micro(**fields: Any) -> ArbProbForCausalLM:
    torch.manual_seed(0)
    return ArbProbForCausalLM(ArbProbConfig(**{**SIZES, "bos_token_id": 1, "eos_token_id": 2, **fields})).eval()


def exported(folder: Path, model: ArbProbForCausalLM, **options: Any) -> tuple[Path, list[str]]:
    model.save_pretrained(folder / "ours")
    remarks = export_gpt2(folder / "ours", folder / "theirs", **options)
    return folder / "theirs", remarks


SAME: dict[str, dict[str, Any]] = {
    "two_stream": {"mask_token": True, "given_sees": "all"},
    "prefix": {"layout": "prefix", "mask_token": True},
    "causal": {"layout": "causal"},
    "a causal mask in other words": {"mask": ["causal & full", "causal"]},
    "other arithmetic": {
        "activation_function": "relu",
        "n_inner": 12,
        "layer_norm_epsilon": 1e-3,
        "scale_attn_weights": False,
        "scale_attn_by_inverse_layer_idx": True,
    },
    "a head of its own": {"tie_word_embeddings": False},
}


@pytest.mark.parametrize("name", SAME)
def test_transformers_computes_the_same_from_every_weight(tmp_path: Path, name: str) -> None:
    ours = micro(**SAME[name])
    # weights of questions that would show if they were mistaken for others
    for weight in ours.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    folder, _ = exported(tmp_path, ours)
    theirs, found = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.randint(0, 90, (3, 24), generator=torch.Generator().manual_seed(1))
    wanted = ours(ids).logits
    assert torch.allclose(theirs.eval()(ids).logits, wanted, atol=2e-5 * wanted.abs().max().item())
    options = {"max_new_tokens": 8, "do_sample": False}
    assert theirs.generate(ids[:, :5], **options).equal(ours.generate(ids[:, :5], **options))


def test_nothing_of_this_package_is_needed_and_the_way_back_is_open(tmp_path: Path) -> None:
    ours = micro(mask_token=True)
    folder, remarks = exported(tmp_path, ours)
    assert type(AutoModelForCausalLM.from_pretrained(folder)) is GPT2LMHeadModel
    assert remarks == ["left out, as GPT-2 has no such weights: wme"]
    written = json.loads((folder / "config.json").read_text())
    assert (written["model_type"], written["n_ctx"], written["bos_token_id"]) == ("gpt2", 24, 1)
    assert "arbprob" not in json.dumps(written).lower()
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    ids = torch.arange(12)[None]
    assert ArbProbForCausalLM.from_pretrained(folder)(ids).logits.equal(ours(ids).logits)


def test_weights_keep_their_precision_and_the_tokenizer_comes_along(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("gpt2")
    tokenizer.save_pretrained(tmp_path / "ours")
    folder, _ = exported(tmp_path, micro(vocab_size=len(tokenizer)).to(torch.bfloat16))
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16
    text = "A mask says which key a query may see."
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == tokenizer(text).input_ids


def test_no_code_of_the_folder_is_run_or_asked_about(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = load_tokenizer("gpt2")
    tokenizer.save_pretrained(tmp_path / "ours")
    micro(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "ours")
    # code that would tell of itself
    for path in (tmp_path / "ours").glob("*.py"):
        path.write_text(f"print('ran {path.name}')\n")
    ran = CliRunner().invoke(app, ["export-gpt2", str(tmp_path / "ours"), str(tmp_path / "theirs")])
    assert (ran.exit_code, ran.stdout) == (0, f"{tmp_path / 'theirs'}\n")
    assert "custom code" not in ran.stderr + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("model.safetensors", b"", "its model cannot be loaded: "),
        ("model.safetensors", b"0123456789", "its model cannot be loaded: "),
        ("config.json", b"[]", "its config.json cannot be read: "),
        ("config.json", b"{", "its config.json cannot be read: "),
    ],
)
def test_a_damaged_folder_is_reported_in_one_line(tmp_path: Path, name: str, text: bytes, said: str) -> None:
    micro().save_pretrained(tmp_path / "ours")
    (tmp_path / "ours" / name).write_bytes(text)
    with pytest.raises(ValueError, match=f"ours: {said}") as refused:
        export_gpt2(tmp_path / "ours", tmp_path / "theirs")
    assert len(str(refused.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


MISREAD: dict[str, tuple[dict[str, Any], str]] = {
    "a window": ({"mask": "causal & window(4)"}, "it was trained under the mask causal & window(4), and GPT-2 knows"),
    "one layer": ({"mask": ["causal", "full"]}, "it was trained under the mask full, and GPT-2 knows none but causal"),
    "one head": ({"mask": "heads(causal, causal & window(4))"}, "it was trained under the mask heads("),
    "sigma": ({"layout": "sigma", "target_positions": True}, "its layout, sigma, tells each token what position"),
    "masked": ({"layout": "masked", "mask_token": True}, "its layout, masked, fills gaps from both sides"),
}


@pytest.mark.parametrize("name", MISREAD)
def test_weights_that_mean_something_else_to_gpt2_are_refused_unless_forced(tmp_path: Path, name: str) -> None:
    fields, reason = MISREAD[name]
    with pytest.raises(ValueError, match="GPT-2 would misread it: ") as refused:
        exported(tmp_path, micro(**fields))
    assert reason in str(refused.value)
    assert str(refused.value).endswith("; --force exports it all the same")
    assert not (tmp_path / "theirs").exists()
    folder, remarks = exported(tmp_path, micro(**fields), force=True)
    assert remarks[-1].startswith(f"GPT-2 misreads these weights: {reason}")
    assert len(GPT2LMHeadModel.from_pretrained(folder).transformer.h) == 2


def test_a_window_as_long_as_the_text_is_causal() -> None:
    assert why_not_gpt2(micro(mask="causal & window(24)").config) is None
    assert why_not_gpt2(micro(mask="causal & window(23)").config) is not None


def test_a_name_on_the_hub_is_reported_how_to_become_a_folder(tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["export-gpt2", "somebody/no-such-folder", str(tmp_path / "out")])
    assert ran.exit_code == 2
    assert ran.stderr.startswith(
        "arbprob export-gpt2: error: somebody/no-such-folder: no such folder; name the output folder of a run, a "
        "checkpoint in it, or the one that `hf download NAME --local-dir FOLDER` makes"
    )
    assert len(ran.stderr.splitlines()) == 1


def test_a_folder_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"theirs: exists and is not an empty folder; name another$"):
        exported(tmp_path, micro(), force=True)
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["mine.txt"]
    (tmp_path / "theirs" / "mine.txt").unlink()
    assert exported(tmp_path, micro())[0].joinpath("config.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs"]


def test_the_command_says_where_it_wrote_and_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    micro(mask_token=True).save_pretrained(tmp_path / "ours")
    run = CliRunner().invoke
    ran = run(app, ["export-gpt2", str(tmp_path / "ours"), str(tmp_path / "new")])
    assert (ran.exit_code, ran.stdout) == (0, f"{tmp_path / 'new'}\n")
    # behind the progress of reading and writing
    assert ran.stderr.endswith("left out, as GPT-2 has no such weights: wme\n")
    for words, said in [
        (
            (tmp_path, tmp_path / "x"),
            f"{tmp_path}: holds no model, as it has no config.json; name the output folder of a",
        ),
        ((tmp_path / "ours", tmp_path / "new"), f"{tmp_path / 'new'}: exists and is not an empty folder; name another"),
    ]:
        ran = run(app, ["export-gpt2", *map(str, words)])
        assert (ran.exit_code, ran.stdout) == (2, "")
        assert ran.stderr.startswith(f"arbprob export-gpt2: error: {said}")
        assert ran.stderr.count("\n") == 1
