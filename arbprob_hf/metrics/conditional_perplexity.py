"""How many equally likely tokens a network hesitates between at each target, given what it was shown."""

# evaluate takes the first metric class that it finds here, so its own must not be imported by name
import math
from typing import Any

import datasets
import evaluate

from .validation import ValidatedInputs, refuse_impossible

DESCRIPTION = """exp of the mean nats per target token of P(targets | given), over all questions together.

From left to right with nothing but the start given, it is the usual perplexity; with any other given or order it is
that of a conditional (Jelinek et al. 1977, "Perplexity: a measure of the difficulty of speech recognition tasks")."""
INPUTS = """
Args:
    predictions: one number a question, its joint log-probability in nats: `model.log_prob(ids, ask).sum(-1)`.
    references: one integer a question, the number of its target tokens.
Returns:
    conditional_perplexity: float, at least 1; infinite where a target was held to be impossible, or beyond the largest
        float.
    nats_per_token: float, its logarithm.
Raises:
    ValueError: no question, a log-probability above 0 or nan, a question without targets.
Examples:
    >>> metric.compute(predictions=[math.log(1 / 8), math.log(1 / 2)], references=[3, 1])
    {'conditional_perplexity': 2.0, 'nats_per_token': 0.693...}
"""


class ConditionalPerplexity(ValidatedInputs, evaluate.Metric):
    """Perplexity of targets given anything: exp of nats per target token."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description=DESCRIPTION, citation="", inputs_description=INPUTS, features=features)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        refuse_impossible(predictions, references, what="target token")
        mean = max(-math.fsum(predictions) / sum(references), 0.0)
        return {"conditional_perplexity": _exp(mean), "nats_per_token": mean}


def _exp(nats: float) -> float:
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
