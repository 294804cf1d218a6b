"""Every format is read as plain json, csv and pyarrow read it; what is no text is named by file and line."""

import csv
import gzip
import io
import json
import logging
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from arbprob_hf.data import DataArguments, documents, files, readers
from arbprob_hf.data.sources import load_streams, load_texts

TEXTS = [
    "one, two",
    'she said "no"',
    "two\nlines\tand a tab",
    " caf\u00e9 \U0001f600",
    "42",
    "NA",
    "null",
    "x" * 300_000,
]
# what other columns hold: numbers in one row and texts in another, nothing for long, and what is nested
OTHERS: list[dict[str, Any]] = [
    {"id": 1, "late": None, "deep": {"a": [math.nan]}},
    {"id": "two", "late": None, "deep": None},
    *({"id": number, "late": None, "deep": {"b": "c"}} for number in range(5)),
    {"id": "last", "late": 10**4000, "deep": []},
]


def prepared(source: Path | str, **fields: Any) -> list[str]:
    texts = load_texts(DataArguments(source=str(source), **fields))
    return sorted(text for text in [*texts.train["text"], *texts.validation["text"]] if text is not None)


def streamed(source: Path | str, **fields: Any) -> list[str]:
    streams = load_streams(DataArguments(source=str(source), streaming=True, **fields))
    return sorted([*streams.train.texts(), *streams.validation()])


Read = Callable[..., list[str]]
both = pytest.mark.parametrize("read", [prepared, streamed])


def json_lines() -> bytes:
    rows = ({"text": text, **other} for text, other in zip(TEXTS, OTHERS, strict=True))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerows([("id", "text"), *((other["id"], row) for row, other in zip(TEXTS, OTHERS, strict=True))])
    return text.getvalue().encode()


def zstandard(content: bytes) -> bytes:
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as file:
        file.write(content)
    return bytes(packed.getvalue())


def one_file(name: str) -> bytes:
    """All of TEXTS in the format that `name` tells."""
    if name.endswith((".gz", ".zst")):
        stem, _, ending = name.rpartition(".")
        return {"gz": gzip.compress, "zst": zstandard}[ending](one_file(stem))
    if name.endswith((".txt", ".md")):
        return "<|endoftext|>".join(TEXTS).encode()
    if name.endswith(".json"):
        return json.dumps([json.loads(line) for line in json_lines().splitlines()], indent=1).encode()
    if name.endswith(".parquet"):
        file = io.BytesIO()
        pq.write_table(pa.table({"id": range(len(TEXTS)), "text": pa.array(TEXTS).dictionary_encode()}), file)
        return file.getvalue()
    return json_lines() if name.endswith(".jsonl") else table("\t" if name.endswith(".tsv") else ",")


FORMATS = [
    *(f"a.{kind}{packed}" for kind in ("txt", "md", "jsonl", "json", "csv", "tsv") for packed in ("", ".gz")),
    *("a.jsonl.zst", "a.csv.zst", "a.parquet", "A.TXT.GZ"),
]


