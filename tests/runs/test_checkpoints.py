"""Sealed checkpoints: every kind of damage is seen, and nothing in the way stops a run."""

from __future__ import annotations

import errno
import logging
import re
import shutil
from pathlib import Path

import pytest

from arbprob_hf.runs.checkpoint_writer import CheckpointWriter
from arbprob_hf.runs.checkpoints import (
    ASIDE_NAME,
    MANIFEST_NAME,
    PRIVATE_NAME,
    install,
    is_sealed,
    newest,
    numbered,
    rotate,
    seal,
    staging,
    sweep,
    verify,
)
from arbprob_hf.runs.fingerprint import FINGERPRINT_NAME
from arbprob_hf.runs.lock import lock_run_folder
from arbprob_hf.runs.record import RECORD_NAME
from arbprob_hf.training.positions import POSITION_NAME
from tests.tables import quick

FILES = (
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    POSITION_NAME,
    "training_args.bin",
    "config.json",
    "generation_config.json",
    FINGERPRINT_NAME,
    RECORD_NAME,
    MANIFEST_NAME,
)


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


DAMAGE = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "bit flipped": _flip_a_bit,
    "filled with NUL": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "swapped for an older one": lambda path: shutil.copyfile(path.parent.parent / "checkpoint-4" / path.name, path),
}
# the same bytes in every checkpoint of a run: swapping them changes nothing
SAME_IN_ALL = ("training_args.bin", RECORD_NAME, "config.json", "generation_config.json")


def _seal(output_dir: Path, step: int, text: str = "weights") -> Path:
    folder = staging(output_dir) / f"checkpoint-{step}"
    (folder / "deeper").mkdir(parents=True)
    (folder / "weights").write_text(f"{text} {step}")
    (folder / "deeper" / "state").write_text("state")
    return seal(folder, output_dir)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != PRIVATE_NAME)


@pytest.fixture
def two(tmp_path: Path, whole_run: tuple[Path, str]) -> Path:
    """An output folder with the checkpoints 4 and 6 of a real run."""
    for name in ("checkpoint-4", "checkpoint-6"):
        shutil.copytree(whole_run[0] / name, tmp_path / name)
    return tmp_path


def test_a_checkpoint_of_a_run_holds_the_files_that_the_damage_matrix_covers(two: Path) -> None:
    assert _names(two / "checkpoint-6") == sorted(FILES)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_seen_and_the_last_good_checkpoint_found(two: Path, name: str, damage: str) -> None:
    DAMAGE[damage](two / "checkpoint-6" / name)
    if damage == "swapped for an older one" and name in SAME_IN_ALL:
        assert newest(two) == two / "checkpoint-6"
    else:
        assert newest(two) == two / "checkpoint-4"
        assert _names(two / ASIDE_NAME) == ["checkpoint-6"]


def test_a_whole_checkpoint_swapped_for_an_older_one_is_seen(two: Path) -> None:
    shutil.rmtree(two / "checkpoint-6")
    shutil.copytree(two / "checkpoint-4", two / "checkpoint-6")
    assert "manifest.json is of step 4" in str(verify(two / "checkpoint-6"))


@pytest.mark.parametrize("text", ["[]", "{}", '{"files": 3}', '{"format": 1, "step": 6, "files": {}}', "[" * 9999])
def test_a_manifest_of_another_shape_does_not_verify(two: Path, text: str) -> None:
    (two / "checkpoint-6" / MANIFEST_NAME).write_text(text)
    assert verify(two / "checkpoint-6") == "manifest.json is damaged"


@pytest.mark.parametrize("number", ["-5", "1e999", "NaN", "5.0", "5.5", '"5"', "true", "null", "[5]", "9" * 400])
@pytest.mark.parametrize("name", ["bytes", "step", "format"])
def test_a_manifest_with_odd_numbers_falls_back_to_the_older_checkpoint(two: Path, name: str, number: str) -> None:
    manifest = two / "checkpoint-6" / MANIFEST_NAME
    text = re.sub(rf'"{name}": \d+', f'"{name}": {number}', manifest.read_text(encoding="utf-8"))
    manifest.write_text(text, encoding="utf-8")
    assert newest(two) == two / "checkpoint-4"
    assert not is_sealed(two / "checkpoint-6")


