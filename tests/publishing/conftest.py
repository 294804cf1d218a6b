"""A Hub that breaks off uploads on request, reached by the clients in this process, and small finished runs."""

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from arbprob_hf.training.arguments import parse
from arbprob_hf.training.run import Outcome, train
from tests.hub.hub import Answering, reached_from_here, serve

PROSE = "a mask says which key a query may see and no other so that nothing leaks from later"


class Breaking(Answering):
    """Hangs up in the middle of a commit while `breaks` is true, after the large files have arrived."""

    breaks = False

    def do_commit(self, *about: Any) -> None:
        if not type(self).breaks:
            super().do_commit(*about)
            return
        self.body()
        self.close_connection = True
        # the server takes it for a client that is gone, and says nothing
        raise BrokenPipeError


@dataclass(frozen=True)
class HubHere:
    """A running Hub: its address, and the folder that holds all it was ever sent."""

    address: str
    root: Path
    handler: type[Breaking]

    @property
    def api(self) -> HfApi:
        return HfApi()

    def requests(self) -> list[tuple[str, str, int]]:
        """Method, path and status of all that was asked so far."""
        with urllib.request.urlopen(f"{self.address}/_log") as answer:
            return [(one["method"], one["path"], one["status"]) for one in json.load(answer)]

    def trees(self, repository: str) -> list[set[str]]:
        """The names of the files in each commit there ever was, in no order."""
        kept = json.loads((self.root / "repos" / "model" / f"{repository}.json").read_text())
        return [set(commit["tree"]) for commit in kept["commits"].values()]

    def received(self) -> dict[str, bytes]:
        """Every content it was ever sent, by hash."""
        return {path.name: path.read_bytes() for path in (self.root / "blobs").rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubHere]:
    """A Hub of this module's, empty at first."""
    root = tmp_path_factory.mktemp("hub")
    with serve(root, handler=Breaking) as address, reached_from_here(address):
        yield HubHere(address, root, Breaking)


def train_micro(folder: Path, output: Path, **changes: object) -> Outcome:
    """Two steps of a network 16 wide on forty short documents below `folder`."""
    words = PROSE.split()
    text = folder / "text"
    text.mkdir(exist_ok=True)
    for number in range(40):
        turned = words[number % 7 :] + words[: number % 7]
        (text / f"{number}.txt").write_text(f"{number} " + " ".join(turned * 6), encoding="utf-8")
    fields = {
        **dict(source=text, output_dir=output, n_embd=16, n_positions=32, validation_share=0.2, max_steps=2),
        **dict(batch_size=4, learning_rate="3e-2", logging_steps=1, eval_steps=2, save_steps=2, sample_count=1),
        **dict(sample_tokens=8, use_cpu="true", disable_tqdm="true", initializer_range=0.3),
        **changes,
    }
    return train(*parse([f"--{name}={value}" for name, value in fields.items()]))
