"""A network that fits in no time, which can be asked in every layout, and a Space where its page is served."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from space_here import Space, served_space, upload_and_download
from transformers import set_seed

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
from arbprob_hf.data import load_tokenizer
from arbprob_hf.demo.loading import Network

SIZES: dict[str, Any] = dict(
    n_layer=2, n_head=2, n_embd=16, n_positions=40, initializer_range=0.4, mask_token=True, given_sees="all"
)


def micro_network(**changes: Any) -> Network:
    """GPT-2's vocabulary, 16 wide, with weights so large that every token matters."""
    set_seed(5)
    model = ArbProbForCausalLM(ArbProbConfig(**{**SIZES, **changes})).eval()
    return Network(model, load_tokenizer("gpt2"), "micro")


@pytest.fixture(scope="session")
def network() -> Network:
    """One of its own layout two_stream, under the mask causal; nobody changes it."""
    return micro_network(target_positions=True)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test session, the same in all its processes: a server takes long to start."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "demo"
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
    """A Space as README.md uploads it, downloaded into an empty folder and started there; one for all processes."""
    folder = shared / "space"
    with FileLock(shared / "space.lock"):
        if not folder.exists():
            upload_and_download(folder, shared / "hub")
    with served_space(folder, checkpoint, shared) as served:
        yield served