def test_a_file_in_the_place_of_the_folder_for_what_is_set_aside_is_left_there(two: Path) -> None:
    (two / ASIDE_NAME).write_text("mine")
    (two / "checkpoint-6" / MANIFEST_NAME).unlink()
    assert newest(two) == two / "checkpoint-4"
    assert (two / ASIDE_NAME).read_text() == "mine"
    assert (two / f"{ASIDE_NAME}.1" / "checkpoint-6").is_dir()


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere")], ids=["file", "link"])
def test_what_lies_in_the_place_of_a_work_folder_is_removed(two: Path, make) -> None:
    for name in ("staging", "final", "trash"):
        (two / PRIVATE_NAME).mkdir(exist_ok=True)
        make(two / PRIVATE_NAME / name)
    with lock_run_folder(two, resume=True):
        rotate(two, 1, protected=())
    assert [path.name for path in numbered(two)] == ["checkpoint-6"]


def test_no_single_flipped_bit_of_a_manifest_goes_unseen(tmp_path: Path) -> None:
    folder = staging(tmp_path) / "checkpoint-4"
    folder.mkdir(parents=True)
    # names of which a flipped bit makes others that are there, too
    for name in ("rng_state_0.pth", "rng_state_1.pth"):
        (folder / name).write_text(name)
    manifest = seal(folder, tmp_path) / MANIFEST_NAME
    content = manifest.read_bytes()
    unseen = []
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        manifest.write_bytes(flipped)
        if verify(manifest.parent) is None:
            unseen.append(bit)
    assert unseen == []


DAMAGED = [
    (name, damage)
    for name in ("model.safetensors", "optimizer.pt", "rng_state.pth")
    for damage in DAMAGE
    if damage != "truncated"
]
# every file once, every kind of damage once
DAMAGED_QUICKLY = [
    *(("model.safetensors", damage) for damage in ("deleted", "bit flipped", "swapped for an older one")),
    *(("optimizer.pt", "emptied"), ("rng_state.pth", "filled with NUL")),
]


@pytest.mark.parametrize(("name", "damage"), quick(DAMAGED, DAMAGED_QUICKLY))
def test_a_run_resumed_over_damage_ends_with_the_same_bits(
    two: Path, whole_run: tuple[Path, str], micro_trainer, weights_of, name: str, damage: str
) -> None:
    DAMAGE[damage](two / "checkpoint-6" / name)
    trainer = micro_trainer(two)
    trainer.train(resume_from_checkpoint=True)
    assert weights_of(trainer) == whole_run[1]


JUNK = {
    "a folder of something else": lambda path: (path.mkdir(), (path / "notes.txt").write_text("mine")),
    "an empty folder": lambda path: path.mkdir(),
    "a file": lambda path: path.write_text("mine"),
    "a dangling link": lambda path: path.symlink_to(path.parent / "nowhere"),
}


@pytest.mark.parametrize("kind", JUNK)
@pytest.mark.parametrize("name", ["checkpoint-999", "checkpoint-8"])
def test_junk_in_the_way_costs_one_line(
    two: Path, whole_run: tuple[Path, str], micro_trainer, weights_of, caplog, name: str, kind: str
) -> None:
    JUNK[kind](two / name)
    trainer = micro_trainer(two)
    trainer.train(resume_from_checkpoint=True)
    lines = [record for record in caplog.records if record.name.startswith("arbprob_hf")]
    assert weights_of(trainer) == whole_run[1]
    assert [record.levelno for record in lines] == [logging.WARNING]
    assert f"{name} is set aside as _set_aside/{name}: it" in lines[0].getMessage()


