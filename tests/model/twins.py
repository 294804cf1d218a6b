"""Our network and transformers' GPT-2 at micro size with the same random weights."""

from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
from tests.networks import STILL, randomised

SIZES: dict[str, Any] = dict(
    vocab_size=101,
    n_positions=32,
    n_embd=24,
    n_layer=3,
    n_head=3,
    **STILL,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)


def ours_alone(*, dtype: torch.dtype = torch.float64, backend: str = "sdpa", **fields: Any) -> ArbProbForCausalLM:
    """Our network in evaluation mode, every weight random, biases and layer norms too."""
    model = randomised(ArbProbForCausalLM(ArbProbConfig(**{**SIZES, **fields}))).eval()
    model.set_attn_implementation(backend)
    return model.to(dtype)


def twins(
    *, dtype: torch.dtype = torch.float64, backend: str = "sdpa", mask: str | list[str] = "causal", **fields: Any
) -> tuple[ArbProbForCausalLM, GPT2LMHeadModel]:
    """Ours and theirs, the weights of theirs copied into ours, both in evaluation mode."""
    theirs = randomised(GPT2LMHeadModel(GPT2Config(**{**SIZES, **fields}))).eval()
    theirs.set_attn_implementation(backend)
    ours = ours_alone(dtype=dtype, backend=backend, mask=mask, **fields)
    ours.load_state_dict(theirs.to(dtype).state_dict())
    return ours, theirs


def tokens(batch: int = 2, length: int = 12, *, seed: int = 0, vocabulary: int = SIZES["vocab_size"]) -> Tensor:
    """Random token ids (batch, length), none of them a special one."""
    return torch.randint(3, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))


def left_padded(lengths: tuple[int, ...], width: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Token ids (batch, width) and their 0-1 mask, row b holding `lengths[b]` real tokens at the end."""
    ids = tokens(len(lengths), width, seed=seed)
    keep = torch.tensor([[0] * (width - length) + [1] * length for length in lengths])
    return ids * keep, keep
