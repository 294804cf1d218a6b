"""accelerate launch with two processes: DDP and FSDP2 give the losses of one, which goes on from their shards."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from tests.clients.micro import SIZES
from tests.clients.sharded import SAVED, STEPS, fresh, losses

# two processes are started, and import everything
pytestmark = pytest.mark.long

HERE = Path(__file__).parent
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
OPTIONS = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of the two processes of sharded.py, launched once, and their report."""
    root = tmp_path_factory.mktemp("two")
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *LAUNCH, *OPTIONS, str(HERE / "sharded.py"), str(root)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return root, json.loads((root / "report.json").read_text())


@pytest.fixture(scope="module")
def alone() -> list[float]:
    """The losses of one process."""
    return losses(*fresh(), range(STEPS))


def test_two_processes_are_started_and_share_the_weights(two: tuple[Path, dict[str, Any]]) -> None:
    _, report = two
    assert (report["processes"], report["wrapped"]) == (2, "DistributedDataParallel")
    # the larger half of an odd number of rows
    assert report["local"] == SIZES["vocab_size"] // 2 + 1


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_have_the_losses_of_one(two: tuple[Path, dict[str, Any]], alone: list[float], way: str) -> None:
    assert two[1][way] == pytest.approx(alone, rel=1e-5)


# torch says that it takes one process for all
@pytest.mark.filterwarnings("ignore:.*assuming the intent is to load in a single process:UserWarning")
def test_one_process_goes_on_from_the_shards_of_two(two: tuple[Path, dict[str, Any]], alone: list[float]) -> None:
    model, optimizer = fresh()
    weights, state = get_state_dict(model, optimizer)
    found = {"model": weights, "optimizer": state}
    dcp.load(found, checkpoint_id=two[0] / "shards", no_dist=True)
    set_state_dict(model, optimizer, model_state_dict=found["model"], optim_state_dict=found["optimizer"])
    assert model.lm_head.weight is model.transformer.wte.weight
    assert losses(model, optimizer, range(SAVED, STEPS)) == pytest.approx(alone[SAVED:], rel=1e-5)
