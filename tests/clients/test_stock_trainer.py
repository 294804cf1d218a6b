"""transformers' own Trainer reads our outputs as it reads GPT-2's: predict, compute_metrics, compute_loss."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    DataCollatorWithFlattening,
    EvalPrediction,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
)

from arbprob_hf import ArbProbForCausalLM
from tests.clients.micro import SIZES, tokens

SMOOTH = {"label_smoothing_factor": 0.1, "max_grad_norm": 0.0}
ROWS = [{"input_ids": row, "labels": row} for row in tokens(5).tolist()]


def trainer_of(model: Any, folder: Path, *, kind: type[Trainer] = Trainer, **options: Any) -> Trainer:
    parts = {
        name: options.pop(name) for name in ("compute_metrics", "preprocess_logits_for_metrics") if name in options
    }
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=5,
        per_device_eval_batch_size=options.pop("per_device_eval_batch_size", 2),
        learning_rate=1e-2,
        max_steps=3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    return kind(model=model, args=arguments, train_dataset=ROWS, eval_dataset=ROWS, **parts)


def losses(trainer: Trainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """The share of next tokens that the largest logit names."""
    best = np.asarray(prediction.predictions).argmax(-1)[:, :-1]
    return {"accuracy": float((best == np.asarray(prediction.label_ids)[:, 1:]).mean())}


class OwnLoss(Trainer):
    """A recipe of many a notebook: the loss from the logits, by hand."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())
        return (loss, outputs) if return_outputs else loss


@pytest.fixture
def downloaded(folders: dict[str, Path]) -> ArbProbForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folders["ours"], trust_remote_code=True)


@pytest.fixture
def gpt2(folders: dict[str, Path]) -> GPT2LMHeadModel:
    model = GPT2LMHeadModel.from_pretrained(folders["theirs"])
    # transformers takes this from the class's name, finds none in GPT-2's, and then counts the first label too
    model.loss_type = "ForCausalLM"
    return model


def test_predict_gives_the_logits(downloaded: Any, gpt2: GPT2LMHeadModel, tmp_path: Path) -> None:
    own, reference = (trainer_of(model, tmp_path).predict(ROWS) for model in (downloaded, gpt2))
    # GPT-2's keys and values come along with its logits
    logits = reference.predictions if isinstance(reference.predictions, np.ndarray) else reference.predictions[0]
    assert own.predictions.shape == (5, 12, SIZES["vocab_size"])
    assert np.abs(own.predictions - logits).max() <= 1e-4
    assert own.metrics["test_loss"] == pytest.approx(reference.metrics["test_loss"], rel=1e-5)


def test_evaluate_computes_metrics(downloaded: Any, gpt2: GPT2LMHeadModel, tmp_path: Path) -> None:
    gpt2.config.use_cache = False
    own, reference = (trainer_of(m, tmp_path, compute_metrics=accuracy).evaluate() for m in (downloaded, gpt2))
    assert own["eval_accuracy"] == reference["eval_accuracy"]
    assert own["eval_loss"] == pytest.approx(reference["eval_loss"], rel=1e-5)


def test_prediction_loss_only_gives_the_loss(downloaded: Any, gpt2: GPT2LMHeadModel, tmp_path: Path) -> None:
    options = {"prediction_loss_only": True, "compute_metrics": accuracy}
    own, reference = (trainer_of(m, tmp_path, **options).evaluate() for m in (downloaded, gpt2))
    assert "eval_accuracy" not in own
    assert own["eval_loss"] == pytest.approx(reference["eval_loss"], rel=1e-5)


def test_a_loss_of_ones_own_reads_the_logits(downloaded: Any, gpt2: GPT2LMHeadModel, tmp_path: Path) -> None:
    own, reference = (losses(trainer_of(model, tmp_path, kind=OwnLoss)) for model in (downloaded, gpt2))
    assert own == pytest.approx(reference, rel=1e-4)


def test_a_collator_may_leave_the_logits_out(downloaded: Any, tmp_path: Path) -> None:
    trainer = trainer_of(downloaded, tmp_path)
    made, collate = [], trainer.data_collator
    trainer.data_collator = lambda features: {**collate(features), "return_logits": False}
    downloaded.lm_head.register_forward_hook(lambda *_: made.append(1))
    found = losses(trainer)
    assert (len(found), made) == (3, [])
    assert found[-1] < found[0]


class Derived(ArbProbForCausalLM):
    """What somebody makes of our class; tools that wrap a network derive one like it."""


@pytest.mark.parametrize("kind", [ArbProbForCausalLM, Derived], ids=["package", "derived"])
def test_smoothed_labels_are_those_of_the_next_token(
    kind: type[ArbProbForCausalLM], folders: dict[str, Path], gpt2: GPT2LMHeadModel, tmp_path: Path
) -> None:
    model = kind.from_pretrained(folders["ours"])
    own, reference = (losses(trainer_of(m, tmp_path, **SMOOTH)) for m in (model, gpt2))
    assert own == pytest.approx(reference, rel=1e-5)
    assert trainer_of(model, tmp_path, **SMOOTH).evaluate()["eval_loss"] < own[0]


