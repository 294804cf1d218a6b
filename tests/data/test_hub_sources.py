"""Data sets of a Hub, with the real clients: found, streamed, replaced by others, broken off and damaged."""

import contextlib
import io
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.hub.hub import client_environment, serve
from tests.hub.hubserver import Handler, HubError

HERE = Path(__file__).parent
Ask = Callable[..., dict[str, Any]]

ARTICLES = [f"Article {number}.\n\n" + "It is about something. " * number for number in range(40)]
LINES = ["", " = Heading = \n", *(f" line {number} of an article \n" for number in range(30))]
LARGE = "A megabyte of text. " * 50_000


class Moody(Handler):
    """A server that does not know some repositories, and breaks off some files a number of times."""

    absent: ClassVar[set[str]] = set()
    breaks: ClassVar[dict[str, int]] = {}

    def open(self, rtype: str, rid: str) -> Any:
        if rid in self.absent:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return super().open(rtype, rid)

    def send_blob(self, p: Path, hs: dict[str, str], name: str) -> None:
        whole = self.wfile
        # a read of the end of a file, where parquet keeps its table of contents, is small and goes through
        if self.command == "GET" and self.breaks.get(name, 0) > 0:
            self.breaks[name] -= 1
            self.wfile = _Cut(whole)
        try:
            super().send_blob(p, hs, name)
        except ConnectionAbortedError:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
        finally:
            self.wfile = whole


class _Cut(io.RawIOBase):
    # the headers and half of the first piece arrive
    def __init__(self, file: Any) -> None:
        self.file, self.headers = file, True

    def write(self, data: Any) -> int:
        if self.headers:
            self.headers = False
            return int(self.file.write(data))
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        raise ConnectionAbortedError("broken off")


def repository(folder: Path, config: str, splits: dict[str, list[list[str | None]]], column: str = "text") -> Path:
    """A repository in the layout of the real ones: parquet files of a configuration, and a card that names them."""
    lines = ["---", "configs:", f"- config_name: {config}", "  data_files:"]
    for split, files in splits.items():
        lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
        for number, texts in enumerate(files):
            path = folder / config / f"{split}-{number:05}-of-{len(files):05}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            table = pa.table({"id": list(range(len(texts))), column: pa.array(texts, pa.string())})
            # several groups of rows, so that a file is read in pieces
            pq.write_table(table, path, row_group_size=3)
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """A function (**fields of DataArguments, stream=False) -> what hub_client.py answers; one client for the module."""
    root = tmp_path_factory.mktemp("hub")
    parts = [ARTICLES[number::4] for number in range(4)]
    wikipedia = repository(root / "wikipedia", "20231101.en", {"train": parts})
    wikitext = repository(root / "wikitext", "wikitext-2-raw-v1", {"train": [LINES], "validation": [LINES[2:6]]})
    odd = repository(root / "odd", "all", {"train": [["", None, "  \n", "one", LARGE, "two"], ["three", "four"]]})
    damaged = repository(root / "damaged", "all", {"train": parts})
    second = damaged / "all" / "train-00001-of-00004.parquet"
    content = second.read_bytes()
    second.write_bytes(content[:100] + bytes(len(content) - 200) + content[-100:])
    latin = repository(root / "latin", "all", {"train": [["caf\u00e9", "plain", "more"]]})
    file = latin / "all" / "train-00000-of-00001.parquet"
    # the text is stored as it is: two bytes that are no UTF-8 in place of the two of the letter
    pq.write_table(pq.read_table(file), file, compression="none", use_dictionary=False)
    file.write_bytes(file.read_bytes().replace("\u00e9".encode(), b"\xe9\xe9"))
    broken = repository(root / "broken", "all", {"train": parts})
    mixed, lines = repository(root / "mixed", "all", {"train": parts}), root / "lines"
    columns = {"id": ["a number", "elsewhere"], "text": ["one", "two"]}
    pq.write_table(pa.table(columns), mixed / "all" / "train-00001-of-00004.parquet")
    pq.write_table(pa.table(columns).slice(0, 0), mixed / "all" / "train-00003-of-00004.parquet")
    lines.mkdir()
    for number, own in enumerate((7, "seven", {"a": [7]})):
        (lines / f"{number}.jsonl").write_text(json.dumps({"id": own, "text": f"text {number}"}) + "\n")
    seeds = {"wikimedia/wikipedia": wikipedia, "Salesforce/wikitext": wikitext}
    seeds |= {f"some/{folder.name}": folder for folder in (odd, damaged, latin, broken, mixed, lines)}
    named = {f"dataset:{name}": folder for name, folder in seeds.items()}
    with serve(root / "server", named, handler=Moody) as address, contextlib.ExitStack() as stack:
        environment = client_environment(address, root / "home")
        command = [sys.executable, str(HERE / "hub_client.py")]
        errors = stack.enter_context((root / "errors.txt").open("w+"))
        client = stack.enter_context(
            subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        )
        assert client.stdin is not None
        assert client.stdout is not None

        def ask(**order: Any) -> dict[str, Any]:
            client.stdin.write(json.dumps(order) + "\n")
            client.stdin.flush()
            line = client.stdout.readline()
            assert line, (root / "errors.txt").read_text()[-3000:]
            found: dict[str, Any] = json.loads(line)
            return found

        yield ask


