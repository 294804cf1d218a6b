"""The trainer stops at bad numbers and full disks with the last good checkpoint intact, and evaluates exactly."""

from __future__ import annotations

import json
import math
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
from arbprob_hf.errors import RunError
from arbprob_hf.runs import checkpoints
from arbprob_hf.runs.checkpoints import PRIVATE_NAME, CheckpointError, newest, verify
from arbprob_hf.training.options.validation import refuse_options
from arbprob_hf.training.trainer import NonFiniteError
from tests.micro_runs import micro_model
from tests.networks import STILL


class _At(TrainerCallback):
    """Does something once, right before the given step (counted from 1) begins."""

    def __init__(self, step: int, act) -> None:
        self.step, self.act = step, act

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step:
            self.act(model)


def _poison_loss(value: float):
    def act(model):
        model.lm_head.register_forward_hook(lambda module, inputs, output: output * value)

    return act


def _poison_gradient(model):
    model.transformer.wpe.weight.register_hook(lambda gradient: gradient * math.inf)


def _poison_weights(model):
    with torch.no_grad():
        model.transformer.wpe.weight[15] = math.nan  # a position that no row reaches: the loss stays finite


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (_poison_loss(math.nan), "step 6: the loss is nan; the run stops, nothing was saved after step 5"),
        (_poison_loss(math.inf), "step 6: the loss is (nan|inf); the run stops"),
        (_poison_gradient, "the gradient is not finite; .* start anew in another output_dir with a lower learning"),
        (_poison_weights, "step 6: the weights transformer.wpe.weight are not finite, so they are not saved"),
    ],
    ids=["nan loss", "infinite loss", "infinite gradient", "weights"],
)
@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0], ids=["clipped", "not clipped"])
def test_a_number_that_is_not_finite_stops_the_run_naming_the_step(
    tmp_path: Path, micro_trainer, act, message: str, max_grad_norm: float
) -> None:
    trainer = micro_trainer(tmp_path, callbacks=[_At(6, act)], max_grad_norm=max_grad_norm)
    with pytest.raises(NonFiniteError, match=message) as stopped:
        trainer.train()
    assert len(str(stopped.value)) <= 300 + len(str(tmp_path))
    assert newest(tmp_path) == tmp_path / "checkpoint-4"


def test_the_weights_are_not_updated_with_a_bad_gradient(tmp_path: Path, micro_trainer) -> None:
    kept = {}

    def act(model):
        _poison_gradient(model)
        kept.update({name: value.detach().clone() for name, value in model.named_parameters()})

    trainer = micro_trainer(tmp_path, callbacks=[_At(3, act)])
    with pytest.raises(NonFiniteError):
        trainer.train()
    assert all(torch.equal(value, kept[name]) for name, value in trainer.model.named_parameters())


def test_a_final_model_with_bad_weights_is_not_saved(tmp_path: Path, micro_trainer) -> None:
    trainer = micro_trainer(tmp_path)
    _poison_weights(trainer.model)
    with pytest.raises(NonFiniteError, match="are not saved; .* start anew in another output_dir with a lower learn"):
        trainer.save_model()
    assert not (tmp_path / "model.safetensors").exists()


@contextmanager
def _files_at_most(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: writes fail in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# the sizes at which the first file to fail is: the weights, the optimizer, another
@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (4096, "File too large"),
        (9000, "a file could not be written whole, as on a full disk"),
        (16, "File too large"),
    ],
)
def test_a_full_disk_leaves_the_old_checkpoint_and_one_clear_line(
    tmp_path: Path, micro_trainer, size: int, reason: str
) -> None:
    trainer = micro_trainer(tmp_path, max_steps=4)
    trainer.train()
    with (
        _files_at_most(size),
        pytest.raises(CheckpointError, match=f"could not be saved in .*: .*{reason}.*; the earlier"),
    ):
        trainer._save_checkpoint(trainer.model, None)
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["checkpoint-2", "checkpoint-4"]
    assert not checkpoints.staging(tmp_path).exists()
    assert verify(tmp_path / "checkpoint-4") is None


def test_an_error_while_sealing_leaves_the_old_checkpoint(tmp_path: Path, micro_trainer, monkeypatch) -> None:
    def fail(path):
        raise OSError(28, "No space left on device")

    act = _At(5, lambda model: monkeypatch.setattr(checkpoints, "flush", fail))
    with pytest.raises(CheckpointError, match=r"checkpoint-6 could not be saved in .*: the disk is full; .*MiB free"):
        micro_trainer(tmp_path, callbacks=[act], save_total_limit=1).train()
    assert newest(tmp_path) == tmp_path / "checkpoint-4"
    assert not checkpoints.staging(tmp_path).exists()


