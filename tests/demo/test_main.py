"""The command of app.py: which model it takes, and what it says where there is none."""

import importlib.util
import runpy
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from arbprob_hf.demo.main import main
from arbprob_hf.demo.network import load_with_tokenizer
from tests.demo.micro_networks import micro_network

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARBPROB_MODEL", raising=False)


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says when it refuses to start: one line."""
    capsys.readouterr()
    assert main(words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("app: error: ")]
    return line


def test_a_checkpoint_is_loaded_with_its_tokenizer(checkpoint: Path) -> None:
    loaded = load_with_tokenizer(str(checkpoint))
    assert not loaded.model.training
    assert loaded.tokenizer.encode("The cat") == [464, 3797]
    assert type(loaded.model).__module__ == "arbprob_hf.model.modeling_arbprob"


def test_no_code_of_a_checkpoint_is_run(checkpoint: Path, tmp_path: Path) -> None:
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for path in tmp_path.glob("*.py"):
        path.write_text("raise SystemExit('ran')")
    assert (tmp_path / "modeling_arbprob.py").exists()
    assert load_with_tokenizer(str(tmp_path)).model.config.n_embd == 16


def test_without_a_model_it_says_how_to_come_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert said([], capsys) == (
        "app: error: model: expected a folder or a name on the Hub, got none; train one with "
        "configs/conditional_tiny.yaml, or name a repository on the Hub"
    )


def test_the_environment_names_a_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ARBPROB_MODEL", "./missing")
    assert said([], capsys).startswith("app: error: model: ./missing: no such folder; name the output folder of a run")
    assert "model: ./other: no such folder; name" in said(["--model", "./other"], capsys)


def test_a_name_that_cannot_be_had_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    line = said(["--model", "somebody/nothing"], capsys)
    assert "model: somebody/nothing: its model cannot be loaded: " in line
    assert line.endswith("; mend that, or name a folder, or another repository on the Hub")


def test_a_run_that_has_not_finished_is_told_its_newest_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "holds no model, as it has no config.json; name the output folder" in said(
        ["--model", str(tmp_path)], capsys
    )
    for step in (100, 20, 1000):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert said(["--model", str(tmp_path)], capsys).endswith(
        f"name one of its checkpoints, such as {tmp_path}/checkpoint-1000"
    )


def test_damaged_and_missing_weights_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    micro_network().model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    save_file({name: one for name, one in weights.items() if "ln_f" not in name}, file, {"format": "pt"})
    assert "lacks 2 of the network's weights, such as transformer.ln_f.bias" in said(["--model", str(tmp_path)], capsys)
    file.write_bytes(file.read_bytes()[:1000])
    line = said(["--model", str(tmp_path)], capsys)
    assert ": its model cannot be loaded: " in line
    assert line.endswith("; mend that, or name another folder")


def test_a_folder_without_a_tokenizer_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    micro_network().model.save_pretrained(tmp_path)
    assert "holds no usable tokenizer" in said(["--model", str(tmp_path)], capsys)


def test_without_gradio_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("arbprob_hf.demo.main.find_spec", lambda name: None if name == "gradio" else found(name))
    assert said(["--model", "./any"], capsys).endswith("it is not installed; run pip install 'gradio>=6.18'")


def test_app_py_is_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["app.py", "--model", "./missing"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
    assert "./missing: no such folder" in capsys.readouterr().err


def test_a_file_and_a_folder_that_is_not_there_are_not_asked_of_the_hub(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = str(checkpoint / "model.safetensors")
    assert said(["--model", weights], capsys) == f"app: error: model: {weights}: is a file; name its folder"
    assert "model: outputs/nowhere: no such folder; name" in said(["--model", "outputs/nowhere"], capsys)


def test_the_port_of_the_environment_is_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRADIO_SERVER_PORT", "abc")
    with pytest.raises(SystemExit):
        main([])
    assert "argument --port: invalid int value: 'abc'" in capsys.readouterr().err
