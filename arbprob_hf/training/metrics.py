"""Perplexity and bits per byte, from the mean loss of an evaluation."""

import math


def perplexity(loss: float) -> float:
    """exp(`loss`), `loss` in nats per token; infinite where it exceeds the largest float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Bits needed per byte of text, from `loss` in nats per token; comparable between tokenizers.

    `bytes_per_token`: bytes of text per scored token. Raises ValueError unless it is above 0.
    """
    if not bytes_per_token > 0:
        raise ValueError(f"bytes_per_token: expected a number above 0, got {bytes_per_token}")
    return loss / math.log(2) / bytes_per_token
