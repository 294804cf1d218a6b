"""Micro runs to compare: untrained networks of a few hundred weights, and questions about random blocks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from transformers import set_seed

from arbprob_hf.data.eval_sets import draw_modes, save_modes
from arbprob_hf.data.tasks import Task
from arbprob_hf.model.configuration_arbprob import ArbProbConfig
from arbprob_hf.model.modeling_arbprob import ArbProbForCausalLM

VOCABULARY, LENGTH = 30, 14
# tokens of the documents of each block; one of a single token asks nothing
DOCUMENTS = ((14,), (5, 9), (1, 6, 7), (10, 4), (14,))


def blocks(*, tokens: int = VOCABULARY) -> Dataset:
    random = np.random.default_rng(3)
    return Dataset.from_dict(
        {
            "input_ids": random.integers(tokens, size=(len(DOCUMENTS), LENGTH)),
            "document_ids": [np.repeat(np.arange(len(lengths)), lengths) for lengths in DOCUMENTS],
        }
    )


@pytest.fixture(scope="session")
def save_questions() -> Callable[..., Path]:
    """A function (folder, *, task, tokens) that saves the five sets about the micro blocks into `folder`."""

    def save(folder: Path, *, task: str = "0.5 * uniform(given=0..0.4) + 0.5 * spans(3)", **given: int) -> Path:
        save_modes(draw_modes(blocks(**given), Task.parse(task), seed=7), folder)
        return folder

    return save


@pytest.fixture(scope="session")
def save_run() -> Callable[..., Path]:
    """A function (folder, *, seed, **fields of the config) that saves a network into `folder`."""

    def save(folder: Path, *, seed: int = 0, **fields: object) -> Path:
        set_seed(seed)
        sizes = {"vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": 8, "n_layer": 2, "n_head": 2}
        options = {"bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.6, "mask_token": True}
        config = ArbProbConfig(**{**sizes, **options, "target_positions": fields.get("layout") == "sigma", **fields})
        ArbProbForCausalLM(config).save_pretrained(folder)
        return folder

    return save
