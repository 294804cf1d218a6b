"""Muon: steps of momentum made orthogonal, for the matrices inside a network.

Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), with steps scaled as in Liu et
al., "Muon is scalable for LLM training" (arXiv 2502.16982, 2025), so that learning rates of Adam fit. torch has one
since 2.9; it works in bfloat16, which most CPUs emulate: training a small network took 1.7 times as long.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

# of the odd polynomial that drives singular values from (0, 1] to about 1, and how often it is applied
POLYNOMIAL = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Steps of momentum made orthogonal.

    Args:
        parameters: matrices. A matrix three times as wide as high is taken as the queries, keys and values of
            attention, side by side; each third gets its own step.
        lr, momentum, weight_decay: as in other optimizers; a step has the root mean square that Adam's has.
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Take one step along the gradients that are there."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                # Nesterov's look ahead
                update = weight.grad.lerp(state["momentum"], group["momentum"])
                height, width = weight.shape
                thirds = update.view(height, -1, height).transpose(0, 1) if width == 3 * height else update[None]
                step = orthogonalise(thirds) * 0.2 * math.sqrt(max(thirds.shape[1:]))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(step.transpose(0, 1).reshape(height, width), alpha=group["lr"])


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly, by iterations of Newton and Schulz.

    Singular values above a hundredth of the root of the sum of their squares come to between 0.65 and 1.25, smaller
    ones less far.

    Args:
        matrices: float (..., H, W).
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    first, third, fifth = POLYNOMIAL
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = first * x + (third * square + fifth * square @ square) @ x
    return x.mT if is_tall else x
