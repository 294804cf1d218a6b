"""What a user of the command lines sees: one line for a mistake, statuses, versions, the sanity report."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import arbprob_hf
from arbprob_hf.cli import app, main
from arbprob_hf.errors import RunError, UsageError, exit_on_user_error
from arbprob_hf.runs.checkpoints import CheckpointError
from arbprob_hf.training import selfcheck as sanity
from arbprob_hf.training.arguments import TrainingArguments
from arbprob_hf.training.trainer import NonFiniteError

ROOT = Path(__file__).parents[2]


def test_a_misspelt_option_ends_the_script_with_one_line_and_status_two() -> None:
    ran = subprocess.run(
        [sys.executable, str(ROOT / "train_hf.py"), "--learnign_rate", "1"], capture_output=True, text=True
    )
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr == (
        "train_hf.py: error: learnign_rate: unknown option on the command line; did you mean learning_rate?\n"
    )


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UsageError("a: b"), 2, "script: error: a: b\n"),
        (ValueError("one\ntwo"), 1, "script: error: one two\n"),
        (OSError(5, "Input/output error"), 1, "script: error: [Errno 5] Input/output error\n"),
        (NonFiniteError("step 3"), 1, "script: error: step 3\n"),
        (CheckpointError("full"), 1, "script: error: full\n"),
        (TypeError(), 1, "script: error: TypeError\n"),
    ],
    ids=["usage", "value", "system", "loss", "checkpoint", "silent"],
)
def test_what_users_can_cause_is_one_line(
    error: Exception, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving, exit_on_user_error("script"):
        raise error
    assert (leaving.value.code, capsys.readouterr().err) == (status, line)


@pytest.mark.parametrize(
    ("last", "line"),
    [
        ("ValueError: one\n  two\n", "script: error: one two\n"),
        ("ValueError:  \n", "script: error: ValueError\n"),
        ("ValueError\n", "script: error: ValueError\n"),
    ],
    ids=["words", "blank", "silent"],
)
def test_an_error_of_a_loaders_worker_comes_without_its_traceback(
    last: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    raised = (
        f"Caught ValueError in DataLoader worker process 0.\nTraceback (most recent call last):\n  File ...\n{last}"
    )
    with pytest.raises(SystemExit), exit_on_user_error("script"):
        raise ValueError(raised)
    assert capsys.readouterr().err == line


def test_a_number_that_is_not_finite_is_an_error_of_arithmetic_and_of_a_run() -> None:
    assert issubclass(NonFiniteError, ArithmeticError)
    assert issubclass(NonFiniteError, RunError)


def test_ctrl_c_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving, exit_on_user_error("script"):
        raise KeyboardInterrupt
    assert leaving.value.code == 130
    assert capsys.readouterr().err.startswith("script: interrupted; ")


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_traceback_is_shown_on_request(error: BaseException) -> None:
    with pytest.raises(type(error)), exit_on_user_error("script", traceback=True):
        raise error


def _fail_in_torch(*args: object, **options: object) -> None:
    torch.nn.Linear(2, 2)(torch.ones(3))


def test_what_a_library_raises_is_one_line_with_its_class(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving, exit_on_user_error("script"):
        _fail_in_torch()
    said = capsys.readouterr().err
    assert leaving.value.code == 1
    assert said.startswith("script: error: RuntimeError: ")
    assert said.endswith("; add --traceback to see where it happened\n")
    assert len(said.splitlines()) == 1


def test_what_a_library_raises_is_shown_whole_on_request() -> None:
    with pytest.raises(RuntimeError), exit_on_user_error("script", traceback=True):
        _fail_in_torch()


@pytest.mark.parametrize("words", [["--traceback", "mask", "causal"], ["mask", "causal", "--traceback"]], ids=" ".join)
def test_a_command_shows_its_traceback_where_it_is_asked_to(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setattr("arbprob_hf.analysis.describe.describe", _fail_in_torch)
    monkeypatch.setattr(sys, "argv", ["arbprob", *words])
    with pytest.raises(RuntimeError):
        main()


def test_a_command_tells_what_a_library_raises_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("arbprob_hf.analysis.describe.describe", _fail_in_torch)
    monkeypatch.setattr(sys, "argv", ["arbprob", "mask", "causal"])
    with pytest.raises(SystemExit) as leaving:
        main()
    said = capsys.readouterr().err
    assert leaving.value.code == 1
    assert said.startswith("arbprob mask: error: RuntimeError: ")
    assert len(said.splitlines()) == 1


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(KeyError), exit_on_user_error("script"):
        raise KeyError("ours")


def test_the_version_is_the_packages() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"arbprob-hf {arbprob_hf.__version__}\n"


def test_help_lists_the_commands() -> None:
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    assert "sanity" in shown.stdout


def test_a_failed_check_fails_the_command_and_the_others_still_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> tuple[bool, str]:
        raise RuntimeError("no\nluck")

    checks = {"first": broken, "second": lambda: (False, "0.5"), "third": lambda: (True, "1.0")}
    monkeypatch.setattr(sanity, "CHECKS", checks)
    ran = CliRunner().invoke(app, ["sanity"])
    assert ran.exit_code == 1
    assert ran.stdout == "FAIL  first: RuntimeError: no luck\nFAIL  second: 0.5\nok    third: 1.0\n"
    assert "2 of 3 checks failed" in ran.stderr


@pytest.mark.parametrize("name", [name for name in sanity.CHECKS if name.startswith(("M0", "M1"))])
def test_a_sanity_check_holds_here(name: str) -> None:
    passed, figure = sanity.CHECKS[name]()
    assert passed, figure


def test_the_short_run_of_sanity_stays_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(model: object, data: object, training: TrainingArguments, run: object) -> None:
        raise InterruptedError(f"use_cpu is {training.use_cpu}")

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr("arbprob_hf.training.run.train", stop)
    with pytest.raises(InterruptedError, match="use_cpu is True"):
        sanity.CHECKS["M2 a short run lowers the loss"]()


@pytest.mark.long
def test_sanity_reports_every_check_and_succeeds() -> None:
    ran = subprocess.run([sys.executable, "-m", "arbprob_hf", "sanity"], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stdout
    assert [line[:8] for line in ran.stdout.splitlines()] == ["ok    M0"] * 3 + ["ok    M1"] * 2 + ["ok    M2"]
