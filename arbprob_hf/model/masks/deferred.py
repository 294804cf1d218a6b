"""Checks of values inside a compiled graph, which nobody can look at while it is traced."""

import torch
from torch import Tensor


def check_when_run(holds: Tensor, message: str) -> None:
    """Raise RuntimeError with `message` when the graph runs and `holds`, a bool scalar, is False.

    Nothing waits for an accelerator: there the error comes with a later call, as that of an index out of range does.
    """
    if holds.device.type != "meta":
        torch._assert_async(holds, message)
