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
from tests.micro_runs import micro_model, token_rows

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
        ({"adam_beta2": 0.9}, r"^adam_beta2: checkpoint-8 holds 0\.999, which it would go on with, not 0\.9: give"),
        ({"optim_args": "a=1"}, "^optim_args: checkpoint-8 holds None, which it would go on with, not a=1: give"),
        ({"neftune_noise_alpha": 5.0}, r"^neftune_noise_alpha: .* was trained with None, this run has 5\.0: give"),
        (
            {"train_sampling_strategy": "sequential"},
            "^train_sampling_strategy: .* with random, this run has sequ",
        ),
        ({"dataloader_drop_last": True}, "^dataloader_drop_last: .* was trained with False, this run has True: give"),
        ({"accelerator_config": {"split_batches": True}}, "^accelerator_config: .*: false.*, this run has .*: true"),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_dataset": token_rows(2)},
            "^lr_scheduler_type: checkpoint-8 holds linear, which it would go on with, not reduce_lr_on_plateau: give",
        ),
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


def test_a_network_with_another_dropout_is_refused(cut: Path, micro_trainer) -> None:
    with pytest.raises(ValueError, match=r"^dropout: checkpoint-8 was trained with 0\.1, this run has 0\.2: give the"):
        micro_trainer(cut, model=micro_model(dropout=0.2)).train(resume_from_checkpoint=True)


def test_another_idea_of_the_best_model_is_refused(tmp_path: Path, micro_trainer) -> None:
    def trainer(metric: str | None, steps: int):
        best = {"eval_strategy": "steps", "eval_steps": 2, "eval_dataset": token_rows(2)}
        return micro_trainer(tmp_path, max_steps=steps, metric_for_best_model=metric, **best)

    trainer(None, 2).train()
    # there was no best one to be compared with
    trainer("loss", 4).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="^metric_for_best_model: checkpoint-4 was trained with loss, this run has s"):
        trainer("scored_tokens", 6).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"max_grad_norm": 0.5}, "checkpoint-8 goes on with max_grad_norm 1.0 -> 0.5: that takes effect from here"),
        ({"bf16": True}, "checkpoint-8 goes on with bf16 False -> True: that takes effect from here"),
        ({"torch_compile_backend": "eager"}, "torch_compile False -> True, torch_compile_backend None -> eager: that"),
        ({"lr_scheduler_kwargs": {}}, "checkpoint-8 goes on with lr_scheduler_kwargs None -> {}: the schedule"),
        ({"ignore_data_skip": True}, "checkpoint-8 goes on with ignore_data_skip False -> True: that takes"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_takes_effect_from_here_is_told(cut: Path, micro_trainer, caplog, changed, told: str) -> None:
    trainer = micro_trainer(cut, **changed)
    compare(cut / "checkpoint-8", describe_run(trainer.model, trainer.args))
    assert told in caplog.text


def test_another_backend_of_attention_is_told(cut: Path, micro_trainer, caplog) -> None:
    model = micro_model()
    model.set_attn_implementation("eager")
    micro_trainer(cut, model=model).train(resume_from_checkpoint=True)
    assert "checkpoint-8 goes on with attn_implementation sdpa -> eager: that takes effect from here" in caplog.text


def test_a_checkpoint_of_a_version_that_noted_less_is_of_the_same_run(cut: Path, micro_trainer, caplog) -> None:
    trainer = micro_trainer(cut, max_grad_norm=0.5, neftune_noise_alpha=5.0)
    path = cut / "checkpoint-8" / RECORD_NAME
    noted = json.loads(path.read_text())
    later = ("max_grad_norm", "neftune_noise_alpha", "dropout", "attn_implementation")
    path.write_text(json.dumps({name: value for name, value in noted.items() if name not in later}))
    compare(cut / "checkpoint-8", describe_run(trainer.model, trainer.args))
    assert caplog.text == ""


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


def start(name: str, digest: str) -> dict[str, str]:
    return {"init_from": name, "init_revision": f"weights of SHA-256 {digest}"}


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (
            start("a", "12"),
            {},
            "from a, weights of SHA-256 12, as its card goes on to say: init_from, now not given, has",
        ),
        (start("a", "12"), start("a", "34"), "init_from, now a, weights of SHA-256 34, has no effect on a resumed run"),
        (
            {},
            start("b", "34"),
            "checkpoint-2 is of a run from weights that it does not name, as its card goes on to say",
        ),
        # a folder may be moved
        (start("a", "12"), start("moved", "12"), None),
        (start("a", "12"), None, None),
        ({}, {}, None),
    ],
    ids=["not given", "changed since", "given late", "moved", "unknown", "random"],
)
def test_a_resumed_run_goes_on_naming_the_weights_that_it_started_from(
    tmp_path: Path, micro_trainer, caplog, before, now, told: str | None
) -> None:
    text = describe_text(blocks_of(0), "a.txt")
    first = micro_trainer(tmp_path, max_steps=2)
    first.text = {**text, **before}
    first.train()
    caplog.clear()
    resumed = micro_trainer(tmp_path, max_steps=4)
    resumed.text = None if now is None else {**text, **now}
    resumed.train(resume_from_checkpoint=True)
    record = json.loads((tmp_path / "checkpoint-4" / RECORD_NAME).read_text())
    assert {name: value for name, value in record.items() if name.startswith("init_")} == before
    assert told in caplog.text if told else "init_from" not in caplog.text


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