@both
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_texts_whatever_else_it_holds(read: Read, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(one_file(name.lower()))
    assert read(tmp_path / name) == sorted(TEXTS)


@both
def test_a_column_that_differs_from_file_to_file_refuses_nothing(read: Read, tmp_path: Path) -> None:
    for name, ids in (("a", pa.array([1, 2])), ("b", pa.array(["x", "y"])), ("c", pa.array([[1], None]))):
        pq.write_table(pa.table({"id": ids, "text": [f"{name}1", f"{name}2"]}), tmp_path / f"{name}.parquet")
        rows = [{"text": f"{name}{at}", "id": value} for at, value in enumerate(ids.to_pylist(), 3)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(tmp_path) == sorted(f"{name}{at}" for name in "abc" for at in (1, 2, 3, 4))


def parquet(**columns: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


WRONG = [
    ("a.jsonl", b'{"text": "one"}\n\n{"text": 2}\n', r"a\.jsonl', line 3 must hold text, got 2$"),
    ("a.jsonl", b'{"text": "one"}\n{"text": ["x"]}\n', r"a\.jsonl', line 2 must hold text, got \['x'\]$"),
    ("a.json", b'[{"text": "one"}, {"text": {}}]', r"a\.json', row 2 must hold text, got \{\}$"),
    ("a.jsonl", b'{"text": null}\n' * 3, r"a\.jsonl' is null in all of its 3 rows$"),
    ("a.jsonl", b'{"body": "one"}\n{"body": "two"}\n', r"'text' is not in source '.*a\.jsonl', which has \['body'\]$"),
    ("a.jsonl", b'{"messages": []}\n', r"has \['messages'\]; write each of its messages as one text first, as tok"),
    ("a.jsonl", b'{"text": "one"}\n[1]\n', r"a\.jsonl', line 2: expected an object or a text, got \[1\]$"),
    ("a.jsonl", b'{"text": "one"}\n{"text": "tw', r"a\.jsonl', line 2: is not JSON: Unterminated string"),
    ("a.jsonl", b'{"text": "\\ud800"}\n', r"a\.jsonl', line 1: its text holds half of a surrogate pair, '\\ud800'"),
    (
        "a.json",
        b'{"rows": [{"text": "one"}]}',
        r"a\.json', which has \['rows'\]; where rows are in 'rows', give that as json_f",
    ),
    (
        "a.json",
        b'{"n": 1, "data": {"none": [], "rows": [{"text": "one"}]}}',
        r"which has \['n', 'data'\]; where rows are in 'data\.rows', give that as json_field",
    ),
    ("a.json", b'{\n"text": \n', r"a\.json', line 3: is not JSON"),
    ("a.csv", b"id,text\n1,one\n2,two,three\n", r"a\.csv', line 3: has 3 cells, but the first line names 2 columns"),
    ("a.csv", b"id,text\n1,one\n2\n", r"a\.csv', line 3: has 1 cells, but the first line names 2 columns"),
    ("a.csv", b'id,text\n1,"one\n', r"a\.csv', line 2: is not CSV: unexpected end of data"),
    ("a.csv", b"id,text\n1,2\n2,3.5\n", r"a\.csv', line 2 must hold text, got 2, and numbers alone"),
    ("a.csv", b"one\ntwo\n", r"'text' is not in source '.*a\.csv', line 1, which has \['one'\]"),
    ("a.csv", b"id,text\n1,\n", r"is null in all of its 1 rows$"),
    ("a.tsv", b"id\ttext\n", r"a\.tsv' is empty: a table without rows; write it again, or remove it$"),
    ("a.json", b"[]", r"a\.json' is empty: a table without rows"),
    ("a.parquet", parquet(text=[1, 2]), r"a\.parquet' must hold text, got int64$"),
    ("a.parquet", parquet(text=[{"a": 1}]), r"a\.parquet' must hold text, got struct<a: int64>$"),
    ("a.parquet", parquet(text=pa.nulls(4)), r"a\.parquet' is null in all of its 4 rows$"),
    ("a.parquet", parquet(text=pa.array([], pa.string())), r"a\.parquet' is empty: a table without rows"),
    ("a.parquet", parquet(body=["x"]), r"is not in source '.*a\.parquet', which has \['body'\]$"),
    ("a.parquet", parquet(text=["one", "two"])[:-30], r"a\.parquet' cannot be read as parquet: "),
    ("a.parquet", b"", r"a\.parquet' is empty: 0 bytes; write it again, or remove it$"),
    # without the time, which is in the name of the test
    ("a.jsonl.gz", gzip.compress(json_lines(), mtime=0)[:-300], r"a\.jsonl\.gz' cannot be read as json: Compressed"),
    ("a.jsonl.zst", zstandard(json_lines())[:-20], r"a\.jsonl\.zst' cannot be read as json: "),
    ("a.txt.gz", b"no gzip", r"a\.txt\.gz' cannot be read as text: Not a gzipped file"),
    ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid", r"a\.txt' only names its content; run git lfs pull"),
    ("a.jsonl", b'{"d": ' + b"[" * 9000, r"a\.jsonl', line 1: lists or objects stand in one another too deep$"),
    ("a.md", b"caf\xe9", r"a\.md' is not UTF-8 text \(byte 0xe9 at offset 3\); convert it"),
]


@both
@pytest.mark.parametrize(("name", "content", "message"), WRONG, ids=lambda value: str(value)[:20])
def test_what_is_no_text_is_named_by_file_and_place(
    read: Read, name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    # among others: never "and 3 more"
    for number in range(3):
        (tmp_path / f"{number}.jsonl").write_text('{"text": "fine"}\n')
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, TypeError), match=message) as refused:
        read(tmp_path if not name.endswith("md") else tmp_path / name)
    assert len(str(refused.value)) <= 380
    assert "\n" not in str(refused.value)


@both
def test_a_shard_that_is_emptied_or_vanishes_between_listing_and_reading_is_named(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    whole = readers._opened

    def change(path: str, name: str) -> Any:
        if path.endswith("1.txt"):
            lose(tmp_path / "1.txt")
        return whole(path, name)

    monkeypatch.setattr(readers, "_opened", change)
    lose: Callable[[Path], Any] = lambda path: path.write_text("")  # noqa: E731
    with pytest.raises(ValueError, match=r"1\.txt' is empty: 0 bytes; write it again, or remove it$"):
        read(tmp_path)
    (tmp_path / "1.txt").write_text("again")
    lose = Path.unlink
    with pytest.raises(ValueError, match=r"1\.txt' is not there any more; put it back, or start again without it$"):
        read(tmp_path)


@both
@pytest.mark.parametrize("name", ["a[1].txt", "x?.txt", "*.txt", "{a,b}.txt", "a::b.txt", "[!a].jsonl"])
def test_a_literal_path_is_no_pattern(read: Read, name: str, tmp_path: Path) -> None:
    folder = tmp_path / "in [brackets] *"
    folder.mkdir()
    for other in ("a1.txt", "xy.txt", "b.jsonl", "a.txt"):
        (folder / other).write_text('{"text": "wrong"}<|endoftext|>wrong')
    right = {"text": "right"}
    (folder / name).write_text(json.dumps(right) + '\n{"text": "more"}' if "json" in name else "right<|endoftext|>more")
    assert read(folder / name) == ["more", "right"]
    for other in folder.iterdir():
        if other.name != name:
            other.unlink()
    assert read(folder) == ["more", "right"]


@both
def test_a_pattern_says_what_it_matches(read: Read, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a1.txt", "a2.txt", "b1.txt", "deep/a3.txt", "a4.doc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path / "a*") == ["a1.txt", "a2.txt"]
    assert [line.partition(": ")[2] or line for line in caplog.messages] == [
        f"source {str(tmp_path / 'a*')!r:.200} is no file or folder; as a pattern it matches 3 files",
        "2 files are read; 1 is left out, of other kinds ('a4.doc')",
    ]
    assert read(tmp_path / "**" / "a?.txt") == ["a1.txt", "a2.txt", "deep/a3.txt"]
    with pytest.raises(ValueError, match=r"\*\.csv' does not exist, and as a pattern it matches no file; give"):
        read(tmp_path / "*.csv")


@both
def test_a_tilde_is_the_home(read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "one.txt").write_text("one<|endoftext|>two")
    assert read("~/one.txt") == read("~/o*.txt") == ["one", "two"]


def test_a_folder_says_what_it_read_and_what_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.txt", "b.jsonl", "c.pdf", "README.md", ".hidden"):
        (tmp_path / name).write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "d.txt").write_text("")
    with caplog.at_level(logging.WARNING):
        prepared(tmp_path)
    assert [line.partition("': ")[2] for line in caplog.messages] == [
        "2 files are read; 1 is left out, empty ('d.txt'); 2 are left out, of other kinds ('README.md', 'c.pdf')"
    ]


@both
def test_rows_without_text_are_left_out_aloud(read: Read, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": null}\n{}\n{"text": "two"}\n')
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path / "a.jsonl") == ["one", "two"]
    assert sum("rows without a text (null) are left out: 2" in line for line in caplog.messages) == 1


@both
def test_a_long_name_of_a_shard_is_told_in_full(read: Read, tmp_path: Path) -> None:
    names = [f"part-{number:05}-8d3c2f6e-7a5b-4c1d-9e0f-123456789abc-c000.snappy.parquet" for number in range(2)]
    (tmp_path / names[0]).write_bytes(parquet(text=["one", "two"]))
    (tmp_path / names[1]).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{names[1]}' is empty: 0 bytes"):
        read(tmp_path)


def test_a_link_to_nothing_is_a_shard_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").symlink_to(tmp_path / "elsewhere.txt")
    with pytest.raises(ValueError, match=r"^source '.*b\.txt' is a link to a file that is not there; put it back$"):
        prepared(tmp_path)


@both
def test_what_save_to_disk_wrote_is_read_by_its_own_splits(read: Read, tmp_path: Path) -> None:
    splits = {"train": TEXTS[:6], "dev": TEXTS[6:]}
    rows = {name: Dataset.from_dict({"n": range(len(texts)), "text": texts}) for name, texts in splits.items()}
    DatasetDict(rows).save_to_disk(tmp_path / "all [of] it", num_shards={"train": 2, "dev": 1})
    rows["train"].save_to_disk(tmp_path / "one")
    # what `map` leaves there is no part of it
    (tmp_path / "one" / "cache-0123.arrow").write_bytes(b"anything")
    assert read(tmp_path / "one") == sorted(TEXTS[:6])
    assert read(tmp_path / "all [of] it", validation_split="dev") == sorted(TEXTS)
    shard = tmp_path / "all [of] it" / "train" / "data-00001-of-00002.arrow"
    whole = shard.read_bytes()
    for damaged in (whole[:-8], whole[: len(whole) // 2]):
        shard.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"data-00001-of-00002\.arrow' is cut off, or no Arrow stream as save_to_di"
        ):
            read(tmp_path / "all [of] it")
    shard.unlink()
    with pytest.raises(ValueError, match=r"data-00001-of-00002\.arrow' is not there any more"):
        read(tmp_path / "all [of] it")


@both
@pytest.mark.parametrize(
    "content", [{"data": {"rows": [{"text": "one"}, {"text": "two"}]}}, {"data": {"rows": ["one", "two"]}}]
)
def test_rows_within_an_object_are_found_by_json_field(read: Read, content: Any, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content, indent=2))
    assert read(tmp_path / "a.json", json_field="data.rows") == ["one", "two"]
    with pytest.raises(
        ValueError, match=r"^json_field 'data\.x' is not in '.*a\.json', which has \['rows'\] in place of 'x'"
    ):
        read(tmp_path / "a.json", json_field="data.x")
    with pytest.raises(TypeError, match=r"^json_field 'data' of '.*a\.json' must lead to a list of rows, got \{"):
        read(tmp_path / "a.json", json_field="data")


@both
def test_fields_of_tables_are_refused_for_plain_text(read: Read, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one<|endoftext|>two")
    with pytest.raises(ValueError, match=r"^json_field 'a\.b' is for \.json files; '.*a\.txt' has none, leave it out$"):
        read(tmp_path / "a.txt", json_field="a.b")
    with pytest.raises(ValueError, match=r"^text_column 'body' is for tables; '.*a\.txt' is plain text, leave it out$"):
        read(tmp_path / "a.txt", text_column="body")


def test_another_column_is_another_stream(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one", "body": "two"}\n')
    columns = ("text", "body")
    one, other = (
        load_streams(DataArguments(source=str(tmp_path), streaming=True, text_column=column)) for column in columns
    )
    assert one.train.revision != other.train.revision


def test_json_field_is_refused_where_there_is_no_json() -> None:
    for source in ("embedded", "some/name"):
        with pytest.raises(ValueError, match="^json_field (is )?'rows'"):
            prepared(source, json_field="rows")


@pytest.mark.parametrize("size", [1, 7, 13, 14, 1 << 20])
def test_separators_part_documents_however_the_text_is_read(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "CHUNK", size)
    whole = "one\r\n<|endoftext|><|endoftext|> \n<|endoftext|>two<|endo<|endoftext|><|endoftext|three"
    (tmp_path / "a.txt").write_bytes(whole.encode())
    assert list(readers.texts_in(str(tmp_path / "a.txt"), "text")) == ["one\n", "two<|endo", "<|endoftext|three"]


def test_a_second_time_nothing_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_bytes(table())
    first = prepared(tmp_path / "a.csv")
    monkeypatch.setattr(readers, "_opened", lambda path, name: pytest.fail("read again"))
    assert prepared(tmp_path / "a.csv") == first


def test_a_reader_that_has_changed_reads_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_bytes(table())
    first = prepared(tmp_path / "a.csv")
    package = tmp_path / "package"
    shutil.copytree(Path(files.__file__).parent, package)
    (package / "readers.py").write_bytes((package / "readers.py").read_bytes() + b"# changed\n")
    monkeypatch.setattr(documents, "__file__", str(package / "documents.py"))
    documents.code_of.cache_clear()
    read = readers.texts_in
    monkeypatch.setattr(files, "texts_in", lambda *given, **named: (f"{text}!" for text in read(*given, **named)))
    assert prepared(tmp_path / "a.csv") == sorted(f"{text}!" for text in first)
    documents.code_of.cache_clear()


def test_other_content_of_the_same_size_and_time_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one<|endoftext|>two")
    state = path.stat()
    assert prepared(path) == ["one", "two"]
    path.write_text("six<|endoftext|>ten")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert prepared(path) == ["six", "ten"]


@both
def test_one_very_long_line_is_cut_at_spaces_and_nothing_of_it_is_lost(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(readers, "LONG_LINE", 100_000)
    words = [f"word{number}" for number in range(20_000)]
    (tmp_path / "text8.txt").write_text(" ".join(words))
    found = read(tmp_path / "text8.txt", validation_share=0.3)
    assert sorted(word for text in found for word in text.split()) == sorted(words)
    assert 4096 <= min(map(len, found)) <= max(map(len, found)) <= 3 * 4096
    assert "has a line of 188,889 characters: it is cut at spaces into documents" in caplog.text


@pytest.mark.parametrize("damage", ["emptied", "cut", "cut between batches", "removed"])
def test_a_damaged_copy_of_a_prepared_text_is_no_shorter_text(damage: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "text {number}"}}\n' for number in range(2500)))
    rows = files.read_files([tmp_path / "a.jsonl"], "text")
    (copy,) = (Path(file["filename"]) for file in rows.cache_files)
    whole = copy.read_bytes()
    stream = pa.BufferReader(whole)
    batches = pa.ipc.open_stream(stream)
    batches.read_next_batch()
    cut = {"emptied": 0, "cut": len(whole) // 2, "cut between batches": stream.tell(), "removed": 0}[damage]
    copy.write_bytes(whole[:cut])
    if damage == "removed":
        copy.unlink()
    with pytest.raises(
        ValueError, match=r"^(a|the) copy of the text .* is damaged: .*; remove it, and it is made again$"
    ):
        prepared(tmp_path / "a.jsonl")
    shutil.rmtree(copy.parent)
    assert len(prepared(tmp_path / "a.jsonl")) == 2500