@torch.no_grad()
def smoothed_unshifted(model: Any) -> float:
    """The smoothed loss of each slot on its own label; transformers divides by the labels without the first."""
    ids = torch.tensor([row["input_ids"] for row in ROWS])
    scores = model(ids).logits.flatten(0, 1)
    return float(F.cross_entropy(scores, ids.flatten(), label_smoothing=0.1, reduction="sum")) / ids[:, 1:].numel()


class Unshifted(ArbProbForCausalLM):
    """Somebody's network that scores each slot on its own label."""

    shifts_labels = False


class UnshiftedFurther(Unshifted):
    """Derived from that one, as tools do."""


@pytest.mark.parametrize("kind", [Unshifted, UnshiftedFurther])
def test_a_class_may_say_that_its_labels_are_not_shifted(
    kind: type[ArbProbForCausalLM], folders: dict[str, Path], tmp_path: Path
) -> None:
    model = kind.from_pretrained(folders["ours"]).eval()
    found = trainer_of(model, tmp_path, **SMOOTH).evaluate()["eval_loss"]
    assert found == pytest.approx(smoothed_unshifted(model), rel=1e-5)


@pytest.mark.parametrize("name", ["ours", "theirs"])
def test_smoothing_of_a_compiled_network_is_not_shifted_by_the_stock_trainer(
    name: str, downloaded: Any, gpt2: GPT2LMHeadModel, tmp_path: Path
) -> None:
    # as docs/other-tools.md warns: where this fails, transformers looks below the compiler's wrapper, and the row goes
    torch.compiler.reset()
    model = (downloaded if name == "ours" else gpt2).eval()
    options = dict(torch_compile=True, torch_compile_backend="eager", per_device_eval_batch_size=5)
    found = trainer_of(model, tmp_path, **options, **SMOOTH).evaluate()["eval_loss"]
    assert found == pytest.approx(smoothed_unshifted(model), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")
def test_smoothed_labels_of_an_adapted_network_too(downloaded: Any, gpt2: GPT2LMHeadModel, tmp_path: Path) -> None:
    lora = {"target_modules": ["c_attn"], "fan_in_fan_out": True, "init_lora_weights": True, "task_type": "CAUSAL_LM"}
    own, reference = (
        trainer_of(get_peft_model(m, LoraConfig(**lora)), tmp_path, **SMOOTH).evaluate() for m in (downloaded, gpt2)
    )
    assert own["eval_loss"] == pytest.approx(reference["eval_loss"], rel=1e-5)


SMOOTHING = """
import sys
sys.modules["arbprob_hf"] = None
folder, output_dir, rows = sys.argv[1], sys.argv[2], eval(sys.argv[3])
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
arguments = TrainingArguments(
    output_dir, per_device_train_batch_size=5, learning_rate=1e-2, max_steps=3, logging_steps=1, save_strategy="no",
    report_to="none", disable_tqdm=True, use_cpu=True, label_smoothing_factor=0.1, max_grad_norm=0.0,
)
trainer = Trainer(model=model, args=arguments, train_dataset=rows)
trainer.train()
print([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
"""


@pytest.mark.long
def test_smoothed_labels_of_a_downloaded_network_without_the_package(
    folders: dict[str, Path], gpt2: GPT2LMHeadModel, tmp_path: Path
) -> None:
    command = [sys.executable, "-I", "-c", SMOOTHING, str(folders["ours"]), str(tmp_path / "out"), repr(ROWS)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [float(number) for number in done.stdout.strip().splitlines()[-1].strip("[]").split(",")]
    assert found == pytest.approx(losses(trainer_of(gpt2, tmp_path, **SMOOTH)), rel=1e-5)


@pytest.mark.parametrize("flash", [False, True], ids=["positions", "bounds"])
def test_flattened_batches_have_the_loss_of_padded_ones(downloaded: Any, tmp_path: Path, flash: bool) -> None:
    flattening = DataCollatorWithFlattening(return_flash_attn_kwargs=flash, return_seq_idx=flash)
    found = []
    for collator in (None, flattening):
        trainer = trainer_of(downloaded, tmp_path)
        trainer.data_collator = collator or trainer.data_collator
        found.append(trainer.evaluate()["eval_loss"])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_mapping_over_a_data_set_scores_it(downloaded: Any, gpt2: GPT2LMHeadModel) -> None:
    def scored(model: Any) -> list[float]:
        def score(batch: dict[str, Any]) -> dict[str, Any]:
            ids = torch.tensor(batch["input_ids"])
            with torch.no_grad():
                logits = model(ids, labels=ids).logits[:, :-1]
            return {"nats": F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").sum(1)}

        return Dataset.from_list(ROWS).map(score, batched=True, batch_size=2)["nats"]

    assert list(scored(downloaded)) == pytest.approx(list(scored(gpt2)), rel=1e-5)