def test_junk_that_appears_during_the_run_does_not_stop_a_save(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-8").write_text("mine")
    _seal(tmp_path, 8)
    assert verify(tmp_path / "checkpoint-8") is None
    assert (tmp_path / ASIDE_NAME / "checkpoint-8").read_text() == "mine"


def test_names_that_are_no_checkpoint_are_left_alone(tmp_path: Path) -> None:
    for name in ("checkpoint-best", "checkpoint-07", "checkpoint-9.old", "xcheckpoint-9"):
        (tmp_path / name).mkdir()
    assert newest(tmp_path) is None
    assert len(_names(tmp_path)) == 4


def test_the_newest_is_the_one_of_the_highest_step(tmp_path: Path) -> None:
    for step in (9, 10, 2):
        _seal(tmp_path, step)
    assert newest(tmp_path) == tmp_path / "checkpoint-10"


def test_another_folder_is_searched_without_changing_it(two: Path, caplog) -> None:
    (two / "checkpoint-6" / "optimizer.pt").unlink()
    assert newest(two, repair=False) == two / "checkpoint-4"
    assert _names(two) == ["checkpoint-4", "checkpoint-6"]
    assert "checkpoint-6 is passed over: optimizer.pt is missing" in caplog.text


def test_rotation_keeps_the_limit_and_the_protected(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        _seal(tmp_path, step)
    rotate(tmp_path, 2, {"checkpoint-2", "checkpoint-8"})
    assert _names(tmp_path) == ["checkpoint-2", "checkpoint-8"]


def test_rotation_neither_counts_nor_touches_what_is_not_sealed(tmp_path: Path) -> None:
    for step in (2, 4):
        _seal(tmp_path, step)
    (tmp_path / "checkpoint-999").mkdir()
    rotate(tmp_path, 1, {"checkpoint-4"})
    assert _names(tmp_path) == ["checkpoint-4", "checkpoint-999"]


@pytest.mark.parametrize("limit", [None, 0, 3])
def test_rotation_without_need_deletes_nothing(tmp_path: Path, limit: int | None) -> None:
    for step in (2, 4):
        _seal(tmp_path, step)
    rotate(tmp_path, limit, {"checkpoint-4"})
    assert _names(tmp_path) == ["checkpoint-2", "checkpoint-4"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    _seal(tmp_path, 4, "first")
    _seal(tmp_path, 4, "second")
    assert (tmp_path / "checkpoint-4" / "weights").read_text() == "second 4"
    assert _names(tmp_path) == ["checkpoint-4"]


def test_sweeping_removes_a_half_written_stage(tmp_path: Path) -> None:
    _seal(tmp_path, 4)
    folder = staging(tmp_path) / "checkpoint-6"
    folder.mkdir()
    (folder / "weights").write_text("half")
    sweep(tmp_path)
    assert _names(tmp_path) == ["checkpoint-4"]
    assert not staging(tmp_path).exists()


def test_sweeping_finishes_a_replacement_that_was_cut_between_its_two_renames(tmp_path: Path) -> None:
    staged = _seal(tmp_path, 4, "second").rename(staging(tmp_path) / "checkpoint-4")
    sweep(tmp_path)
    assert not staged.exists()
    assert verify(tmp_path / "checkpoint-4") is None


def test_a_sealed_checkpoint_is_not_taken_for_one_after_it_lost_its_manifest(tmp_path: Path) -> None:
    checkpoint = _seal(tmp_path, 4)
    assert is_sealed(checkpoint)
    (checkpoint / MANIFEST_NAME).unlink()
    assert not is_sealed(checkpoint)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["model.safetensors"], ["model.safetensors"]),
        (["model.safetensors"], ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]),
        (["model-00001-of-00002.safetensors", "model.safetensors.index.json"], ["model.safetensors"]),
    ],
    ids=["same files", "one file, then shards", "shards, then one file"],
)
def test_installed_weights_replace_the_old_ones(tmp_path: Path, old: list[str], new: list[str]) -> None:
    folder, stage = tmp_path / "out", tmp_path / "stage"
    for place, names in ((folder, old), (stage, new)):
        (place / "templates").mkdir(parents=True)
        for name in [*names, "config.json", "templates/chat.jinja"]:
            (place / name).write_text(place.name)
    (folder / "notes.txt").write_text("mine")
    install(stage, folder)
    assert _names(folder) == sorted([*new, "config.json", "notes.txt", "templates"])
    assert {(folder / name).read_text() for name in [*new, "config.json", "templates/chat.jinja"]} == {"stage"}
    assert not stage.exists()


def test_the_disk_is_blamed_where_it_was_the_disk(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path)
    assert "make room" in str(writer.failure("checkpoint-1", OSError(errno.ENOSPC, "No space left on device")))
    assert str(writer.failure("checkpoint-1", KeyError("name"))).endswith("; the earlier checkpoints are intact")
