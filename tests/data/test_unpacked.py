"""Blocks of one document each: nothing is lost, and padding is neither asked, scored nor seen."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
from arbprob_hf.data import BlockCollator, Blocks, DataArguments, load_blocks
from arbprob_hf.data.collators import QuestionCollator, number_blocks
from arbprob_hf.data.eval_sets import MODES, draw_modes, load_modes, save_modes
from arbprob_hf.data.packing import TokenDocuments, pad_to_blocks
from arbprob_hf.data.streaming import Packer
from arbprob_hf.data.tasks import Task

SIZE = 12
TEXTS = [f"number {n} is followed by " + "more " * (n % 23) + f"until {n}" for n in range(24)]


@pytest.fixture(scope="module")
def blocks(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Blocks:
    file = tmp_path_factory.mktemp("text") / "train.parquet"
    Dataset.from_dict({"text": TEXTS}).to_parquet(file)
    arguments = DataArguments(source=str(file), packing=False, validation_share=0.25)
    return load_blocks(arguments, tokenizer, block_size=SIZE, seed=0)


def texts_of(rows: Any, tokenizer: PreTrainedTokenizerFast) -> str:
    return "".join(
        tokenizer.decode(row["input_ids"][1 : row["length"]]).removesuffix(tokenizer.eos_token) for row in rows
    )


def labels_of(rows: Any) -> list[list[int]]:
    """What is scored of each block, in order."""
    return [[label for label in row[1:] if label != -100] for row in BlockCollator()(list(rows))["labels"].tolist()]


def test_every_document_is_there_in_full_behind_separators(blocks: Blocks, tokenizer: PreTrainedTokenizerFast) -> None:
    together = texts_of(blocks.train, tokenizer) + texts_of(blocks.validation, tokenizer)
    assert sorted(together) == sorted("".join(TEXTS))
    for row in blocks.train:
        assert len(row["input_ids"]) == SIZE
        assert (row["input_ids"][[0, *range(int(row["length"]), SIZE)]] == tokenizer.eos_token_id).all()
        assert row["document_ids"].tolist() == [0] * int(row["length"]) + [1] * (SIZE - int(row["length"]))
    assert min(row["length"] for row in blocks.train) < SIZE == max(row["length"] for row in blocks.train)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), size=st.integers(2, 12))
def test_a_stream_makes_the_same_blocks(lengths: list[int], size: int) -> None:
    documents = [list(range(100 * number + 1, 100 * number + 1 + length)) for number, length in enumerate(lengths)]
    flat = np.asarray([token for document in documents for token in document])
    expected = pad_to_blocks(
        TokenDocuments(flat, np.asarray(lengths), np.asarray(lengths)), block_size=size, separator=0
    )
    packer = Packer(size, 0, joins=False)
    found = [block for document in documents for block in packer.add(document)]
    assert [block["input_ids"].tolist() for block in found] == expected.input_ids.tolist()
    assert [block["document_ids"].tolist() for block in found] == expected.document_ids.tolist()
    assert expected.lengths is not None
    assert [block["length"] for block in found] == expected.lengths.tolist()
    # a byte a token, and none for the ends that are scored
    assert expected.n_bytes == pytest.approx(sum(lengths))
    ends = sum(length % (size - 1) > 0 for length in lengths)
    assert expected.bytes_per_token == pytest.approx(sum(lengths) / (sum(lengths) + ends))


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), size=st.integers(2, 12))
def test_the_end_of_a_document_is_a_target_once_and_no_cut_is(lengths: list[int], size: int) -> None:
    documents = [list(range(1, 1 + length)) for length in lengths]
    room = size - 1
    expected = []
    for document in documents:
        parts = [document[begin : begin + room] for begin in range(0, len(document), room)]
        # an end that the last block has no room for is nowhere, as where documents are packed
        expected += [*parts[:-1], parts[-1] + [0] * (len(parts[-1]) < room)]
    packer = Packer(size, 0, joins=False)
    assert labels_of(block for document in documents for block in packer.add(document)) == expected


def test_as_many_ends_are_targets_as_there_are_documents(blocks: Blocks, tokenizer: PreTrainedTokenizerFast) -> None:
    both = [*blocks.train, *blocks.validation]
    ends = [labels[-1] == tokenizer.eos_token_id for labels in labels_of(both)]
    filled = sum(len(tokenizer(text).input_ids) % (SIZE - 1) == 0 for text in TEXTS)
    assert sum(ends) == len(TEXTS) - filled > 20
    assert sum(labels.count(tokenizer.eos_token_id) for labels in labels_of(both)) == sum(ends)


def test_a_question_may_ask_where_a_text_ends(blocks: Blocks, tokenizer: PreTrainedTokenizerFast) -> None:
    collator = QuestionCollator("two_stream", given_sees="all", task=Task.parse("causal"), seed=3)
    labels = collator(list(number_blocks(blocks.train)))["labels"]
    ends = sum(row["length"] < SIZE or row["input_ids"][-1] == tokenizer.eos_token_id for row in blocks.train)
    assert (labels == tokenizer.eos_token_id).sum() == ends > 10


def test_a_limit_takes_the_first_blocks() -> None:
    documents = TokenDocuments(np.arange(1, 20), np.asarray([7, 12]), np.asarray([70, 120]))
    whole = pad_to_blocks(documents, block_size=5, separator=0)
    some = pad_to_blocks(documents, block_size=5, separator=0, limit=3)
    assert some.input_ids.tolist() == whole.input_ids.tolist()[:3]
    assert some.n_bytes == 110


def test_padding_is_not_scored(blocks: Blocks) -> None:
    rows = list(blocks.train)
    batch = BlockCollator()(rows)
    lengths = torch.tensor([int(row["length"]) for row in rows])
    assert torch.equal((batch["labels"] != -100).sum(1), lengths)
    assert torch.equal(batch["labels"][batch["labels"] != -100], batch["input_ids"][batch["labels"] != -100])


@pytest.mark.parametrize("layout", ["two_stream", "prefix", "sigma", "masked", "causal"])
def test_a_loss_does_not_depend_on_what_the_padding_is(blocks: Blocks, layout: str) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(vocab_size=50257, n_positions=SIZE, n_embd=8, n_layer=2, n_head=2)
    special = dict(layout=layout, mask_token=True, given_sees="all", target_positions=layout == "sigma")
    model = ArbProbForCausalLM(ArbProbConfig(**sizes, **special, initializer_range=0.5)).eval()
    task = Task.parse("causal" if layout == "causal" else "uniform(given=0.2..0.6)")
    collator = QuestionCollator(layout, given_sees="all", names_target=layout == "sigma", task=task, seed=3)
    rows = list(number_blocks(blocks.train))[:6]
    other = [{**row, "input_ids": np.where(np.arange(SIZE) < row["length"], row["input_ids"], 17)} for row in rows]
    batches = [collator(each) for each in (rows, other)]
    assert (batches[0]["labels"] != -100).sum() > 0
    first, second = (model(**batch, use_cache=False).loss for batch in batches)
    assert torch.equal(first, second)
    assert math.isfinite(first.detach())


def test_the_modes_ask_for_text_alone(blocks: Blocks) -> None:
    modes = draw_modes(blocks.validation, Task.parse("uniform"), seed=0)
    for name in MODES:
        for row, block in zip(modes[name], blocks.validation, strict=True):
            padding = np.arange(SIZE) >= block["length"]
            assert not (row["target"] | row["given"] | row["scored"])[padding].any()
    assert sum(row["scored"].sum() for row in modes["left_to_right"]) == sum(
        int(block["length"]) - 1 for block in blocks.validation
    )


@pytest.mark.parametrize("name", ["run [1]", "a?", "*", "{a,b}", "s3::x"])
def test_questions_are_kept_in_a_folder_of_any_name(blocks: Blocks, name: str, tmp_path: Path) -> None:
    modes = draw_modes(blocks.validation, Task.parse("uniform"), seed=0)
    other = {mode: questions.select([0]) for mode, questions in modes.items()}
    for folder in ("run 1", "ab", "b"):
        save_modes(other, tmp_path / folder)
    save_modes(modes, tmp_path / name)
    found = load_modes(tmp_path / name)
    assert {mode: rows[:]["input_ids"].tolist() for mode, rows in found.items()} == {
        mode: rows[:]["input_ids"].tolist() for mode, rows in modes.items()
    }
    assert found["task"].features == modes["task"].features


@pytest.mark.long
def test_a_run_learns_from_unpacked_blocks(tmp_path: Path) -> None:
    from arbprob_hf.training.arguments import parse
    from arbprob_hf.training.run import train

    Dataset.from_dict({"text": TEXTS}).to_parquet(tmp_path / "train.parquet")
    losses = {}
    for steps in (1, 30):
        fields = dict(source=tmp_path / "train.parquet", packing="false", n_embd=16, n_positions=SIZE, max_steps=steps)
        fields |= dict(output_dir=tmp_path / f"[{steps}] *?", learning_rate="3e-2", sample_count=0, use_cpu="true")
        fields |= dict(
            task="0.5 * uniform + 0.5 * causal", validation_share=0.25, disable_tqdm="true", eval_steps=steps
        )
        losses[steps] = train(*parse([f"--{name}={value}" for name, value in fields.items()])).eval_loss
    assert losses[30] < 0.7 * losses[1]
