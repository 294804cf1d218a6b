"""A stream gives every document once a reading, shuffled anew, and the same blocks to whoever asks again."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, IterableDataset, Value
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from arbprob_hf.data import Blocks, DataArguments, StreamedBlocks, load_blocks
from arbprob_hf.data.packing import TokenDocuments, pack
from arbprob_hf.data.sources import load_streams
from arbprob_hf.data.streaming import Packer, Streamed

DOCUMENTS, FILES = 60, 4
# a document of five tokens and the separator fill a block
SIZE = 6


@pytest.fixture(scope="module")
def words(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Different words of one token each."""
    known = (word[1:] for word in tokenizer.get_vocab() if word[0] == "\u0120" and word[1:].isalpha() and word.isascii)
    found = (word for word in known if len(tokenizer(f" {word}").input_ids) == 1 and word.isascii() and len(word) > 2)
    return list(itertools.islice(sorted(found), DOCUMENTS + 9))


@pytest.fixture(scope="module")
def folder(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four parquet files of 15 documents, each one word five times over, and one of 9 for validation."""
    folder = tmp_path_factory.mktemp("shards")
    texts = [f" {word}" * 5 for word in words]
    for file in range(FILES):
        Dataset.from_dict({"text": texts[file:DOCUMENTS:FILES]}).to_parquet(folder / f"train-{file}.parquet")
    Dataset.from_dict({"text": texts[DOCUMENTS:]}).to_parquet(folder / "test-0.parquet")
    return folder


@pytest.fixture(scope="module")
def load(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Blocks]:
    """A function (*, process, seed, **fields of DataArguments) -> Blocks."""

    def load(*, process: tuple[int, int] = (0, 1), seed: int = 0, **fields: Any) -> Blocks:
        named = {"source": str(folder), "validation_split": "test", "shuffle_buffer": 8, "num_val_samples": 2, **fields}
        arguments = DataArguments(streaming=True, **named)
        return load_blocks(arguments, tokenizer, block_size=SIZE, seed=seed, process=process)

    return load


def taken(blocks: Blocks, count: int, *, workers: int = 0) -> list[dict[str, Any]]:
    """The first blocks of a loader with so many workers."""
    loader = DataLoader(blocks.train, batch_size=None, num_workers=workers)
    return [{name: np.asarray(value) for name, value in row.items()} for row in itertools.islice(loader, count)]


def documents(rows: list[dict[str, Any]]) -> list[int]:
    """The token of each block's document."""
    assert all(len(set(row["input_ids"][1:].tolist())) == 1 for row in rows)
    return [int(row["input_ids"][1]) for row in rows]


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), size=st.integers(2, 12))
def test_packing_as_documents_come_is_packing_them_all_at_once(lengths: list[int], size: int) -> None:
    texts = [list(range(100 * number + 1, 100 * number + 1 + length)) for number, length in enumerate(lengths)]
    flat = np.asarray(list(itertools.chain.from_iterable(texts)))
    expected = pack(TokenDocuments(flat, np.asarray(lengths), np.ones(len(lengths))), block_size=size, separator=0)
    packer = Packer(size, 0)
    found = [block for text in texts for block in packer.add(text)]
    assert [block["input_ids"].tolist() for block in found] == expected.input_ids.tolist()
    assert [block["document_ids"].tolist() for block in found] == expected.document_ids.tolist()


def test_unshuffled_documents_come_as_the_files_have_them_again_and_again(
    load: Callable[..., Blocks], tokenizer: PreTrainedTokenizerFast, words: list[str]
) -> None:
    found = documents(taken(load(shuffle_buffer=1), 2 * DOCUMENTS))
    order = [word for file in range(FILES) for word in words[file:DOCUMENTS:FILES]]
    assert found == 2 * [tokenizer(f" {word}").input_ids[0] for word in order]


def test_each_reading_is_shuffled_in_another_way(load: Callable[..., Blocks]) -> None:
    found = documents(taken(load(), 2 * DOCUMENTS))
    first, second = found[:DOCUMENTS], found[DOCUMENTS:]
    assert len(set(first)) == DOCUMENTS
    assert sorted(first) == sorted(second)
    assert first != second


