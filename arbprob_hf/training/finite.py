"""Numbers that are not finite end a run before they reach the weights or a checkpoint."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ..errors import RunError

_ADVICE = (
    "start anew in another output_dir with a lower learning rate (from the beginning, or with --init_from a checkpoint)"
)


class NonFiniteError(RunError, ArithmeticError):
    """The loss, the gradient or the weights became infinite or NaN; nothing was saved after that."""


def is_bad(value: Any, device: torch.device) -> torch.Tensor:
    """1.0 where `value` is a number that is not finite, 0.0 where it is finite or unknown; on `device`."""
    if value is None:
        return torch.zeros((), device=device)
    return (~torch.isfinite(torch.as_tensor(value, device=device))).any().float()


def step_error(loss: torch.Tensor | None, *, is_loss: bool, step: int, output_dir: str | None) -> NonFiniteError:
    """The error that ends a run in the step after `step`: of a loss (`loss` is this process's own) or of a gradient."""
    value = 0.0 if loss is None else float(loss)
    what = "the gradient is not finite"
    if is_loss:
        what = "the loss of another process is not finite" if math.isfinite(value) else f"the loss is {value:g}"
    return NonFiniteError(
        f"step {step + 1}: {what}; the run stops, nothing was saved after step {step}, and the checkpoints in "
        f"{output_dir} are as they were: look at the data of this step, or {_ADVICE}"
    )


def refuse_bad_weights(model: nn.Module, *, step: int, output_dir: str | None) -> None:
    """Raise NonFiniteError, naming the first, where a weight of `model` is infinite or NaN."""
    parameters = dict(model.named_parameters())
    finite = torch.stack([torch.isfinite(value).all() for value in parameters.values()])
    if not bool(finite.all()):
        name = next(name for name, good in zip(parameters, finite.tolist(), strict=True) if not good)
        raise NonFiniteError(
            f"step {step}: the weights {name} are not finite, so they are not saved; the checkpoints in {output_dir} "
            f"are as they were: {_ADVICE}"
        )
