"""README.md tells the truth: its Python runs, its commands exist, its tables and messages are the code's."""

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer.main
from typer.testing import CliRunner

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
from arbprob_hf.cli import app
from arbprob_hf.model.masks.custom import BUILT_IN
from arbprob_hf.model.masks.mask import PATTERNS
from arbprob_hf.training.arguments import parse
from arbprob_hf.training.options import ALIASES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLASSIC = [
    "config",
    "max_epochs",
    "num_train_samples",
    "num_val_samples",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "warmup_steps",
    "log_interval",
    "eval_interval",
    "save_interval",
    "num_workers",
    "device",
    "resume",
]


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """The words of each shell command, without leading environment settings."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    parsed = [shlex.split(line, comments=True) for line in lines]
    return [words[next(i for i, w in enumerate(words) if not re.match(r"[A-Z_]+=", w)) :] for words in parsed if words]


def tables() -> Iterator[list[list[str]]]:
    """Each table as rows of cells, the heading first."""
    for text in re.findall(r"(?:^\|.*\|\n)+", README, flags=re.MULTILINE):
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines()]
        yield [row for row in rows if set("".join(row)) != {"-"}]


def table(heading: str) -> list[list[str]]:
    return next(rows[1:] for rows in tables() if rows[0][0] == heading)


def run_python(code: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the Python of the page prints, all of it run in one go."""
    return run_python("\n".join(blocks("python")), tmp_path_factory.mktemp("page"))


def test_every_python_block_runs_after_the_ones_before_it(printed: str) -> None:
    assert len(blocks("python")) >= 5
    assert "causal & window(32)" in printed
    assert "torch.Size([2, 13])" in printed
    assert "['tiled']" in printed
    assert "torch.Size([1, 5, 50257])" in printed
    assert "{'infill_match': 0.5}" in printed


def test_the_mask_fact_is_as_stated(tmp_path: Path) -> None:
    theirs, ours = re.findall(r"tensor\(([-+.e0-9]+)\)", run_python(blocks("python")[0], tmp_path))
    assert float(theirs) > 0.1
    assert float(ours) < 1e-5
    stated = re.search(r"The first line prints about (\d+\.\d+)", README)
    assert stated is not None
    assert float(theirs) == pytest.approx(float(stated[1]), rel=0.05)


def test_what_the_mask_command_prints_is_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (words,) = [words for words in commands() if words[:2] == ["arbprob", "mask"]]
    ran = CliRunner().invoke(app, words[1:])
    assert ran.stdout in blocks("text")
    assert [path.name for path in tmp_path.iterdir()] == ["mask.png"]


def test_what_the_blocks_print_is_as_shown(printed: str) -> None:
    _, leaks, audited = blocks("text")
    assert leaks in printed
    summary, *lines = audited.splitlines()
    shown = printed.splitlines()
    begin = shown.index(summary) + 1
    # the figures behind a verdict are those of one machine
    assert [line[:44] for line in shown[begin : begin + len(lines)]] == [line[:44] for line in lines]


def test_samples_have_the_log_probability_that_is_scored(printed: str) -> None:
    # what the section on questions prints first
    differences = re.findall(r"^tensor\(([-+.e0-9]+)", printed, flags=re.MULTILINE)
    assert float(differences[-1]) < 1e-5


def test_every_pattern_is_in_the_table() -> None:
    named = {re.match(r"`(\w+)", row[0])[1] for row in table("pattern")} - {"Mask"}
    assert named == {name for name, kind in PATTERNS.items() if kind in BUILT_IN}


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    named = {words[1] for words in commands() if words[0] == "make"}
    assert named >= {"train", "test"}
    assert named <= targets


def training_commands() -> list[list[str]]:
    return [words for words in commands() if "train_hf.py" in words]


@pytest.mark.parametrize("words", training_commands(), ids=" ".join)
def test_training_commands_are_understood(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    options = words[words.index("train_hf.py") + 1 :]
    assert "--config" in options
    assert parse([*options, "--use_cpu", "true"]).training.output_dir.startswith("outputs/")


def test_every_other_command_is_a_known_program() -> None:
    subcommands = set(typer.main.get_command(app).commands)
    for words in commands():
        if words[0] == "arbprob":
            assert words[1] in subcommands
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file()
        elif words[0] == "source":
            # what `make` sets up
            assert f"VENV = {words[1].removesuffix('/bin/activate')}\n" in (ROOT / "Makefile").read_text()
        else:
            assert words[0] in {"make", "torchrun", "accelerate", "lm_eval", "hf"}, words


def test_classic_names_map_as_the_table_says() -> None:
    rows = {row[0].strip("`-"): re.match(r"`--(\w+)`", row[1])[1] for row in table("classic")}
    assert list(rows) == CLASSIC
    assert rows == {name: ALIASES.get(name, name) for name in CLASSIC}


def test_a_command_in_classic_names_alone_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    values = ["configs/tiny.yaml", "2", "64", "8", "4", "1e-3", "0.01", "10", "5", "20", "20", "0", "cpu", "true"]
    options = [word for name, value in zip(CLASSIC, values, strict=True) for word in (f"--{name}", value)]
    training = parse(options).training
    assert (training.num_train_epochs, training.per_device_train_batch_size) == (2, 4)
    assert (training.logging_steps, training.eval_steps, training.save_steps) == (5, 20, 20)
    assert training.use_cpu
    assert training.resume_from_checkpoint in (True, "true")


def test_presets_have_the_sizes_of_the_table() -> None:
    for name, *cells in table("preset"):
        config = ArbProbConfig.preset(name.strip("`"))
        assert [str(n) for n in (config.n_layer, config.n_head, config.n_embd, config.n_positions)] == cells[:4]


def test_parameters_are_those_of_the_table() -> None:
    for name, *_, stated in table("preset"):
        # shapes alone: no memory, no random numbers
        with torch.device("meta"):
            model = ArbProbForCausalLM(ArbProbConfig.preset(name.strip("`")))
        assert f"{model.num_parameters() / 1e6:.1f}M" == stated


def test_every_configuration_is_in_the_table() -> None:
    named = {row[0].strip("`") for row in table("file")}
    assert named == {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").glob("*.yaml")}


@pytest.mark.parametrize("message", [row[0].strip("`") for row in table("message")])
def test_quoted_messages_are_in_the_code(message: str) -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "arbprob_hf").rglob("*.py")]
    texts = [
        node.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert any(message in text for text in texts)


def test_links_lead_to_files() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_one_version_everywhere() -> None:
    import arbprob_hf

    version = re.escape(arbprob_hf.__version__)
    for name, pattern in {
        "setup.cfg": rf"^version = {version}$",
        "CITATION.cff": rf"^version: {version}$",
        "CHANGELOG.md": rf"^## \[{version}\]",
        "README.md": rf"^  version = {{{version}}},$",
    }.items():
        assert re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE), name
