"""A stream goes on from a few numbers as if it had not stopped, and with other readers without losing a text."""

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from arbprob_hf.data import StreamedBlocks, shares
from arbprob_hf.data.shares import READERS_NAME, Share, StreamPosition, buffered, deal, first_states
from arbprob_hf.data.streaming import Streamed

SIZE = 6


class Numbers:
    """A tokenizer of texts that are a number and how many tokens it has."""

    eos_token_id = 0

    def __call__(self, texts: list[str], **options: bool) -> dict[str, list[list[int]]]:
        told = [text.split() for text in texts]
        return {"input_ids": [int(count) * [int(number)] for number, count in told]}


def source(counts: list[int], files: int) -> Streamed:
    """Documents 1, 2, ... of so many tokens each, in several files."""
    texts = [f"{number} {count}" for number, count in enumerate(counts, 1)]
    return Streamed(Dataset.from_dict({"text": texts}).to_iterable_dataset(num_shards=files), "here")


def stream(text: Streamed, reader: int, readers: int, *, buffer: int, packing: bool = True) -> StreamedBlocks:
    process = (reader, readers)
    return StreamedBlocks(text, Numbers(), block_size=SIZE, seed=0, buffer=buffer, packing=packing, process=process)


def ids(blocks: Iterator[dict]) -> Iterator[tuple[int, list[int]]]:
    return ((block["index"], block["input_ids"].tolist()) for block in blocks)


@settings(max_examples=60)
@given(
    counts=st.lists(st.integers(0, 14), min_size=8, max_size=40),
    files=st.integers(1, 4),
    readers=st.integers(1, 3),
    buffer=st.sampled_from([1, 2, 5, 100]),
    packing=st.booleans(),
    stop=st.integers(1, 60),
)
def test_a_reader_that_goes_on_from_its_state_gives_what_would_have_come(
    counts: list[int], files: int, readers: int, buffer: int, packing: bool, stop: int
) -> None:
    text = source([*counts, *([3] * 2 * readers * files)], files)
    whole = stream(text, readers - 1, readers, buffer=buffer, packing=packing)
    expected = list(itertools.islice(ids(iter(whole)), stop + 25))
    *_, (_, reader, state) = itertools.islice(whole.with_states(), stop)
    assert reader == readers - 1
    whole.resume([*first_states(readers)[:-1], state])
    assert list(itertools.islice(ids(iter(whole)), 25)) == expected[stop:]
    whole.resume(None)
    assert next(ids(iter(whole))) == expected[0]


@settings(max_examples=60)
@given(
    documents=st.integers(8, 50),
    files=st.integers(1, 6),
    buffer=st.sampled_from([1, 3, 20]),
    first=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    second=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    last=st.integers(1, 4),
)
def test_readers_that_go_on_for_others_have_every_text_once_in_each_reading(
    documents: int, files: int, buffer: int, first: list[int], second: list[int], last: int
) -> None:
    # a document fills a block
    text = source(documents * [SIZE - 1], files)
    had, numbers = Counter[int](), []
    states = first_states(len(first))
    for steps in (first, second):
        states = deal(states, len(steps))
        for reader, count in enumerate(steps):
            blocks = stream(text, reader, len(steps), buffer=buffer)
            blocks.resume(states)
            for block, number, state in itertools.islice(blocks.with_states(), count):
                had[int(block["input_ids"][1])] += 1
                numbers.append(block["index"])
                states[number] = state
    states = deal(states, last) if last != len(states) else states
    readings = max(share.reading for state in states for share in state.shares if share.last is None)
    if any(share.texts for state in states for share in state.shares if share.last is None):
        # as many readers as before: they end the readings that one of them has begun
        readings += 1
    for reader in range(last):
        blocks = stream(text, reader, last, buffer=buffer)
        blocks.resume(states)
        for block, _, state in blocks.with_states():
            # the first block of a later reading ends it
            if len(state.shares) == 1 and state.shares[0].reading >= readings:
                break
            had[int(block["input_ids"][1])] += 1
            numbers.append(block["index"])
    assert had == Counter(dict.fromkeys(range(1, documents + 1), readings))
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(("total", "size"), [(300, 40), (40, 40), (7, 40), (300, 1)])
def test_the_buffer_is_known_from_how_many_texts_have_left_it(total: int, size: int) -> None:
    random, held, left = np.random.default_rng(5), list(range(min(size, total))), 0

    def check(last: list[int] | None) -> None:
        share = Share(0, 1, texts=left, total=None if last is None else total)
        found, order = buffered(size, share, np.random.default_rng(5))
        if total >= size:
            assert found.tolist() == (held if last is None else last)
        assert (order is None) == (last is None)

    for number in range(size, total):
        check(None)
        held[int(random.integers(size))] = number
        left += 1
    order = [held[place] for place in random.permutation(len(held))]
    for place in range(1, len(order)):
        left += 1
        check(order[place:])


def test_a_state_is_a_few_numbers_whatever_the_buffer(tmp_path: Path) -> None:
    text = source(3000 * [SIZE - 1], 2)
    *_, (_, _, state) = itertools.islice(stream(text, 0, 1, buffer=1000).with_states(), 1500)
    position = StreamPosition(1, 1, (0,), (state,))
    position.save(tmp_path)
    assert StreamPosition.load(tmp_path) == position
    assert (tmp_path / READERS_NAME).stat().st_size < 600


def test_what_came_long_before_is_not_read_again() -> None:
    def endless(reads: list[int]) -> IterableDataset:
        def rows() -> Iterator[dict[str, str]]:
            for number in itertools.count(1):
                reads.append(number)
                yield {"text": f"{number} 5"}

        return IterableDataset.from_generator(rows)

    reads: list[int] = []
    blocks = stream(Streamed(endless(reads), "here"), 0, 1, buffer=50)
    *_, (_, _, state) = itertools.islice(blocks.with_states(), 5000)
    # the oldest text in a buffer is seldom older than this
    count, _, row = state.shares[0].start
    assert count == row >= 5000 - 64 - 50 * 12


def test_numbers_that_are_drawn_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    share = Share(0, 1, texts=1000)
    one, two = (np.random.default_rng(0) for _ in range(2))
    whole, _ = buffered(7, share, one)
    monkeypatch.setattr(shares, "_DRAWN", 13)
    parts, _ = buffered(7, share, two)
    assert parts.tolist() == whole.tolist()
    assert one.integers(1000) == two.integers(1000)
