"""Quantised networks answer as before, nearly: nothing reads the weight of the head, which may have none."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
from transformers.pytorch_utils import Conv1D

from arbprob_hf import ArbProbForCausalLM, Conditional
from tests.clients.micro import byte_tokenizer, tokens
from tests.networks import far

ASK = Conditional([0, 1, 2], [4, 5])


class Bare(nn.Module):
    """A head of which nothing is known: it has no weight, and no sizes."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self._call = head.forward

    def forward(self, hidden: Tensor) -> Tensor:
        assert hidden.numel()
        return self._call(hidden)


def linear_blocks(model: nn.Module) -> None:
    """Put linear layers in the place of GPT-2's transposed ones."""
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, Conv1D):
                linear = nn.Linear(layer.nx, layer.nf)
                linear.weight, linear.bias = nn.Parameter(layer.weight.T.contiguous()), layer.bias
                setattr(module, name, linear)


def without_a_weight(model: Any) -> Any:
    model.lm_head = Bare(model.lm_head)
    return model


def dynamic(model: Any) -> Any:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def int8(config: Any) -> Any:
    def quantise(model: Any) -> Any:
        quantize_(model, config)
        return model

    return quantise


def all_layers(quantise: Any) -> Any:
    def converted(model: Any) -> Any:
        linear_blocks(model)
        return quantise(model)

    return converted


WAYS = {
    "no weight": without_a_weight,
    "quantize_dynamic": dynamic,
    "torchao weights": int8(Int8WeightOnlyConfig()),
    "torchao activations": int8(Int8DynamicActivationInt8WeightConfig()),
    "quantize_dynamic, all layers": all_layers(dynamic),
    "torchao weights, all layers": all_layers(int8(Int8WeightOnlyConfig())),
}


@pytest.fixture(scope="module", params=WAYS)
def quantised(request: pytest.FixtureRequest, ours: ArbProbForCausalLM) -> Any:
    return WAYS[request.param](copy.deepcopy(ours)).eval()


# torch's own quantisation goes to torchao, and says so
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions.*:UserWarning"),
]


@torch.no_grad()
def test_logits_and_losses_are_near_those_before(quantised: Any, ours: ArbProbForCausalLM) -> None:
    ids = tokens()
    before, after = ours(ids, labels=ids), quantised(ids, labels=ids)
    scale = before.logits.std().item()
    assert far(before.logits, after.logits) < 0.3 * scale
    assert after.loss.item() == pytest.approx(before.loss.item(), rel=0.1)
    assert quantised(ids, labels=ids, return_logits=False).loss.item() == pytest.approx(after.loss.item(), rel=1e-5)


@torch.no_grad()
def test_questions_are_answered_from_its_own_logits(quantised: Any) -> None:
    ids = tokens()
    nats, table = quantised.log_prob(ids, ASK), quantised.marginals(ids, Conditional([0, 1, 2], [4]))[:, 4]
    assert table.exp().sum(-1).tolist() == pytest.approx([1, 1], abs=1e-4)
    assert far(nats[:, 4], table.gather(1, ids[:, 4:5])[:, 0]) < 1.0
    assert (nats[:, 4:6] < 0).all()


@torch.no_grad()
@pytest.mark.parametrize("method", ["sequential", "speculative", "fused"])
def test_samples_have_the_scores_that_log_prob_gives(quantised: Any, method: str) -> None:
    found = quantised.sample(tokens(), ASK, method=method, generator=torch.Generator().manual_seed(0))
    # rows of another pass are rounded otherwise where activations are quantised
    assert far(found.log_probs, quantised.log_prob(found.sequences, ASK)) < 1.0
    assert (found.log_probs[:, 4:6] < 0).all()


def test_texts_are_continued_filled_in_and_scored(quantised: Any) -> None:
    tokenizer, ids = byte_tokenizer(), tokens()
    keep = torch.ones_like(ids)
    assert quantised.generate(ids, attention_mask=keep, max_new_tokens=3, do_sample=False).shape == (2, 15)
    assert len(quantised.infill("who [M] whom", tokenizer)) == 1
    candidates = quantised.score_text(tokenizer, "wh[M]", ["o", "y"])
    likeliest = quantised.score_text(tokenizer, "wh[M]", top=2)
    assert len(candidates) == len(likeliest) == 2
    assert candidates[0].log_prob <= likeliest[0].log_prob + 1e-4


def test_only_the_head_is_a_linear_layer_that_these_tools_know(ours: ArbProbForCausalLM) -> None:
    assert [name for name, module in ours.named_modules() if type(module) is nn.Linear] == ["lm_head"]
    converted = copy.deepcopy(ours)
    linear_blocks(converted)
    assert far(ours(tokens()).logits, converted(tokens()).logits) < 1e-4
