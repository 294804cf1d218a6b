"""Causal within runs: what is told of a mask is true of every pair, and told where documents are packed."""

import pytest
import torch
from torch import Tensor

from arbprob_hf import HIDDEN, Mask, causal, documents, full, order, padding, prefix, sinks, window
from arbprob_hf.model.masks.arguments import MaskArguments, resolve_mask
from arbprob_hf.model.masks.runs import causal_runs
from arbprob_hf.model.masks.tiles import Sizes
from tests.attention.test_agreement import Draw

T = 12
IDS = torch.tensor([[4, 4, 4, 9, 9, 9, 9, 9, 7, 7, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 3, 3]])
TOKENS = torch.arange(T)
# rises within each document, whatever the documents before it
RISING = torch.tensor([[5, 6, 9, 0, 1, 2, 3, 30, 8, 9, 2, 3]])
STARTS = torch.where(IDS.diff(dim=1, prepend=IDS[:, :1] - 1) != 0, TOKENS, 0).cummax(1).values


def written(is_start: Tensor) -> Tensor:
    """Causal within runs, written out: bool (B, 1, T, T)."""
    run = is_start.cumsum(1)
    return (run[:, :, None] == run[:, None, :]).tril()[:, None]


TOLD: dict[str, Mask] = {
    "causal & documents": causal() & documents(IDS),
    "documents & causal": documents(IDS) & (full() & causal()),
    "documents twice": documents(IDS[:1]) & causal() & documents(IDS[1:]),
    "a window that reaches over every document": causal() & window(8) & documents(IDS),
    "nothing padded": causal() & padding(torch.ones(2, T)) & documents(IDS),
    "rising ranks": order(RISING) & documents(IDS[:1]),
    "ranks strictly before": order(RISING, RISING - 1) & documents(IDS[:1]),
    "a hidden last slot": order(RISING.masked_fill(RISING == 30, HIDDEN), RISING) & documents(IDS[:1]),
    "counted from each start": causal().shifted(STARTS) & documents(IDS),
    "a window counted from each start": causal().shifted(STARTS) & window(8).shifted(STARTS) & documents(IDS),
}
NOT_TOLD: dict[str, Mask] = {
    "no documents": causal(),
    "documents both ways": documents(IDS),
    "an id that comes again": causal() & documents(torch.tensor([0] * 4 + [1] * 4 + [0] * 4)),
    "a window too narrow": causal() & window(7) & documents(IDS),
    "padding": causal() & padding(TOKENS != 4) & documents(IDS),
    "falling ranks": order(-RISING) & documents(IDS),
    "equal ranks": order(RISING // 2) & documents(IDS[:1]),
    "a limit of later ones": order(RISING, RISING + 1) & documents(IDS[:1]),
    "a hidden slot that is not the last": order(RISING.masked_fill(RISING == 1, HIDDEN), RISING) & documents(IDS[:1]),
    "counted backwards": causal().shifted(2 * TOKENS[None]) & documents(IDS),
    "a window counted twice as fast": causal() & window(8).shifted(-TOKENS[None]) & documents(IDS),
    "an alternative": (causal() & documents(IDS)) | sinks(1),
    "a part of another kind": causal() & prefix(5) & documents(IDS),
    "a tensor": Mask.of(torch.ones(T, T).tril()) & documents(IDS),
}


@pytest.mark.parametrize("mask", TOLD.values(), ids=TOLD)
def test_packed_documents_in_order_are_told_and_told_right(mask: Mask) -> None:
    is_start = causal_runs(mask, T)
    assert is_start is not None
    assert written(is_start).expand(2, 1, T, T).equal(mask.dense(T, batch=2))


@pytest.mark.parametrize("mask", NOT_TOLD.values(), ids=NOT_TOLD)
def test_masks_that_are_not_causal_within_runs_are_told_from_those_that_are(mask: Mask) -> None:
    assert causal_runs(mask, T) is None


def test_runs_found_in_random_masks_are_what_the_masks_say() -> None:
    told = 0
    for seed in range(300):
        draw = Draw(seed)
        size = Sizes(draw.batch, draw.heads, draw.length, draw.length, 0, torch.device("cpu"))
        ids = draw.integers(0, 3).sort(1).values.expand(draw.batch, -1)
        keep = draw.integers(0, 5).expand(draw.batch, -1) > 0 if seed % 3 == 0 else None
        leaf = draw.leaf() if seed % 2 else causal()
        for mask in (
            resolve_mask(leaf, MaskArguments(document_ids=ids, attention_mask=keep), size),
            leaf & documents(ids) & draw.order(),
        ):
            is_start = causal_runs(mask, draw.length)
            if is_start is not None:
                told += 1
                expected = mask.dense(draw.length, batch=draw.batch)
                assert written(is_start).expand_as(expected[:, :1]).equal(expected.all(1, keepdim=True)), f"seed {seed}"
                assert expected.any(1).equal(expected.all(1))
    assert told > 100
