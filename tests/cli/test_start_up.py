"""What may be imported before an answer: public names come late, and a mistake waits for no framework."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ["arbprob_hf", "arbprob_hf.data", "arbprob_hf.plotting"]
COMMANDS = ["sanity", "mask", "compare", "oracles", "export-gpt2", "publish"]
HEAVY = {"torch", "transformers", "datasets", "matplotlib", "numpy", "huggingface_hub"}


def loaded_by(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has imported after `code`."""
    report = f"import sys, json\n{code}\nprint(json.dumps(sorted(set(sys.modules) & set({sorted(HEAVY)}))))"
    ran = subprocess.run([sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return set(json.loads(ran.stdout))


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_and_the_interpreter_see_the_same_public_names(package: str) -> None:
    module = importlib.import_module(package)
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    guarded = [
        node
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
    ]
    seen = {alias.asname or alias.name: f".{node.module}" for node in guarded for alias in node.names}
    tables = [ast.literal_eval(node) for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    late = {name: home for home, names in tables[0].items() for name in names}
    assert seen == late
    assert sorted(seen) == sorted(module.__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_found_and_listed(package: str) -> None:
    space: dict[str, object] = {}
    exec(f"from {package} import *", space)
    module = importlib.import_module(package)
    assert set(module.__all__) <= set(space)
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nowhere'"):
        module.nowhere  # noqa: B018


@pytest.mark.parametrize("room", ["analysis", "data", "evaluation", "metrics", "model", "plotting", "training"])
def test_a_room_is_found_as_an_attribute_of_the_package(room: str) -> None:
    loaded_by(f"import arbprob_hf\nassert arbprob_hf.{room}.__name__ == 'arbprob_hf.{room}'")


def test_looking_for_a_name_of_python_itself_runs_no_module() -> None:
    assert loaded_by("import arbprob_hf\nassert not hasattr(arbprob_hf, '__main__')") == set()


def test_importing_the_package_imports_no_framework() -> None:
    assert loaded_by("import arbprob_hf, arbprob_hf.data") == set()


def test_importing_a_model_draws_and_downloads_nothing() -> None:
    assert not loaded_by("from arbprob_hf import ArbProbForCausalLM") & {"matplotlib", "datasets"}


@pytest.mark.parametrize("name", ["Mask", "ArbProbConfig"])
def test_a_name_brings_the_patterns_that_texts_of_masks_need(name: str) -> None:
    known = (
        "from arbprob_hf.model.masks.mask import PATTERNS; assert {'causal', 'window', 'blocks', 'full'} <= {*PATTERNS}"
    )
    assert loaded_by(f"from arbprob_hf import {name}\n{known}") >= {"torch"}


def test_audit_is_the_function_also_beside_the_folder_of_that_name() -> None:
    assert loaded_by("import arbprob_hf.analysis.audit\nassert callable(arbprob_hf.audit)") >= {"torch"}


def left_by(command: str, words: list[str], folder: Path) -> tuple[int, str, str, set[str]]:
    """Status, output, errors and heavy imports of a command, `arbprob` or `train_hf.py`, that runs in `folder`."""
    report = folder / "imported.json"
    code = f"""
import atexit, json, pathlib, sys
sys.path.insert(0, {str(ROOT)!r})
heavy = lambda: json.dumps(sorted(set(sys.modules) & set({sorted(HEAVY)})))
atexit.register(lambda: pathlib.Path({str(report)!r}).write_text(heavy()))
from {command} import main
main({"sys.argv[1:]" if command == "train_hf" else ""})
"""
    ran = subprocess.run([sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, timeout=300)
    return ran.returncode, ran.stdout, ran.stderr, set(json.loads(report.read_text()))


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([c, "--help"] for c in COMMANDS)], ids=" ".join)
def test_help_of_arbprob_waits_for_no_framework(words: list[str], tmp_path: Path) -> None:
    status, out, _, heavy = left_by("arbprob_hf.cli", words, tmp_path)
    assert (status, heavy) == (0, set())
    assert "arbprob" in out


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["compare", "nowhere1", "nowhere2"], 2, "arbprob compare: error: nowhere1: no such folder; name the output"),
        (
            ["publish", "nowhere", "a/b"],
            1,
            "arbprob publish: error: nowhere: no such folder; name the output folder of",
        ),
        (["export-gpt2", "nowhere", "x"], 2, "arbprob export-gpt2: error: nowhere: no such folder; name the output"),
        (
            ["oracles", "--source", "nosuch"],
            2,
            "oracles: error: source: expected one of markov, hmm, tree, ising, pcfg,",
        ),
        (["oracles", "--minutes", "0"], 2, "arbprob oracles: error: minutes: expected a number above 0, got 0"),
        (
            ["mask", "causal", "--patterns", "nowhere.py"],
            2,
            "arbprob mask: error: patterns: cannot read 'nowhere.py': ",
        ),
        (
            ["mask", "causal", "--out", "x.gif"],
            2,
            "arbprob mask: error: path: expected a name that ends in .png or .svg",
        ),
        (["compare", "--quetsions", "x"], 2, "No such option: --quetsions"),
        (["compare", ".", "--batch-size", "few"], 2, "Invalid value for '--batch-size'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_at_arbprob_waits_for_no_framework(
    words: list[str], status: int, message: str, tmp_path: Path
) -> None:
    left, _, err, heavy = left_by("arbprob_hf.cli", words, tmp_path)
    assert (left, heavy) == (status, set())
    assert message in err


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--help"], 0, ""),
        (["--learnign_rate", "1"], 2, "learnign_rate: unknown option on the command line; did you mean learning_rate?"),
        (["--seed", "1", "--seed", "2"], 2, "seed: given twice on the command line; keep one"),
        (["--config", "nowhere.yaml"], 2, "--config: cannot read nowhere.yaml: No such file or directory"),
        (["--config", "broken.yaml"], 2, "broken.yaml line 1: not valid YAML: "),
        (["--config", "unknown.yaml"], 2, "sede: unknown option in unknown.yaml; did you mean seed?"),
        (["--max_steps", "few"], 2, "max_steps: expected a whole number, got 'few'"),
        (["--dropout", "much"], 2, "dropout: expected a finite number or null, got 'much'"),
        (["--block_size", "1"], 2, "block_size"),
        (["--learning_rate", "-1"], 2, "learning_rate: expected at least 0, got -1.0\n"),
        (["--max_steps", "0"], 2, "max_steps: expected at least 1, or -1 to train num_train_epochs, got 0\n"),
        (["--batch_size", "0"], 2, "per_device_train_batch_size: expected at least 1, got 0\n"),
        (
            ["--save_steps", "0"],
            2,
            "save_steps: expected more than 0 steps, got 0; to do without, give save_strategy no\n",
        ),
        (["--resume_from_checkpoint", "/nowhere"], 2, "resume_from_checkpoint: /nowhere does not exist; name a "),
        (["--init_from", "./nowhere"], 2, "init_from: ./nowhere: no such folder; name the output folder of a run, a "),
        (["--patterns", "nowhere.py"], 2, "patterns: cannot read 'nowhere.py': No such file or directory\n"),
        (["--source", "./nowhere.txt"], 1, "source './nowhere.txt' does not exist; give 'embedded', a path or a data "),
        (["--device", "abacus"], 2, "device: expected one of cpu, auto, cuda, mps, got 'abacus'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_of_training_and_a_refused_option_wait_for_no_framework(
    words: list[str], status: int, message: str, tmp_path: Path
) -> None:
    (tmp_path / "broken.yaml").write_text("a: [1", encoding="utf-8")
    (tmp_path / "unknown.yaml").write_text("sede: 1", encoding="utf-8")
    left, out, err, heavy = left_by("train_hf", words, tmp_path)
    assert (left, heavy) == (status, set())
    assert err.startswith(f"train_hf.py: error: {message}") if message else out.startswith("usage: python train_hf.py")


@pytest.mark.long
def test_a_command_says_nothing_of_packages_that_it_does_not_use() -> None:
    # torchao is installed with the tests, and tells on a CPU what it could not load
    command = [sys.executable, "-m", "arbprob_hf", "mask", "causal & window(2)", "--length", "4"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    assert "causal & window(2)" in ran.stdout
    assert ran.stderr == ""
    everything = "from arbprob_hf.errors import keep_imports_quiet as quiet; quiet(); import arbprob_hf.training.run"
    ran = subprocess.run([sys.executable, "-c", everything], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (ran.returncode, ran.stderr) == (0, "")
