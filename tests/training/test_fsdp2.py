"""Two processes of a command under FSDP2, by the configuration file that docs/training.md shows, resume bit for bit."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from arbprob_hf.runs.checkpoints import sealed_names

# two processes are started three times, and import everything
pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
SIZES = ["--n_embd=8", "--n_positions=32", "--block_size=32", "--num_train_samples=40", "--num_val_samples=4"]
OPTIONS = ["--per_device_train_batch_size=2", "--logging_steps=1", "--eval_steps=2", "--sample_count=0"]
# by another schedule, a longer run has other learning rates from its first step
OPTIONS += ["--lr_scheduler_type=constant", "--learning_rate=1e-2", "--resume_from_checkpoint=true"]


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the page."""
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    found = re.search(r"```text\n(compute_environment: .*?distributed_type: FSDP\n.*?)```", page, re.DOTALL)
    assert found is not None
    path = tmp_path_factory.mktemp("configuration") / "fsdp2.yaml"
    path.write_text(found[1], encoding="utf-8")
    return path


def train(folder: Path, configuration: Path, steps: int) -> str:
    """What a run up to step `steps` says."""
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(configuration), "--main_process_port", "0"]
    program = [str(ROOT / "train_hf.py"), "--config", str(ROOT / "configs" / "nano.yaml")]
    done = subprocess.run(
        [sys.executable, *launch, *program, *SIZES, *OPTIONS, f"--output_dir={folder}", f"--max_steps={steps}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


def losses(folder: Path) -> list[tuple[str, str, str]]:
    """Each line of the run's log: step, loss, loss of evaluation."""
    with (folder / "logs" / "training_log.csv").open(encoding="utf-8") as file:
        return [(row["step"], row["loss"], row["eval_loss"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, configuration: Path) -> tuple[Path, Path]:
    """The folders of a run of six steps that goes through, and of one that stops after four and is resumed."""
    whole, cut = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("cut")
    train(whole, configuration, 6)
    train(cut, configuration, 4)
    assert [step for step, loss, _ in losses(cut) if loss] == ["1", "2", "3", "4"]
    said = train(cut, configuration, 6)
    # its steps were not trained again
    assert "step 5/6" in said
    assert "step 1/6" not in said
    return whole, cut


def test_a_resumed_run_has_the_losses_of_one_that_goes_through(runs: tuple[Path, Path]) -> None:
    whole, cut = map(losses, runs)
    assert [step for step, loss, _ in whole if loss] == ["1", "2", "3", "4", "5", "6"]
    assert cut == whole


def test_a_resumed_run_has_the_weights_of_one_that_goes_through(runs: tuple[Path, Path]) -> None:
    whole, cut = (load_file(folder / "model.safetensors") for folder in runs)
    assert whole.keys() == cut.keys()
    assert all(value.equal(cut[name]) for name, value in whole.items())


def test_a_checkpoint_holds_weights_and_optimizer_whole(runs: tuple[Path, Path]) -> None:
    # one file of each, under the names that a single process gives them
    assert {"model.safetensors", "optimizer.pt"} <= sealed_names(runs[1] / "checkpoint-6")
