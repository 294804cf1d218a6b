"""Two processes save, stop and resume as one, and evaluate to the loss of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arbprob_hf.runs.checkpoints import MANIFEST_NAME, newest
from tests.training.test_eval_rows import LENGTH, OPTIONS, ROWS

# two processes are started, and import everything
pytestmark = pytest.mark.long

HERE = Path(__file__).parent
LAUNCH = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc_per_node",
    "2",
    str(HERE / "two_processes.py"),
]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of the runs of two_processes.py, launched once, and its report."""
    root = tmp_path_factory.mktemp("two")
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*LAUNCH, str(root)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return root, json.loads((root / "report.json").read_text())


# "terminated" and "poisoned" befall one process only: the report exists because the other one stopped too
@pytest.mark.parametrize("cut", ["crashed", "terminated", "poisoned"])
def test_two_processes_resume_bit_equal(two: tuple[Path, dict[str, Any]], cut: str) -> None:
    assert two[1][cut] == two[1]["whole"]


def test_two_processes_of_two_workers_train_on_every_document_of_a_stream_once(
    two: tuple[Path, dict[str, Any]],
) -> None:
    assert sorted(two[1]["documents"]) == list(range(1, 33))


def test_two_processes_resume_a_stream_bit_equal(two: tuple[Path, dict[str, Any]]) -> None:
    assert two[1]["streamed and crashed"] == two[1]["streamed"] != two[1]["whole"]


def test_a_checkpoint_of_two_processes_seals_the_random_states_of_both(two: tuple[Path, dict[str, Any]]) -> None:
    manifest = json.loads((two[0] / "whole" / "checkpoint-8" / MANIFEST_NAME).read_text())
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(manifest["files"])


def test_a_signal_to_one_process_stops_both_at_one_step(two: tuple[Path, dict[str, Any]]) -> None:
    assert (two[0] / "terminated" / "checkpoint-5" / MANIFEST_NAME).exists()


def test_two_processes_evaluate_to_the_loss_of_one(
    tmp_path: Path, two: tuple[Path, dict[str, Any]], micro_trainer, rows
) -> None:
    trainer = micro_trainer(tmp_path)
    alone = {count: trainer.evaluate(rows(int(count)))["eval_loss"] for count in two[1]["eval"]}
    assert two[1]["eval"] == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("name", OPTIONS)
def test_two_processes_score_every_row_once_whatever_the_options(
    tmp_path: Path, two: tuple[Path, dict[str, Any]], micro_trainer, rows, name: str
) -> None:
    found, alone = two[1]["eval of options"][name], micro_trainer(tmp_path).evaluate(rows(ROWS))
    assert found["eval_scored_tokens"] == ROWS * (LENGTH - 1)
    assert found["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-6)


def test_a_checkpoint_of_two_processes_resumed_by_one_goes_on_and_says_so(
    two: tuple[Path, dict[str, Any]], tmp_path: Path, micro_trainer, caplog
) -> None:
    source = newest(two[0] / "whole")
    micro_trainer(tmp_path, max_steps=8).train(resume_from_checkpoint=str(source))
    said = "checkpoint-8 was saved by another number of processes: the run goes on, but not bit for bit: each block of"
    assert f"{said} this epoch still comes once; the global batch is now 4" in caplog.text
