"""The shortened kill test: the long one is `python benchmarks/kill_test.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_killed_runs_resume_to_the_same_bits() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "kill_test.py"), "--kills", "6", "--chains", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| 3/3 |") == 2
    assert "| 1/1 |" in done.stdout
