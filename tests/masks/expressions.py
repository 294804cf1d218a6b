"""Every pattern with its rule in plain python, and random expressions over them, for the laws of masks."""

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

from arbprob_hf import (
    Mask,
    block_diffusion,
    blocks,
    causal,
    dilated,
    documents,
    full,
    heads,
    order,
    padding,
    prefix,
    sinks,
    strided,
    tree,
    window,
)

T = 7
BATCH, HEADS = 2, 3
Rule = Callable[[int, int, int, int], bool]
Pair = tuple[Mask, Rule]

IDS = [[0, 0, 1, 1, 1, 2, 2], [5, 5, 5, 5, 3, 3, 5]]
KEEP = [[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1, 0]]
RANK = [[0, 3, 1, 2, 6, 5, 4], [2, 2, 2, 0, 0, 1, 1]]
LIMIT = [[0, 1, 1, 5, 6, 5, 4], [1, 2, 0, 0, 2, 1, 2]]
PARENTS = [[-1, 0, 0, 1, 3, 2, 2], [-1, -1, 0, 1, 3, 3, -1]]
TABLE = (torch.rand(BATCH, HEADS, T, T, generator=torch.Generator().manual_seed(1)) < 0.5).tolist()


def is_ancestor(parents: list[int], old: int, young: int) -> bool:
    """Whether `old` is `young` itself or above it in the tree."""
    return old == young or (young >= 0 and is_ancestor(parents, old, parents[young]))


def knows(length: int, size: int, q: int, k: int) -> bool:
    """Block diffusion as a table of cases: which copy the query and the key are of."""
    own, other = q % length // size, k % length // size
    match (q < length, k < length):
        case (True, True):
            return own == other
        case (True, False):
            return other < own
        case (False, False):
            return other <= own
        case _:
            return False


def share_a_block(size: int, q: int, k: int) -> bool:
    return any({q, k} <= set(range(start, start + size)) for start in range(0, T, size))


def per_head(b: int, h: int, q: int, k: int) -> bool:
    return [k <= q, abs(q - k) < 2, IDS[b][q] == IDS[b][k]][h]


# a mask and the rule it stands for
LEAVES: dict[str, Pair] = {
    "causal": (causal(), lambda b, h, q, k: k <= q),
    "full": (full(), lambda b, h, q, k: True),
    "window": (window(3), lambda b, h, q, k: abs(q - k) < 3),
    "dilated": (dilated(2, 3), lambda b, h, q, k: q - k in (-3, 0, 3)),
    "strided": (strided(2), lambda b, h, q, k: (q + k) % 2 == 0),
    "prefix": (prefix(2), lambda b, h, q, k: k < 2),
    "sinks": (sinks(3), lambda b, h, q, k: k in (0, 1, 2) and k <= q),
    "blocks": (blocks(3), lambda b, h, q, k: share_a_block(3, q, k)),
    "block_diffusion": (block_diffusion(4, 2), lambda b, h, q, k: knows(4, 2, q, k)),
    "heads": (heads(causal(), window(2), documents(torch.tensor(IDS))), per_head),
    "documents": (documents(torch.tensor(IDS)), lambda b, h, q, k: IDS[b][q] == IDS[b][k]),
    "padding": (padding(torch.tensor(KEEP)), lambda b, h, q, k: KEEP[b][k] == 1),
    "order": (order(torch.tensor(RANK)), lambda b, h, q, k: q == k or RANK[b][k] <= RANK[b][q]),
    "limited order": (
        order(torch.tensor(RANK), torch.tensor(LIMIT)),
        lambda b, h, q, k: q == k or RANK[b][k] <= LIMIT[b][q],
    ),
    "tree": (tree(torch.tensor(PARENTS)), lambda b, h, q, k: is_ancestor(PARENTS[b], k, q)),
    "tensor": (Mask.of(torch.tensor(TABLE)), lambda b, h, q, k: TABLE[b][h][q][k]),
}  # fmt: skip
# those with a text form; heads among them has one per head of the other tests
WRITABLE: dict[str, Pair] = {
    **{name: LEAVES[name] for name in ("causal", "full", "window", "dilated", "strided", "prefix", "sinks", "blocks")},
    "block_diffusion": LEAVES["block_diffusion"],
    "heads": (
        heads(causal(), ~window(2) | prefix(1), full()),
        lambda b, h, q, k: [k <= q, abs(q - k) >= 2 or k < 1, True][h],
    ),
}


def both(pair: tuple[Pair, Pair]) -> Pair:
    (left, first), (right, second) = pair
    return left & right, lambda *at: first(*at) and second(*at)


def either(pair: tuple[Pair, Pair]) -> Pair:
    (left, first), (right, second) = pair
    return left | right, lambda *at: first(*at) or second(*at)


def neither(one: Pair) -> Pair:
    mask, rule = one
    return ~mask, lambda *at: not rule(*at)


def one_each(three: tuple[Pair, Pair, Pair]) -> Pair:
    masks, rules = zip(*three, strict=True)
    return heads(*masks), lambda b, h, q, k: rules[h](b, h, q, k)


def expressions(leaves: dict[str, Pair]) -> st.SearchStrategy[Pair]:
    """Random expressions over `leaves`, heads of expressions among them, each with its rule in plain python."""
    return st.recursive(
        st.sampled_from(list(leaves.values())),
        lambda inner: (
            st.tuples(inner, inner).map(both)
            | st.tuples(inner, inner).map(either)
            | inner.map(neither)
            | st.tuples(inner, inner, inner).map(one_each)
        ),
        max_leaves=8,
    )


ANY = expressions(LEAVES)
MASKS = ANY.map(lambda pair: pair[0])


def dense(mask: Mask) -> Tensor:
    """The mask over BATCH rows, HEADS heads and T tokens."""
    return mask.dense(T, batch=BATCH, heads=HEADS)


def brute_force(rule: Rule) -> Tensor:
    """A rule at every point, one by one: bool (BATCH, HEADS, T, T)."""
    return torch.tensor(
        [[[[bool(rule(b, h, q, k)) for k in range(T)] for q in range(T)] for h in range(HEADS)] for b in range(BATCH)]
    )
