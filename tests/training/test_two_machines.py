"""Two machines, each with an agent of its own: trained, saved and resumed as one run, which a lost machine ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from arbprob_hf.runs.checkpoints import newest

# agents and processes are started, and import everything
pytestmark = pytest.mark.long

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def two_machines(*folders: Path, options: tuple[str, ...] = ("--until=6",)) -> list[tuple[int, str]]:
    """The exit status and the errors of two agents on this machine, of one process each."""
    port, path = free_port(), os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    agents = []
    for rank in range(2):
        where = ["--nnodes=2", f"--node_rank={rank}", "--nproc_per_node=1"]
        where += ["--master_addr=127.0.0.1", f"--master_port={port}"]
        program = [str(HERE / "changing_processes.py"), str(folders[rank % len(folders)]), *options]
        agents.append(
            subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *where, *program],
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    errors = [agent.communicate(timeout=250)[1] for agent in agents]
    return [(agent.returncode, said) for agent, said in zip(agents, errors, strict=True)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights after six steps of a run that goes through."""
    folder = tmp_path_factory.mktemp("whole")
    assert [status for status, _ in two_machines(folder)] == [0, 0]
    return str(json.loads((folder / "seen.json").read_text())["weights"])


@pytest.mark.parametrize("lost", [0, 1], ids=["the first", "the second"])
def test_a_machine_that_is_lost_ends_the_run_which_then_goes_on_bit_for_bit(
    tmp_path: Path, whole: str, lost: int
) -> None:
    ended = two_machines(tmp_path, options=("--until=6", f"--dies={lost}"))
    assert ended[lost][0] == -9
    status, said = ended[1 - lost]
    assert status == 1
    assert "train: error: the connection to another process of the run is lost" in said
    # the last step that was whole
    assert newest(tmp_path) == tmp_path / "checkpoint-3"
    assert [status for status, _ in two_machines(tmp_path)] == [0, 0]
    assert json.loads((tmp_path / "seen.json").read_text())["weights"] == whole


def test_machines_without_a_common_folder_are_refused(tmp_path: Path) -> None:
    ended = two_machines(tmp_path / "one", tmp_path / "other")
    assert [status for status, _ in ended] == [1, 1]
    for _, said in ended:
        assert "train: error: output_dir is not one folder for all processes: process 1 on " in said
    assert not list(tmp_path.glob("*/checkpoint-*"))
