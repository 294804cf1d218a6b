"""The micro networks of these tests: ours and transformers' GPT-2 with the same weights, over a vocabulary of bytes."""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
from tests.networks import STILL, randomised

# the end of a text and the 256 bytes
END = "<|endoftext|>"
SIZES: dict[str, Any] = dict(
    vocab_size=257,
    n_positions=64,
    n_embd=24,
    n_layer=2,
    n_head=3,
    **STILL,
    bos_token_id=0,
    eos_token_id=0,
    pad_token_id=0,
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2's kind of tokenizer without a single merge: a token is a byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {END: 0, **{letter: number for number, letter in enumerate(letters, start=1)}}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=END, eos_token=END, pad_token=END)


def gpt2(**fields: Any) -> GPT2LMHeadModel:
    """transformers' own, every weight random, in evaluation mode."""
    return randomised(GPT2LMHeadModel(GPT2Config(**{**SIZES, **fields}))).eval()


def ours_from(theirs: GPT2LMHeadModel, **fields: Any) -> ArbProbForCausalLM:
    """Ours with their weights, in evaluation mode."""
    sizes = {name: getattr(theirs.config, name) for name in SIZES}
    ours = ArbProbForCausalLM(ArbProbConfig(**{**sizes, **fields})).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours


def tokens(batch: int = 2, length: int = 12, *, seed: int = 0) -> Tensor:
    """Random token ids (batch, length), none of them the end of a text."""
    return torch.randint(1, SIZES["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))
