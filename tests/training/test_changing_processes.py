"""A run that goes on with other processes and other workers has every block of an epoch once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.training.changing_processes import ROWS

# several processes are started, and import everything
pytestmark = pytest.mark.long

HERE = Path(__file__).parent
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def part(folder: Path, processes: int, until: int, workers: int = 0, *more: str) -> tuple[dict[str, Any], str]:
    """What so many processes note from the last checkpoint to step `until`, and what they say."""
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    program = [str(HERE / "changing_processes.py"), str(folder), f"--until={until}", f"--workers={workers}", *more]
    done = subprocess.run(
        [*LAUNCH, str(processes), *program] if processes > 1 else [sys.executable, *program],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "seen.json").read_text()), done.stderr


# a step has 4 blocks a process
@pytest.mark.parametrize(
    "parts", [[(1, 5, 0), (2, 7, 2), (3, 99, 1)], [(2, 3, 1), (1, 99, 0)]], ids=["1, 2, 3", "2, 1"]
)
def test_every_block_of_an_epoch_comes_once_with_the_question_it_would_have_had(
    tmp_path: Path, parts: list[tuple[int, int, int]]
) -> None:
    seen, said = [], []
    for processes, until, workers in parts:
        found, errors = part(tmp_path, processes, until, workers)
        seen += found["seen"]
        said.append(errors)
    assert found["epoch"] == 2
    whole, _ = part(tmp_path / "whole", 1, 99)
    questions = {(epoch, number): targets for epoch, number, targets in whole["seen"]}
    had = Counter((epoch, number) for epoch, number, _ in seen)
    assert set(had) == set(questions)
    assert len(questions) == 2 * ROWS
    # an epoch that several processes end fills up their last batches with its first blocks
    last = parts[-1][0]
    for epoch in (0, 1):
        assert sum(count for (of, _), count in had.items() if of == epoch) - ROWS < (2 * last if last > 1 else 1)
    assert all(questions[epoch, number] == targets for epoch, number, targets in seen)
    assert "each block of this epoch still comes once; the global batch is now" in said[1]


# a step has 4 blocks a process; four files for up to six readers
@pytest.mark.parametrize(
    "parts", [[(1, 2, 2), (3, 3, 2), (2, 9, 1)], [(2, 3, 2), (1, 16, 0)]], ids=["2, 6, 2 readers", "4, 1"]
)
def test_every_document_of_a_stream_comes_once_in_a_reading(tmp_path: Path, parts: list[tuple[int, int, int]]) -> None:
    had = Counter[int]()
    for number, (processes, until, workers) in enumerate(parts):
        found, errors = part(tmp_path, processes, until, workers, "--streams")
        had.update(document for _, document, _ in found["seen"])
        assert ("goes on with other readers of the stream" in errors) == (number > 0)
        if number < len(parts) - 1:
            assert set(had.values()) == {1}
    # the last part goes into the next reading
    assert set(had) == set(range(10, 10 + ROWS))
    assert set(had.values()) == {1, 2}
