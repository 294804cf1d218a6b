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
def test_accumulated_gradients_are_those_of_the_whole_batch(size: int) -> None:
    model, ids = ours_alone(), tokens(8)
    labels = ids.clone()
    for row in range(8):
        labels[row, : row + 2] = -100
    model(ids, labels=labels).loss.backward()
    whole = gradients(model)
    items = (labels[:, 1:] != -100).sum()
    for part, answers in zip(ids.split(size), labels.split(size), strict=True):
        model(part, labels=answers, num_items_in_batch=items).loss.backward()
    accumulated = gradients(model)
    assert max(far(accumulated[name], whole[name]) for name in whole) <= 1e-12


def test_no_scored_label_gives_zero_loss_and_zero_gradients() -> None:
    model, ids = ours_alone(), tokens()
    loss = model(ids, labels=torch.full_like(ids, -100)).loss
    loss.backward()
    assert loss.item() == 0.0
    assert all(not gradient.any() for gradient in gradients(model).values())


def test_one_token_alone_scores_nothing() -> None:
    model, ids = ours_alone(), tokens(2, 1)
    assert model(ids, labels=ids).loss.item() == 0.0


def test_with_labels_no_logits_are_made() -> None:
    model, ids = ours_alone(), tokens()
    assert model(ids, labels=ids).logits is None
    assert model(ids, shift_labels=ids).logits is None


def test_logits_come_with_the_loss_when_asked_for() -> None:
    model, ids = ours_alone(), tokens()
    out = model(ids, labels=ids, return_logits=True)
    assert torch.equal(out.logits, model(ids).logits)
    assert torch.equal(out.loss, model(ids, labels=ids).loss)


def test_logits_can_be_declined_without_labels() -> None:
    assert ours_alone()(tokens(), return_logits=False).logits is None


def test_logits_to_keep_brings_those_logits_with_the_loss() -> None:
    model, ids = ours_alone(), tokens()
    out = model(ids, labels=ids, logits_to_keep=3)
    assert torch.equal(out.logits, model(ids, logits_to_keep=3).logits)
    assert torch.equal(out.loss, model(ids, labels=ids).loss)


def test_return_dict_false_gives_the_loss_first() -> None:
    model, ids = ours_alone(), tokens()
    loss, *_ = model(ids, labels=ids, return_dict=False)
    assert torch.equal(loss, model(ids, labels=ids).loss)


@pytest.mark.parametrize("label", [-1, 101, -101])
def test_a_label_outside_the_vocabulary_is_refused(label: int) -> None:
    model, ids = ours_alone(), tokens()
    labels = ids.clone()
    labels[1, 4] = label
    with pytest.raises(ValueError, match=rf"labels: expected -100 or 0 to 100, got {label}"):
        model(ids, labels=labels)


def test_a_head_that_is_no_plain_linear_layer_gives_the_same_loss() -> None:
    class Wrapped(torch.nn.Linear):
        """What an adapter does to a head."""

    model, ids = ours_alone(tie_word_embeddings=False), tokens()
    expected = model(ids, labels=ids).loss
    wrapped = Wrapped(24, 101, bias=False, dtype=torch.float64)
    wrapped.weight = model.lm_head.weight
    model.lm_head = wrapped
    # transformers rounds the logits to fp32 there
    assert far(model(ids, labels=ids).loss, expected) <= 1e-5


@pytest.mark.parametrize("count", [0, torch.tensor(0)], ids=["int", "tensor"])
def test_a_batch_without_items_costs_nothing(count: int | Tensor) -> None:
    model, ids = ours_alone(), tokens()
    loss = model(ids, labels=torch.full_like(ids, -100), num_items_in_batch=count).loss
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(not gradient.any() for gradient in gradients(model).values())
