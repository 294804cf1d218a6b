"""The pipelines of transformers give from a folder of ours what they give from GPT-2's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel, pipeline

from arbprob_hf import ArbProbForCausalLM
from tests.networks import far

PROMPTS = ["who sees whom", "a much longer sentence about masks", "m"]


def made(task: str, folder: Path, **options: Any) -> Any:
    return pipeline(task, model=str(folder), trust_remote_code=True, **options)


def test_text_generation_writes_what_gpt2_writes(folders: dict[str, Path]) -> None:
    way = dict(max_new_tokens=8, do_sample=False, batch_size=3)
    texts = {
        name: [row[0]["generated_text"] for row in made("text-generation", folders[name])(PROMPTS, **way)]
        for name in ("ours", "theirs", "windowed")
    }
    assert texts["ours"] == texts["theirs"]
    assert texts["windowed"] != texts["theirs"]
    assert all(text.startswith(prompt) for text, prompt in zip(texts["ours"], PROMPTS, strict=True))


@pytest.mark.parametrize("name", ["ours", "windowed"])
def test_features_are_the_networks_last_states(
    folders: dict[str, Path], theirs: GPT2LMHeadModel, windowed: ArbProbForCausalLM, name: str
) -> None:
    network = {"ours": theirs, "windowed": windowed}[name].transformer
    extract = made("feature-extraction", folders[name])
    assert type(extract.model).__name__ == "ArbProbModel"
    for prompt in PROMPTS:
        with torch.no_grad():
            states = network(torch.tensor([extract.tokenizer(prompt).input_ids])).last_hidden_state
        assert far(extract(prompt, return_tensors=True), states) < 1e-5
