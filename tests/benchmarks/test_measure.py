"""What benchmarks share: rows that know whether their goal is met, turns, and one table of them all."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    # dataclasses look their module up
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def measure() -> ModuleType:
    return loaded("measure")


@pytest.fixture
def table(measure: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """all.py, with a folder for benchmarks of the test's own."""
    module = loaded("all")
    monkeypatch.setattr(module, "HERE", tmp_path)
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


ROW = """print('{"work": "w", "figure": "1.5", "goal": ">= 2", "note": ""}')
"""


def test_rows_of_a_benchmark_that_fails_are_kept_and_its_error_is_told(table: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(f"print('noise')\n{ROW}raise ValueError('text: no text')\n")
    (row,), error = table.rows_of("broken", quick=True)
    assert (row.work, row.is_met()) == ("w", False)
    assert error == "ValueError: text: no text"


def test_a_benchmark_that_ends_well_has_no_error(table: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "fine.py").write_text(f"import sys\nprint('{{\"other\": 1}}')\n{ROW}sys.stderr.write('a warning')\n")
    rows, error = table.rows_of("fine", quick=False)
    assert (len(rows), error) == (1, "")


def test_a_table_is_written_between_the_marks_alone(table: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.write(page, "new")
    assert page.read_text() == f"before\n{table.BEGIN}\nnew\n{table.END}\nafter\n"
    table.write(tmp_path / "alone.md", "new")
    assert (tmp_path / "alone.md").read_text() == "new\n"


@pytest.mark.parametrize(
    "options", [["--out", "page.md"], ["--only", "glue", "--out", "marked.md"], ["--out", "nowhere/page.md"]]
)
def test_a_file_that_would_lose_something_is_refused(
    table: ModuleType, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("page.md").write_text("mine")
    Path("marked.md").write_text(f"{table.BEGIN}\nwhole\n{table.END}\n")
    monkeypatch.setattr(sys, "argv", ["all.py", *options])
    with pytest.raises(SystemExit):
        table.main()
    assert Path("page.md").read_text() == "mine"


@pytest.mark.long
def test_what_needs_a_gpu_runs_at_toy_sizes_on_a_cpu() -> None:
    parts = ("agreement", "waits", "storm", "training", "flash", "losses", "decoding", "questions")
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--toy", "--only", *parts]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) > 35
    assert [row for row in rows if "failed" in row or "(missed)" in row] == []
