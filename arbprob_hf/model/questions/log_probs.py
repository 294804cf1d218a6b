"""Log-probabilities of the output head, a few rows of logits at a time, in float32 whatever the network computes in."""

import torch
from torch import Tensor, nn

# logits held at a time; a differentiable call keeps all of them for its backward pass
_LOGITS_AT_ONCE = 2**24


def token_log_probs(head: nn.Module, hidden: Tensor, answers: Tensor) -> Tensor:
    """log P(answer) in nats, (N,): float32, or float64 for float64 input.

    Args:
        head: the output head, (N, D) -> (N, V). hidden: float (N, D). answers: long (N,).
    """
    parts = []
    for rows, wanted in zip(_chunks(head, hidden), _chunks(head, answers), strict=True):
        logits = accurate(head(rows))  # (rows, V)
        parts.append(logits.gather(1, wanted[:, None]).squeeze(1) - logits.logsumexp(1))
    return torch.cat(parts)


def vocabulary_log_probs(head: nn.Module, hidden: Tensor) -> Tensor:
    """log P of every token in nats, (N, V), of the same dtypes as `token_log_probs`; hidden: float (N, D)."""
    return torch.cat([accurate(head(rows)).log_softmax(1) for rows in _chunks(head, hidden)])


def accurate(values: Tensor) -> Tensor:
    """float32, or float64 where the values are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _chunks(head: nn.Module, rows: Tensor) -> tuple[Tensor, ...]:
    vocabulary = getattr(head, "out_features", None) or 50_257
    return rows.split(max(1, _LOGITS_AT_ONCE // vocabulary))
