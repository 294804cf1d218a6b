"""Random weights for the networks of the tests, and how far two tensors are apart."""

from typing import Any

import torch
from torch import Tensor

# nothing is dropped
STILL: dict[str, Any] = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


def randomised(model: Any) -> Any:
    """The model with weights that no initialisation gives: a bias that is never zero, a gain that is never one."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.25
            is_gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(noise + (1.0 if is_gain else 0.0))
    return model


def far(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference."""
    assert a.shape == b.shape
    return float((a.detach().double() - b.detach().double()).abs().max())
