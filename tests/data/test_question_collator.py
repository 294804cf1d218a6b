"""The collator of questions: what a draw depends on, where labels stand, and packed documents among themselves."""

import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
from arbprob_hf.data.block_questions import BlockQuestion, draw_question, left_to_right, question_rng
from arbprob_hf.data.collators import QuestionCollator, number_blocks
from arbprob_hf.data.tasks import Task
from arbprob_hf.model.questions.conditional import Conditional
from arbprob_hf.model.questions.layouts import LAYOUTS

TASK = Task.parse("uniform(given=0..0.6, asked=0.3..1)")
LENGTH = 12


def block(index: int, *lengths: int) -> dict[str, object]:
    """A block of documents of these lengths, tokens from 1 with 0 in front of each."""
    lengths = lengths or (LENGTH,)
    random = np.random.default_rng(index)
    tokens = [np.concatenate([[0], random.integers(1, 20, length - 1)]) for length in lengths]
    ids = np.repeat(np.arange(len(lengths)), lengths)
    return {"input_ids": np.concatenate(tokens), "document_ids": ids, "index": index}


def collator(layout: str = "two_stream", **options: object) -> QuestionCollator:
    chosen = {"given_sees": "all", "names_target": layout == "sigma", "task": TASK, "seed": 3, **options}
    return QuestionCollator(layout, **chosen)


def network(layout: str = "two_stream") -> ArbProbForCausalLM:
    config = ArbProbConfig.preset(
        "nano",
        vocab_size=20,
        n_embd=16,
        n_layer=2,
        n_positions=16,
        layout=layout,
        given_sees="all",
        mask_token=True,
        target_positions=layout == "sigma",
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(1)
    model = ArbProbForCausalLM(config).double().eval()
    # the vectors that start at zero would hide a slot that is told nothing, or the wrong target
    for name, weight in model.named_parameters():
        if "wme" in name or "wtpe" in name:
            torch.nn.init.normal_(weight, std=0.5)
    return model


def with_question(row: dict[str, object], question: BlockQuestion) -> dict[str, object]:
    return {**row, **question.columns()}


def drawn(row: dict[str, object]) -> BlockQuestion:
    return draw_question(TASK, np.asarray(row["document_ids"]), question_rng(3, 0, int(str(row["index"]))))


def row_of(batch: dict[str, torch.Tensor], row: int) -> dict[str, list[int]]:
    # without what fills it up, which sees nothing
    kept = batch["limits"][row] >= 0
    return {name: values[row][kept].tolist() for name, values in batch.items() if name != "labels"}


@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - {"causal"}))
def test_a_batch_is_integer_tensors_of_one_shape(layout: str) -> None:
    batch = collator(layout)([block(0), block(1, 5, 7)])
    assert all(isinstance(values, torch.Tensor) for values in batch.values())
    assert {values.dtype for values in batch.values()} == {torch.int64}
    assert len({values.shape for values in batch.values()}) == 1
    assert set(batch) - {"target_position_ids"} == {
        "input_ids",
        "position_ids",
        "ranks",
        "limits",
        "labels",
        "document_ids",
    }


def test_the_question_of_a_block_does_not_depend_on_the_batch() -> None:
    collate = collator()
    together = collate([block(4), block(9), block(2)])
    for place, index in enumerate((4, 9, 2)):
        assert row_of(together, place) == row_of(collate([block(index)]), 0)


@pytest.mark.parametrize(
    ("options", "epoch", "index"), [({"seed": 4}, 0, 5), ({}, 1, 5), ({}, 0, 6)], ids=["seed", "epoch", "index"]
)
def test_the_question_depends_on_seed_epoch_and_index(options: dict[str, int], epoch: int, index: int) -> None:
    first = collator()([block(5)])
    other = collator(**options)
    other.set_epoch(epoch)
    second = other([{**block(5), "index": index}])
    assert row_of(first, 0) != row_of(second, 0)


def test_an_epoch_told_to_the_collator_reaches_its_copies() -> None:
    # as a loader that spawns its workers makes them
    from multiprocessing.reduction import ForkingPickler

    original = collator()
    copy = pickle.loads(bytes(ForkingPickler.dumps(original)))
    original.set_epoch(7)
    assert row_of(copy([block(5)]), 0) == row_of(original([block(5)]), 0)
    original.set_epoch(0)
    assert row_of(copy([block(5)]), 0) == row_of(collator()([block(5)]), 0)


