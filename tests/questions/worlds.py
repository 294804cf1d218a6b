"""Micro networks of every layout with random weights, and every question about a short sequence."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, Conditional

CHAINED = ("two_stream", "prefix", "sigma")
ANY_ORDER = ("two_stream", "sigma")
SEES = ("all", "earlier")


def network(layout: str = "two_stream", *, vocabulary: int = 4, dtype: Any = torch.float64, **fields: Any) -> Any:
    """A network whose every weight is random, the [MASK] vector and target positions too, in evaluation mode."""
    sizes: dict[str, Any] = dict(n_layer=2, n_head=2, n_embd=16, n_positions=16, initializer_range=0.5)
    special = dict(vocab_size=vocabulary, bos_token_id=0, eos_token_id=0, mask_token=True, given_sees="all")
    fields = {**sizes, **special, "layout": layout, "target_positions": layout == "sigma", **fields}
    model = ArbProbForCausalLM(ArbProbConfig(**fields)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype)


def subset_pairs(length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Every given and target set of a sequence whose position 0 is given and that has a target."""
    for roles in itertools.product("gt.", repeat=length - 1):
        given = [0, *(i + 1 for i, role in enumerate(roles) if role == "g")]
        target = [i + 1 for i, role in enumerate(roles) if role == "t"]
        if target:
            yield given, target


def fillings(ids: Tensor, target: list[int], vocabulary: int) -> Tensor:
    """One row of ids, (1, T), with every combination of tokens at the targets."""
    combinations = torch.tensor(list(itertools.product(range(vocabulary), repeat=len(target))))
    rows = ids.repeat(len(combinations), 1)
    rows[:, target] = combinations
    return rows


def orders(layout: str, target: list[int]) -> list[Any]:
    """Temporal order, and backwards and, of more than two targets, shuffled where the layout can."""
    if layout not in ANY_ORDER:
        return ["temporal"]
    backwards, shuffled = target[::-1], target[1::2] + target[::2]
    return ["temporal", backwards] if shuffled == backwards else ["temporal", backwards, shuffled]


def questions(layout: str, length: int) -> Iterator[Conditional]:
    """Every question about a short sequence in the orders of `orders`, under both ways that given tokens see."""
    for sees in SEES:
        for given, target in subset_pairs(length):
            for order in orders(layout, target):
                yield Conditional(given, target, order, sees)
