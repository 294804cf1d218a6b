"""How many blanks are filled with exactly what stood there, or with another text that counts as right."""

# evaluate takes the first metric class that it finds here, so its own must not be imported by name
from typing import Any

import evaluate

from .validation import ValidatedInputs, text_features

DESCRIPTION = """The share of infilled texts that equal one of their references: exact match, as in Rajpurkar et al.
2016, "SQuAD", without its normalisation."""
INPUTS = """
Args:
    predictions: a text a blank: what was filled in.
    references: a text a blank, or a list of texts of which any counts as right.
    strip: compare without white space around the texts; False by default, as the space before a word is a part of it.
    ignore_case: compare without case; False by default.
Returns:
    infill_match: float from 0 to 1.
Raises:
    ValueError: no text, a blank with an empty list of references.
Examples:
    >>> metric.compute(predictions=[" sat", " mat"], references=[[" sat", " lay"], [" hat"]])
    {'infill_match': 0.5}
"""


class InfillMatch(ValidatedInputs, evaluate.Metric):
    """The share of blanks that are filled with a text that counts as right."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation="", inputs_description=INPUTS, features=text_features()
        )

    def _compute(
        self, predictions: Any, references: Any, *, strip: bool = False, ignore_case: bool = False
    ) -> dict[str, float]:
        def compared(text: str) -> str:
            text = text.strip() if strip else text
            return text.casefold() if ignore_case else text

        matched = 0
        for index, (filled, right) in enumerate(zip(predictions, references, strict=True)):
            accepted = [right] if isinstance(right, str) else right
            if len(accepted) == 0:
                raise ValueError(f"references: expected at least one text a blank, got none for blank {index}")
            matched += compared(filled) in {compared(one) for one in accepted}
        return {"infill_match": matched / len(predictions)}
