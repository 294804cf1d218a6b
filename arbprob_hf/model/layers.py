"""Embeddings and projections of the network, made without numbers where they wait for those of a file."""

import math

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


def projection(n_out: int, n_in: int) -> Conv1D:
    """A Conv1D, (B, T, n_in) -> (B, T, n_out), as GPT-2 has."""
    if not _waits_for_weights():
        return Conv1D(n_out, n_in)
    # it has no argument that says so
    made = Conv1D.__new__(Conv1D)
    nn.Module.__init__(made)
    made.nf, made.nx = n_out, n_in
    made.weight, made.bias = nn.Parameter(torch.empty(n_in, n_out)), nn.Parameter(torch.empty(n_out))
    return made


def residual_projection(n_out: int, n_in: int, n_layer: int) -> Conv1D:
    """A Conv1D whose output is added to the residual stream; its weights start smaller.

    Each block adds to the stream twice (Radford et al. 2019, section 2.3). Noted on the projection itself: transformers
    calls `_init_weights` of code outside its own package only on modules that own parameters.
    """
    made = projection(n_out, n_in)
    made.initial_scale = 1 / math.sqrt(2 * n_layer)  # type: ignore[assignment]
    return made


def embedding(count: int, size: int) -> nn.Embedding:
    """A table of `count` vectors of `size` numbers."""
    if not _waits_for_weights():
        return nn.Embedding(count, size)
    return nn.Embedding.from_pretrained(torch.empty(count, size), freeze=False)


class ZeroEmbedding(nn.Embedding):
    """Vectors that are added, zero at first: weights that never had them go on as they were."""


def _waits_for_weights() -> bool:
    # transformers builds a network that it loads on the meta device, where torch takes a fifth of the time of loading a
    # small one to draw numbers that are none
    return torch.get_default_device().type == "meta"
