"""A checkpoint is resumed as the run it is of, and as no other."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
from arbprob_hf.runs.checkpoints import MANIFEST_NAME, verify
from arbprob_hf.runs.record import RECORD_NAME, compare, describe_run, describe_text

SMALL = dict(vocab_size=40, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)


@pytest.fixture
def cut(tmp_path: Path, whole_run: tuple[Path, str]) -> Path:
    """An output folder with the checkpoints 4 and 8 of the default micro run."""
    for step in (4, 8):
        shutil.copytree(whole_run[0] / f"checkpoint-{step}", tmp_path / "out" / f"checkpoint-{step}")
    return tmp_path / "out"


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 6}, "^seed: checkpoint-8 was trained with 5, this run has 6: give the same to resume it, or start"),
        ({"data_seed": 1}, "^data_seed: checkpoint-8 was trained with None, this run has 1: give the same"),
        (
            {"learning_rate": 0.5},
            r"^learning_rate: checkpoint-8 holds 0\.01, which it would go on with, not 0\.5: give",
        ),
        ({"weight_decay": 0.5}, r"^weight_decay: checkpoint-8 holds 0\.0, which it would go on with, not 0\.5: give"),
        ({"optim": "sgd"}, "^optim: checkpoint-8 holds adamw_torch.*, which it would go on with, not sgd: give"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_run_is_refused_naming_the_option_and_both_values(cut: Path, micro_trainer, changed, message) -> None:
    before = names_in(cut)
    with pytest.raises(ValueError, match=message) as refused:
        micro_trainer(cut, **changed).train(resume_from_checkpoint=True)
    assert "--init_from in another output_dir" in str(refused.value)
    assert len(str(refused.value)) <= 300
    assert names_in(cut) == before


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_layer": 2}, "^n_layer: checkpoint-4 was trained with 1, this run has 2: give the same"),
        ({"n_embd": 16}, "^n_embd: checkpoint-4 was trained with 8, this run has 16: give the same"),
        ({"vocab_size": 50}, "^vocab_size: checkpoint-4 was trained with 40, this run has 50: give the same"),
        ({"initializer_range": 0.1}, "^initializer_range: checkpoint-4 was trained with 0.02, this run has 0.1: give"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_network_of_other_sizes_is_refused_in_one_line(cut: Path, micro_trainer, sizes, message) -> None:
    before = names_in(cut)
    model = GPT2LMHeadModel(GPT2Config(**{**SMALL, **sizes}))
    with pytest.raises(ValueError, match=message):
        # a refused run sets no later checkpoint aside
        micro_trainer(cut, model=model).train(resume_from_checkpoint=str(cut / "checkpoint-4"))
    assert names_in(cut) == before


def test_a_checkpoint_from_before_initial_weights_could_be_chosen_is_of_the_same_run(tmp_path: Path) -> None:
    record = describe_run(GPT2LMHeadModel(GPT2Config(**SMALL)), TrainingArguments(str(tmp_path), use_cpu=True))
    (tmp_path / RECORD_NAME).write_text(json.dumps({k: v for k, v in record.items() if k != "initializer_range"}))
    compare(tmp_path, record)
    with pytest.raises(ValueError, match=r"^initializer_range: .* was trained with 0\.02, this run has 0\.1: give"):
        compare(tmp_path, {**record, "initializer_range": 0.1})


def test_positions_that_began_otherwise_are_refused(tmp_path: Path) -> None:
    record = describe_run(GPT2LMHeadModel(GPT2Config(**SMALL)), TrainingArguments(str(tmp_path), use_cpu=True))
    text = {"text": "0" * 64, "blocks": 1, "source": "x", "block_size": 8}
    (tmp_path / RECORD_NAME).write_text(json.dumps({**record, **text}))
    with pytest.raises(ValueError, match=r"^position_init: .* was trained with None, this run has sinusoidal: give"):
        compare(tmp_path, {**record, **text, "position_init": "sinusoidal"})


def test_another_mask_is_refused(tmp_path: Path, micro_trainer) -> None:
    def trainer(mask: str | list[str]):
        model = ArbProbForCausalLM(ArbProbConfig(**SMALL, mask=mask))
        return micro_trainer(tmp_path, model=model, max_steps=2)

    trainer(["window(3)"]).train()
    trainer(["window(3)"]).train(resume_from_checkpoint=True)
    with pytest.raises(
        ValueError, match=r"^mask: checkpoint-2 was trained with \['window\(3\)'\], this run has causal:"
    ):
        trainer("causal").train(resume_from_checkpoint=True)


def blocks_of(first: int, *, count: int = 3, document: int = 0) -> Dataset:
    ids = [[first, *range(1, 12)]] + [list(range(12)) for _ in range(count - 1)]
    return Dataset.from_dict({"input_ids": ids, "document_ids": [[document] * 12 for _ in range(count)]})


@pytest.mark.parametrize(
    "other",
    [blocks_of(7), blocks_of(0, count=4), blocks_of(0, document=1)],
    ids=["one token", "more blocks", "other documents"],
)
def test_another_text_is_refused(cut: Path, micro_trainer, tmp_path: Path, other: Dataset) -> None:
    trainer = micro_trainer(tmp_path / "new", max_steps=2)
    trainer.text = describe_text(blocks_of(0), "a.txt")
    trainer.train()
    # a folder may be moved: what counts is what is in it
    trainer.text = describe_text(blocks_of(0), "moved/a.txt")
    trainer.train(resume_from_checkpoint=True)
    trainer.text = describe_text(other, "b.txt")
    message = r"^text: checkpoint-2 was trained with 3 blocks of a\.txt \(\w{8}\), this run has \d blocks of b\.txt \("
    with pytest.raises(ValueError, match=message) as refused:
        trainer.train(resume_from_checkpoint=True)
    assert len(str(refused.value)) <= 300


def test_another_block_size_is_named_before_the_text(tmp_path: Path, micro_trainer, whole_run) -> None:
    trainer = micro_trainer(tmp_path, max_steps=2)
    trainer.text = describe_text(blocks_of(0), "a.txt")
    trainer.train()
    trainer.text = {**trainer.text, "block_size": 6, "text": "0" * 64}
    with pytest.raises(
        ValueError, match="^block_size: checkpoint-2 was trained with 12, this run has 6: give the same"
    ):
        trainer.train(resume_from_checkpoint=True)
    # a trainer that does not know its text has nothing to compare
    trainer.text = None
    trainer.train(resume_from_checkpoint=True)


def test_a_longer_run_goes_on_and_says_what_changes(cut: Path, micro_trainer, caplog) -> None:
    trainer = micro_trainer(cut, max_steps=12, lr_scheduler_type="cosine")
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 12
    assert (
        "checkpoint-8 goes on with lr_scheduler_type linear -> cosine, max_steps 10 -> 12: the schedule" in caplog.text
    )


def test_the_same_run_goes_on_without_a_word(cut: Path, micro_trainer, caplog, monkeypatch) -> None:
    # nor does transformers miss the output layer, whose weights are those of the embedding
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    micro_trainer(cut).train(resume_from_checkpoint=True)
    assert caplog.text == ""


def test_the_record_is_sealed(cut: Path, whole_run, micro_trainer, tmp_path: Path) -> None:
    checkpoint = cut / "checkpoint-8"
    assert RECORD_NAME in json.loads((checkpoint / MANIFEST_NAME).read_text())["files"]
    record = json.loads((checkpoint / RECORD_NAME).read_text())
    trainer = micro_trainer(tmp_path / "other")
    assert record == describe_run(trainer.model, trainer.args)
    (checkpoint / RECORD_NAME).write_text(json.dumps({**record, "seed": 6}))
    assert str(verify(checkpoint)).startswith("run.json")


def test_a_checkpoint_without_a_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ValueError, match=r"checkpoint-3 cannot be resumed from: it has no run\.json; start another"):
        compare(tmp_path / "checkpoint-3", {})
