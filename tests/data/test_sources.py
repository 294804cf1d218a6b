"""Every kind of source is read into the same documents; what cannot be read is named in one line."""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, Features, IterableDataset, Value, load_dataset

from arbprob_hf.data import DataArguments
from arbprob_hf.data import sources as corpora
from arbprob_hf.data.fallback import UnavailableError, known_language
from arbprob_hf.data.sources import Texts, load_texts

TEXTS = [f"document {number}: caf\u00e9" for number in range(12)]


def load(source: Path | str, **fields: Any) -> Texts:
    return load_texts(DataArguments(source=str(source), **fields))


def everything(texts: Texts) -> list[str]:
    return sorted([*texts.train["text"], *texts.validation["text"]])


def write(path: Path, texts: list[str], column: str = "text") -> Path:
    """A file of `texts` in the format its name tells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": number, column: text} for number, text in enumerate(texts)]
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text("<|endoftext|>".join(texts), encoding="utf-8")
    return path


@pytest.mark.parametrize("extension", ["txt", "jsonl", "json", "parquet", "JSONL"])
def test_every_format_gives_the_same_documents(extension: str, tmp_path: Path) -> None:
    file = write(tmp_path / f"corpus.{extension.lower()}", TEXTS)
    file = file.rename(tmp_path / f"corpus.{extension}")
    assert everything(load(file)) == sorted(TEXTS)


def test_every_format_holds_out_the_same_documents(tmp_path: Path) -> None:
    held = {
        tuple(load(write(tmp_path / f"corpus.{extension}", TEXTS), validation_share=0.3).validation["text"])
        for extension in ("txt", "jsonl", "json", "parquet")
    }
    assert len(held) == 1


def test_a_folder_is_read_whole_whatever_its_formats(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", TEXTS[:4])
    write(tmp_path / "deep" / "a.parquet", TEXTS[4:8])
    for number, text in enumerate(TEXTS[8:]):
        write(tmp_path / "deep" / f"{number}.txt", [text])
    write(tmp_path / ".hidden" / "c.txt", ["a tool's own"])
    (tmp_path / "notes.md").write_text("not text to train on")
    assert everything(load(tmp_path)) == sorted(TEXTS)


@pytest.mark.parametrize("layout", ["{}-00000-of-00001.parquet", "{}/part.jsonl", "wiki.{}.txt"])
def test_file_names_tell_the_splits(layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, rows in {"train": TEXTS[:8], "validation": TEXTS[8:10], "test": TEXTS[10:]}.items():
        write(tmp_path / layout.format(name), rows)
    write(tmp_path / "stray.jsonl", ["whose?"])
    with caplog.at_level(logging.WARNING):
        named = load(tmp_path, validation_split="validation")
    assert (named.train["text"][:], named.validation["text"][:]) == (TEXTS[:8], TEXTS[8:10])
    assert caplog.text.count("1 is left out, no split in their names") == 1
    assert everything(load(tmp_path)) == TEXTS[:8]


def test_a_text_file_without_separators_is_one_document(tmp_path: Path) -> None:
    for number, text in enumerate(("one\n\ntwo", "\ufeffthree\nfour")):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    assert everything(load(tmp_path)) == ["one\n\ntwo", "three\nfour"]


def test_another_text_column_is_used_alone(tmp_path: Path) -> None:
    texts = load(write(tmp_path / "corpus.jsonl", TEXTS, "content"), text_column="content")
    assert texts.train.column_names == ["text"]
    assert everything(texts) == sorted(TEXTS)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file = write(tmp_path / "corpus.jsonl", TEXTS[:6])
    assert everything(load(file)) == sorted(TEXTS[:6])
    write(file, TEXTS[6:])
    os.utime(file, (2_000_000_000, 2_000_000_000))
    assert everything(load(file)) == sorted(TEXTS[6:])


def test_nothing_is_written_beside_the_text_or_where_the_run_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "text" / "corpus.txt", TEXTS)
    (tmp_path / "start").mkdir()
    monkeypatch.chdir(tmp_path / "start")
    load(file)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["corpus.txt", "start", "text"]


def test_the_source_line_tells_no_folder_of_the_user(tmp_path: Path) -> None:
    title = load(write(tmp_path / "corpus.jsonl", TEXTS)).source
    assert title == "local text corpus.jsonl; validation on documents held out of it"


def test_rows_without_text_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_text('{"text": "one"}\n{"text": null}\n{"text": "two"}\n')
    with caplog.at_level(logging.WARNING):
        texts = load(file)
    assert "rows without a text (null) are left out: 1" in caplog.text
    assert len(texts.validation) == 1


def bad(tmp_path: Path, name: str, content: bytes) -> Path:
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "corpus.doc",
            b"text\none\n",
            r"unknown extension; expected one of \.txt, \.md, \.jsonl, .*, \.parquet, or one",
        ),
        ("latin.txt", b"caf\xe9 noir", r"latin\.txt' is not UTF-8 text \(byte 0xe9 at offset 3\)"),
        ("latin.jsonl", b'{"text": "caf\xe9"}\n', r"latin\.jsonl' is not UTF-8 text \(byte 0xe9 at offset 13\)"),
        ("broken.jsonl", b'{"text": "one"}\n{"text":\n', "line 2: is not JSON: Expecting value at column 9"),
        ("broken.parquet", b"PAR", "cannot be read as parquet: Parquet file size is 3 bytes"),
        ("empty.txt", b"", r"source .*empty\.txt' is empty: 0 bytes; write it again, or remove it"),
        ("blank.txt", b" \n \n", "the source holds no document with text"),
        ("column.jsonl", b'{"body": "one", "id": 1}\n', r"which has \['body', 'id'\]"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        load(bad(tmp_path, name, content))
    assert len(str(refused.value)) <= 300
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("row", [b'{"text": 1}\n', b'{"text": "one"}\n{"text": 2}\n', b'{"text": ["one"]}\n'])
def test_a_column_of_something_else_than_text_is_refused(row: bytes, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^text_column 'text' of source .* must hold text, got "):
        load(bad(tmp_path, "corpus.jsonl", row))


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/folder", "~/no/such", "corpus.txt", "data/corpus.jsonl"])
def test_a_missing_path_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match=f"^source '{source}' does not exist; give 'embedded', a path or"):
        load(source)


def test_a_folder_without_text_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no text files; expected some of \.txt, \.md, "):
        load(tmp_path)


def test_a_split_that_no_file_name_tells_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "corpus.jsonl", TEXTS)
    with pytest.raises(ValueError, match=r"^split 'dev' is not in source .*, whose file names give \['train'\]"):
        load(file, validation_split="dev")


@pytest.mark.parametrize(
    "fields", [{"text_column": "body"}, {"train_split": "all"}, {"validation_split": "validation"}], ids=str
)
def test_the_embedded_source_refuses_fields_it_would_ignore(fields: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(fields))} is .* but the embedded source has only"):
        load("embedded", **fields)


def test_a_configuration_is_refused_where_there_is_none(tmp_path: Path) -> None:
    for source in ("embedded", str(write(tmp_path / "corpus.jsonl", TEXTS))):
        with pytest.raises(ValueError, match=r"^source_config 'raw' is for data sets by name"):
            load(source, source_config="raw")
        with pytest.raises(ValueError, match=r"^source_revision 'main' is for data sets by name"):
            load(source, source_revision="main")


@pytest.fixture
def named(tmp_path: Path) -> Iterator[str]:
    """The name of a data set as an earlier download leaves it in the cache of `datasets`."""
    files = {
        "train": str(write(tmp_path / "a.parquet", TEXTS[:8])),
        "validation": str(write(tmp_path / "b.parquet", TEXTS[8:])),
    }
    built = Path(load_dataset("parquet", data_files=files)["train"].cache_files[0]["filename"]).parent
    top = Path(datasets.config.HF_DATASETS_CACHE) / "someone___own-text"
    kept = top / "raw" / "0.0.0" / ("d" * 40)
    kept.mkdir(parents=True)
    for file in built.glob("*.arrow"):
        shutil.copy(file, kept / file.name.replace("parquet-", "own-text-"))
    info = (built / "dataset_info.json").read_text()
    (kept / "dataset_info.json").write_text(info.replace('"config_name": "default"', '"config_name": "raw"'))
    yield "someone/own-text"
    shutil.rmtree(top)


def test_a_named_data_set_is_split_by_document(named: str) -> None:
    texts = load(named, source_config="raw")
    assert everything(texts) == TEXTS[:8]
    assert texts.source == "someone/own-text raw; validation on documents held out of it"


def test_a_commit_in_the_cache_is_had_without_the_hub_and_no_other_is_taken_for_it(named: str) -> None:
    texts = load(named, source_config="raw", source_revision="d" * 40)
    assert texts.origin.commit == "d" * 40
    message = rf"^source_revision 'v1' of '{named}' \('raw'\) is unavailable, as .* the local cache has {'d' * 40};"
    with pytest.raises(UnavailableError, match=message):
        load(named, source_config="raw", source_revision="v1")


def test_a_named_data_sets_own_validation_split_is_used(named: str) -> None:
    texts = load(named, source_config="raw", validation_split="validation")
    assert (texts.train["text"][:], texts.validation["text"][:]) == (TEXTS[:8], TEXTS[8:])
    assert texts.source == "someone/own-text raw; validation on its split validation"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"validation_split": "dev"},
            r"split 'dev': .*Unknown split \"dev\"\. Should be one of \['train', 'val",
        ),
        (
            {"source_config": "cooked"},
            r"^source 'someone/own-text' \('cooked'\): .*config 'cooked'",
        ),
        (
            {"text_column": "body"},
            r"^text_column 'body' is not in source 'someone/own-text' \('raw'\), which has \['id'",
        ),
        ({"text_column": "id"}, r"^text_column 'id' of source 'someone/own-text' \('raw'\) must hold text, got Value"),
    ],
    ids=["split", "configuration", "column", "type"],
)
def test_what_a_named_data_set_lacks_is_named(named: str, fields: dict[str, str], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as refused:
        load(named, **{"source_config": "raw", **fields})
    assert len(str(refused.value)) <= 300


def test_wikipedia_of_another_configuration_in_the_cache_is_not_taken_for_it(
    named: str, caplog: pytest.LogCaptureFixture
) -> None:
    top = Path(datasets.config.HF_DATASETS_CACHE)
    shutil.copytree(top / "someone___own-text", top / "wikimedia___wikipedia")
    try:
        with caplog.at_level(logging.WARNING, "arbprob_hf.data.fallback"):
            texts = load("wikipedia")
    finally:
        shutil.rmtree(top / "wikimedia___wikipedia")
    assert texts.origin.dataset is None
    assert sum("is used instead" in record.getMessage() for record in caplog.records) == 2


def test_files_that_are_listed_and_not_sent_cannot_be_had(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsent() -> Iterator[dict[str, str]]:
        raise ConnectionError("the file server does not answer")
        yield {}

    rows = IterableDataset.from_generator(unsent, features=Features({"text": Value("string")}))
    monkeypatch.setattr(corpora, "load_dataset", lambda *given, **options: rows)
    with pytest.raises(UnavailableError, match="^source 'someone/own-text' .*the file server does not answer"):
        corpora.load_streams(DataArguments(source=named, source_config="raw", streaming=True))


def test_a_name_with_capitals_is_found_in_the_cache(named: str) -> None:
    top = Path(datasets.config.HF_DATASETS_CACHE)
    shutil.copytree(top / "someone___own-text", top / "someone___tiny_stories")
    for file in (top / "someone___tiny_stories").rglob("own-text-*"):
        file.rename(file.with_name(file.name.replace("own-text-", "tiny_stories-")))
    try:
        texts = load("someone/TinyStories", source_config="raw")
    finally:
        shutil.rmtree(top / "someone___tiny_stories")
    assert everything(texts) == TEXTS[:8]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^source 'no/such' is not a path, is not in the local cache, and the Hub"):
        load("no/such")


@pytest.mark.parametrize(
    ("config", "language"),
    [
        ("20231101.en", "en"),
        ("20231101.ast", "ast"),
        ("20231101.simple", "en"),
        ("20231101.zh-min-nan", None),
        (None, None),
    ],
)
def test_the_language_of_a_wikipedia_is_told_by_its_name(config: str | None, language: str | None) -> None:
    assert known_language(DataArguments(source="wikimedia/wikipedia", source_config=config)) == language


def test_the_language_of_other_data_sets_is_not_guessed() -> None:
    assert known_language(DataArguments(source="some/texts", source_config="20231101.en")) is None
