"""How far a network's conditional probabilities are from those of one joint distribution: three gaps, in nats.

A network trained on subsets is asked the same thing in several ways; a joint distribution would give one answer.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import check_integer
from ..model.questions.conditional import Conditional


@dataclass(frozen=True)
class Gap:
    """A mean over questions, in nats per target token, with its standard error."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} +- {self.error:.4f}"


def gap_of(values: Tensor, targets: Tensor) -> Gap:
    """Mean of `values` (B,) per target, weighted by the number of `targets` (B,), with its standard error."""
    values, targets = values.double(), targets.double()
    mean = values.sum() / targets.sum()
    residuals = values - mean * targets
    rows = max(len(values), 2)
    error = (residuals.square().sum() * rows / (rows - 1)).sqrt() / targets.sum()
    return Gap(float(mean), float(error))


@torch.no_grad()
def order_gap(model: Any, input_ids: Tensor, given: Tensor, target: Tensor, *, orders: int = 4, seed: int = 0) -> Gap:
    """Spread of log P(x_target | x_given) over random orders of the chain rule: its standard deviation.

    Args:
        input_ids: long (B, T). given, target: bool (B, T), disjoint. orders: how many orders, at least 2.
    """
    check_integer("orders", orders, low=2)
    generator = torch.Generator().manual_seed(seed)
    joints = []
    for _ in range(orders):
        order = torch.rand(given.shape, generator=generator).argsort(1)
        joints.append(model.log_prob(input_ids, Conditional(given, target, order)).sum(1))
    return gap_of(torch.stack(joints).double().std(0), target.sum(1))


@torch.no_grad()
def chain_gap(model: Any, input_ids: Tensor, given: Tensor, first: Tensor, second: Tensor) -> Gap:
    """|log P(first | given) + log P(second | given, first) - log P(first and second | given)|.

    Args:
        input_ids: long (B, T). given, first, second: bool (B, T), disjoint; `first` is asked first.
    """
    place = torch.arange(given.shape[1]).expand(given.shape)
    order = torch.where(second, place + given.shape[1], place)
    one = model.log_prob(input_ids, Conditional(given, first)).sum(1)
    two = model.log_prob(input_ids, Conditional(given | first, second)).sum(1)
    both = model.log_prob(input_ids, Conditional(given, first | second, order)).sum(1)
    return gap_of((one + two - both).abs(), (first | second).sum(1))


@torch.no_grad()
def marginalisation_gap(model: Any, input_ids: Tensor, given: Tensor, target: Tensor, *, vocabulary: int) -> Gap:
    """|log sum over y of P(y at one unseen position, x_target | given) - log P(x_target | given)|.

    Args:
        input_ids: long (B, T). given, target: bool (B, T), disjoint. vocabulary: tokens 0 to `vocabulary` - 1 are
            summed over at the first position that is neither; rows without one are left out.
    """
    free = ~(given | target)
    rows = free.any(1)
    input_ids, given, target, free = input_ids[rows], given[rows], target[rows], free[rows]
    if not len(input_ids):
        raise ValueError("given, target: expected a position that is neither in some row, got none")
    place = free.long().argmax(1)
    both = target.clone()
    both[torch.arange(len(both)), place] = True
    # the unseen one is asked first, so that the targets are asked alike otherwise
    order = torch.arange(given.shape[1]).expand(given.shape).clone()
    order[torch.arange(len(order)), place] = -1
    joints = []
    for token in range(vocabulary):
        changed = input_ids.clone()
        changed[torch.arange(len(changed)), place] = token
        joints.append(model.log_prob(changed, Conditional(given, both, order)).sum(1).double())
    alone = model.log_prob(input_ids, Conditional(given, target)).sum(1).double()
    return gap_of((torch.stack(joints).logsumexp(0) - alone).abs(), target.sum(1))
