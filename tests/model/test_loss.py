"""The chunked loss is cross entropy: value and both gradients, for every number of rows, at no cost of (T, V)."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from arbprob_hf.model.lm_head import causal_loss, linear_cross_entropy
from tests.model.twins import ours_alone, tokens
from tests.networks import far

WIDTH, VOCABULARY = 16, 61


def problem(rows: int, *, dtype: torch.dtype = torch.float64, width: int = WIDTH) -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.randn(rows, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, width, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(VOCABULARY, (rows,))


def reference(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.t(), targets, reduction="sum")


def gradients_of(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


def test_gradcheck() -> None:
    hidden, weight, targets = problem(5)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets), (hidden, weight))


# fewer rows than a chunk has (with so few tokens 4096), exactly one, one more and several, thin and wide heads
@pytest.mark.parametrize(("rows", "width"), [(1, 16), (7, 16), (4096, 4), (4097, 4), (9000, 4), (256, 300), (600, 300)])
def test_value_and_gradients_are_cross_entropys(rows: int, width: int) -> None:
    hidden, weight, targets = problem(rows, width=width)
    own, expected = linear_cross_entropy(hidden, weight, targets), reference(hidden, weight, targets)
    assert far(own, expected) <= 1e-10 * rows
    for a, b in zip(gradients_of(own, hidden, weight), gradients_of(expected, hidden, weight), strict=True):
        assert far(a, b) <= 1e-10


# rows of logits that end where they are aligned, one before and one after; one whose logits come in blocks
@pytest.mark.parametrize("vocabulary", [63, 64, 65, 3000])
def test_no_length_of_the_rows_of_logits_matters(vocabulary: int) -> None:
    hidden, targets = torch.randn(300, 5).double().requires_grad_(), torch.randint(vocabulary, (300,))
    weight = torch.randn(vocabulary, 5).double().requires_grad_()
    own, expected = linear_cross_entropy(hidden, weight, targets), reference(hidden, weight, targets)
    for a, b in zip(gradients_of(own, hidden, weight), gradients_of(expected, hidden, weight), strict=True):
        assert far(a, b) <= 1e-10


def test_the_divisor_divides_the_sum_and_both_gradients() -> None:
    hidden, weight, targets = problem(200)
    plain, divided = (linear_cross_entropy(hidden, weight, targets, divisor=by) for by in (1, 7))
    assert far(divided, plain / 7) <= 1e-12
    found = gradients_of(divided, hidden, weight)
    assert max(far(a / 7, b) for a, b in zip(gradients_of(plain, hidden, weight), found, strict=True)) <= 1e-12


def test_slots_are_chosen_by_their_count_as_by_looking_at_each() -> None:
    hidden, weight, targets = problem(40)
    labels = targets.masked_fill(torch.rand(40) < 0.7, -100)[None]
    looked = causal_loss(hidden[None], weight, labels)
    counted = causal_loss(hidden[None], weight, labels, count=lambda: int((labels[:, 1:] != -100).sum()))
    assert far(looked, counted) == 0
    for a, b in zip(gradients_of(looked, hidden, weight), gradients_of(counted, hidden, weight), strict=True):
        assert far(a, b) == 0


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_input_gets_no_gradient_and_the_other_its_own(frozen: str) -> None:
    hidden, weight, targets = problem(200)
    kept = weight if frozen == "hidden" else hidden
    expected = gradients_of(reference(hidden, weight, targets), kept)[0]
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    assert far(gradients_of(linear_cross_entropy(hidden, weight, targets), kept)[0], expected) <= 1e-10


def test_the_upstream_gradient_scales_both() -> None:
    hidden, weight, targets = problem(200)
    plain = gradients_of(linear_cross_entropy(hidden, weight, targets), hidden, weight)
    scaled = gradients_of(linear_cross_entropy(hidden, weight, targets) * -3.5, hidden, weight)
    assert max(far(a * -3.5, b) for a, b in zip(plain, scaled, strict=True)) <= 1e-12


def test_a_retained_graph_gives_the_same_gradients_twice() -> None:
    hidden, weight, targets = problem(200)
    loss = linear_cross_entropy(hidden, weight, targets)
    first, second = (torch.autograd.grad(loss, (hidden, weight), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_second_derivatives_are_refused_with_the_way_out() -> None:
    hidden, weight, targets = problem(5)
    loss = linear_cross_entropy(hidden, weight, targets)
    with pytest.raises(RuntimeError, match="differentiable once: .* return_logits=False out") as raised:
        torch.autograd.grad(loss, hidden, create_graph=True)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) <= 300


def test_the_way_out_has_second_derivatives() -> None:
    model, ids = ours_alone(), tokens()
    loss = model(ids, labels=ids).loss
    gradient = torch.autograd.grad(loss, model.transformer.ln_f.weight, create_graph=True)[0]
    gradient.square().sum().backward()
    assert model.transformer.ln_f.weight.grad.abs().max() > 0


def test_a_gradient_that_is_not_wanted_costs_no_product() -> None:
    hidden, weight, targets = problem(200)
    with Products() as both:
        linear_cross_entropy(hidden, weight, targets)
    with Products() as one:
        linear_cross_entropy(hidden, weight.detach(), targets)
    assert (both.count, one.count) == (3, 2)


def test_no_row_gives_zero_and_zero_gradients() -> None:
    hidden, weight, _ = problem(4)
    labels = torch.full((1, 4), -100)
    loss = causal_loss(hidden[None], weight, labels)
    assert loss.item() == 0
    assert all(not gradient.any() for gradient in gradients_of(loss, hidden, weight))


def test_no_gradient_is_made_when_none_is_wanted() -> None:
    hidden, weight, targets = problem(200)
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, targets)
    assert not loss.requires_grad
    assert far(loss, reference(hidden, weight, targets)) <= 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_extreme_logits_stay_finite_and_right(dtype: torch.dtype) -> None:
    weight = torch.eye(4, dtype=dtype).requires_grad_()
    hidden = (torch.eye(4) * 1e4).to(dtype).requires_grad_()
    likely, unlikely = torch.tensor([0, 1, 2, 3]), torch.tensor([1, 2, 3, 0])
    assert linear_cross_entropy(hidden, weight, likely).item() == 0
    loss = linear_cross_entropy(hidden, weight, unlikely)
    assert loss.item() == pytest.approx(4e4, rel=5e-3)
    assert all(gradient.isfinite().all() for gradient in gradients_of(loss, hidden, weight))


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_equal_extreme_logits_are_a_uniform_distribution(value: float) -> None:
    hidden, weight = torch.full((3, 1), value), torch.ones(8, 1)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([0, 3, 7]))
    assert loss.item() == pytest.approx(3 * torch.tensor(8.0).log().item(), rel=1e-5)


def test_the_loss_of_bf16_inputs_is_float32() -> None:
    hidden, weight, targets = problem(300, dtype=torch.bfloat16)
    loss = linear_cross_entropy(hidden, weight, targets)
    assert loss.dtype == torch.float32
    assert [g.dtype for g in gradients_of(loss, hidden, weight)] == [torch.bfloat16, torch.bfloat16]
    exact = reference(hidden.double(), weight.double(), targets)
    assert loss.item() == pytest.approx(exact.item(), rel=5e-3)


# thin and wide: how many rows a product is rounded over depends on it
@pytest.mark.parametrize("width", [32, 300])
def test_the_weight_gradient_under_autocast_is_summed_in_float32(width: int) -> None:
    hidden, weight, targets = problem(2000, dtype=torch.float32, width=width)
    exact = gradients_of(reference(hidden.double(), weight.double(), targets), weight)[0]
    with torch.autocast("cpu", torch.bfloat16):
        own = gradients_of(linear_cross_entropy(hidden, weight, targets), weight)[0]
        usual = F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")
    plain = gradients_of(usual, weight)[0]
    assert own.dtype == torch.float32
    assert (own - exact).norm() <= 1.5 * (plain - exact).norm()
    assert (own - exact).norm() <= 0.01 * exact.norm()


class Largest(TorchDispatchMode):
    """Records the elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor):
                self.elements = max(self.elements, one.numel())
        return out


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
        return func(*args, **(kwargs or {}))


def test_no_tensor_of_tokens_by_vocabulary_is_ever_made() -> None:
    # with a vocabulary this large the chunk is the largest thing there is
    model, ids = ours_alone(vocab_size=2000, n_layer=1, dtype=torch.float32), tokens(64, 32)
    whole = 64 * 31 * 2000
    with Largest() as chunked:
        model(ids, labels=ids, return_logits=False).loss.backward()
    assert 256 * 2000 <= chunked.elements < whole / 3
    with Largest() as plain:
        model(ids, labels=ids)
    assert plain.elements >= whole


def test_unscored_positions_cost_no_rows() -> None:
    model, ids = ours_alone(vocab_size=2000, n_layer=1, dtype=torch.float32), tokens(4, 32)
    labels = torch.full_like(ids, -100)
    labels[:, -5:] = ids[:, -5:]
    with Largest() as largest, torch.no_grad():
        model(ids, labels=labels, use_cache=False, return_logits=False)
    # 20 rows of probabilities; the head's own 2000 x 24 is larger
    assert largest.elements == 2000 * 24
