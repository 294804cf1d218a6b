"""A run reads one commit of a data set, and goes on with it after there is another."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hub.hub import client_environment, serve
from tests.publishing.conftest import PROSE

# a process of its own streams, commits and resumes
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What revised_stream.py prints, with the clients of a Hub that has one data set."""
    root = tmp_path_factory.mktemp("revisions")
    texts, words = root / "texts", PROSE.split()
    texts.mkdir()
    rows = [{"text": f"{number} " + " ".join((words[number % 7 :] + words) * 3)} for number in range(40)]
    (texts / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serve(root / "server", {"dataset:some/texts": texts}) as address:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).parent / "revised_stream.py"), str(root)],
            env=client_environment(address, root / "home"),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_a_stream_is_not_resumed_at_another_commit_and_the_option_is_named(found: dict[str, Any]) -> None:
    old, new = found["commits"]
    assert found["refused"].startswith(f"source_revision: checkpoint-2 was trained with commit {old} of the data set, ")
    assert f"this run would read {new[:8]}, a new commit: add --source_revision {old} to resume it" in found["refused"]
    assert "\n" not in found["refused"]


def test_at_the_commit_it_had_it_goes_on_bit_for_bit(found: dict[str, Any]) -> None:
    assert found["resumed"] == found["weights"]


def test_the_record_and_the_card_say_which_commit_was_read(found: dict[str, Any]) -> None:
    commit = found["commits"][0]
    assert found["record"]["source_revision"] == commit
    assert f"| commit of the text | {commit} |" in found["card"]
    assert f"revision: {commit}" in found["card"]


def test_a_text_that_is_prepared_is_read_at_its_revision_too(found: dict[str, Any]) -> None:
    assert (found["old"], found["new"], found["read"]) == (40, 2, found["commits"][0])


def test_a_revision_that_is_not_there_is_refused(found: dict[str, Any]) -> None:
    assert found["missing"].startswith(
        "source_revision 'v1' is not a branch, tag or commit of 'some/texts'; give one, or "
    )
