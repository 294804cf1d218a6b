"""The collator: four (B, T) tensors of integers, positions that restart in each document."""

import numpy as np
import pytest
import torch

from arbprob_hf.data import BlockCollator

FEATURES = [
    {"input_ids": [9, 1, 2, 9, 3, 9], "document_ids": [0, 0, 0, 1, 1, 2]},
    {"input_ids": np.array([9, 4, 5, 6, 7, 8]), "document_ids": np.array([0, 0, 0, 0, 0, 0])},
]


def test_batch_has_four_long_tensors_of_batch_by_length() -> None:
    batch = BlockCollator()(FEATURES)
    assert set(batch) == {"input_ids", "labels", "document_ids", "position_ids"}
    assert {(tensor.dtype, tuple(tensor.shape)) for tensor in batch.values()} == {(torch.int64, (2, 6))}


def test_positions_restart_in_each_document() -> None:
    assert BlockCollator()(FEATURES)["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]]


def test_an_identifier_that_comes_back_begins_a_new_document() -> None:
    block = {"input_ids": [1, 2, 3, 4, 5], "document_ids": [0, 0, 1, 0, 0]}
    assert BlockCollator()([block])["position_ids"].tolist() == [[0, 1, 0, 0, 1]]


def test_labels_are_the_tokens_in_memory_of_their_own() -> None:
    batch = BlockCollator()(FEATURES)
    assert torch.equal(batch["labels"], batch["input_ids"])
    assert batch["labels"].data_ptr() != batch["input_ids"].data_ptr()


@pytest.mark.parametrize("column", ["input_ids", "document_ids"])
def test_a_missing_column_is_named_with_the_option_that_drops_it(column: str) -> None:
    features = [{name: row[name] for name in row if name != column} for row in FEATURES]
    with pytest.raises(ValueError, match=f"no column '{column}'.*remove_unused_columns=False"):
        BlockCollator()(features)


def test_blocks_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"equally long, got input_ids of \[2, 6\] tokens"):
        BlockCollator()([FEATURES[0], {"input_ids": [1, 2], "document_ids": [0, 0]}])


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one block"):
        BlockCollator()([])