def both(found: dict[str, Any]) -> list[str]:
    return sorted([*found["train"], *found["validation"]])


# streamed first: what was prepared once is had without the Hub
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "prepared"])
def test_what_cannot_be_had_is_replaced_step_by_step_and_said(ask: Ask, stream: bool) -> None:
    Moody.absent = {"wikimedia/wikipedia", "Salesforce/wikitext"}
    nothing = ask(source="wikipedia", stream=stream)
    assert [line.partition(" (")[0] for line in nothing["log"]] == [
        "source wikimedia/wikipedia 20231101.en is unavailable",
        "source Salesforce/wikitext wikitext-2-raw-v1 is unavailable",
    ]
    assert "); embedded is used instead (fallback: false makes this an error)" in nothing["log"][1]
    assert nothing["source"].startswith("documentation topics and standard-library docstrings of Python")
    assert nothing["source"].endswith(
        "(wikimedia/wikipedia 20231101.en was unavailable; Salesforce/wikitext wikitext-2-raw-v1 was unavailable)"
    )
    assert nothing["dataset"] is None
    assert nothing["origin"]["language"] == "en"

    Moody.absent = {"wikimedia/wikipedia"}
    wikitext = ask(source="wikipedia", stream=stream)
    assert wikitext["dataset"] == "Salesforce/wikitext"
    assert wikitext["source"].endswith("on its split validation (wikimedia/wikipedia 20231101.en was unavailable)")
    assert wikitext["validation"] == LINES[2:6]
    assert len(wikitext["log"]) == 1

    refused = ask(source="wikipedia", fallback=False, stream=stream)
    assert refused["error"].startswith(
        "UnavailableError: source 'wikimedia/wikipedia' ('20231101.en') is not a path, and"
    )
    assert "\n" not in refused["error"]


@pytest.mark.parametrize("stream", [False, True], ids=["prepared", "streamed"])
def test_wikipedia_and_wikitext_are_had_by_their_short_names(ask: Ask, stream: bool) -> None:
    Moody.absent = set()
    wikipedia, wikitext = (ask(source=name, stream=stream) for name in ("wikipedia", "wikitext"))
    assert both(wikipedia) == sorted(ARTICLES)
    assert (wikipedia["dataset"], wikipedia["log"]) == ("wikimedia/wikipedia", [])
    assert [found["origin"]["language"] for found in (wikipedia, wikitext)] == ["en", "en"]
    assert (wikipedia["origin"]["split"], wikipedia["origin"]["held_out"]) == ("train", 0.05)
    assert (wikitext["origin"]["split"], wikitext["origin"]["held_out"]) == ("validation", None)
    assert [line for line in wikitext["train"] if line] == LINES[1:]


