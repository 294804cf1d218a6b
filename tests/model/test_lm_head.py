"""The head's product with a few rows is what the head itself would give, and leaves to the head what only it can do."""

import copy
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import nn

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
from arbprob_hf.model import lm_head
from arbprob_hf.model.lm_head import FewRowsHead, head_logits
from tests.networks import far

WIDTH, VOCABULARY = 32, 2**15
HEAD = nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(False)


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each product made in the quick way."""
    seen: list[int] = []
    plain = lm_head._onednn

    def counted(hidden: torch.Tensor, head: nn.Linear) -> torch.Tensor:
        seen.append(hidden.shape[:-1].numel())
        return plain(hidden, head)

    monkeypatch.setattr(lm_head, "_onednn", counted)
    return seen


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3, 5), (8, 16)])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_few_rows_give_the_heads_logits(shape: tuple[int, int], bias: bool, multiplied: list[int]) -> None:
    head = nn.Linear(WIDTH, VOCABULARY, bias=bias)
    hidden = torch.randn(*shape, WIDTH)
    found = head_logits(head, hidden)
    expected = head.double()(hidden.double())
    assert found.shape == (*shape, VOCABULARY)
    assert far(found, expected) <= 1e-5
    assert multiplied == [shape[0] * shape[1]]


@torch.no_grad()
def test_rows_cut_out_of_a_longer_sequence_give_the_heads_logits(multiplied: list[int]) -> None:
    hidden = torch.randn(3, 7, WIDTH)
    assert far(head_logits(HEAD, hidden[:, -1:]), HEAD(hidden)[:, -1:]) <= 1e-5
    assert multiplied == [3]


USUAL: dict[str, Any] = {
    "many rows": (HEAD, torch.randn(3, 100, WIDTH)),
    "no rows": (HEAD, torch.randn(2, 0, WIDTH)),
    "double": (nn.Linear(WIDTH, VOCABULARY).double(), torch.randn(1, 1, WIDTH).double()),
    "small table": (nn.Linear(WIDTH, 64), torch.randn(1, 1, WIDTH)),
    "another head": (nn.Sequential(HEAD), torch.randn(1, 1, WIDTH)),
}


@pytest.mark.parametrize(("head", "hidden"), USUAL.values(), ids=USUAL)
@torch.no_grad()
def test_other_products_go_through_the_head(head: nn.Module, hidden: torch.Tensor, multiplied: list[int]) -> None:
    assert torch.equal(head_logits(head, hidden), head(hidden))
    assert multiplied == []


def test_gradients_go_through_the_head(multiplied: list[int]) -> None:
    hidden = torch.randn(1, 1, WIDTH, requires_grad=True)
    head_logits(HEAD, hidden).sum().backward()
    assert far(hidden.grad[0, 0], HEAD.weight.sum(0)) <= 1e-3
    assert multiplied == []


@torch.no_grad()
def test_hooks_on_the_head_see_every_product(multiplied: list[int]) -> None:
    head, seen = nn.Linear(WIDTH, VOCABULARY), []
    head.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    head_logits(head, torch.randn(1, 1, WIDTH))
    assert seen == [(1, 1, VOCABULARY)]
    assert multiplied == []


@torch.no_grad()
def test_autocast_goes_through_the_head(multiplied: list[int]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert head_logits(HEAD, torch.randn(1, 1, WIDTH)).dtype == torch.bfloat16
    assert multiplied == []


@torch.no_grad()
def test_weights_that_are_brought_at_every_call_are_not_read_where_they_are_not(multiplied: list[int]) -> None:
    model = ArbProbForCausalLM(ArbProbConfig(n_layer=1, n_head=2, n_embd=64, n_positions=16, vocab_size=2**15)).eval()
    ids = torch.randint(2**15, (1, 4))
    expected = model(ids).logits
    offloaded = cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    multiplied.clear()
    assert far(offloaded(ids).logits, expected) <= 1e-5
    assert multiplied == []


@torch.no_grad()
def test_a_forward_put_in_place_of_the_heads_own_is_called(multiplied: list[int]) -> None:
    head = nn.Linear(WIDTH, VOCABULARY)
    head.forward = lambda hidden: torch.full((1, 1, VOCABULARY), 7.0)
    assert (head_logits(head, torch.randn(1, 1, WIDTH)) == 7).all()
    assert multiplied == []


@torch.no_grad()
def test_hooks_on_every_module_see_the_head(multiplied: list[int]) -> None:
    seen: list[type] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, given, out: seen.append(type(module)))
    try:
        head_logits(HEAD, torch.randn(1, 1, WIDTH))
    finally:
        handle.remove()
    assert seen == [nn.Linear]
    assert multiplied == []


@pytest.mark.parametrize(("dtype", "rows"), [(torch.float32, 2), (torch.float32, 8), (torch.bfloat16, 1)])
@torch.no_grad()
def test_a_packed_head_gives_the_same_bits(dtype: torch.dtype, rows: int) -> None:
    head = nn.Linear(WIDTH, VOCABULARY, bias=False).to(dtype)
    many = FewRowsHead(head)
    for _ in range(12):
        hidden = torch.randn(rows, 1, WIDTH).to(dtype)
        assert torch.equal(many(hidden), head_logits(head, hidden))
    assert many.packed is not None


@torch.no_grad()
def test_a_packed_head_follows_its_weight() -> None:
    head = nn.Linear(WIDTH, VOCABULARY, bias=False)
    many, hidden = FewRowsHead(head), torch.randn(4, 1, WIDTH)
    for _ in range(9):
        many(hidden)
    assert many.packed is not None
    head.weight.mul_(2)
    assert torch.equal(many(hidden), head_logits(head, hidden))
    head.weight = nn.Parameter(torch.randn(VOCABULARY, WIDTH))
    assert torch.equal(many(hidden), head_logits(head, hidden))


@pytest.mark.parametrize(("head", "hidden"), USUAL.values(), ids=USUAL)
@torch.no_grad()
def test_other_heads_are_not_packed(head: nn.Module, hidden: torch.Tensor) -> None:
    many = FewRowsHead(head)
    for _ in range(9):
        assert torch.equal(many(hidden), head_logits(head, hidden))
    assert many.packed is None
