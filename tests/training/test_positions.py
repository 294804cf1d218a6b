"""Whatever the number of processes before and after a stop, an epoch has every block once."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, RandomSampler
from transformers import TrainerCallback

from arbprob_hf.training.positions import BlockCounter, EpochOrder, Position, epoch_order
from tests.micro_runs import Crash, token_rows


class Process:
    """One of several processes that train on the numbers below `rows`, two batches to a step."""

    def __init__(self, rows: int, batch: int, process: tuple[int, int], begin: Position | None, *, drop: bool) -> None:
        self.counter = BlockCounter(begin)
        data = list(range(rows))
        order = EpochOrder(RandomSampler(data), self.counter, seed=3)
        loader = DataLoader(data, batch_size=batch, sampler=order, drop_last=drop)
        rank, size = process
        self.loader = prepare_data_loader(loader, num_processes=size, process_index=rank, put_on_device=False)
        assert epoch_order(self.loader) is order
        self.counter.measure(self.loader, order, accumulation=2, drop_last=drop)
        order.together = self.counter.batch if size > 1 and not drop else 1

    def train(self, epoch: int, steps: int) -> list[int]:
        """The blocks of so many steps of an epoch."""
        self.loader.set_epoch(epoch)
        self.counter.start_epoch(epoch)
        batches = list(itertools.islice(self.loader, 2 * steps))
        self.counter.add(len(batches))
        return [int(number) for batch in batches for number in batch]


@given(
    rows=st.integers(1, 60),
    parts=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=4),
    drop=st.booleans(),
)
def test_an_epoch_has_every_block_once_on_changing_processes_and_batches(
    rows: int, parts: list[tuple[int, int, int]], drop: bool
) -> None:
    position, had = None, Counter[int]()
    # the last one trains the epoch to its end
    for number, (size, batch, steps) in enumerate(parts):
        processes = [Process(rows, batch, (rank, size), position, drop=drop) for rank in range(size)]
        length = steps if number < len(parts) - 1 else rows
        for process in processes:
            if process.counter.is_resumed and process.counter.begun()[0] == 1:
                # the batches are too large now for what is left
                process.counter.start_epoch(1)
            else:
                had.update(process.train(0, length))
        positions = {process.counter.position(0) for process in processes}
        assert len(positions) == 1, "all processes agree on where they are"
        position = positions.pop()
        if position.epoch:
            break
    assert position is not None
    assert (position.epoch, position.blocks) == (1, 0)
    together = size * batch
    if drop:
        # what is left over fills no batch of all processes
        assert set(had.values()) <= {1}
        assert rows - len(had) < together
    else:
        assert set(had) == set(range(rows))
        assert sum(had.values()) - rows < (together if size > 1 else 1)


def test_a_run_whose_batches_one_process_reads_for_all_resumes_bit_for_bit(
    tmp_path: Path, micro_trainer, weights_of
) -> None:
    options = {"accelerator_config": {"dispatch_batches": True}}
    whole = micro_trainer(tmp_path / "a", **options)
    whole.train()
    last = whole.state.global_step
    again = micro_trainer(tmp_path / "a", **options)
    shutil.rmtree(tmp_path / "a" / f"checkpoint-{last}")
    again.train(resume_from_checkpoint=True)
    assert weights_of(again) == weights_of(whole)


def test_skipping_no_data_is_told_to_have_no_effect_where_nothing_is_resumed(
    tmp_path: Path, micro_trainer, caplog: pytest.LogCaptureFixture
) -> None:
    micro_trainer(tmp_path, ignore_data_skip=True, max_steps=1).train()
    assert "ignore_data_skip: has no effect: nothing is resumed" in caplog.text


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int, size: int) -> list[int]:
        parts = [Process(24, 2, (rank, size), None, drop=False) for rank in range(size)]
        for part in parts:
            epoch_order(part.loader).seed = seed
        batches = [part.train(epoch, 12) for part in parts]
        turns = zip(*(zip(own[::2], own[1::2], strict=True) for own in batches), strict=True)
        return [number for turn in turns for pair in turn for number in pair]

    torch.manual_seed(8)
    alone = order(0, 0, 1)
    torch.manual_seed(9)
    assert alone == order(0, 0, 2) == order(0, 0, 3)
    assert len({tuple(order(seed, epoch, 1)) for seed in (0, 1) for epoch in (0, 7)}) == 4


class Noting(TrainerCallback):
    """Notes the rows of each micro-batch with the epoch, and how far the run says that it is."""

    def __init__(self) -> None:
        self.rows = {tuple(row["input_ids"].tolist()): number for number, row in enumerate(token_rows(24))}
        self.had: list[tuple[int, int]] = []
        self.epochs: list[float] = []

    def collate(self, features: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {name: torch.stack([feature[name] for feature in features]) for name in ("input_ids", "labels")}

    def note(self, model: Any, arguments: Any, given: dict[str, Any]) -> None:
        if model.training:
            self.had += [(self.epoch, self.rows[tuple(row.tolist())]) for row in given["input_ids"]]

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.epoch = int(state.epoch or 0)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        model.register_forward_pre_hook(self.note, with_kwargs=True)

    def on_step_end(self, args, state, control, **kwargs):
        self.epochs.append(state.epoch)


@pytest.mark.parametrize(
    "change", [{"max_steps": 11}, {"max_steps": -1, "num_train_epochs": 2.5}], ids=["steps", "epochs"]
)
def test_a_run_that_goes_on_with_another_batch_has_each_block_of_its_epochs_once(
    tmp_path: Path, micro_trainer, change: dict[str, Any]
) -> None:
    first, second = Noting(), Noting()
    options = {**change, "save_steps": 1, "lr_scheduler_type": "constant"}
    # 16 of 24 blocks, four a step
    with pytest.raises(ConnectionError):
        micro_trainer(tmp_path, **options, callbacks=[first, Crash(4)]).train()
    # six a step from here: eight blocks, 24, and so on
    other = micro_trainer(tmp_path, **options, per_device_train_batch_size=3, callbacks=[second])
    other.train(resume_from_checkpoint=True)
    had = Counter(first.had[:16] + second.had)
    assert set(had.values()) == {1}
    assert set(itertools.product((0, 1), range(24))) <= set(had)
    # two steps of epoch 0, four of epoch 1, and the rest or the half of epoch 2
    assert other.state.global_step == (11 if change["max_steps"] > 0 else 4 + 2 + 4 + 2)
    assert second.epochs == sorted(second.epochs)
    assert second.epochs[1] == 1.0
    assert 0.66 < second.epochs[0] < 1


def test_workers_may_change_and_the_bits_stay(tmp_path: Path, micro_trainer, weights_of, whole_run) -> None:
    with pytest.raises(ConnectionError):
        micro_trainer(tmp_path, callbacks=[Crash(4)], dataloader_num_workers=2).train()
    trainer = micro_trainer(tmp_path, dataloader_num_workers=1)
    trainer.train(resume_from_checkpoint=True)
    assert weights_of(trainer) == whole_run[1]


def test_a_checkpoint_without_a_position_goes_on_where_its_batches_say(
    tmp_path: Path, micro_trainer, weights_of, whole_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Position, "save", lambda self, checkpoint: None)
        with pytest.raises(ConnectionError):
            micro_trainer(tmp_path, callbacks=[Crash(9)]).train()
    trainer = micro_trainer(tmp_path)
    trainer.train(resume_from_checkpoint=True)
    assert weights_of(trainer) == whole_run[1]