def test_a_run_goes_on_bit_equal_after_a_full_disk(tmp_path: Path, micro_trainer, weights_of, whole_run, monkeypatch):
    def fail(path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        act = _At(5, lambda model: patch.setattr(checkpoints, "flush", fail))
        trainer = micro_trainer(tmp_path, callbacks=[act])
        with pytest.raises(CheckpointError):
            trainer.train()
    resumed = micro_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert weights_of(resumed) == whole_run[1]


def test_the_limit_keeps_the_newest_checkpoints(tmp_path: Path, micro_trainer) -> None:
    micro_trainer(tmp_path, save_total_limit=2).train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-8"]


def test_the_best_checkpoint_is_kept_and_loaded(tmp_path: Path, micro_trainer, rows) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "save_total_limit": 2}
    trainer = micro_trainer(tmp_path, **options, eval_dataset=rows(6, seed=9), learning_rate=0.3)
    trainer.train()
    losses = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    best = tmp_path / f"checkpoint-{min(losses, key=losses.get)}"
    assert min(losses, key=losses.get) != 10
    assert trainer.state.best_model_checkpoint == str(best)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([best.name, "checkpoint-10"])
    written = json.loads((tmp_path / "checkpoint-10" / "trainer_state.json").read_text())
    assert written["best_model_checkpoint"] == str(best)
    saved = load_file(best / "model.safetensors")
    assert torch.equal(saved["transformer.wpe.weight"], trainer.model.transformer.wpe.weight)


def test_a_limit_of_one_leaves_the_best_checkpoint(tmp_path: Path, micro_trainer, rows) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "save_total_limit": 1}
    trainer = micro_trainer(tmp_path, **options, eval_dataset=rows(6, seed=9), learning_rate=0.3)
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best != str(tmp_path / "checkpoint-10")
    assert [str(path) for path in tmp_path.iterdir()] == [best]


def test_a_damaged_best_checkpoint_is_not_loaded(tmp_path: Path, micro_trainer, rows) -> None:
    def act(model):
        (tmp_path / "checkpoint-2" / "model.safetensors").write_bytes(b"")

    options = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "learning_rate": 0.0}
    trainer = micro_trainer(tmp_path, **options, eval_dataset=rows(4), callbacks=[_At(9, act)])
    with pytest.raises(ValueError, match="the best checkpoint .*checkpoint-2 does not verify: model.safetensors has 0"):
        trainer.train()


def test_a_hub_token_is_in_no_file(tmp_path: Path, micro_trainer) -> None:
    trainer = micro_trainer(tmp_path, max_steps=2, hub_token="hf_secret")
    trainer.train()
    trainer.save_model()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"training_args.bin"} < {path.name for path in files}
    assert not any(b"hf_secret" in path.read_bytes() for path in files)
    assert trainer.args.hub_token == "hf_secret"


@pytest.mark.parametrize("broken", ["os.replace", "safetensors"])
def test_a_final_save_that_fails_leaves_the_old_model_whole(tmp_path: Path, micro_trainer, monkeypatch, broken: str):
    trainer = micro_trainer(tmp_path)
    trainer.save_model()
    before = (tmp_path / "model.safetensors").read_bytes()
    with torch.no_grad():
        trainer.model.transformer.wpe.weight += 1
    if broken == "os.replace":
        monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(RunError, match="^the model could not be saved: the disk is full: .* could not be written"):
            trainer.save_model()
    else:
        with _files_at_most(2000), pytest.raises(Exception, match="(?i)file too large|i/o error"):
            trainer.save_model()
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert not (tmp_path / PRIVATE_NAME).exists()


def test_evaluation_weighs_by_scored_token(tmp_path: Path, micro_trainer, rows) -> None:
    scored = rows(7)  # batches of 3, 3 and 1
    for number, row in enumerate(scored):
        row["labels"][: 1 + number] = -100
    trainer = micro_trainer(tmp_path, per_device_eval_batch_size=3, eval_dataset=scored)
    metrics = trainer.evaluate()
    model = trainer.model.eval().double()
    ids = torch.stack([row["input_ids"] for row in scored])
    labels = torch.stack([row["labels"] for row in scored])
    log_p = model(input_ids=ids).logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    kept = labels[:, 1:] != -100
    assert metrics["eval_scored_tokens"] == int(kept.sum())
    assert metrics["eval_loss"] == pytest.approx(-log_p[kept].mean().item(), rel=1e-6)


class _NoDoubles(TorchDispatchMode):
    """A device without float64, such as Apple's."""

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        assert getattr(result, "dtype", None) != torch.float64, str(function)
        return result


def test_evaluation_uses_no_float64_on_the_device(tmp_path: Path, micro_trainer, rows) -> None:
    trainer = micro_trainer(tmp_path)
    batch = next(iter(trainer.get_eval_dataloader(rows(2))))
    with _NoDoubles():
        trainer.prediction_step(trainer.model, batch, prediction_loss_only=True)
    assert trainer._token_loss.metrics("eval")["eval_scored_tokens"] > 0