@pytest.mark.parametrize("stream", [False, True], ids=["prepared", "streamed"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"source": "some/thing"},
            "source 'some/thing' is not a path, and `datasets` could not load it: Dataset",
        ),
        ({"source_config": "20990101.en"}, "'20990101.en'): BuilderConfig '20990101.en' not found. Available: ['202"),
        ({"train_split": "test"}, "split 'test': it could not be loaded: "),
        ({"text_column": "body"}, "text_column 'body' is not in source {where}, which "),
        ({"text_column": "id"}, "text_column 'id' of source {where} must hold text, got"),
    ],
    ids=["repository", "configuration", "split", "column", "type"],
)
def test_what_is_asked_for_wrongly_is_never_replaced(
    ask: Ask, fields: dict[str, str], message: str, stream: bool
) -> None:
    Moody.absent = set()
    found = ask(**{"source": "wikipedia", "stream": stream, **fields})
    # a stream names the file that it read
    where = (
        r"'hf://.*/20231101\.en/train-00000-of-00004\.parquet'" if stream else "'wikimedia/wikipedia' .'20231101.en'."
    )
    before, _, after = message.partition("{where}")
    assert re.search(f"{re.escape(before)}{where}{re.escape(after)}" if after else re.escape(message), found["error"])
    assert len(found["error"]) < 340
    assert "\n" not in found["error"]
    assert found["log"] == []


@pytest.mark.parametrize("stream", [False, True], ids=["prepared", "streamed"])
def test_a_connection_that_drops_within_a_file_loses_nothing(ask: Ask, stream: bool) -> None:
    Moody.breaks = {"train-00002-of-00004.parquet": 2}
    found = ask(source="some/broken", source_config="all", stream=stream, train_split="train" if stream else "train[:]")
    assert Moody.breaks == {"train-00002-of-00004.parquet": 0}
    assert both(found) == sorted(ARTICLES)


@pytest.mark.parametrize("stream", [False, True], ids=["prepared", "streamed"])
def test_a_damaged_file_is_named(ask: Ask, stream: bool) -> None:
    found = ask(source="some/damaged", source_config="all", stream=stream)
    assert found["error"].startswith("UnreadableError: source ")
    assert "train-00001-of-00004.parquet' cannot be read as parquet: " in found["error"]
    assert "\n" not in found["error"]


@pytest.mark.parametrize("stream", [False, True], ids=["prepared", "streamed"])
def test_text_that_is_not_utf8_is_refused(ask: Ask, stream: bool) -> None:
    found = ask(source="some/latin", source_config="all", stream=stream)
    assert found["error"].startswith(
        ("ValueError: text_column 'text' of source 'some/latin'", "UnreadableError: source ")
    )
    assert "UTF" in found["error"].upper() or "utf-8" in found["error"]
    assert "\n" not in found["error"]


@pytest.mark.parametrize("stream", [False, True], ids=["prepared", "streamed"])
def test_empty_documents_and_large_ones_are_taken(ask: Ask, stream: bool) -> None:
    found = ask(source="some/odd", source_config="all", validation_share=0.3, stream=stream)
    assert {text for text in both(found) if text.strip()} == {"one", "two", "three", "four", LARGE}


@pytest.mark.parametrize("stream", [False, True], ids=["prepared", "streamed"])
def test_columns_nobody_asked_for_refuse_nothing(ask: Ask, stream: bool) -> None:
    mixed = ask(source="some/mixed", source_config="all", stream=stream)
    assert both(mixed) == sorted(["one", "two", *ARTICLES[0::4], *ARTICLES[2::4]])
    # published so: nobody but its author can write it again
    assert any("train-00003-of-00004.parquet' has no rows" in line for line in mixed["log"])
    assert both(ask(source="some/lines", stream=stream)) == ["text 0", "text 1", "text 2"]
