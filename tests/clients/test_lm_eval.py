"""lm-evaluation-harness: a local task's log-likelihoods and rolling perplexity are our own numbers and GPT-2's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from transformers import GPT2LMHeadModel

from arbprob_hf import ArbProbForCausalLM, Conditional
from arbprob_hf.metrics import BitsPerByte
from tests.clients.micro import SIZES, byte_tokenizer

# lm-eval leaves files of its own open
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

DOCUMENTS = [
    # longer than the network reads at once
    {"text": "The mask says who sees whom, and nobody sees anything else at all, which is a long story for one line.",
     "question": "The cat sat on the", "choices": [" mat", " dog", " house"]},
    {"text": "Another page", "question": "Two and two are", "choices": [" four", " five", " six"]},
]  # fmt: skip
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
"""
CHOICE = """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: 0
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: bits_per_byte
    aggregation: bits_per_byte
    higher_is_better: false
"""


@pytest.fixture(scope="module")
def evaluated(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """A function: the log-likelihoods that lm-eval finds for the model of a folder, and what it makes of them."""
    root = tmp_path_factory.mktemp("tasks")
    data = root / "documents.jsonl"
    data.write_text("\n".join(map(json.dumps, DOCUMENTS)))
    for name, rest in (("choice", CHOICE), ("rolling", ROLLING)):
        (root / f"{name}.yaml").write_text(TASK.format(name=name, data=data) + rest)
    tasks = TaskManager(include_path=str(root), include_defaults=False)

    def evaluate(name: str) -> dict[str, Any]:
        found = simple_evaluate(
            model="hf",
            model_args=dict(pretrained=str(folders[name]), trust_remote_code=True, dtype="float32"),
            tasks=["choice", "rolling"],
            task_manager=tasks,
            batch_size=2,
            device="cpu",
            bootstrap_iters=0,
        )
        samples = {task: [one["filtered_resps"] for one in found["samples"][task]] for task in ("choice", "rolling")}
        return {
            "choice": [[nats for nats, _ in one] for one in samples["choice"]],
            "rolling": [nats for (nats,) in samples["rolling"]],
            "bits per byte": found["results"]["rolling"]["bits_per_byte,none"],
            "accuracy": found["results"]["choice"]["acc,none"],
        }

    return evaluate


@pytest.fixture(scope="module", params=["ours", "windowed"])
def found(request: pytest.FixtureRequest, evaluated: Callable[[str], dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return request.param, evaluated(request.param)


def logits_of(name: str, theirs: GPT2LMHeadModel, windowed: ArbProbForCausalLM) -> Callable[[list[int]], torch.Tensor]:
    """The log-probabilities (T, V) of next tokens: by GPT-2 itself, where it knows the mask."""
    model = {"ours": theirs, "windowed": windowed}[name]
    return lambda ids: model(torch.tensor([ids])).logits[0].log_softmax(-1)


@torch.no_grad()
def test_log_likelihoods_are_gpt2s(
    found: tuple[str, dict[str, Any]], theirs: GPT2LMHeadModel, windowed: ArbProbForCausalLM
) -> None:
    name, numbers = found
    log_probs, encode = logits_of(name, theirs, windowed), byte_tokenizer().encode
    for document, nats in zip(DOCUMENTS, numbers["choice"], strict=True):
        start = encode(document["question"])
        for choice, one in zip(document["choices"], nats, strict=True):
            ends = encode(choice)
            rows = log_probs(start + ends)[len(start) - 1 : -1]
            assert one == pytest.approx(rows[range(len(ends)), ends].sum().item(), rel=1e-5)
    assert numbers["accuracy"] == sum(max(nats) == nats[0] for nats in numbers["choice"]) / len(DOCUMENTS)


@torch.no_grad()
def test_log_likelihoods_answer_questions_from_left_to_right(
    found: tuple[str, dict[str, Any]], ours: ArbProbForCausalLM
) -> None:
    name, numbers = found
    encode = byte_tokenizer().encode
    for document, nats in zip(DOCUMENTS, numbers["choice"], strict=True):
        start, whole = encode(document["question"]), encode(document["question"] + document["choices"][0])
        ask = Conditional(given=range(len(start)), target=range(len(start), len(whole)))
        answer = ours.log_prob(torch.tensor([whole]), ask).sum().item()
        assert (nats[0] == pytest.approx(answer, rel=1e-5)) == (name == "ours")


@torch.no_grad()
def test_rolling_perplexity_is_that_of_windows_laid_end_to_end(
    found: tuple[str, dict[str, Any]], theirs: GPT2LMHeadModel, windowed: ArbProbForCausalLM
) -> None:
    name, numbers = found
    log_probs, encode, longest = logits_of(name, theirs, windowed), byte_tokenizer().encode, SIZES["n_positions"]
    for document, nats in zip(DOCUMENTS, numbers["rolling"], strict=True):
        ids = [SIZES["eos_token_id"], *encode(document["text"])]
        total = 0.0
        for first in range(1, len(ids), longest):
            scored = ids[first : first + longest]
            # the last window is filled up with what stands before it
            seen = ids[max(first + len(scored) - 1 - longest, 0) : first + len(scored) - 1]
            rows = log_probs(seen)[-len(scored) :]
            total += rows[range(len(scored)), scored].sum().item()
        assert nats == pytest.approx(total, rel=1e-5)
    bits = BitsPerByte().compute(predictions=numbers["rolling"], references=[one["text"] for one in DOCUMENTS])
    assert numbers["bits per byte"] == pytest.approx(bits["bits_per_byte"], rel=1e-6)
