"""Classifiers of texts and tokens: GPT-2's numbers, through transformers' Auto classes, pipelines and Trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

from arbprob_hf import ArbProbForSequenceClassification, ArbProbForTokenClassification
from tests.clients.micro import SIZES, byte_tokenizer, tokens
from tests.networks import far, randomised

KINDS = {
    "texts": (AutoModelForSequenceClassification, GPT2ForSequenceClassification, ArbProbForSequenceClassification),
    "tokens": (AutoModelForTokenClassification, GPT2ForTokenClassification, ArbProbForTokenClassification),
}
# 12, 7 and 1 tokens
KEEP = (torch.arange(12) < torch.tensor([[12], [7], [1]])).long()


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pair(kind: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """Ours, read from the checkpoint of GPT-2's classifier; theirs; and the checkpoint of ours."""
    _, theirs_class, ours_class = KINDS[kind]
    root = tmp_path_factory.mktemp(kind)
    theirs = randomised(theirs_class(GPT2Config(**SIZES, num_labels=3, problem_type="single_label_classification")))
    theirs.save_pretrained(root / "theirs")
    ours, found = ours_class.from_pretrained(root / "theirs", output_loading_info=True)
    assert {name: keys for name, keys in found.items() if keys} == {}
    ours.save_pretrained(root / "ours")
    return ours.eval(), theirs.eval(), root / "ours"


def batch(side: str) -> dict[str, torch.Tensor]:
    keep = KEEP if side == "right" else KEEP.flip(1)
    return {"input_ids": tokens(3) * keep, "attention_mask": keep}


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_and_loss_are_those_of_gpt2s_classifier(pair: tuple[Any, Any, Path], kind: str, side: str) -> None:
    ours, theirs, _ = pair
    given = batch(side)
    labels = torch.tensor([0, 2, 1]) if kind == "texts" else torch.where(given["input_ids"] > 0, tokens(3) % 3, -100)
    mine, other = (model(**given, labels=labels) for model in (ours, theirs))
    scored = slice(None) if kind == "texts" else given["attention_mask"].bool()
    assert far(mine.logits[scored], other.logits[scored]) < 1e-4
    assert mine.loss.item() == pytest.approx(other.loss.item(), rel=1e-5)


@torch.no_grad()
def test_padding_changes_nothing(pair: tuple[Any, Any, Path], kind: str) -> None:
    ours, _, _ = pair
    given = batch("right")
    together = ours(**given).logits
    for row, length in enumerate(KEEP.sum(1).tolist()):
        alone = ours(given["input_ids"][row : row + 1, :length]).logits[0]
        assert far(together[row] if kind == "texts" else together[row, :length], alone) < 1e-5


@torch.no_grad()
def test_a_derived_class_has_the_same_loss(pair: tuple[Any, Any, Path], kind: str) -> None:
    ours, _, folder = pair
    derived = type("Derived", (type(ours),), {}).from_pretrained(folder)
    given = batch("right")
    labels = torch.tensor([0, 2, 1]) if kind == "texts" else given["input_ids"] % 3
    assert far(derived(**given, labels=labels).loss, ours(**given, labels=labels).loss) == 0


@torch.no_grad()
def test_a_classifier_comes_back_with_its_own_code_and_numbers(pair: tuple[Any, Any, Path], kind: str) -> None:
    ours, _, folder = pair
    loaded = KINDS[kind][0].from_pretrained(folder, trust_remote_code=True)
    assert type(loaded).__module__.startswith("transformers_modules.")
    assert far(loaded(**batch("right")).logits, ours(**batch("right")).logits) == 0


@torch.no_grad()
def test_masks_go_through_a_head(pair: tuple[Any, Any, Path]) -> None:
    ours, _, folder = pair
    windowed = type(ours).from_pretrained(folder, mask="causal & window(2)")
    ids = tokens()
    assert far(ours(ids, mask="causal & window(2)").logits, windowed(ids).logits) < 1e-5
    assert far(ours(ids).logits, windowed(ids).logits) > 0.1


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_accumulated_batches_train_a_downloaded_model_as_one_batch(
    folders: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    ids = tokens(4)
    labels = [0, 2, 1, 1] if kind == "texts" else (ids % 3).tolist()
    rows = [{"input_ids": row, "labels": label} for row, label in zip(ids.tolist(), labels, strict=True)]
    weights = []
    for size in (4, 1):
        torch.manual_seed(0)
        # a head on the checkpoint of a language model
        model = KINDS[kind][0].from_pretrained(folders["ours"], trust_remote_code=True, num_labels=3)
        torch.nn.init.normal_(model.get_parameter("score.weight" if kind == "texts" else "classifier.weight"))
        getattr(model, "dropout", torch.nn.Dropout()).p = 0.0
        before = model.transformer.wte.weight.detach().clone()
        arguments = TrainingArguments(
            output_dir=str(tmp_path / str(size)),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=4 // size,
            max_steps=1,
            optim="sgd",
            learning_rate=0.1,
            max_grad_norm=0.0,
            save_strategy="no",
            use_cpu=True,
        )
        Trainer(model=model, args=arguments, train_dataset=rows).train()
        assert far(model.transformer.wte.weight, before) > 1e-3
        weights.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
    assert far(*weights) < 1e-6


@torch.no_grad()
def test_the_pipeline_of_its_task_takes_a_folder(
    pair: tuple[Any, Any, Path], folders: dict[str, Path], kind: str
) -> None:
    ours, _, folder = pair
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    task = {"texts": "text-classification", "tokens": "token-classification"}[kind]
    found = pipeline(task, model=str(folder), trust_remote_code=True)("who sees")
    likely = ours(torch.tensor([tokenizer("who sees").input_ids])).logits.softmax(-1)[0].max(-1)
    assert [one["score"] for one in found] == pytest.approx(likely.values.reshape(-1).tolist(), rel=1e-5)
    names = [one["label"] if kind == "texts" else one["entity"] for one in found]
    assert names == [f"LABEL_{label}" for label in likely.indices.reshape(-1).tolist()]
