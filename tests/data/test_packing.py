"""Packing: every token once and in order, equal to an oracle that goes token by token."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbprob_hf.data import packing
from arbprob_hf.data.packing import PackedBlocks, TokenDocuments, pack

SEPARATOR = 99

documents_lists = st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=20), min_size=1, max_size=15)
block_sizes = st.integers(2, 9)


def flat(documents: list[list[int]], n_bytes: list[int] | None = None) -> TokenDocuments:
    return TokenDocuments(
        np.array([token for document in documents for token in document], np.uint16),
        np.array([len(document) for document in documents]),
        np.array([3 * len(document) for document in documents] if n_bytes is None else n_bytes),
    )


def packed(documents: list[list[int]], block_size: int, limit: int | None = None) -> PackedBlocks:
    return pack(flat(documents), block_size=block_size, separator=SEPARATOR, limit=limit)


def oracle(documents: list[list[int]], block_size: int) -> list[list[tuple[int, int]]]:
    """Blocks of (token, number of the document in the whole text), written one token at a time."""
    blocks: list[list[tuple[int, int]]] = [[]]

    def write(token: int, number: int) -> None:
        if len(blocks[-1]) == block_size:
            blocks.append([])
        if not blocks[-1] and token != SEPARATOR:
            blocks[-1].append((SEPARATOR, number))
        blocks[-1].append((token, number))

    for number, document in enumerate(documents):
        for token in [SEPARATOR, *document]:
            write(token, number)
    return [block for block in blocks if len(block) == block_size]


@given(documents_lists, block_sizes)
def test_packing_equals_the_token_by_token_oracle(documents: list[list[int]], block_size: int) -> None:
    blocks, expected = packed(documents, block_size), oracle(documents, block_size)
    assert blocks.input_ids.tolist() == [[token for token, _ in block] for block in expected]
    renumbered = [[number - block[0][1] for _, number in block] for block in expected]
    assert blocks.document_ids.tolist() == renumbered


@given(documents_lists, block_sizes)
def test_every_token_occurs_once_and_in_order(documents: list[list[int]], block_size: int) -> None:
    ids = packed(documents, block_size).input_ids
    tokens = [token for document in documents for token in document]
    kept = ids[ids != SEPARATOR].tolist()
    assert kept == tokens[: len(kept)]
    assert len(tokens) - len(kept) < block_size


@given(documents_lists, block_sizes)
def test_blocks_and_documents_begin_with_the_separator(documents: list[list[int]], block_size: int) -> None:
    blocks = packed(documents, block_size)
    begins = np.diff(blocks.document_ids.astype(int), axis=1, prepend=-1)
    assert set(np.unique(begins)) <= {0, 1}
    assert np.array_equal(blocks.input_ids == SEPARATOR, begins == 1)


@given(documents_lists, block_sizes, st.integers(1, 5))
def test_a_limit_keeps_the_first_blocks(documents: list[list[int]], block_size: int, limit: int) -> None:
    every, some = packed(documents, block_size), packed(documents, block_size, limit)
    assert some.input_ids.tolist() == every.input_ids.tolist()[:limit]
    assert some.document_ids.tolist() == every.document_ids.tolist()[:limit]


def test_a_cut_document_goes_on_behind_a_new_separator() -> None:
    blocks = packed([[1, 2, 3, 4, 5], [6, 7]], block_size=4)
    assert blocks.input_ids.tolist() == [[99, 1, 2, 3], [99, 4, 5, 99], [99, 6, 7, 0]][:2]
    assert blocks.document_ids.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1]]


def test_a_document_that_ends_with_its_block_leaves_one_separator_to_the_next() -> None:
    blocks = packed([[1, 2, 3], [4, 5, 6]], block_size=4)
    assert blocks.input_ids.tolist() == [[99, 1, 2, 3], [99, 4, 5, 6]]


def test_rows_packed_in_portions_equal_rows_packed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [list(range(1, 1 + length)) for length in (5, 1, 9, 30, 2)]
    at_once = packed(documents, 4)
    monkeypatch.setattr(packing, "ROWS", 3)
    assert packed(documents, 4).input_ids.tolist() == at_once.input_ids.tolist()
    assert packed(documents, 4).document_ids.tolist() == at_once.document_ids.tolist()


def test_text_shorter_than_a_block_gives_none() -> None:
    assert packed([[1, 2]], block_size=4).input_ids.shape == (0, 4)


def test_as_many_documents_as_tokens_in_a_block_are_numbered() -> None:
    blocks = pack(flat([[1]] * 400), block_size=300, separator=SEPARATOR)
    assert blocks.document_ids[0].tolist() == [place // 2 for place in range(300)]


def test_bytes_count_whole_documents_of_the_kept_blocks() -> None:
    documents = flat([[1, 2, 3], [4, 5, 6], [7, 8, 9]], n_bytes=[10, 20, 40])
    blocks = pack(documents, block_size=4, separator=SEPARATOR, limit=2)
    assert blocks.n_bytes == 30
    # two blocks of four, of which the first token is never predicted
    assert blocks.bytes_per_token == 30 / 6


def test_bytes_of_a_cut_document_are_shared_out_by_tokens() -> None:
    blocks = pack(flat([[1] * 7], n_bytes=[80]), block_size=4, separator=SEPARATOR, limit=1)
    assert blocks.n_bytes == 40


def test_two_bytes_a_token_suffice_for_blocks() -> None:
    assert packed([[1, 2, 3]], 2).input_ids.dtype == np.uint16
