"""The page as it is built, before anybody serves it."""

import asyncio
import socket
from typing import Any

import pytest

from arbprob_hf.demo.network import Network
from arbprob_hf.demo.page import build_page, serve
from arbprob_hf.model.questions.sampling import METHODS


@pytest.fixture(scope="module")
def blocks(network: Network) -> Any:
    """The page. Gradio makes event loops where none is running, and closes none."""

    async def built() -> Any:
        return build_page(network)

    return asyncio.run(built())


def test_all_that_computes_is_done_one_at_a_time(blocks: Any) -> None:
    assert {(one.concurrency_id, one.concurrency_limit) for one in blocks.fns.values()} == {("network", 1)}
    assert len(blocks.fns) == 8


def test_nothing_is_reported_to_anybody(blocks: Any) -> None:
    assert not blocks.analytics_enabled


def test_every_method_of_sampling_can_be_chosen(blocks: Any) -> None:
    (dropdown,) = (one for one in blocks.blocks.values() if one.elem_id == "method")
    assert [value for _, value in dropdown.choices] == list(METHODS)
    assert "auto" in METHODS


@pytest.mark.parametrize("port", ["taken", 70_000], ids=str)
def test_a_port_that_cannot_be_had_is_reported(port: str | int, blocks: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        wanted = taken.getsockname()[1] if isinstance(port, str) else port
        with pytest.raises(ValueError, match=rf"port: {wanted} cannot be used \(.*\); name another, or 0 for any free"):
            serve(blocks, port=wanted)


def test_a_host_that_is_none_of_this_machine_is_reported(blocks: Any) -> None:
    with pytest.raises(ValueError, match=r"host: '999.1.1.1' is not an address of this machine \(.*\); leave it out"):
        serve(blocks, host="999.1.1.1")
