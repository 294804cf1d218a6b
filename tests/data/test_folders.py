"""A folder of texts is read whole: what is missing, emptied, linked or there twice is seen."""

import gzip
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .test_files import Read, both, prepared, zstandard


@both
@pytest.mark.parametrize(
    ("numbers", "packed", "missing"),
    [
        ((0, 2), "", r"1 file is not there, though the names of others count it \(a-00001-of-00003\.txt\); put back"),
        (
            (0, 1),
            ".gz",
            r"1 file is not there, though .* \(a-00002-of-00003\.txt\.gz\); put back what is gone, or give",
        ),
        ((2,), "", r"2 files are not there, though the names of others count them \(a-00000-of-00003\.txt, a-00001-of"),
        (
            (1, 3),
            "",
            r"1 file is not there, .* \(a-00002-of-00003\.txt\); put back what is gone, or give a pattern, as ",
        ),
    ],
)
def test_files_that_the_names_of_others_count_are_missed(
    read: Read, numbers: tuple[int, ...], packed: str, missing: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in numbers:
        content = f"{number}<|endoftext|>{number}!".encode()
        (tmp_path / f"a-{number:05}-of-00003.txt{packed}").write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ValueError, match=missing) as refused:
        read(tmp_path)
    assert len(str(refused.value)) <= 380
    # who names the files wants them
    with caplog.at_level(logging.WARNING):
        assert len(read(tmp_path / "*")) == 2 * len(numbers)
    assert "count" in caplog.text


@both
def test_whole_sets_of_numbered_files_are_read(read: Read, tmp_path: Path) -> None:
    names = [*(f"a-{number:05}-of-00003.txt" for number in range(3)), "b-00001-of-00002.txt", "b-00002-of-00002.txt"]
    for name in (*names, "c-1-of-2.txt", "d-00000-of-00007.pdf"):
        (tmp_path / name).write_text(name)
    (tmp_path / "a-00001-of-00003.txt").unlink()
    # some unpack what they look at
    (tmp_path / "a-00001-of-00003.txt.gz").write_bytes(gzip.compress(b"a-00001-of-00003.txt"))
    assert read(tmp_path) == sorted([*names, "c-1-of-2.txt"])


@both
def test_an_emptied_file_of_those_that_are_numbered_is_named(read: Read, tmp_path: Path) -> None:
    (tmp_path / "train-00000-of-00002.txt").write_text("")
    (tmp_path / "train-00001-of-00002.txt").write_text("one<|endoftext|>two")
    for source in (tmp_path, tmp_path / "*.txt"):
        with pytest.raises(
            ValueError, match=r"train-00000-of-00002\.txt' is empty: 0 bytes, and other names count it; wr"
        ):
            read(source)


@both
@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".zst", zstandard)])
def test_an_emptied_text_that_is_packed_is_named(
    read: Read, ending: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("one<|endoftext|>two")
    (tmp_path / f"b.txt{ending}").write_bytes(pack(b""))
    with pytest.raises(ValueError, match=r"b\.txt\.\w+' is empty: no text is in it; write it again, or remove it$"):
        read(tmp_path)


@both
def test_a_linked_folder_is_read_once(read: Read, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "texts", tmp_path / "elsewhere"
    for path in (folder / "real" / "a.txt", folder / ".hidden" / "b.txt", elsewhere / "deep" / "c.txt"):
        path.parent.mkdir(parents=True)
        path.write_text(path.name)
    links = {
        "a link": folder / "real",
        "real/loop": folder,
        "shown": folder / ".hidden",
        "x": elsewhere,
        "y": elsewhere / "deep",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (elsewhere / "back").symlink_to(folder)
    assert read(folder) == ["a.txt", "b.txt", "c.txt"]


def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("one<|endoftext|>two")
    (tmp_path / "locked").mkdir()
    whole = os.scandir

    def refusing(path: str) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return whole(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ValueError, match=r"^source folder '.*locked' cannot be read: .*Permission denied"):
        prepared(tmp_path)


@both
@pytest.mark.parametrize("names", [("a.txt", "a.txt.gz"), ("a.txt.gz", "a.txt.zst")])
def test_a_text_beside_itself_packed_is_refused(read: Read, names: tuple[str, str], tmp_path: Path) -> None:
    for name in names:
        content = b"one<|endoftext|>two"
        (tmp_path / name).write_bytes({".gz": gzip.compress, ".zst": zstandard}.get(name[5:], bytes)(content))
    with pytest.raises(ValueError, match=rf"{names[0]}' stands beside {names[1]}, and would be read twice; remove one"):
        read(tmp_path)
    assert read(tmp_path / f"*{names[0][-3:]}") == ["one", "two"]
