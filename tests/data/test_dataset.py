"""From a source to blocks: nothing lost, nothing shared, the same again."""

import json
import logging
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from arbprob_hf.data import BlockCollator, Blocks, DataArguments, load_blocks
from arbprob_hf.data import dataset as blocks
from arbprob_hf.data import documents as texts
from arbprob_hf.data.sources import load_texts

END = 50256
# every word is one token of its own behind a space
TEXTS = [" ".join(f"{word} {number}" for word in ("red", "green", "blue")) for number in range(60)]


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return str(path)


def rows(part: Dataset) -> list[list[int]]:
    return [row.tolist() for row in part["input_ids"]]


def documents(part: Dataset, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The texts in a split's blocks: a cut document goes on in the next block, behind its separator."""
    stream = [token for block in rows(part) for token in block]
    return [text for text in tokenizer.decode(stream).split("<|endoftext|>") if text]


def test_every_document_is_in_its_split_alone(corpus: str, tokenizer: PreTrainedTokenizerFast) -> None:
    arguments = DataArguments(source=corpus, validation_share=0.2)
    texts, found = load_texts(arguments), load_blocks(arguments, tokenizer, block_size=5, seed=0)
    for part, own in ((found.train, texts.train["text"][:]), (found.validation, texts.validation["text"][:])):
        whole, got = "".join(own), "".join(documents(part, tokenizer))
        assert whole.startswith(got)
        assert len(tokenizer(whole[len(got) :]).input_ids) < 5
    assert not set(texts.train["text"]) & set(texts.validation["text"])


def test_blocks_are_of_the_size_asked_for(corpus: str, tokenizer: PreTrainedTokenizerFast) -> None:
    found = load_blocks(DataArguments(source=corpus), tokenizer, block_size=7, seed=0)
    for part in (found.train, found.validation):
        assert part.column_names == ["input_ids", "document_ids"]
        assert {len(row) for column in ("input_ids", "document_ids") for row in part[column]} == {7}
        assert {row[0] for row in rows(part)} == {END}


def test_blocks_collate_into_a_batch(corpus: str, tokenizer: PreTrainedTokenizerFast) -> None:
    found = load_blocks(DataArguments(source=corpus), tokenizer, block_size=9, seed=0)
    batch = BlockCollator()([found.train[index] for index in range(4)])
    assert batch["input_ids"].tolist() == rows(found.train)[:4]
    # a document begins where its separator stands, at position 0
    assert ((batch["position_ids"] == 0) == (batch["input_ids"] == END)).all()


def test_loading_again_gives_the_same(corpus: str, tokenizer: PreTrainedTokenizerFast) -> None:
    arguments = DataArguments(source=corpus, num_train_samples=9)
    first, again = (load_blocks(arguments, tokenizer, block_size=8, seed=3) for _ in range(2))
    assert rows(first.train) == rows(again.train)
    assert rows(first.validation) == rows(again.validation)


def test_the_seed_chooses_the_training_sample_and_never_what_is_held_out(
    corpus: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    arguments = DataArguments(source=corpus, num_train_samples=5)
    one, other = (load_blocks(arguments, tokenizer, block_size=8, seed=seed) for seed in (1, 2))
    assert rows(one.train) != rows(other.train)
    assert rows(one.validation) == rows(other.validation)


def test_a_validation_sample_is_not_the_first_documents(corpus: str, tokenizer: PreTrainedTokenizerFast) -> None:
    arguments = DataArguments(source=corpus, validation_share=0.6)
    whole = load_blocks(arguments, tokenizer, block_size=8, seed=0).validation
    arguments = DataArguments(source=corpus, validation_share=0.6, num_val_samples=3)
    sample = load_blocks(arguments, tokenizer, block_size=8, seed=0).validation
    assert len(sample) == 3
    assert rows(sample) != rows(whole.select(range(3)))


def test_samples_count_blocks(corpus: str, tokenizer: PreTrainedTokenizerFast) -> None:
    arguments = DataArguments(source=corpus, num_train_samples=4, num_val_samples=2, validation_share=0.3)
    found = load_blocks(arguments, tokenizer, block_size=8, seed=0)
    assert (len(found.train), len(found.validation)) == (4, 2)


def test_only_the_documents_that_are_needed_are_tokenised(
    corpus: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "FIRST_SHARE", 2)
    texts = Dataset.from_dict({"text": TEXTS})
    every = blocks._tokenised(texts, tokenizer, DataArguments(), None)
    some = blocks._tokenised(texts, tokenizer, DataArguments(), 60)
    # shares of 2, 4 and 8 documents of 7 tokens with their separator make 98, the first two 42
    assert len(some.lengths) == 14
    assert some.tokens.tolist() == every.tokens.tolist()[: len(some.tokens)]


def test_more_samples_than_there_are_warn_in_one_line(
    corpus: str, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    whole = load_blocks(DataArguments(source=corpus), tokenizer, block_size=8, seed=0)
    with caplog.at_level(logging.WARNING, blocks.__name__):
        arguments = DataArguments(source=corpus, num_train_samples=10_000)
        found = load_blocks(arguments, tokenizer, block_size=8, seed=0)
    assert abs(len(found.train) - len(whole.train)) <= 1
    assert [record.getMessage() for record in caplog.records] == [
        f"num_train_samples is 10000, but the text gives {len(found.train)} blocks; all are used"
    ]


def test_one_block_is_one_block(
    corpus: str, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, blocks.__name__):
        arguments = DataArguments(source=corpus, num_train_samples=1, num_val_samples=10_000, packing=False)
        found = load_blocks(replace(arguments, validation_share=0.01), tokenizer, block_size=64, seed=0)
    assert found.amount == "1 block"
    assert "num_val_samples is 10000, but the text gives 1 block; all are used" in caplog.messages


def test_documents_that_are_all_too_short_name_the_option(corpus: str, tokenizer: PreTrainedTokenizerFast) -> None:
    arguments = DataArguments(source=corpus, min_document_length=100_000)
    message = "^min_document_length is 100000, but no document of the (training|validation) text has as many char"
    for one in (arguments, replace(arguments, streaming=True)):
        with pytest.raises(ValueError, match=message):
            load_blocks(one, tokenizer, block_size=8, seed=0)
    # some are left, too few
    with pytest.raises(ValueError, match="or a smaller block_size$") as refused:
        load_blocks(replace(arguments, min_document_length=2), tokenizer, block_size=8_000, seed=0)
    assert ", a smaller min_document_length or a smaller block_size" in str(refused.value)


def test_bytes_per_token_turn_a_loss_into_bits_per_byte(corpus: str, tokenizer: PreTrainedTokenizerFast) -> None:
    found = load_blocks(DataArguments(source=corpus), tokenizer, block_size=6, seed=0)
    # a model that gives each scored token ln 2 nats spends one bit on it
    scored = len(found.validation) * 5
    text = "".join(documents(found.validation, tokenizer))
    bits_per_byte = math.log(2) / math.log(2) / found.validation_bytes_per_token
    assert bits_per_byte == pytest.approx(scored / len(text.encode()), rel=0.1)


def test_a_separator_within_a_row_parts_two_documents(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": f"{text}<|endoftext|>{text}!"}) + "\n" for text in TEXTS))
    arguments = DataArguments(source=str(path), validation_share=0.5)
    found = load_blocks(arguments, tokenizer, block_size=200, seed=0)
    assert "" not in documents(found.train, tokenizer)
    first = found.train[0]
    begins = (first["document_ids"][1:] != first["document_ids"][:-1]).tolist()
    assert begins == (first["input_ids"][1:] == END).tolist()


def test_long_documents_and_other_scripts_pass_through_without_a_warning(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    for number in range(3):
        text = f"\u4f60\u597d \U0001f600 {number} " + "word " * 3000
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    found = load_blocks(DataArguments(source=str(tmp_path)), tokenizer, block_size=16, seed=0)
    assert "\u4f60\u597d \U0001f600" in tokenizer.decode(rows(found.train)[0])


def test_text_shorter_than_a_block_is_refused(corpus: str, tokenizer: PreTrainedTokenizerFast) -> None:
    message = r"^the (training|validation) text has \d+ document\(s\) of \d+ tokens together, less than one block"
    with pytest.raises(ValueError, match=message):
        load_blocks(DataArguments(source=corpus), tokenizer, block_size=1000, seed=0)


@pytest.mark.parametrize("size", [1, 0, -5, 2.5, True, None])
def test_a_block_size_too_small_is_refused(size: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises((ValueError, TypeError), match=r"^block_size: expected an integer of at least 2, got"):
        load_blocks(DataArguments(), tokenizer, block_size=size, seed=0)


def test_a_tokenizer_without_an_end_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    endless = type(tokenizer).from_pretrained(tmp_path, eos_token=None)
    with pytest.raises(ValueError, match=r"^the tokenizer has no end-of-text token"):
        load_blocks(DataArguments(), endless, block_size=8, seed=0)


@pytest.fixture(scope="module")
def embedded(tokenizer: PreTrainedTokenizerFast) -> Blocks:
    return load_blocks(DataArguments(), tokenizer, block_size=128, seed=0)


def test_the_embedded_text_is_enough_for_a_nano_run(embedded: Blocks) -> None:
    assert len(embedded.train) > 2000
    assert len(embedded.validation) > 40
    assert 2 < embedded.validation_bytes_per_token < 5


def test_no_block_of_the_embedded_text_is_in_both_splits(embedded: Blocks) -> None:
    training = {tuple(row) for row in rows(embedded.train)}
    assert not training & {tuple(row) for row in rows(embedded.validation)}


def test_short_documents_are_left_out(corpus: str, tokenizer: PreTrainedTokenizerFast) -> None:
    longest = max(map(len, TEXTS))
    with pytest.raises(ValueError, match=r"^min_document_length is \d+, but no document of the training text"):
        load_blocks(DataArguments(source=corpus, min_document_length=longest + 1), tokenizer, block_size=8, seed=0)
    kept = load_blocks(DataArguments(source=corpus, min_document_length=longest), tokenizer, block_size=4, seed=0)
    found = re.findall(r"\d+", " ".join([*documents(kept.train, tokenizer), *documents(kept.validation, tokenizer)]))
    assert set(found) == {number for text in TEXTS if len(text) == longest for number in re.findall(r"\d+", text)}


def test_several_processes_make_the_same_blocks(corpus: str, tokenizer: PreTrainedTokenizerFast) -> None:
    one, two = (
        load_blocks(DataArguments(source=corpus, preprocessing_num_workers=number), tokenizer, block_size=8, seed=0)
        for number in (1, 2)
    )
    assert rows(one.train) == rows(two.train)


def test_a_second_run_tokenises_nothing(
    corpus: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_blocks(DataArguments(source=corpus), tokenizer, block_size=9, seed=0)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("tokenised again")

    # what is cached is found by what the function is, not by what it would do
    monkeypatch.setattr(type(tokenizer), "__call__", refuse)
    again = load_blocks(DataArguments(source=corpus), tokenizer, block_size=9, seed=0)
    assert rows(first.train) == rows(again.train)


def test_a_run_with_another_way_to_tokenise_tokenises_again(
    corpus: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_blocks(DataArguments(source=corpus), tokenizer, block_size=9, seed=0)
    package = tmp_path / "package"
    shutil.copytree(Path(texts.__file__).parent, package)
    (package / "tokenizer.py").write_bytes((package / "tokenizer.py").read_bytes() + b"# changed\n")
    monkeypatch.setattr(texts, "__file__", str(package / "documents.py"))
    texts.code_of.cache_clear()
    monkeypatch.setattr(blocks, "tokenise", lambda tokenizer, documents: [[1] * 10 for _ in documents])
    again = load_blocks(DataArguments(source=corpus), tokenizer, block_size=9, seed=0)
    texts.code_of.cache_clear()
    assert {token for row in rows(again.train) for token in row} == {1, END}
    assert rows(again.train) != rows(first.train)


def test_a_copy_of_tokens_that_is_cut_off_makes_no_fewer_blocks(
    corpus: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    whole = blocks.check_copies

    def noted(rows: Dataset) -> None:
        made.extend(Path(file["filename"]) for file in rows.cache_files)
        whole(rows)

    monkeypatch.setattr(blocks, "check_copies", noted)
    load_blocks(DataArguments(source=corpus), tokenizer, block_size=11, seed=0)
    assert len(made) == 2
    made[0].write_bytes(made[0].read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"^the copy of the text .*\.arrow is damaged: it is cut off; remove it, and"):
        load_blocks(DataArguments(source=corpus), tokenizer, block_size=11, seed=0)
