"""The tensors of a mask go to the device of the input."""

import torch

from arbprob_hf import causal, documents, heads, order, padding, tree, window
from arbprob_hf.model.masks.mask import Dense, Shifted, on_device

# a device that every machine has, beside the one tensors are made on
ELSEWHERE = torch.device("meta")
IDS = torch.arange(6) // 3
HERE = IDS.device


def test_a_mask_without_tensors_elsewhere_is_itself() -> None:
    for mask in (causal() & window(3), documents(IDS) | ~padding(IDS > 0), heads(causal(), order(IDS))):
        assert on_device(mask, HERE) is mask


def test_every_tensor_goes_and_the_given_mask_stays() -> None:
    parents = torch.tensor([-1, 0, 0, 1, 3, 2])
    given = (causal() & documents(IDS)) | ~heads(order(IDS, IDS), tree(parents) & Shifted(window(2), IDS[None]))
    moved = on_device(given, ELSEWHERE)
    assert str(moved) == str(given)
    assert moved.left.right.ids.device == ELSEWHERE
    first, second = moved.right.operand.masks
    assert {first.rank.device, first.limit.device} == {ELSEWHERE}
    assert {second.left.enter.device, second.left.exit.device, second.right.starts.device} == {ELSEWHERE}
    assert given.left.right.ids.device == HERE
    assert given.right.operand.masks[0].rank.device == HERE


def test_a_mask_that_heads_share_stays_one() -> None:
    shared = Dense(torch.ones(4, 4, dtype=torch.bool))
    first, second, third = on_device(heads(shared, causal(), shared), ELSEWHERE).operands()
    assert first is third
    assert first.tensor.device == ELSEWHERE
    assert second == causal()
