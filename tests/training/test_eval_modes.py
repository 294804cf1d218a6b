"""Training on questions with the Trainer: exact resume, the epoch of a question, and losses per target token."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from matplotlib.image import imread
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, TrainerCallback

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
from arbprob_hf.data import load_tokenizer
from arbprob_hf.data.collators import QuestionCollator, number_blocks
from arbprob_hf.data.eval_sets import GAINS, MODES, load_modes
from arbprob_hf.data.tasks import Task
from arbprob_hf.plotting.curves import MODE_STYLES, draw_training_curves
from arbprob_hf.plotting.figures import save_whole
from arbprob_hf.runs.log import COLUMNS, CURVES, LOSSES, CsvLog, read_log
from arbprob_hf.training.callbacks import SetEpochCallback
from arbprob_hf.training.eval_modes import COLUMNS as MODE_COLUMNS
from arbprob_hf.training.eval_modes import (
    bytes_per_scored_token,
    bytes_per_text_token,
    draw_eval_modes,
    modes_of_layout,
    save_eval_modes,
    summary,
)
from tests.micro_runs import Crash

TASK = Task.parse("0.5 * uniform(given=0..0.9) + 0.5 * causal(random=1)")


def blocks(count: int, *, first_length: int = 12) -> Dataset:
    """Blocks of 12 tokens below 40; the first document ends after `first_length` of them."""
    random = np.random.default_rng(0)
    ids = random.integers(1, 40, (count, 12))
    ids[:, 0] = 0
    documents = np.repeat((np.arange(12) >= first_length)[None].astype(int), count, 0)
    return Dataset.from_dict({"input_ids": ids, "document_ids": documents}).with_format("numpy")


def micro_asker() -> ArbProbForCausalLM:
    torch.manual_seed(3)
    sizes = {"vocab_size": 40, "n_positions": 16, "n_embd": 8, "bos_token_id": 0, "eos_token_id": 0}
    return ArbProbForCausalLM(ArbProbConfig.preset("nano", **sizes, dropout=0.1, given_sees="all", mask_token=True))


@pytest.fixture(scope="module")
def question_trainer(micro_trainer):
    """A function (output_dir, *callbacks, **options) -> a micro trainer on questions: 6 steps an epoch, 10 steps."""

    def build(output_dir: Path, *callbacks: TrainerCallback, **given: Any):
        collator = QuestionCollator("two_stream", given_sees="all", task=TASK, seed=5)
        collate = given.pop("wrap", lambda plain: plain)(collator)
        return micro_trainer(
            output_dir,
            model=micro_asker(),
            train_dataset=number_blocks(blocks(24, first_length=7)),
            data_collator=collate,
            callbacks=[SetEpochCallback(collator), *callbacks],
            remove_unused_columns=False,
            prediction_loss_only=True,
            **given,
        )

    return build


@pytest.fixture(scope="module")
def whole_weights(tmp_path_factory: pytest.TempPathFactory, question_trainer, weights_of) -> str:
    """The digest of the weights of a run that goes through, without workers."""
    trainer = question_trainer(tmp_path_factory.mktemp("whole"))
    trainer.train()
    return weights_of(trainer)


@pytest.mark.parametrize(
    ("crash", "options"),
    [
        pytest.param(5, {}, id="first epoch"),
        pytest.param(7, {}, id="between epochs", marks=pytest.mark.long),
        pytest.param(9, {}, id="second epoch", marks=pytest.mark.long),
        pytest.param(5, {"dataloader_num_workers": 2}, id="workers", marks=pytest.mark.long),
        pytest.param(5, {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}, id="persistent workers"),
    ],
)
def test_resumed_weights_are_bit_equal_to_those_of_a_run_without_workers(
    tmp_path: Path, question_trainer, weights_of, whole_weights: str, crash: int, options: dict[str, Any]
) -> None:
    with pytest.raises(ConnectionError):
        question_trainer(tmp_path, Crash(crash), **options).train()
    resumed = question_trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=True)
    assert weights_of(resumed) == whole_weights


def test_persistent_workers_notice_a_new_epoch(
    tmp_path: Path, question_trainer, weights_of, whole_weights: str
) -> None:
    options = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "save_steps": 20}
    trainer = question_trainer(tmp_path, **options)
    trainer.train()
    assert weights_of(trainer) == whole_weights


def test_each_epoch_asks_anew(tmp_path: Path, question_trainer) -> None:
    seen: list[tuple[list[int], list[list[int]]]] = []

    def recorded(collator: QuestionCollator):
        def collate(features):
            batch = collator(features)
            seen.append(([int(feature["index"]) for feature in features], batch["labels"].tolist()))
            return batch

        return collate

    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 12, "max_steps": 4, "save_steps": 9}
    question_trainer(tmp_path, wrap=recorded, **options).train()
    epochs = [{indices[0]: labels for indices, labels in part} for part in (seen[:24], seen[24:48])]
    assert epochs[0].keys() == epochs[1].keys() == set(range(24))
    assert sum(epochs[0][index] == epochs[1][index] for index in range(24)) < 6


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_loss_of_a_mode_is_per_target_over_the_whole_set(tmp_path: Path, question_trainer, size: int) -> None:
    sets = draw_eval_modes(blocks(7, first_length=5), TASK)
    assert len({int(row["scored"].sum()) for row in sets["task"]}) > 2
    trainer = question_trainer(tmp_path, eval_dataset=sets, per_device_eval_batch_size=size, summary=summary)
    metrics = trainer.evaluate()
    model, collate = trainer.model.eval(), QuestionCollator("two_stream", given_sees="all")
    for mode, rows in sets.items():
        with torch.no_grad():
            losses = [float(model(**collate([row])).loss) for row in rows]
        counts = [int(row["scored"].sum()) for row in rows]
        wanted = math.fsum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
        assert metrics[f"eval_{mode}_loss"] == pytest.approx(wanted, rel=1e-6)
        assert metrics[f"eval_{mode}_scored_tokens"] == sum(counts)
    assert metrics["eval_loss"] == metrics["eval_task_loss"]


def test_the_best_checkpoint_is_that_of_the_task(tmp_path: Path, question_trainer) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss"}
    sets = draw_eval_modes(blocks(4), TASK)
    trainer = question_trainer(tmp_path, eval_dataset=sets, summary=summary, max_steps=4, **options)
    trainer.train()
    losses = [line["eval_task_loss"] for line in trainer.state.log_history if "eval_task_loss" in line]
    assert len(losses) == 2
    assert trainer.state.best_metric == min(losses)


def test_without_the_task_the_loss_is_that_from_left_to_right() -> None:
    assert summary({"eval_left_to_right_loss": 2.0}, "eval") == {"eval_loss": 2.0}


@pytest.mark.parametrize(
    ("layout", "modes"),
    [
        ("two_stream", [*MODES]),
        ("prefix", [*MODES]),
        ("sigma", [*MODES]),
        ("masked", ["task"]),
        ("causal", ["left_to_right", "task", "infilling_left_to_right", "task_left_to_right"]),
    ],
)
def test_what_a_layout_answers_can_be_collated(layout: str, modes: list[str]) -> None:
    assert list(modes_of_layout(layout)) == modes
    sets = draw_eval_modes(blocks(3, first_length=7), Task.parse("causal" if layout == "causal" else "uniform"))
    collate = QuestionCollator(layout, given_sees="all", names_target=layout == "sigma")
    for mode in modes:
        assert int((collate(list(sets[mode]))["labels"] != -100).sum()) > 0


def test_bytes_are_those_of_tokens_that_stand_for_text() -> None:
    # 22 tokens of a block's second half on count for plain training, 20 of them are text
    assert bytes_per_text_token(blocks(2, first_length=7), 10.0) == pytest.approx(10 * 22 / 20)


def test_bits_per_byte_count_the_bytes_of_scored_tokens() -> None:
    tokenizer = load_tokenizer("gpt2")
    text = tokenizer("A mask says which key a query may see, and no other.").input_ids[:11]
    ids = np.array([[tokenizer.eos_token_id, *text]])
    rows = Dataset.from_dict({"input_ids": ids, "document_ids": np.zeros_like(ids)}).with_format("numpy")
    sets = draw_eval_modes(rows, Task.parse("fixed(given=[1], target=[3, 4])"))
    found = bytes_per_scored_token(sets, tokenizer, otherwise=9.0)
    assert found["left_to_right"] == pytest.approx(len(tokenizer.decode(text).encode()) / 11)
    assert found["task"] == found["task_left_to_right"] == len(tokenizer.decode(text[2:4]).encode()) / 2
    assert set(found) == set(MODES)


def test_a_tokenizer_that_does_not_tell_its_bytes_leaves_the_average() -> None:
    words = Tokenizer(models.WordLevel({str(number): number for number in range(40)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    assert set(bytes_per_scored_token(draw_eval_modes(blocks(2), TASK), tokenizer, otherwise=2.5).values()) == {2.5}


def test_kept_questions_are_those_that_were_drawn(tmp_path: Path) -> None:
    sets = draw_eval_modes(blocks(3), TASK)
    save_eval_modes(sets, tmp_path / "evaluation", is_resumed=False)
    kept = load_modes(tmp_path / "evaluation")
    for mode, rows in sets.items():
        assert all(
            np.array_equal(one[name], two[name]) for one, two in zip(rows, kept[mode], strict=True) for name in one
        )
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation"]


def test_a_resumed_run_takes_the_questions_that_are_there(tmp_path: Path) -> None:
    save_eval_modes(draw_eval_modes(blocks(3), TASK), tmp_path / "evaluation", is_resumed=False)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "evaluation").iterdir()}
    save_eval_modes(draw_eval_modes(blocks(3), TASK), tmp_path / "evaluation", is_resumed=True)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "evaluation").iterdir()} == before


@pytest.mark.parametrize("other", [blocks(4), blocks(3, first_length=5)], ids=["more blocks", "other documents"])
def test_a_resumed_run_is_not_evaluated_on_other_questions(tmp_path: Path, other: Dataset) -> None:
    save_eval_modes(draw_eval_modes(blocks(3), TASK), tmp_path / "evaluation", is_resumed=False)
    with pytest.raises(ValueError, match="evaluation: the questions of mode left_to_right are not those of this run's"):
        save_eval_modes(draw_eval_modes(other, TASK), tmp_path / "evaluation", is_resumed=True)


def test_a_new_run_replaces_questions_that_a_stopped_one_left(tmp_path: Path) -> None:
    save_eval_modes(draw_eval_modes(blocks(3), TASK), tmp_path / "evaluation", is_resumed=False)
    save_eval_modes(draw_eval_modes(blocks(4), TASK), tmp_path / "evaluation", is_resumed=False)
    assert len(load_modes(tmp_path / "evaluation")["task"]) == 4


def test_a_log_with_modes_is_read_and_resumed_with_them(tmp_path: Path) -> None:
    book = CsvLog(tmp_path / "logs" / "training_log.csv", MODE_COLUMNS)
    book.start()
    book.append({"step": 1, "loss": 3.0})
    book.append({"step": 1, "eval_loss": 2.0, "task_loss": 2.0, "task_gain": 0.5})
    book.append({"step": 2, "loss": 1.0})
    book.resume(1)
    rows = read_log(book.path)
    assert list(rows[0]) == [*COLUMNS, *MODE_COLUMNS]
    assert [(row["step"], row["task_loss"], row["task_gain"]) for row in rows] == [(1, None, None), (1, 2.0, 0.5)]


@pytest.fixture(scope="module")
def empty_picture(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    path = tmp_path_factory.mktemp("pictures") / "empty.png"
    save_whole(draw_training_curves([], title="t", modes=CURVES), path)
    return imread(path)


@pytest.mark.parametrize("column", ["task_loss", "infilling_left_to_right_loss", "task_gain"])
def test_modes_and_gains_are_in_the_picture(tmp_path: Path, empty_picture: np.ndarray, column: str) -> None:
    empty = dict.fromkeys((*COLUMNS, *MODE_COLUMNS))
    rows = [{**empty, "step": float(step), column: 1.0 + step} for step in (1, 2, 3)]
    save_whole(draw_training_curves(rows, title="t", modes=CURVES), tmp_path / "full.png")
    colour = (0xD5, 0x5E, 0x00) if column.startswith("infilling") else (0x00, 0x9E, 0x73)
    middle = empty_picture.shape[1] * 6 // 10
    half = slice(middle, None) if column.endswith("_gain") else slice(0, middle)
    pictures = [picture[:, half, :3] * 255 for picture in (empty_picture, imread(tmp_path / "full.png"))]
    near = [int((abs(picture - colour).max(-1) < 2).sum()) for picture in pictures]
    assert near[1] > near[0] + 100


def test_the_curves_are_all_the_modes_and_gains() -> None:
    assert set(CURVES) == {*(f"{mode}_loss" for mode in MODES), *GAINS}
    assert tuple(f"{mode}_loss" for mode in MODES) == LOSSES
    assert len(MODES) <= len(MODE_STYLES)