def test_a_question_that_comes_with_a_block_is_used_as_it_is() -> None:
    row = block(0)
    asked = with_question(row, left_to_right(row["document_ids"]))
    batch = collator()([asked])
    assert batch["input_ids"].tolist() == [row["input_ids"].tolist()]
    assert batch["labels"][0, 1:].tolist() == row["input_ids"][1:].tolist()


@pytest.mark.parametrize("layout", ["two_stream", "prefix", "sigma"])
def test_the_loss_is_that_of_log_prob(layout: str) -> None:
    rows, model = [block(1), block(2), block(3)], network(layout)
    questions = [drawn(row) for row in rows]
    batch = collator(layout)(rows)
    with torch.no_grad():
        loss = model(**batch).loss
    given, target, step = (
        torch.from_numpy(np.stack([getattr(q, name) for q in questions])) for name in ("given", "target", "step")
    )
    ids = torch.from_numpy(np.stack([row["input_ids"] for row in rows]))
    with torch.no_grad():
        nats = model.log_prob(ids, Conditional(given=given, target=target, order=step))
    count = int(target.sum())
    assert int((batch["labels"][:, 1:] != -100).sum()) == count
    assert float(loss) == pytest.approx(-float(nats.sum()) / count, abs=1e-9)


def test_masked_is_trained_on_the_marginals() -> None:
    row, model = block(1), network("masked")
    question = drawn(row)
    with torch.no_grad():
        loss = model(**collator("masked")([row])).loss
    ids, target = torch.from_numpy(row["input_ids"])[None], torch.from_numpy(question.target)[None]
    with torch.no_grad():
        table = model.marginals(ids, Conditional(given=torch.from_numpy(question.given)[None], target=target))
    nats = table.gather(2, ids[..., None]).squeeze(2)[target]
    assert float(loss) == pytest.approx(-float(nats.mean()), abs=1e-9)


def test_only_scored_targets_have_labels() -> None:
    row = block(0)
    scored = np.arange(LENGTH) >= 8
    batch = collator()([with_question(row, left_to_right(row["document_ids"], scored))])
    assert (batch["labels"][0] != -100).nonzero().flatten().tolist() == [8, 9, 10, 11]


@pytest.mark.parametrize("layout", ["two_stream", "prefix", "sigma"])
def test_packed_documents_answer_as_separate_ones(layout: str) -> None:
    packed, model = block(1, 5, 7), network(layout)
    question = drawn(packed)
    joint = collator(layout)([with_question(packed, question)])
    singles = []
    for part in (slice(0, 5), slice(5, 12)):
        alone = BlockQuestion(*(getattr(question, name)[part] for name in ("given", "target", "step", "scored")))
        row = {"input_ids": packed["input_ids"][part], "document_ids": np.zeros(part.stop - part.start, np.int64)}
        singles.append(collator(layout)([with_question(row, alone)]))
    with torch.no_grad():
        together = scored_nats(model, joint)
        apart = torch.cat([scored_nats(model, batch) for batch in singles])
    # the slots of documents may be interleaved: by position and token, which together are no repetition here
    assert len(together) == int(question.target.sum())
    assert torch.allclose(together.sort().values, apart.sort().values, atol=1e-12, rtol=0)


def scored_nats(model: ArbProbForCausalLM, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    labels = batch.pop("labels")[:, 1:]
    logits = model(**batch).logits[:, :-1].log_softmax(2)
    return logits.gather(2, labels.clamp(min=0)[..., None]).squeeze(2)[labels != -100]


@pytest.mark.parametrize("column", ["input_ids", "document_ids", "index"])
def test_a_missing_column_is_named(column: str) -> None:
    features = [{name: value for name, value in block(0).items() if name != column}]
    with pytest.raises(ValueError, match=f"no column '{column}'"):
        collator()(features)


def test_a_question_that_is_not_whole_is_an_error() -> None:
    asked = with_question(block(0), drawn(block(0)))
    del asked["step"]
    with pytest.raises(ValueError, match="no column 'step'"):
        collator()([asked])


def test_without_a_task_a_block_must_bring_its_question() -> None:
    with pytest.raises(ValueError, match="no column 'given'"):
        collator(task=None)([block(0)])


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one block"):
        collator()([])


def test_blocks_keep_their_numbers_when_they_are_shuffled() -> None:
    rows = number_blocks(Dataset.from_dict({"input_ids": [[n, n] for n in range(9)]}))
    assert [int(row["index"]) for row in rows] == list(range(9))
    turned = rows.shuffle(seed=1)
    assert [int(row["index"]) for row in turned] == [int(row["input_ids"][0]) for row in turned]
