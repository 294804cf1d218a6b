"""A resumed run ends with the very weights of the uninterrupted one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from arbprob_hf.runs.checkpoints import ASIDE_NAME, choose_checkpoint, seal
from arbprob_hf.training.options.command_line import resume_choice
from tests.micro_runs import Crash


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="accumulation and dropout"),
        pytest.param({"gradient_accumulation_steps": 1}, id="no accumulation", marks=pytest.mark.long),
        pytest.param({"dataloader_num_workers": 2}, id="two workers", marks=pytest.mark.long),
        pytest.param({"dataloader_num_workers": 2, "dataloader_persistent_workers": True}, id="persistent workers"),
        pytest.param({"eval_strategy": "steps", "eval_steps": 3}, id="evaluations between", marks=pytest.mark.long),
        pytest.param(
            {
                "dataloader_num_workers": 1,
                "dataloader_persistent_workers": True,
                "eval_strategy": "steps",
                "eval_steps": 1,
            },
            id="persistent evaluation workers",
            marks=pytest.mark.long,
        ),
        pytest.param({"lr_scheduler_type": "cosine", "warmup_steps": 3}, id="schedule", marks=pytest.mark.long),
        pytest.param({"save_steps": 3}, id="at the end of an epoch"),
    ],
)
def test_resumed_weights_are_bit_equal(tmp_path: Path, micro_trainer, weights_of, rows, options) -> None:
    options = {**options, "eval_dataset": rows(3)} if "eval_steps" in options else options
    whole = micro_trainer(tmp_path / "whole", **options)
    whole.train()
    with pytest.raises(ConnectionError):
        micro_trainer(tmp_path / "cut", **options, callbacks=[Crash(7)]).train()
    resumed = micro_trainer(tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=True)
    assert weights_of(resumed) == weights_of(whole)


@pytest.fixture
def cut(tmp_path: Path, whole_run: tuple[Path, str]) -> Path:
    """An output folder with the checkpoints 4, 6 and 8 of the default micro run."""
    for step in (4, 6, 8):
        shutil.copytree(whole_run[0] / f"checkpoint-{step}", tmp_path / "out" / f"checkpoint-{step}")
    return tmp_path / "out"


def test_a_named_checkpoint_is_taken_and_the_later_ones_set_aside(cut: Path, micro_trainer, weights_of, whole_run):
    trainer = micro_trainer(cut)
    trainer.train(resume_from_checkpoint=str(cut / "checkpoint-4"))
    assert weights_of(trainer) == whole_run[1]
    assert sorted(path.name for path in (cut / ASIDE_NAME).iterdir()) == ["checkpoint-6", "checkpoint-8"]


def test_a_checkpoint_of_another_folder_is_taken_and_left_as_it_is(cut: Path, tmp_path: Path) -> None:
    assert choose_checkpoint(str(cut / "checkpoint-6"), tmp_path / "new") == cut / "checkpoint-6"
    assert (cut / "checkpoint-8").is_dir()


def test_files_that_a_checkpoint_was_not_sealed_with_are_told_of(
    cut: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    choose_checkpoint(str(cut / "checkpoint-6"), tmp_path / "new")
    assert caplog.messages == []
    (cut / "checkpoint-6" / "pytorch_model.bin").write_bytes(b"from elsewhere")
    choose_checkpoint(str(cut / "checkpoint-6"), tmp_path / "new")
    assert caplog.messages == [f"{cut / 'checkpoint-6'} holds 1 files that it was not sealed with: pytorch_model.bin"]


def test_a_renamed_checkpoint_can_be_named(cut: Path, tmp_path: Path) -> None:
    kept = (cut / "checkpoint-6").rename(tmp_path / "kept")
    assert choose_checkpoint(str(kept), tmp_path / "new") == kept


def test_a_folder_of_checkpoints_means_its_newest_that_verifies(cut: Path, tmp_path: Path) -> None:
    (cut / "checkpoint-8" / "scheduler.pt").unlink()
    assert choose_checkpoint(str(cut), tmp_path / "new") == cut / "checkpoint-6"
    assert choose_checkpoint(str(cut), cut) == cut / "checkpoint-6"


def test_a_named_checkpoint_that_is_damaged_is_an_error(cut: Path, micro_trainer) -> None:
    (cut / "checkpoint-8" / "optimizer.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoint-8 does not verify: optimizer.pt has 0 bytes, .*; name"):
        micro_trainer(cut).train(resume_from_checkpoint=str(cut / "checkpoint-8"))


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("")])
def test_a_path_without_a_checkpoint_is_an_error(tmp_path: Path, make) -> None:
    make(tmp_path / "nothing")
    with pytest.raises(ValueError, match="does not verify: it (does not exist|was never sealed|is not a folder)"):
        choose_checkpoint(str(tmp_path / "nothing"), tmp_path)


def test_a_folder_in_which_nothing_verifies_is_an_error(cut: Path, tmp_path: Path) -> None:
    for step in (4, 6, 8):
        (cut / f"checkpoint-{step}" / "config.json").unlink()
    with pytest.raises(ValueError, match="no checkpoint in .*out verifies"):
        choose_checkpoint(str(cut), tmp_path / "new")


def test_resuming_without_any_checkpoint_starts_from_the_beginning_and_says_so(
    tmp_path: Path, micro_trainer, weights_of, whole_run, caplog
) -> None:
    trainer = micro_trainer(tmp_path)
    trainer.train(resume_from_checkpoint=True)
    assert weights_of(trainer) == whole_run[1]
    assert "no checkpoint to resume from in" in caplog.text


def test_a_checkpoint_without_an_optimizer_is_refused(tmp_path: Path, micro_trainer) -> None:
    micro_trainer(tmp_path, max_steps=2, save_only_model=True).train()
    with pytest.raises(ValueError, match="checkpoint-2 cannot be resumed from: it holds no optimizer state"):
        micro_trainer(tmp_path, max_steps=4).train(resume_from_checkpoint=True)


PICKLED = {
    "sealed": (lambda folder: (folder / "model.safetensors").unlink(), "pytorch_model.bin"),
    "shards": (lambda folder: (folder / "model.safetensors").unlink(), "pytorch_model-00001-of-00002.bin"),
    "adapter": (lambda folder: None, "adapter_model.bin"),
    "adapter of a name": (lambda folder: (folder / "taught").mkdir(), "taught/adapter_model.bin"),
}


@pytest.mark.parametrize("is_sealed", [True, False], ids=["sealed", "put there"])
@pytest.mark.parametrize(("prepare", "name"), PICKLED.values(), ids=PICKLED)
def test_weights_in_a_pickle_are_not_resumed_from(
    cut: Path, tmp_path: Path, micro_trainer, prepare, name: str, is_sealed: bool
) -> None:
    staged = (cut / "checkpoint-6").rename(tmp_path / "checkpoint-6")
    prepare(staged)
    if is_sealed:
        (staged / name).write_bytes(b"a pickle")
    sealed = seal(staged, cut)
    (sealed / name).write_bytes(b"a pickle")
    message = (
        f"checkpoint-6 cannot be resumed from: its weights are in {name}, a pickle, and a resume takes safetensors"
    )
    with pytest.raises(ValueError, match=message) as raised:
        micro_trainer(cut).train(resume_from_checkpoint=str(sealed))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("value", "choice"),
    [
        (None, False),
        (False, False),
        ("", False),
        *((word, False) for word in ("false", "no", "off", "0")),
        (True, True),
        *((word, True) for word in ("True", "yes", "on", "1")),
        ("a/b", "a/b"),
    ],
)
def test_the_words_of_a_command_line_count_as_booleans(value, choice) -> None:
    assert resume_choice(value) == choice


@pytest.mark.parametrize(
    "length", [{"max_steps": 10}, {"max_steps": -1, "num_train_epochs": 1.5}], ids=["steps", "epochs"]
)
def test_resuming_a_complete_run_changes_nothing_and_says_so(
    tmp_path: Path, micro_trainer, weights_of, length, caplog
) -> None:
    options = {**length, "lr_scheduler_type": "constant"}
    whole = micro_trainer(tmp_path, **options)
    whole.train()
    resumed = micro_trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step
    assert weights_of(resumed) == weights_of(whole)
    assert "the run is complete with step" in caplog.text
