"""What is scored and what the sum is divided by: labels, shift_labels, num_items_in_batch, accumulation."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from arbprob_hf import ArbProbForCausalLM
from tests.model.twins import ours_alone, tokens, twins
from tests.networks import far


def some_labels(ids: Tensor) -> Tensor:
    labels = ids.clone()
    labels[0, 2:7] = -100
    labels[1, -1] = -100
    return labels


def log_likelihoods(model: ArbProbForCausalLM, ids: Tensor) -> Tensor:
    """Log-probability of each next token, (B, T - 1)."""
    return model(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)


def gradients(model: ArbProbForCausalLM) -> dict[str, Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


def test_loss_is_the_mean_over_labels_that_are_not_ignored() -> None:
    model, ids = ours_alone(), tokens()
    labels = some_labels(ids)
    scored = labels[:, 1:] != -100
    assert 0 < scored.sum() < scored.numel()
    expected = -log_likelihoods(model, ids)[scored].mean()
    assert far(model(ids, labels=labels).loss, expected) <= 1e-12


def test_the_first_label_is_predicted_by_nothing() -> None:
    model, ids = ours_alone(), tokens()
    labels = ids.clone()
    labels[:, 0] = 77
    assert torch.equal(model(ids, labels=labels).loss, model(ids, labels=ids).loss)


def test_shift_labels_score_each_slot_on_its_own_label() -> None:
    model, ids = ours_alone(), tokens()
    labels = some_labels(ids)
    shifted = F.pad(labels, (0, 1), value=-100)[:, 1:]
    assert far(model(ids, shift_labels=shifted).loss, model(ids, labels=labels).loss) <= 1e-12


def test_shift_labels_replace_labels() -> None:
    model, ids = ours_alone(), tokens()
    shifted = F.pad(ids, (0, 1), value=-100)[:, 1:]
    both = model(ids, labels=torch.zeros_like(ids), shift_labels=shifted).loss
    assert torch.equal(both, model(ids, shift_labels=shifted).loss)


@pytest.mark.parametrize("kind", [int, torch.tensor])
def test_num_items_in_batch_divides_the_sum(kind: type) -> None:
    model, ids = ours_alone(), tokens()
    labels = some_labels(ids)
    scored = int((labels[:, 1:] != -100).sum())
    loss = model(ids, labels=labels, num_items_in_batch=kind(5 * scored)).loss
    assert far(loss * 5, model(ids, labels=labels).loss) <= 1e-12


def test_num_items_in_batch_means_what_it_means_in_gpt2() -> None:
    ours, theirs = twins(dtype=torch.float32)
    ids = tokens()
    labels = some_labels(ids)
    own, reference = (m(ids, labels=labels, num_items_in_batch=torch.tensor(7)).loss for m in (ours, theirs))
    assert far(own, reference) <= 1e-5


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("return_logits", [True, False])
def test_accumulated_gradients_are_those_of_the_whole_batch(size: int, return_logits: bool) -> None:
    model, ids = ours_alone(), tokens(8)
    labels = ids.clone()
    for row in range(8):
        labels[row, : row + 2] = -100
    model(ids, labels=labels, return_logits=return_logits).loss.backward()
    whole = gradients(model)
    items = (labels[:, 1:] != -100).sum()
    for part, answers in zip(ids.split(size), labels.split(size), strict=True):
        options = {"num_items_in_batch": items, "return_logits": return_logits}
        model(part, labels=answers, **options).loss.backward()
    accumulated = gradients(model)
    assert max(far(accumulated[name], whole[name]) for name in whole) <= 1e-12


@pytest.mark.parametrize("return_logits", [True, False])
def test_no_scored_label_gives_zero_loss_and_zero_gradients(return_logits: bool) -> None:
    model, ids = ours_alone(), tokens()
    loss = model(ids, labels=torch.full_like(ids, -100), return_logits=return_logits).loss
    loss.backward()
    assert loss.item() == 0.0
    assert all(not gradient.any() for gradient in gradients(model).values())


def test_one_token_alone_scores_nothing() -> None:
    model, ids = ours_alone(), tokens(2, 1)
    assert model(ids, labels=ids).loss.item() == 0.0


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    "given", [{}, {"return_logits": None}, {"return_logits": True}], ids=["left out", "None", "True"]
)
def test_logits_come_with_the_loss(mode: str, given: dict[str, bool | None]) -> None:
    model, ids = getattr(ours_alone(), mode)(), tokens()
    out = model(ids, labels=ids, **given)
    assert torch.equal(out.logits, model(ids).logits)
    assert out.logits.requires_grad


def test_logits_are_left_out_when_told_to() -> None:
    model, ids = ours_alone(), tokens()
    assert model(ids, labels=ids, return_logits=False).logits is None
    assert model(ids, shift_labels=ids, return_logits=False).logits is None


@pytest.mark.parametrize("options", [{}, {"num_items_in_batch": 7}], ids=["mean", "items"])
@pytest.mark.parametrize("mode", ["train", "eval", "no gradient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_loss_is_the_same_with_and_without_logits(dtype: torch.dtype, mode: str, options: dict[str, int]) -> None:
    model, ids = ours_alone(dtype=dtype).train(mode == "train"), tokens(4, 32)
    with torch.set_grad_enabled(mode != "no gradient"):
        whole, chunked = (model(ids, labels=some_labels(ids), return_logits=w, **options).loss for w in (True, False))
    assert whole.dtype == chunked.dtype
    assert far(whole, chunked) <= 1e-6 * whole.item()
    if whole.requires_grad:
        whole.backward()
        expected = gradients(model)
        chunked.backward()
        assert max(far(a, expected[name]) for name, a in gradients(model).items()) <= 1e-5


def test_the_head_runs_once_for_loss_and_logits() -> None:
    model, ids = ours_alone(), tokens()
    calls: list[int] = []
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    model(ids, labels=ids)
    assert len(calls) == 1


def test_reordered_logits_leave_the_loss_alone() -> None:
    model, ids = ours_alone(), tokens()
    slots = torch.arange(ids.shape[1]).flip(0)
    out = model(ids, labels=ids, logits_to_keep=slots)
    assert torch.equal(out.logits, model(ids).logits.flip(1))
    assert far(out.loss, model(ids, labels=ids).loss) <= 1e-12


def test_logits_can_be_declined_without_labels() -> None:
    assert ours_alone()(tokens(), return_logits=False).logits is None


def test_logits_to_keep_brings_those_logits_with_the_loss() -> None:
    model, ids = ours_alone(), tokens()
    out = model(ids, labels=ids, logits_to_keep=3)
    assert torch.equal(out.logits, model(ids, logits_to_keep=3).logits)
    assert far(out.loss, model(ids, labels=ids).loss) <= 1e-12


def test_return_dict_false_gives_loss_and_logits_first() -> None:
    model, ids = ours_alone(), tokens()
    loss, logits = model(ids, labels=ids, return_dict=False)[:2]
    assert torch.equal(loss, model(ids, labels=ids).loss)
    assert torch.equal(logits, model(ids).logits)


@pytest.mark.parametrize("return_logits", [True, False])
@pytest.mark.parametrize("label", [-1, 101, -101])
def test_a_label_outside_the_vocabulary_is_refused(label: int, return_logits: bool) -> None:
    model, ids = ours_alone(), tokens()
    labels = ids.clone()
    labels[1, 4] = label
    with pytest.raises(ValueError, match=rf"labels: expected -100 or 0 to 100, got {label}"):
        model(ids, labels=labels, return_logits=return_logits)


def test_a_head_that_is_no_plain_linear_layer_gives_the_same_loss() -> None:
    class Wrapped(torch.nn.Linear):
        """What an adapter does to a head."""

    model, ids = ours_alone(tie_word_embeddings=False), tokens()
    expected = model(ids, labels=ids, return_logits=False).loss
    wrapped = Wrapped(24, 101, bias=False, dtype=torch.float64)
    wrapped.weight = model.lm_head.weight
    model.lm_head = wrapped
    assert far(model(ids, labels=ids, return_logits=False).loss, expected) <= 1e-12


@pytest.mark.parametrize("count", [0, torch.tensor(0)], ids=["int", "tensor"])
def test_a_batch_without_items_costs_nothing(count: int | Tensor) -> None:
    model, ids = ours_alone(), tokens()
    options = {"num_items_in_batch": count, "return_logits": False}
    loss = model(ids, labels=torch.full_like(ids, -100), **options).loss
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(not gradient.any() for gradient in gradients(model).values())
