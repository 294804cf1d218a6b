"""What a benchmark compares has the same weights and says the same, or it is not timed."""

import dataclasses
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def train_step(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    for name in ("measure", "memory", "peers", "train_step"):
        # a script's import of another is by its bare name
        monkeypatch.delitem(sys.modules, name, raising=False)
    return __import__("train_step")


def test_both_networks_of_a_row_begin_with_the_same_weights(train_step: ModuleType) -> None:
    networks = train_step.Networks("nano", "cpu", mask_token=True, vocab_size=50257)
    networks.step("hf", train_step.causal(1, 8), "fp32")()
    networks.restart()
    stock, ours = networks.models["hf"].state_dict(), networks.models["ours"].state_dict()
    assert stock.keys() < ours.keys()
    assert [name for name in stock if not stock[name].equal(ours[name])] == []


def test_what_is_timed_has_the_same_loss_and_another_mask_is_refused(train_step: ModuleType) -> None:
    networks = train_step.Networks("nano", "cpu", mask_token=True)
    for make in (train_step.causal, train_step.any_order, train_step.documents, train_step.two_stream):
        batch = make(2, 64)
        networks.check(make.__name__, batch)
        slots = batch.ours["input_ids"].shape[1]
        changed = torch.eye(slots, dtype=torch.bool).expand(2, -1, -1)
        if batch.allowed is not None:
            changed = batch.allowed.clone()
            changed[:, slots // 2 :, 1::4] ^= True
        with pytest.raises(RuntimeError, match="not the same work"):
            networks.check(make.__name__, dataclasses.replace(batch, allowed=changed))
