"""The loss of an evaluation: the mean over all scored tokens, each once, on any number of processes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from accelerate.utils import gather_object
from torch import Tensor


class TokenLoss:
    """Adds up the nats and the scored tokens of batches; no logits are kept."""

    def __init__(self) -> None:
        self._batches: list[Tensor] = []

    def add(self, loss: Tensor, inputs: Mapping[str, Tensor]) -> None:
        """Note one batch: `loss`, its mean in nats per token, and the labels of `inputs`."""
        # multiplied in float64 at the end, on the CPU: not every device has it
        self._batches.append(torch.stack([loss.detach().mean().float(), _scored_tokens(inputs).float()]))

    def metrics(self, prefix: str) -> dict[str, float]:
        """`<prefix>_loss` (NaN over no tokens) and `<prefix>_scored_tokens`, of all processes together."""
        nats, tokens = (math.fsum(part) for part in zip(*gather_object([self._sums()]), strict=True))
        return {f"{prefix}_loss": nats / tokens if tokens else math.nan, f"{prefix}_scored_tokens": int(tokens)}

    def _sums(self) -> tuple[float, float]:
        if not self._batches:
            return 0.0, 0.0
        losses, tokens = torch.stack(self._batches).cpu().double().unbind(1)  # (batches,)
        # the mean over no tokens is no number: it counts as 0
        return float(torch.where(tokens > 0, losses * tokens, 0.0).sum()), float(tokens.sum())


def _scored_tokens(inputs: Mapping[str, Tensor]) -> Tensor:
    """How many labels of a batch are scored: all but -100, and without the first of a row, which nothing predicts."""
    labels = inputs["shift_labels"] if inputs.get("shift_labels") is not None else inputs["labels"][..., 1:]
    return labels.ne(-100).sum()
