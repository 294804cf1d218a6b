"""What is sent past the controls of the page: each wrong value is answered in one line, and the page goes on."""

import json
from typing import Any

import httpx
import pytest

from arbprob_hf.demo.handlers import LONGEST, LONGEST_MASK, PageHandlers
from tests.demo.micro_networks import micro_network
from tests.demo.space_here import Space

HALF = "The cat \ud83d sat"
TEXT = "The [M] sat"


@pytest.fixture(scope="module")
def handlers() -> PageHandlers:
    return PageHandlers(micro_network())


def said(shown: tuple[Any, ...]) -> str:
    """The message of one line in an answer, in place of anything else."""
    found = [part for part in shown if isinstance(part, str) and 'class="warning said"' in part]
    assert len(found) == 1
    assert "\n" not in found[0]
    found[0].encode()
    return found[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "text: expected a text, got None"),
        (7, "text: expected a text, got 7"),
        ({"a": [1]}, "text: expected a text, got {"),
        ("word " * LONGEST, f"text: expected at most {LONGEST:,} characters, got 100,000; shorten it"),
        (HALF, "text: character 9 is half of one (a surrogate); write it anew"),
        ("[M:99999999999999999999]", "expected"),
    ],
    ids=["none", "number", "mapping", "long", "half a character", "many blanks"],
)
def test_a_text_that_is_none_is_answered_in_one_line(handlers: PageHandlers, text: Any, message: str) -> None:
    for answered in (
        handlers.read(text, None, "two_stream"),
        handlers.again(text, None, "two_stream"),
        handlers.click(text, None, "two_stream", (1, " sat")),
        handlers.sample(text, None, "two_stream", "fused", 1, 1.0, 0),
        handlers.compare(text, "causal"),
    ):
        assert message in said(answered).replace("&#x27;", "'")


@pytest.mark.parametrize("layout", [None, 3, ["two_stream"], {}, "sigma", "x" * 10_000, "\ud800"], ids=repr)
def test_a_layout_that_is_none_is_answered_in_one_line(handlers: PageHandlers, layout: Any) -> None:
    message = said(handlers.read(TEXT, None, layout))
    assert "layout: expected one of two_stream, " in message or "layout: expected one of causal, " in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "slow"}, "method: expected one of sequential, speculative, fused, auto, got"),
        ({"method": ["fused"]}, "method: expected one of"),
        ({"samples": 10**9}, "samples: expected an integer from 1 to 16, got 1000000000"),
        ({"samples": 0}, "samples: expected an integer from 1 to 16, got 0"),
        ({"samples": "4"}, "samples: expected an integer from 1 to 16, got"),
        ({"samples": 2.5}, "samples: expected an integer from 1 to 16, got 2.5"),
        ({"samples": True}, "samples: expected an integer from 1 to 16, got True"),
        ({"temperature": 1e9}, "temperature: expected a number from 0 to 2, got 1000000000.0"),
        ({"temperature": float("nan")}, "temperature: expected a number from 0 to 2, got nan"),
        ({"temperature": -1}, "temperature: expected a number from 0 to 2, got -1"),
        ({"temperature": None}, "temperature: expected a number from 0 to 2, got None"),
        ({"seed": None}, "seed: expected an integer from 0 to"),
        ({"seed": -1}, "seed: expected an integer from 0 to"),
        ({"seed": 2**70}, "seed: expected an integer from 0 to"),
    ],
    ids=str,
)
def test_an_option_of_samples_out_of_its_range_is_answered_in_one_line(
    handlers: PageHandlers, changes: dict[str, Any], message: str
) -> None:
    options = {"method": "fused", "samples": 1, "temperature": 1, "seed": 0} | changes
    assert message in said(handlers.sample(TEXT, None, "two_stream", *options.values()))


def test_whole_numbers_of_json_may_have_a_point(handlers: PageHandlers) -> None:
    *_, infills = handlers.sample(TEXT, None, "two_stream", "fused", 2.0, 1, 3.0)
    assert "2 samples, fused" in infills


@pytest.mark.parametrize("clicked", [None, 3, (), ("1", " sat"), (1, None), (-1, " sat"), (0.5, "x"), {}], ids=repr)
def test_a_click_on_nothing_is_answered_in_one_line(handlers: PageHandlers, clicked: Any) -> None:
    passage, *_ = handlers.read("The cat sat", None, "two_stream")
    now, *shown = handlers.click("The cat sat", passage, "two_stream", clicked)
    assert now == passage
    assert "token: expected" in said(tuple(shown))


@pytest.mark.parametrize("mask", [None, 4, "causal & " * LONGEST_MASK, "caus\ud800al", ["causal"]], ids=type)
def test_a_mask_that_is_none_is_answered_in_one_line(handlers: PageHandlers, mask: Any) -> None:
    assert "mask: " in said(handlers.compare("The cat sat", mask))


def sent(address: str, function: dict[str, Any], data: list[Any], event: Any = None) -> dict[str, Any]:
    """What the server answers to a request that the page itself would not send."""
    asked = {"fn_index": function["id"], "data": data, "session_hash": f"s{function['id']}", "event_data": event}
    body = json.dumps(asked)
    headers = {"content-type": "application/json"}
    joined = httpx.post(f"{address}gradio_api/queue/join", content=body, headers=headers, timeout=60)
    assert joined.status_code == 200, joined.text
    with httpx.stream("GET", f"{address}gradio_api/queue/data?session_hash=s{function['id']}", timeout=60) as stream:
        for line in stream.iter_lines():
            message = json.loads(line.removeprefix("data: ")) if line else {}
            if message.get("msg") == "process_completed":
                return message
    raise AssertionError("no answer")


@pytest.mark.long
def test_a_server_answers_whatever_is_sent_and_goes_on(space: Space) -> None:
    address = space.address
    functions = httpx.get(f"{address}config", timeout=60).json()["dependencies"]
    assert len(functions) == 8
    odd = [None, 7, HALF, {"a": 1}, [1], 1e300, "word " * LONGEST]
    for function in functions:
        # a click comes with the token that was clicked
        events = (
            [None, {"index": "x"}, {"index": 1, "value": HALF}] if function["targets"][0][1] == "select" else [None]
        )
        for value in odd:
            for event in events:
                answer = sent(address, function, [value] * len(function["inputs"]), event)
                assert answer["success"], answer["output"]
                # a message, or that nothing changes
                shown = json.dumps(answer["output"])
                assert "warning said" in shown or "__type__" in shown
    answer = sent(address, functions[0], ["The [M] sat", None, "two_stream"])
    assert "given both sides" in json.dumps(answer["output"])
