"""How a malformed input is written down: what is wrong, the argument at fault, words that the message must hold."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM

B, T, H, D = 2, 6, 2, 16  # of the model that `oracles.micro` makes


class Case(NamedTuple):
    """`call` receives the model and valid ids (B, T); the message names `argument` and matches `words`."""

    name: str
    argument: str
    words: str
    call: Callable[[ArbProbForCausalLM, torch.Tensor], object]


CASES: list[Case] = []


def forward(argument: str, words: str, **values: object) -> None:
    """One case a value: the name says what is wrong with it, the value goes in as `argument`."""
    for name, value in values.items():
        label = f"{argument}: {name.replace('_', ' ')}"
        CASES.append(Case(label, argument, words, lambda model, ids, v=value: model(ids, **{argument: v})))


def together(argument: str, words: str, name: str, **values: object) -> None:
    """One case: arguments that do not go together."""
    CASES.append(Case(f"{argument}: {name}", argument, words, lambda model, ids: model(**{"input_ids": ids, **values})))


def generate(argument: str, words: str, **values: object) -> None:
    """As `forward`, through generate."""
    for name, value in values.items():
        label = f"generate {argument}: {name.replace('_', ' ')}"
        CASES.append(
            Case(label, argument, words, lambda m, ids, v=value: m.generate(ids, max_new_tokens=1, **{argument: v}))
        )


def config(argument: str, words: str, **values: object) -> None:
    """A configuration that cannot be."""
    for name, value in values.items():
        label = f"config {argument}: {name.replace('_', ' ')}"
        CASES.append(Case(label, argument, words, lambda _, __, v=value: ArbProbConfig(**{argument: v})))
