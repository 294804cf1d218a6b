"""How many bits of code a network needs for each byte of text: comparable between tokenizers."""

# evaluate takes the first metric class that it finds here, so its own must not be imported by name
import math
from typing import Any

import datasets
import evaluate

from .validation import ValidatedInputs, refuse_impossible

DESCRIPTION = """-log2 P(targets | given) per byte of the targets' text in UTF-8, over all questions together.

Perplexities of networks with different tokenizers cannot be compared; these can (Gao et al. 2020, "The Pile",
section 3.1)."""
INPUTS = """
Args:
    predictions: one number a question, its joint log-probability in nats: `model.log_prob(ids, ask).sum(-1)`.
    references: one a question: the text of its targets, or its length in bytes.
Returns:
    bits_per_byte: float, at least 0; infinite where a target was held to be impossible.
Raises:
    ValueError: no question, a log-probability above 0 or nan, targets without bytes.
Examples:
    >>> metric.compute(predictions=[math.log(1 / 16)], references=["to"])
    {'bits_per_byte': 2.0}
"""


class BitsPerByte(ValidatedInputs, evaluate.Metric):
    """Bits per byte of targets given anything, from log-probabilities in nats."""

    def _info(self) -> evaluate.MetricInfo:
        texts, counts = (
            datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value(kind)})
            for kind in ("string", "int64")
        )
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation="", inputs_description=INPUTS, features=[texts, counts]
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        sizes = [len(one.encode()) if isinstance(one, str) else one for one in references]
        refuse_impossible(predictions, sizes, what="byte")
        return {"bits_per_byte": max(-math.fsum(predictions) / math.log(2) / sum(sizes), 0.0)}
