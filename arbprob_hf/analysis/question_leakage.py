"""Which tokens the answer to a question must not depend on, and whether the slots of a layout keep them."""

import torch
from torch import Tensor

from ..model.masks.tensors import Order
from ..model.questions.conditional import ResolvedConditional
from ..model.questions.layouts import Slots
from .leakage import Leakage, check_leakage


def secrets(slots: Slots, question: ResolvedConditional, known: Tensor | None = None) -> Tensor:
    """Which slots' inputs the prediction of each slot must not depend on, told from the question alone.

    The prediction of target i may depend on given tokens and on targets asked before it (on the first `known` ones
    where those are told), of its own document; the token of every other position is a secret.

    Args:
        slots: what `lay_out` made of the question. known: long (B,), as it was told to `lay_out`.

    Returns:
        bool (B, S, S), True at (q, k) where slot q predicts something and slot k holds a secret of it.
    """
    reads = slots.targets >= 0
    target = slots.targets.clamp(min=0)
    asked_at = question.step.gather(1, target)  # (B, S)
    if known is not None:
        asked_at = torch.minimum(asked_at, known[:, None] + 1)
    held = slots.positions
    told_at = question.step.gather(1, held)
    is_given = question.given.gather(1, held)[:, None, :]
    is_earlier = (question.target.gather(1, held) & (told_at > 0))[:, None, :] & (
        told_at[:, None, :] < asked_at[:, :, None]
    )
    may_know = is_given | is_earlier
    if question.documents is not None:
        own, other = question.documents.gather(1, target), question.documents.gather(1, held)
        may_know = may_know & (own[:, :, None] == other[:, None, :])
    return reads[:, :, None] & ~slots.masked[:, None, :] & ~may_know


def check_question(slots: Slots, question: ResolvedConditional, *, layers: int | None = None) -> Leakage:
    """Find what predictions depend on and must not, through `layers` layers, any number of them when None.

    Returns a `Leakage`, truthy when something leaks. Slots of several documents also need `document_ids`, which this
    does not look at: ask it of one document a row.
    """
    return check_leakage(Order(slots.ranks, slots.limits), secrets(slots, question), layers=layers)
