"""How much of what stood in a blank comes back when it is filled: BLEU and ROUGE, by sacrebleu and rouge_score."""

# evaluate takes the first metric class that it finds here, so its own must not be imported by name
import importlib
from typing import Any

import evaluate

from .validation import ValidatedInputs, text_features

DESCRIPTION = """BLEU of all infilled texts together, by sacrebleu (Post 2018), and the mean F of ROUGE-1, ROUGE-2 and
ROUGE-L, by rouge_score (Lin 2004). Both count words and know no synonyms: read them beside InfillMatch."""
INPUTS = """
Args:
    predictions: a text a blank: what was filled in.
    references: a text a blank, or a list of texts, as many for each blank; ROUGE takes the best of them.
    use_stemmer: whether ROUGE compares stems of English words; False by default.
Returns:
    bleu: float from 0 to 100, sacrebleu's corpus BLEU with its defaults (tokenizer 13a, exponential smoothing, case
        kept). A text of fewer than four words has no 4-grams: short blanks are better judged by ROUGE.
    rouge1, rouge2, rougeL: float from 0 to 1, means over blanks. rouge_score compares Latin letters and digits, in
        lower case, and drops everything else.
Raises:
    ValueError: no text, blanks with different numbers of references, libraries that are not installed.
Examples:
    >>> metric.compute(predictions=["the cat sat on the mat"], references=["the cat sat on the mat"])
    {'bleu': 100.0..., 'rouge1': 1.0, 'rouge2': 1.0, 'rougeL': 1.0}
"""
ROUGE = ("rouge1", "rouge2", "rougeL")


class InfillOverlap(ValidatedInputs, evaluate.Metric):
    """BLEU and ROUGE of what blanks are filled with."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation="", inputs_description=INPUTS, features=text_features()
        )

    def _compute(self, predictions: Any, references: Any, *, use_stemmer: bool = False) -> dict[str, float]:
        right = [[one] if isinstance(one, str) else list(one) for one in references]
        counts = sorted({len(one) for one in right})
        if len(counts) > 1 or counts[0] == 0:
            shown = " and ".join(map(str, counts))
            raise ValueError(f"references: expected the same number of texts for each blank, at least 1, got {shown}")
        bleu = _library("sacrebleu").corpus_bleu(list(predictions), list(zip(*right, strict=True)))
        scorer = _library("rouge_score.rouge_scorer").RougeScorer(list(ROUGE), use_stemmer=use_stemmer)
        scores = [scorer.score_multi(these, filled) for these, filled in zip(right, predictions, strict=True)]
        means = {name: sum(one[name].fmeasure for one in scores) / len(scores) for name in ROUGE}
        return {"bleu": float(bleu.score), **means}


def _library(name: str) -> Any:
    # only this metric needs them
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"InfillOverlap: {error.name} is not installed; pip install sacrebleu rouge-score") from error
