"""Log-probabilities of chosen rows: those of the head's own logits, for every number of rows, type and kind of head."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from arbprob_hf.model.lm_head import linear_cross_entropy
from arbprob_hf.model.questions.log_probs import token_log_probs

VOCABULARY, WIDTH = 2500, 12


def problem(rows: int, dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=dtype).requires_grad_(False)
    return head, torch.randn(rows, WIDTH).to(dtype), torch.randint(VOCABULARY, (rows,))


def usual(head: nn.Module, hidden: Tensor, answers: Tensor) -> Tensor:
    logits = head(hidden)
    nats = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
    return nats.gather(1, answers[:, None]).squeeze(1)


# none, fewer than are scored at a time, exactly those, one more, several times as many
@pytest.mark.parametrize("rows", [0, 1, 128, 129, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_token_log_probs_are_the_log_softmax_of_the_logits(rows: int, dtype: torch.dtype) -> None:
    head, hidden, answers = problem(rows, dtype)
    found = token_log_probs(head, hidden, answers)
    assert found.shape == (rows,)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found, usual(head, hidden, answers), atol=2e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_autocast_computes_as_it_does_for_the_head_and_leaves_float64_alone(dtype: torch.dtype) -> None:
    head, hidden, answers = problem(200, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = token_log_probs(head, hidden, answers), usual(head, hidden, answers)
        loss = linear_cross_entropy(hidden, head.weight, answers)
    assert found.dtype == expected.dtype == loss.dtype == dtype
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(loss, -expected.sum(), atol=0, rtol=1e-6)


def test_token_log_probs_are_differentiable() -> None:
    head, hidden, answers = problem(150, torch.float64)
    hidden.requires_grad_()
    own, expected = (torch.autograd.grad(f(head, hidden, answers).sum(), hidden)[0] for f in (token_log_probs, usual))
    torch.testing.assert_close(own, expected)


def add_one_to_the_first(module: Any, inputs: Any, logits: Tensor) -> Tensor:
    return logits + torch.nn.functional.one_hot(torch.tensor(0), VOCABULARY)


class Scaled(nn.Linear):
    """A head with a product of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return 3 * super().forward(input)


@pytest.mark.parametrize("kind", ["hook", "bias", "class", "forward of its own"])
def test_a_head_that_does_more_than_multiply_is_called(kind: str) -> None:
    head, hidden, answers = problem(40)
    plain = usual(head, hidden, answers)
    if kind == "hook":
        head.register_forward_hook(add_one_to_the_first)
    elif kind == "bias":
        head.bias = nn.Parameter(torch.randn(VOCABULARY), requires_grad=False)
    elif kind == "class":
        head.__class__ = Scaled
    else:
        head.forward = lambda hidden: 2 * nn.Linear.forward(head, hidden)  # type: ignore[method-assign]
    expected = usual(head, hidden, answers)
    assert (expected - plain).abs().max() > 1e-4
    torch.testing.assert_close(token_log_probs(head, hidden, answers), expected, atol=2e-6, rtol=0)


def test_large_logits_lose_nothing() -> None:
    # the answer's probability underflows; its logarithm does not
    head = nn.Linear(1, 4, bias=False).requires_grad_(False)
    head.weight.copy_(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    found = token_log_probs(head, torch.tensor([[1e4]]), torch.tensor([0]))
    assert found.item() == pytest.approx(-3e4)
