"""What benchmarks share: rows that know whether their goal is met, turns, and one table of them all."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def measure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measure", ROOT / "benchmarks" / "measure.py")
    assert spec is not None
    assert spec.loader is not None
    # dataclasses look their module up
    module = sys.modules["measure"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("figure", "goal", "is_met"),
    [
        ("-1.20 [-2.00, 0.10]", "<= 0.5", True),
        ("2.03 [1.90, 2.10]", ">= 2", True),
        ("1.99 [1.90, 2.10]", ">= 2", False),
        ("3.0e-07", "<= 1e-3", True),
        ("2e-2", "<= 1e-3", False),
        ("0", "<= 0", True),
        ("12", "", None),
        ("failed", ">= 2", None),
    ],
)
def test_a_goal_is_held_against_the_first_number(
    measure: ModuleType, figure: str, goal: str, is_met: bool | None
) -> None:
    row = measure.Row("work", figure, goal)
    assert row.is_met() is is_met
    assert ("(missed)" in measure.table_line(row)) == (is_met is False)


def test_works_take_turns_and_each_runs_untimed_before_it_is_timed(measure: ModuleType) -> None:
    ran: list[str] = []
    times = measure.in_turns({"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}, rounds=2)
    assert ran == ["a", "a", "b", "b"] * 2
    assert {name: len(found) for name, found in times.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_of_runs_of_one_round(measure: ModuleType) -> None:
    assert measure.ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == "2.00 [1.00, 3.00]"


@pytest.mark.long
def test_what_needs_a_gpu_runs_at_toy_sizes_on_a_cpu() -> None:
    parts = ("agreement", "waits", "storm", "losses", "decoding", "questions")
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--toy", "--only", *parts]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) > 20
    assert [row for row in rows if "failed" in row or "(missed)" in row] == []
