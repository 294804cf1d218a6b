"""Which tokens the answer to a question must not depend on, and whether the slots of a layout keep them."""

import torch
from torch import Tensor

from ..model.masks.tensors import Order
from ..model.questions.conditional import ResolvedConditional
from ..model.questions.layouts import Slots
from .leakage import Leakage, check_leakage


def forbidden_pairs(slots: Slots, question: ResolvedConditional, known: Tensor | None = None) -> Tensor:
    """Which slots' inputs the prediction of each slot must not depend on, by the question alone.

    The prediction of target i may depend on given tokens and on targets before it in the order (on the first `known`
    ones where that is an argument), of its own document; it must not depend on the token of any other position.

    Args:
        slots: what `lay_out` made of the question. known: long (B,), the argument of `lay_out`.

    Returns:
        bool (B, S, S), True at (q, k) where slot q predicts a target and slot k holds a token it must not depend on:
        what `check_leakage` takes as `forbidden`.
    """
    reads = slots.targets >= 0
    target = slots.targets.clamp(min=0)
    predicted_step = question.step.gather(1, target)  # (B, S)
    if known is not None:
        predicted_step = torch.minimum(predicted_step, known[:, None] + 1)
    held = slots.positions
    held_step = question.step.gather(1, held)
    is_given = question.given.gather(1, held)[:, None, :]
    is_earlier = (question.target.gather(1, held) & (held_step > 0))[:, None, :] & (
        held_step[:, None, :] < predicted_step[:, :, None]
    )
    may_know = is_given | is_earlier
    if question.documents is not None:
        own, other = question.documents.gather(1, target), question.documents.gather(1, held)
        may_know = may_know & (own[:, :, None] == other[:, None, :])
    return reads[:, :, None] & ~slots.masked[:, None, :] & ~may_know


def check_question(slots: Slots, question: ResolvedConditional, *, layers: int | None = None) -> Leakage:
    """Find what predictions depend on and must not, through `layers` layers, any number of them when None.

    Returns a `Leakage`, truthy when something leaks. Slots of several documents also need `document_ids`, which this
    does not look at: pass one document a row.
    """
    return check_leakage(Order(slots.ranks, slots.limits), forbidden_pairs(slots, question), layers=layers)
