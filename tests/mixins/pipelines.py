"""What a pipeline must do with a model: transformers' mixin builds the pipelines, and these judge them."""

from typing import Any

import pytest
import torch
from transformers import pipeline

TEXTS = ["The cat sat on the mat.", "Dogs bark", "A longer text, which says more than the others and ends here."]


class Pipeline:
    """A pipeline of one task: how it is made, and what it must answer."""

    task = ""
    options: dict[str, Any] = {}

    def get_test_pipeline(self, model: Any, tokenizer: Any, *, dtype: str = "float32", **processors: Any) -> Any:
        """As the mixin calls it: the pipeline, and inputs for it."""
        return pipeline(self.task, model=model, tokenizer=tokenizer, dtype=dtype, **self.options), list(TEXTS)

    def run_pipeline_test(self, pipe: Any, examples: list[str]) -> None:
        """One text, and several, which answer alike."""
        alone = [pipe(text) for text in examples]
        for text, answer in zip(examples, alone, strict=True):
            self.check(pipe, text, answer)
        for answer, together in zip(alone, pipe(list(examples)), strict=True):
            assert _shape(answer) == _shape(together if _same_depth(answer, together) else [together])

    def check(self, pipe: Any, text: str, answer: Any) -> None:
        raise NotImplementedError


class FeatureExtraction(Pipeline):
    """The last hidden state of every token."""

    task = "feature-extraction"

    def check(self, pipe: Any, text: str, answer: Any) -> None:
        tokens = len(pipe.tokenizer(text)["input_ids"])
        assert torch.tensor(answer).shape == (1, tokens, pipe.model.config.hidden_size)


class TextClassification(Pipeline):
    """A label of the configuration, and all of them when asked for."""

    task = "text-classification"

    def check(self, pipe: Any, text: str, answer: Any) -> None:
        labels = set(pipe.model.config.id2label.values())
        assert [set(found) for found in answer] == [{"label", "score"}]
        assert answer[0]["label"] in labels
        scores = pipe(text, top_k=None)
        assert {found["label"] for found in scores} == labels
        assert sum(found["score"] for found in scores) == pytest.approx(1, abs=1e-3)


class TokenClassification(Pipeline):
    """A label for each token, at its place in the text."""

    task = "token-classification"

    def check(self, pipe: Any, text: str, answer: Any) -> None:
        assert len(answer) == len(pipe.tokenizer(text)["input_ids"])
        assert {found["entity"] for found in answer} <= set(pipe.model.config.id2label.values())
        assert "".join(text[found["start"] : found["end"]] for found in answer).replace(" ", "") == text.replace(
            " ", ""
        )


class ZeroShot(Pipeline):
    """Scores of labels that the caller names, best first."""

    task = "zero-shot-classification"
    options = {"candidate_labels": ["animals", "politics"]}

    def check(self, pipe: Any, text: str, answer: Any) -> None:
        assert (answer["sequence"], set(answer["labels"])) == (text, {"animals", "politics"})
        assert answer["scores"] == sorted(answer["scores"], reverse=True)
        assert sum(answer["scores"]) == pytest.approx(1, abs=1e-3)


class TextGeneration(Pipeline):
    """A continuation, with or without the prompt, as text or tokens."""

    task = "text-generation"
    options = {"max_new_tokens": 5, "do_sample": False}

    def check(self, pipe: Any, text: str, answer: Any) -> None:
        assert answer[0]["generated_text"].startswith(text)
        rest = pipe(text, return_full_text=False)[0]["generated_text"]
        assert answer[0]["generated_text"] == text + rest
        tokens = pipe(text, return_tensors=True)[0]["generated_token_ids"]
        assert len(tokens) <= len(pipe.tokenizer(text)["input_ids"]) + 5
        assert len(pipe(text, do_sample=True, num_return_sequences=2)) == 2
        with pytest.raises(ValueError, match="mutually exclusive"):
            pipe(text, return_full_text=True, return_text=True)


def _same_depth(a: Any, b: Any) -> bool:
    return isinstance(a, list) == isinstance(b, list)


def _shape(answer: Any) -> Any:
    # what kind of thing it is, not which numbers stand in it
    if isinstance(answer, dict):
        return {name: type(value).__name__ for name, value in answer.items()}
    if isinstance(answer, list):
        return [_shape(part) for part in answer]
    return type(answer).__name__
