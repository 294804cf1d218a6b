"""The tokenizer that the data tests share."""

import pytest
from transformers import PreTrainedTokenizerFast

from arbprob_hf.data import load_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer("gpt2")
