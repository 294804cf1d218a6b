"""What a machine has run out of is told in one line, with what to lower and where."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import torch

from arbprob_hf.atomic_write import replacing
from arbprob_hf.errors import exit_on_user_error
from arbprob_hf.machine_errors import machine_error
from arbprob_hf.runs.checkpoints import CheckpointError
from arbprob_hf.runs.log import CsvLog

KILLED = "DataLoader worker (pid 123) is killed by signal: Killed. "
BUS = "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of"
GONE = "DataLoader worker (pid(s) 5, 6) exited unexpectedly"
PREPARED = "One of the subprocesses has abruptly died during map operation.To debug the error, disable multiprocessing."


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            RuntimeError(KILLED),
            r"a data loader worker \(process 123\) was killed \(signal Killed\), most often because mem",
        ),
        (
            RuntimeError(GONE),
            r"a data loader worker \(process 5, 6\) was killed \(it ended by itself\), most",
        ),
        (
            RuntimeError(BUS),
            r"a data loader worker \(process 7\) has no shared memory left in /dev/shm: make",
        ),
        (
            RuntimeError("[gloo/pair.cc:547] Connection closed by peer [127.0.0.1]"),
            "the connection to another process of",
        ),
        (RuntimeError(PREPARED), "a process that prepared the text was killed; .* fewer preprocessing_num_workers"),
        (
            MemoryError(),
            "memory has run out: lower the size of the network, or of a batch; --resume_from_checkpoint true",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0"),
            r"memory .* \(2\.00 GiB",
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory has run out: lower"),
        (
            OSError(errno.ENOSPC, "No space", "/nowhere/a.bin"),
            r"the disk is full: /nowhere/a\.bin could not be written \(",
        ),
        (
            Exception("I/O error: No space left on device (os error 28)"),
            "the disk is full: make room there, or",
        ),
    ],
)
def test_each_is_known_by_what_libraries_say(error: Exception, line: str) -> None:
    assert machine_error(error) is not None
    with pytest.raises(SystemExit) as left, exit_on_user_error("program"):
        raise error
    assert left.value.code == 1
    found = machine_error(error)
    assert found is not None
    assert "\n" not in found
    assert len(found) <= 300
    with pytest.raises(AssertionError, match=f"^{line}"):
        raise AssertionError(found)


@pytest.mark.parametrize("error", [ValueError("batch"), RuntimeError("shapes"), OSError(errno.ENOENT, "No such file")])
def test_other_errors_are_not_taken_for_one(error: Exception) -> None:
    assert machine_error(error) is None


def test_a_bug_still_comes_with_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="shapes"), exit_on_user_error("program"):
        raise RuntimeError("shapes")


def test_what_was_being_done_says_what_to_lower() -> None:
    def training_step() -> None:
        torch.empty(1 << 60)

    def evaluation_loop() -> None:
        np.empty(1 << 55)

    for function, line in (
        (
            training_step,
            r"memory has run out \(4611686018427387904 bytes more were asked for\): lower per_device_train",
        ),
        (
            evaluation_loop,
            r"memory has run out \(256\. PiB more were asked for\): lower per_device_eval_batch_siz",
        ),
    ):
        with pytest.raises((RuntimeError, MemoryError)) as raised:
            function()
        with pytest.raises(AssertionError, match=f"^{line}"):
            raise AssertionError(machine_error(raised.value))


def test_a_worker_that_has_no_memory_is_told_by_the_text_of_its_traceback() -> None:
    text = 'Caught MemoryError in DataLoader worker process 0.\n  File "a.py", line 3, in with_states\nMemoryError'
    assert "lower shuffle_buffer; --resume" in str(machine_error(MemoryError(text)))


def test_what_says_itself_what_is_left_of_a_run_keeps_its_words(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit), exit_on_user_error("program"):
        raise CheckpointError("checkpoint-2 could not be saved") from OSError(errno.ENOSPC, "No space left on device")
    assert capsys.readouterr().err == "program: error: checkpoint-2 could not be saved\n"


def test_a_write_to_a_full_disk_names_the_file(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "log.csv")
    log.path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device.*log.csv"):
        log.append({"step": 1})

    def fail() -> None:
        with replacing(tmp_path / "card.md"):
            Path("/dev/full").write_text("a card")

    with pytest.raises(OSError, match="No space left on device.*card.md") as raised:
        fail()
    assert str(machine_error(raised.value)).startswith(
        f"the disk is full: {tmp_path / 'card.md'} could not be written ("
    )
