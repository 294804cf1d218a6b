"""A network, and a Space where its page is served."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from arbprob_hf.demo.network import Network
from tests.demo.micro_networks import micro_network
from tests.demo.space_here import Space, served_space, upload_and_download


@pytest.fixture(scope="session")
def network() -> Network:
    """One of its own layout two_stream, under the mask causal; nobody changes it."""
    return micro_network(target_positions=True)


@pytest.fixture(scope="session")
def shared(session_folder: Path) -> Path:
    """What all processes share: a server takes long to start."""
    folder = session_folder / "demo"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def checkpoint(shared: Path) -> Path:
    """A folder with such a network and its tokenizer."""
    folder = shared / "checkpoint"
    with FileLock(shared / "checkpoint.lock"):
        if not folder.exists():
            made = micro_network()
            made.model.save_pretrained(folder)
            made.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def space(checkpoint: Path, shared: Path) -> Iterator[Space]:
    """A Space uploaded as documented, downloaded into an empty folder and started there; one for all processes."""
    folder = shared / "space"
    with FileLock(shared / "space.lock"):
        if not folder.exists():
            upload_and_download(folder, shared / "hub")
    with served_space(folder, checkpoint, shared) as served:
        yield served
