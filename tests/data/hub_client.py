"""What test_hub_sources.py runs in a process of its own, as clients read where the Hub is when they are imported.

Reads orders, a JSON object a line: `stream`, and fields of DataArguments. Answers each with a line: the texts, or the
error.
"""

import dataclasses
import itertools
import json
import logging
import sys
from typing import Any

import datasets

from arbprob_hf.data import DataArguments
from arbprob_hf.data.sources import load_streams, load_texts

# a connection that is lost is tried again; the tests need not wait as long
datasets.config.STREAMING_READ_RETRY_INTERVAL = 0.01
datasets.disable_progress_bars()


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def answer(order: dict[str, Any]) -> dict[str, Any]:
    """The texts for training and for validation that an order asks for, and what they are."""
    is_stream = order.pop("stream", False)
    arguments = DataArguments(**order, streaming=is_stream)
    if is_stream:
        streams = load_streams(arguments)
        train, validation = streams.train.texts(), itertools.islice(streams.validation(), 50)
        return {"train": list(train), "validation": list(validation), **_named(streams)}
    texts = load_texts(arguments)
    return {"train": texts.train["text"][:], "validation": texts.validation["text"][:], **_named(texts)}


def _named(found: Any) -> dict[str, Any]:
    return {"source": found.source, "dataset": found.origin.dataset, "origin": dataclasses.asdict(found.origin)}


def main() -> None:
    """Answer until there are no more orders."""
    kept = _Kept()
    logging.getLogger("arbprob_hf").addHandler(kept)
    for line in sys.stdin:
        kept.lines.clear()
        try:
            found = answer(json.loads(line))
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({**found, "log": kept.lines}), flush=True)


if __name__ == "__main__":
    main()