def test_the_seed_decides_on_the_order(load: Callable[..., Blocks]) -> None:
    first, again, other = (documents(taken(load(seed=seed), DOCUMENTS)) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def shares(load: Callable[..., Blocks], processes: int, workers: int, **fields: Any) -> list[list[int]]:
    """The documents that each reader has, DOCUMENTS and more of them."""
    readers = processes * max(1, workers)
    rows: list[dict[str, Any]] = []
    for rank in range(processes):
        rows += taken(load(process=(rank, processes), **fields), DOCUMENTS * max(1, workers), workers=workers)
    assert len({int(row["index"]) for row in rows}) == len(rows)
    return [documents([row for row in rows if int(row["index"]) % readers == reader]) for reader in range(readers)]


@pytest.mark.parametrize(("processes", "workers"), [(1, 2), (2, 2), (3, 0), (3, 2)])
def test_processes_and_workers_share_every_document_once(
    load: Callable[..., Blocks], processes: int, workers: int
) -> None:
    # unshuffled, a reading ends where the first document comes again
    own = [found[: found.index(found[0], 1)] for found in shares(load, processes, workers, shuffle_buffer=1)]
    together = list(itertools.chain.from_iterable(own))
    assert len(together) == len(set(together)) == DOCUMENTS


def test_shuffled_files_are_shared_alike_by_all(load: Callable[..., Blocks]) -> None:
    own = shares(load, 2, 2)
    for reading in range(3):
        together = [number for found in own for number in found[15 * reading : 15 * (reading + 1)]]
        assert len(set(together)) == DOCUMENTS
    assert any(set(found[:15]) != set(found[15:30]) for found in own)


def test_more_readers_than_files_take_turns_with_the_documents(load: Callable[..., Blocks], folder: Path) -> None:
    only = dict(source=str(folder / "train-0.parquet"), validation_split=None, validation_share=0.1)
    own = [found[: found.index(found[0], 1)] for found in shares(load, 2, 2, shuffle_buffer=1, **only)]
    together = list(itertools.chain.from_iterable(own))
    assert 10 <= len(together) == len(set(together)) <= 15
    assert max(map(len, own)) - min(map(len, own)) <= 1


def test_documents_held_out_by_their_text_are_never_trained_on(
    load: Callable[..., Blocks], words: list[str], folder: Path
) -> None:
    blocks = load(source=str(folder), validation_split=None, validation_share=0.3, num_val_samples=100)
    trained, held = set(documents(taken(blocks, 3 * DOCUMENTS))), set(documents(list(blocks.validation)))
    assert not trained & held
    assert len(trained | held) == DOCUMENTS
    assert 8 <= len(held) <= 28


def test_short_documents_are_left_out(load: Callable[..., Blocks], words: list[str]) -> None:
    least = 5 * 6
    long = [word for word in words[:DOCUMENTS] if len(f" {word}" * 5) - 1 >= least]
    found = documents(taken(load(min_document_length=least), len(long)))
    assert 0 < len(long) < DOCUMENTS
    assert len(set(found)) == len(long)


def test_the_validation_blocks_are_as_many_as_asked_for_and_the_same_for_all(load: Callable[..., Blocks]) -> None:
    first, other = (load(seed=seed, num_val_samples=7, process=(seed, 2)).validation for seed in (0, 1))
    assert len(first) == 7
    assert documents(list(first)) == documents(list(other))


def test_no_more_than_one_buffer_is_read_ahead(tokenizer: PreTrainedTokenizerFast) -> None:
    read: list[int] = []

    def endless() -> Iterator[dict[str, str]]:
        for number in itertools.count():
            read.append(number)
            yield {"text": f"document {number}"}

    text = Streamed(IterableDataset.from_generator(endless), "here")
    stream = StreamedBlocks(text, tokenizer, block_size=8, seed=0, buffer=500)
    next(iter(stream))
    # besides, rows are taken and tokenised 64 at a time
    assert 500 <= len(read) <= 500 + 2 * 64 + 1


def test_a_file_that_is_broken_is_named(load: Callable[..., Blocks], folder: Path, tmp_path: Path) -> None:
    for number in range(2):
        whole = (folder / f"train-{number}.parquet").read_bytes()
        (tmp_path / f"train-{number}.parquet").write_bytes(whole if number == 0 else whole[:-40] + bytes(40))
    with pytest.raises(ValueError, match=r"^source '.*train-1\.parquet' cannot be read as parquet: ") as refused:
        taken(load(source=str(tmp_path), validation_split=None), DOCUMENTS)
    assert "\n" not in str(refused.value)


def test_a_reader_that_never_finds_text_says_so(tokenizer: PreTrainedTokenizerFast) -> None:
    blank = Streamed(Dataset.from_dict({"text": ["", " \n"]}).to_iterable_dataset(), "here")
    with pytest.raises(ValueError, match="^source here: reader 1 of 1 found no text; use fewer workers, a"):
        next(iter(StreamedBlocks(blank, tokenizer, block_size=8, seed=0)))


def test_documents_of_a_text_file_are_held_out_one_by_one(load: Callable[..., Blocks], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(f" word{number}" * 9 for number in range(50)))
    streams = load_streams(DataArguments(source=str(tmp_path / "a.txt"), streaming=True, validation_share=0.3))
    trained, held = set(streams.train.texts()), set(streams.validation())
    assert not trained & held
    assert len(trained | held) == 50
    assert 5 <= len(held) <= 25


def test_a_broken_file_is_named_in_a_folder_of_several_formats(
    load: Callable[..., Blocks], folder: Path, tmp_path: Path
) -> None:
    whole = (folder / "train-0.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole)
    (tmp_path / "b.parquet").write_bytes(whole[:-40] + bytes(40))
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "z.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    arguments = DataArguments(source=str(tmp_path), streaming=True)
    with pytest.raises(ValueError, match=r"^source .*b\.parquet") as refused:
        list(load_streams(arguments).train.texts())
    assert "\n" not in str(refused.value)


def test_formats_with_texts_of_several_types_stream_together(tmp_path: Path) -> None:
    large = Dataset.from_dict({"text": ["large"]}, features=Features({"text": Value("large_string")}))
    large.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"text": "small"}\n')
    streams = load_streams(DataArguments(source=str(tmp_path), streaming=True, validation_share=0.01))
    assert sorted([*streams.train.texts(), *streams.validation()]) == ["large", "small"]


def test_what_a_stream_cannot_do_is_refused(load: Callable[..., Blocks]) -> None:
    with pytest.raises(ValueError, match="^num_train_samples is 9, but a stream has no end; give max_steps and num_tr"):
        load(num_train_samples=9)
    with pytest.raises(ValueError, match="^text_column 'body' is not in source .*, which has"):
        load(text_column="body")
    with pytest.raises(ValueError, match="^shuffle_buffer: expected an integer of at least 1, got 0"):
        load(shuffle_buffer=0)