def test_rows_without_a_scored_token_do_not_count(tmp_path: Path, micro_trainer, rows) -> None:
    good, bad = rows(1), rows(1, seed=1)
    bad[0]["labels"][:] = -100
    trainer = micro_trainer(tmp_path, per_device_eval_batch_size=1)
    alone = trainer.evaluate(good)["eval_loss"]
    assert trainer.evaluate(good + bad)["eval_loss"] == alone
    assert math.isnan(trainer.evaluate(bad)["eval_loss"])


def test_an_evaluation_that_is_not_finite_is_reported_as_such(tmp_path: Path, micro_trainer, rows) -> None:
    trainer = micro_trainer(tmp_path)
    _poison_loss(math.nan)(trainer.model)
    assert math.isnan(trainer.evaluate(rows(3))["eval_loss"])


def test_predictions_are_still_to_be_had(tmp_path: Path, micro_trainer, rows) -> None:
    assert micro_trainer(tmp_path).predict(rows(3)).predictions.shape == (3, 12, 40)


def micro_ours() -> ArbProbForCausalLM:
    """Ours with the weights of the micro network."""
    theirs = micro_model(dropout=0.0)
    names = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "bos_token_id", "eos_token_id")
    config = ArbProbConfig(**{name: getattr(theirs.config, name) for name in names}, **STILL)
    model = ArbProbForCausalLM(config)
    model.load_state_dict(theirs.state_dict())
    return model


@pytest.mark.parametrize("of", [micro_ours, micro_model], ids=["ours", "theirs"])
def test_metrics_are_computed_from_preprocessed_logits(tmp_path: Path, micro_trainer, rows, of) -> None:
    scored = rows(5)
    scored[4]["labels"][3:] = -100  # batches of 2, 2 and 1 rows, of unequal scored tokens
    seen = {}

    def metrics(prediction):
        seen.update(predictions=prediction.predictions, labels=prediction.label_ids)
        return {"right": int((prediction.predictions[:, :-1] == prediction.label_ids[:, 1:]).sum())}

    parts = {
        "model": of(),
        "compute_metrics": metrics,
        "preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1),
    }
    trainer = micro_trainer(tmp_path, per_device_eval_batch_size=2, **parts)
    trainer.model.config.use_cache = False
    found, alone = trainer.evaluate(scored), micro_trainer(tmp_path, model=of()).evaluate(scored)
    assert seen["predictions"].shape == seen["labels"].shape == (5, 12)
    assert found["eval_right"] == int((seen["predictions"][:, :-1] == seen["labels"][:, 1:]).sum())
    # computing metrics changes nothing about the loss: each scored token counts once
    assert found["eval_scored_tokens"] == alone["eval_scored_tokens"] == 4 * 11 + 2
    assert found["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-6)


def test_logits_are_made_only_where_somebody_reads_them(tmp_path: Path, micro_trainer, rows) -> None:
    # a save asks for logits of its own
    trainer = micro_trainer(tmp_path, model=micro_ours(), max_steps=2, eval_dataset=rows(3), save_strategy="no")
    calls: list[int] = []
    trainer.model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    trainer.train()
    trainer.evaluate()
    assert calls == []
    assert trainer.predict(rows(3)).predictions.shape == (3, 12, 40)
    assert calls == [1]


def test_training_with_and_without_logits_gives_the_same_losses(tmp_path: Path, micro_trainer) -> None:
    logged = []
    for model in (micro_ours(), micro_model(dropout=0.0)):
        trainer = micro_trainer(tmp_path / type(model).__name__, model=model)
        # which transformers reads off the name of a class, and not off GPT-2's
        model.loss_type, trainer._loss_shifts_labels = "ForCausalLM", True
        trainer.train()
        logged.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert logged[0] == pytest.approx(logged[1], rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compute_loss_func": lambda outputs, labels: 0}, "compute_loss_func must be None: training makes no logits"),
        ({"label_smoothing_factor": 0.1}, r"label_smoothing_factor must be 0, got 0\.1"),
        ({"save_on_each_node": True}, "save_on_each_node must be false"),
        ({"enable_jit_checkpoint": True}, "enable_jit_checkpoint must be false"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_contradict_the_trainer_are_refused(tmp_path: Path, micro_trainer, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        micro_trainer(tmp_path, **options)


def test_several_gpus_in_one_process_are_refused(tmp_path: Path, micro_trainer) -> None:
    arguments = micro_trainer(tmp_path).args
    arguments._n_gpu = 4
    with pytest.raises(ValueError, match=r"this one process has 4 GPUs.* start it with torchrun --nproc_per_node 4"):
        refuse_options(arguments)
