"""A file of custom patterns: `patterns:` in training, `--patterns` of the command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from arbprob_hf.cli import app
from arbprob_hf.errors import UsageError
from arbprob_hf.pattern_file import read_patterns
from arbprob_hf.training.arguments import parse
from arbprob_hf.training.run import train

RULES = """
from arbprob_hf import pattern


@pattern
def skipping(b, h, q, k, step):
    # what a comment says goes along
    return (q - k) % step == 0
"""
LOADING = """
import sys

import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
model(torch.arange(8)[None])
assert not any(name.split(".")[0] == "arbprob_hf" for name in sys.modules)
print(model.config.mask)
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "my_patterns.py"
    path.write_text(RULES, encoding="utf-8")
    return path


def run(tmp_path: Path, rules: Path, **changes: object) -> Path:
    text = tmp_path / "text"
    text.mkdir(exist_ok=True)
    for number in range(12):
        (text / f"{number}.txt").write_text(f"{number} " + "a mask says which key may be seen " * 20, encoding="utf-8")
    fields = {"source": text, "patterns": rules, "mask": "causal & skipping(2)", "output_dir": tmp_path / "out"}
    fields |= {"n_embd": 8, "n_positions": 32, "block_size": 32, "max_steps": 2, "save_steps": 2, "batch_size": 2}
    fields |= {"eval_strategy": "no", "sample_count": 0, "validation_share": 0.2, "use_cpu": "true"}
    fields |= {"disable_tqdm": "true"}
    return train(*parse([f"--{name}={value}" for name, value in (fields | changes).items()])).folder


@pytest.mark.long
def test_a_run_under_a_pattern_of_ones_own_loads_where_neither_is(tmp_path: Path, rules: Path) -> None:
    folder = run(tmp_path, rules)
    for saved in (folder, folder / "checkpoint-2"):
        assert "# what a comment says goes along" in (saved / "custom_arbprob.py").read_text()
    shown = (folder / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    assert shown.startswith("def skipping(")
    assert "# what a comment says goes along" in shown
    assert "RULES" not in shown
    loading = [sys.executable, "-P", "-c", LOADING] if sys.version_info >= (3, 11) else [sys.executable, "-c", LOADING]
    loaded = subprocess.run([*loading, str(folder)], cwd=folder, capture_output=True, text=True, check=False)
    assert (loaded.returncode, loaded.stdout) == (0, "causal & skipping(2)\n"), loaded.stderr


def test_a_run_is_not_resumed_under_another_rule_of_the_same_name(tmp_path: Path, rules: Path) -> None:
    run(tmp_path, rules)
    rules.write_text(RULES.replace("== 0", "!= 1"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"^patterns: checkpoint-2 was trained with functions \(\w{8}\), this run has"):
        run(tmp_path, rules, resume="true", max_steps=4)
    rules.write_text(RULES + "\n# a word after it changes nothing\n", encoding="utf-8")
    run(tmp_path, rules, resume="true", max_steps=4)


def test_a_run_is_resumed_where_the_file_of_its_patterns_has_another_form(
    tmp_path: Path, rules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, rules)
    monkeypatch.setattr("arbprob_hf.model.saved_patterns._BEGINNING", '"""As another version words it."""\n')
    rules.write_text(RULES.replace("# what", "# and what"), encoding="utf-8")
    run(tmp_path, rules, resume="true", max_steps=4)


FAULTS = {
    "missing": (None, r"^patterns: cannot read '.*my_patterns.py': No such file or directory$"),
    "nothing registered": (
        "x = 3\n",
        r"^patterns: .*my_patterns.py' registers no pattern; write @pattern above a def$",
    ),
    "raises": ("x = 1 / 0\n", r"^patterns: '.*my_patterns.py' raised ZeroDivisionError: division by zero$"),
    "no python": ("def\n", r"^patterns: '.*my_patterns.py' raised SyntaxError: "),
    "leaves": ("import sys\nsys.exit(3)\n", r"^patterns: '.*my_patterns.py' raised SystemExit: 3$"),
}


@pytest.mark.parametrize(("text", "message"), FAULTS.values(), ids=FAULTS)
def test_a_file_that_cannot_be_used_is_reported_in_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "my_patterns.py"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        run(tmp_path, path)
    assert not (tmp_path / "out").exists()
    ran = CliRunner().invoke(app, ["mask", "causal", "--patterns", str(path)])
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr.count("\n") == 1


def test_the_command_reads_them_and_again(rules: Path) -> None:
    for step in ("2", "3"):
        ran = CliRunner().invoke(app, ["mask", f"causal & skipping({step})", "--patterns", str(rules)])
        assert ran.exit_code == 0, ran.output
    assert not (rules.parent / "__pycache__").exists()


def test_files_of_one_name_do_not_take_each_others_patterns(tmp_path: Path, rules: Path) -> None:
    read_patterns(rules)
    other = tmp_path / "other"
    other.mkdir()
    (other / rules.name).write_text(RULES, encoding="utf-8")
    with pytest.raises(ValueError, match="the name 'skipping' is taken"):
        read_patterns(other / rules.name)
