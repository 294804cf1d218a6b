"""Checks of what a metric is given, shared by all: empty batches, None, and numbers that are not log-probabilities."""

from collections.abc import Iterable
from typing import Any

import datasets

# a sum of float32 log-probabilities may come out so far above 0
ROUNDING = 1e-3


class ValidatedInputs:
    """A mixin before evaluate.Metric: an empty batch, or one that holds None, is an error of one line."""

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """As evaluate's, which fails on an empty batch as it infers the form of the inputs from it."""
        if predictions is not None and len(predictions) == 0:
            raise ValueError("predictions: expected at least one, got none")
        for name, given in (("predictions", predictions), ("references", references)):
            # evaluate takes None for any type
            rows = enumerate([] if given is None else given)
            missing = [row for row, one in rows if one is None or (isinstance(one, list | tuple) and None in one)]
            if missing:
                raise ValueError(f"{name}: expected a value for each, got None at {missing[0]}; leave such out")
        super().add_batch(predictions=predictions, references=references, **kwargs)  # type: ignore[misc]


def text_features() -> list[datasets.Features]:
    """What a metric of texts takes: a text for each, with a list of texts or one text to compare with."""
    text = datasets.Value("string")
    return [datasets.Features({"predictions": text, "references": kind}) for kind in (datasets.Sequence(text), text)]


def refuse_impossible(nats: Iterable[float], counts: Iterable[int], *, what: str) -> None:
    """Raise for a log-probability above 0 or nan, and for a question with less than one of `what`."""
    for one, count in zip(nats, counts, strict=True):
        # nan compares as False
        if not one <= ROUNDING:
            raise ValueError(f"predictions: expected log-probabilities, at most 0, got {one}")
        if count < 1:
            raise ValueError(f"references: expected at least one {what} a question, got {count}")
