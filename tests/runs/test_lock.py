"""One process an output folder, one run an output folder, and a signal that ends a run at a step boundary."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import TrainerCallback

from arbprob_hf.runs.checkpoints import PRIVATE_NAME, newest
from arbprob_hf.runs.lock import lock_run_folder
from arbprob_hf.training.dataloaders import _start_worker
from arbprob_hf.training.signals import IDLE, STOPPING, Stopped, StopSignal

ROOT = Path(__file__).parents[2]

# the package's own __init__ is passed by: it would load torch, for seconds, to take a lock
HOLDER = """
import os, sys, time, types
for name in ("arbprob_hf", "arbprob_hf.training"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [os.path.join(sys.argv[3], *name.split("."))]
from arbprob_hf.runs.lock import lock_run_folder
with lock_run_folder(sys.argv[1], resume=True):
    if sys.argv[2] == "fork" and os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(60)
    elif sys.argv[2] == "alone":
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder; with param "fork", one with a child as a data loader worker is."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), getattr(request, "param", "alone"), str(ROOT)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    reported = int(process.stdout.readline())
    yield process
    for number in {process.pid, reported}:
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate()


def test_a_second_process_is_refused(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    refused = pytest.raises(ValueError, match=rf"is in use by another run \(process {holder.pid} on .*\): wait")
    with refused, lock_run_folder(tmp_path, resume=True):
        raise AssertionError("held twice")


def test_a_second_trainer_is_refused_and_changes_nothing(tmp_path: Path, holder, micro_trainer) -> None:
    with pytest.raises(ValueError, match="is in use by another run"):
        micro_trainer(tmp_path).train(resume_from_checkpoint=True)
    assert [path.name for path in tmp_path.iterdir()] == [PRIVATE_NAME]


@pytest.mark.parametrize("holder", ["alone", "fork"], indirect=True)
def test_the_lock_ends_with_a_killed_process_even_if_its_workers_live(tmp_path: Path, holder) -> None:
    holder.kill()
    holder.wait()
    with lock_run_folder(tmp_path, resume=True):
        assert (tmp_path / PRIVATE_NAME / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_the_folder_is_free_and_clean_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with lock_run_folder(tmp_path / "new", resume=False):
            assert (tmp_path / "new" / PRIVATE_NAME).is_dir()
    assert not (tmp_path / "new").exists()


def test_a_folder_that_was_there_or_has_something_in_it_stays(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with lock_run_folder(tmp_path / "old", resume=False):
        pass
    with lock_run_folder(tmp_path / "a" / "b", resume=False):
        (tmp_path / "a" / "beside").touch()
    assert {path.name for path in tmp_path.rglob("*")} == {"old", "a", "beside"}


def test_reading_the_lock_file_does_not_open_the_lock(tmp_path: Path) -> None:
    with lock_run_folder(tmp_path, resume=True):
        (tmp_path / PRIVATE_NAME / "lock").read_text()  # as an upload of the folder would
        code = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        command = [sys.executable, "-c", code, str(tmp_path / PRIVATE_NAME / "lock")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "BlockingIOError" in done.stderr


def test_one_process_may_nest(tmp_path: Path) -> None:
    with lock_run_folder(tmp_path, resume=False):
        (tmp_path / "config.json").write_text("{}")
        with lock_run_folder(tmp_path, resume=False):
            pass
        assert (tmp_path / PRIVATE_NAME / "lock").exists()


def test_other_processes_of_a_run_do_not_lock(tmp_path: Path) -> None:
    with lock_run_folder(tmp_path / "new", resume=False, is_main=False):
        assert not (tmp_path / "new").exists()


def test_a_file_system_without_locks_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    refused = pytest.raises(ValueError, match=r"is on a file system without locks \(No locks available\): name one")
    with refused, lock_run_folder(tmp_path, resume=True):
        raise AssertionError("held without a lock")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [".", f"{PRIVATE_NAME}/staging"], ids=["in place", "still staged"])
def test_a_refused_run_changes_nothing(tmp_path: Path, whole_run: tuple[Path, str], place: str) -> None:
    shutil.copytree(whole_run[0] / "checkpoint-4", tmp_path / place / "checkpoint-4")
    (tmp_path / PRIVATE_NAME / "trash").mkdir(parents=True)
    (tmp_path / PRIVATE_NAME / "trash" / "half").write_text("a killed run's")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    refused = pytest.raises(ValueError, match="already holds a run .it has checkpoint-4.: resume it")
    with refused, lock_run_folder(tmp_path, resume=False):
        raise AssertionError("held another run's folder")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    refused = pytest.raises(ValueError, match="output_dir must be a folder, got .*/out: a file is in the way")
    with refused, lock_run_folder(tmp_path / "out", resume=False):
        raise AssertionError("held a file")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mkdir(self: Path, **_: bool) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    refused = pytest.raises(ValueError, match="output_dir .*/out cannot be made: name a folder on a disk that can")
    with refused, lock_run_folder(tmp_path / "out", resume=False):
        raise AssertionError("held nothing")


def test_a_folder_that_vanishes_once_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, vanished = os.open, []

    def vanish_once(path: Path, *args: int) -> int:
        if not vanished:
            vanished.append(path)
            (tmp_path / "out" / PRIVATE_NAME).rmdir()
        return opened(path, *args)

    monkeypatch.setattr(os, "open", vanish_once)
    with lock_run_folder(tmp_path / "out", resume=False):
        assert vanished == [tmp_path / "out" / PRIVATE_NAME / "lock"]
        assert vanished[0].exists()


def test_a_read_only_disk_is_reported_with_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mkdir(self: Path, **_: bool) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    refused = pytest.raises(ValueError, match=r"output_dir .*/out cannot be written to \(Read-only file system\): name")
    with refused, lock_run_folder(tmp_path / "out", resume=False):
        raise AssertionError("held nothing")


@pytest.mark.parametrize("trace", ["checkpoint-7", "config.json", "model.safetensors", "logs/training_log.csv"])
def test_a_folder_with_another_run_is_refused_unless_resuming(tmp_path: Path, trace: str) -> None:
    (tmp_path / trace).parent.mkdir(exist_ok=True)
    (tmp_path / trace).write_text("")
    refused = pytest.raises(ValueError, match=f"already holds a run .it has {trace}.: resume it with")
    with refused, lock_run_folder(tmp_path, resume=False):
        raise AssertionError("held another run's folder")
    with lock_run_folder(tmp_path, resume=True):
        assert (tmp_path / trace).exists()


def test_a_folder_with_a_users_notes_is_taken(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with lock_run_folder(tmp_path, resume=False):
        assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_trainer_refuses_the_folder_of_another_run(tmp_path: Path, micro_trainer) -> None:
    micro_trainer(tmp_path, max_steps=2).train()
    with pytest.raises(ValueError, match="already holds a run"):
        micro_trainer(tmp_path, max_steps=2).train()


class _Signal(TrainerCallback):
    """Sends a signal to this very process in the middle of a step: between two micro-batches."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_mid_step_saves_at_the_boundary_and_the_resumed_bits_are_equal(
    tmp_path: Path, micro_trainer, weights_of, whole_run, number: int, status: int
) -> None:
    with pytest.raises(Stopped) as stopped:
        micro_trainer(tmp_path, callbacks=[_Signal(number, 6)]).train()
    assert stopped.value.code == status
    assert newest(tmp_path) == tmp_path / "checkpoint-7"
    resumed = micro_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert weights_of(resumed) == whole_run[1]


@pytest.mark.parametrize(
    "options",
    [
        {"save_strategy": "no"},
        {"save_strategy": "epoch"},
        {
            "save_strategy": "best",
            "eval_strategy": "steps",
            "eval_steps": 1,
            "metric_for_best_model": "loss",
            "learning_rate": 0.0,
        },
        {"save_total_limit": 1, "load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2},
    ],
    ids=["no", "epoch", "best", "best at the end"],
)
def test_a_signal_saves_under_every_save_strategy(tmp_path: Path, micro_trainer, rows, options) -> None:
    trainer = micro_trainer(tmp_path, **options, callbacks=[_Signal(signal.SIGTERM, 4)], eval_dataset=rows(4))
    with pytest.raises(Stopped):
        trainer.train()
    assert newest(tmp_path) == tmp_path / "checkpoint-5"


def test_a_signal_to_the_whole_process_group_leaves_the_workers_at_work(tmp_path: Path, micro_trainer) -> None:
    class Everyone(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
                assert len(children) == 2
                # by another process: torch's workers end in peace when it is their parent who signals
                subprocess.run(["kill", "-TERM", *children, str(os.getpid())], check=True)

    trainer = micro_trainer(tmp_path, dataloader_num_workers=2, callbacks=[Everyone()])
    with pytest.raises(Stopped):
        trainer.train()
    assert newest(tmp_path) == tmp_path / "checkpoint-2"


def test_a_signal_after_the_last_step_cuts_nothing_short(tmp_path: Path, micro_trainer, whole_run, weights_of, caplog):
    class Last(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = micro_trainer(tmp_path, callbacks=[Last()])
    trainer.train()
    assert weights_of(trainer) == whole_run[1]
    assert "the signal came after the last step" in caplog.text


def _work(started, state) -> None:
    _start_worker(0, None, state)
    started.set()
    time.sleep(60)


@pytest.mark.parametrize(("state", "lives"), [(IDLE, False), (STOPPING, True)], ids=["no run", "a run that stops"])
def test_a_worker_obeys_a_sigterm_unless_the_run_is_stopping(state: int, lives: bool) -> None:
    stop, started = StopSignal(), multiprocessing.Event()
    worker = multiprocessing.Process(target=_work, args=(started, stop.state), daemon=True)
    worker.start()
    started.wait()
    stop.state.value = state
    worker.terminate()
    worker.join(timeout=2 if lives else 60)
    assert worker.exitcode == (None if lives else -signal.SIGTERM)
    worker.kill()
    worker.join()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler of Ctrl-C: a shell starts what is in the background with one that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_does_not_wait() -> None:
    with StopSignal() as stop:
        # to this thread: the system may give a signal to the process to any other, and python handles it later then
        signal.raise_signal(signal.SIGINT)
        assert stop.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_are_as_before_afterwards() -> None:
    before = (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    with StopSignal():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_a_terminated_script_ends_with_status_143_and_saves_no_final_model(tmp_path: Path, workers: int) -> None:
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import signal
from transformers import TrainingArguments
from arbprob_hf.training.trainer import ArbProbTrainer
from tests.micro_runs import OPTIONS, micro_model, token_rows
from tests.runs.test_lock import _Signal
trainer = ArbProbTrainer(model=micro_model(), train_dataset=token_rows(24),
    callbacks=[_Signal(signal.SIGTERM, 4)], args=TrainingArguments(output_dir={str(tmp_path)!r},
        dataloader_num_workers={workers},
        dataloader_persistent_workers={workers > 0}, **OPTIONS))
trainer.train()
trainer.save_model()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 143, done.stderr
    assert "saved as checkpoint-5: go on with --resume_from_checkpoint true" in done.stderr
    assert not (tmp_path / "model.safetensors").exists()
