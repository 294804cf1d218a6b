"""The model card: README.md beside the weights, with metadata the Hub accepts and every figure filled in."""

import importlib.resources
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..atomic_write import replacing
from ..model.checkpoint_code import describe_bundle

# the line of the card's code that says where the model is
_SOURCE = re.compile(r'^source, revision = "[^"\n]*", "(?P<revision>[^"\n]*)".*$', flags=re.MULTILINE)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# how the line of the template begins that says so
_NO_LICENSE = "- No licence was given for its weights"
_TAGS = ("arbprob", "gpt2", "attention-mask", "custom_code")


class ModeRow(NamedTuple):
    """A line of the table of evaluation modes; empty texts where a layout cannot answer the mode."""

    mode: str
    loss: str
    perplexity: str
    bits_per_byte: str


@dataclass(frozen=True)
class CardFacts:
    """What a card says.

    `figures` and `training` are the rows of its two tables, name to text; `results` the numbers of its
    model-index, by metric type. `dataset` is a Hub name, None for any other text, and `dataset_commit` the state of
    it that was read, None where it is not known. The figures are of `split`, and `held_out` says its share
    where it is not all of it. `repository` is the model's Hub name, None while it has none.
    `base_model` is set when the run started from published weights.
    `task`, `layout` and `given_sees` are those of a model trained on questions, with `modes`, the rows of its
    evaluation, `gains`, the look-ahead gains, and `mode_results`, the numbers of each mode by metric type.
    `picture` is that of the mask, a path from the card's folder; `footprint` a sentence on hardware and energy.
    `license` is None where none was given. `patterns`: the functions of custom patterns in the mask. `shows_answers`:
    whether the mask let tokens see what they had to predict; then no figure is a result of the model-index.
    """

    title: str
    mask: str
    parameters: str
    shape: str
    n_positions: int
    source: str
    start: str
    prompt: str
    license: str | None = None
    figures: Mapping[str, str] = field(default_factory=dict)
    results: Mapping[str, float] = field(default_factory=dict)
    training: Mapping[str, str] = field(default_factory=dict)
    samples: str = ""
    dataset: str | None = None
    dataset_commit: str | None = None
    split: str = "validation"
    held_out: float | None = None
    repository: str | None = None
    base_model: str | None = None
    language: str | None = None
    task: str | None = None
    layout: str | None = None
    given_sees: str | None = None
    modes: Sequence[ModeRow] = ()
    gains: Mapping[str, str] = field(default_factory=dict)
    mode_results: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    picture: str | None = None
    footprint: str = ""
    patterns: str = ""
    shows_answers: bool = False

    @property
    def prompt_literal(self) -> str:
        """The prompt as it stands in a code block: a literal of Python, too."""
        return json.dumps(self.prompt, ensure_ascii=False)

    @property
    def fenced_samples(self) -> str:
        """The samples as they stand in a fence, which a fence inside them would end."""
        return self.samples.replace("```", "'''")

    @property
    def measured_on(self) -> str:
        """The text that the figures are of."""
        if self.held_out is None:
            return f"the split {self.split}"
        return f"documents held out of the split {self.split} ({100 * self.held_out:g}% of them)"


def write_card(folder: Path, facts: CardFacts) -> Path:
    """Write `folder`/README.md, about the model and the code in it; the file appears whole or not at all."""
    code = describe_bundle(folder)
    card = ModelCard.from_template(_metadata(facts), template_str=template(), facts=facts, code=code)
    path = folder / "README.md"
    with replacing(path) as beside:
        beside.write_text(str(card), encoding="utf-8")
    return path


def template() -> str:
    """The card's Jinja template: model_card.md of the checkout, packaged with this one."""
    return (importlib.resources.files("arbprob_hf") / "model_card.md").read_text(encoding="utf-8")


def addressed(card: str, *, repository: str, revision: str) -> str:
    """The text `card` with code that loads `repository` at `revision`; a card without that line stays as it is."""
    return _SOURCE.sub(f'source, revision = "{repository}", "{revision}"', card)


def set_license(folder: Path, license: str) -> None:
    """Give the card in `folder` this license, as the Hub spells it; that none was given is no longer said.

    Raises ValueError where there is no card whose metadata can be read.
    """
    path = folder / "README.md"
    if not path.is_file():
        raise ValueError(
            f"license: {folder} holds no {path.name} to name it in; name the output folder of a finished run"
        )
    card = ModelCard(path.read_text(encoding="utf-8"))
    card.data["license"] = license
    lines = str(card).splitlines(keepends=True)
    with replacing(path) as beside:
        beside.write_text("".join(line for line in lines if not line.startswith(_NO_LICENSE)), encoding="utf-8")


def pinned(card: str) -> str | None:
    """The commit, 40 hexadecimal digits, at which the code of `card` loads its model; None where it names none."""
    found = _SOURCE.search(card)
    return found["revision"] if found and _COMMIT.fullmatch(found["revision"]) else None


def _metadata(facts: CardFacts) -> ModelCardData:
    # `results` are those of one of the modes, where there are some
    named = facts.mode_results
    own = {} if facts.shows_answers else facts.results
    results = [] if named else [_result(facts, metric, value) for metric, value in own.items()]
    for mode, values in named.items():
        results += [_result(facts, metric, value, name=f"{metric}, {mode}") for metric, value in values.items()]
    return ModelCardData(
        language=facts.language,
        license=facts.license,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=list(_TAGS),
        datasets=[facts.dataset] if facts.dataset else None,
        base_model=facts.base_model,
        metrics=list(own) or None,
        model_name=facts.title,
        eval_results=results or None,
    )


def _result(facts: CardFacts, metric: str, value: float, *, name: str | None = None) -> EvalResult:
    # the Hub wants a dataset for every result; text from elsewhere is described, not linked
    return EvalResult(
        task_type="text-generation",
        task_name="Text generation",
        dataset_type=facts.dataset or "local-text",
        dataset_name=facts.dataset or facts.source,
        dataset_split=facts.split,
        dataset_revision=facts.dataset_commit,
        metric_type=metric,
        metric_value=round(value, 6),
        metric_name=name,
    )
