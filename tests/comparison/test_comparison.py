"""Comparisons: the figures against the model's own log_prob, document by document, and their standard errors."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Tokenizer

from arbprob_hf.comparison.compare import compare, mean_and_error
from arbprob_hf.comparison.score import UnanswerableError, block_nats
from arbprob_hf.data.collators import BlockCollator
from arbprob_hf.data.eval_sets import GAINS, MODES, load_modes
from arbprob_hf.model.modeling_arbprob import ArbProbForCausalLM
from arbprob_hf.model.questions.conditional import Conditional
from arbprob_hf.model_folder import load_network

Save = Callable[..., Path]
# 25 letters, four tokens of several bytes, and the end of a text
TOKENS = [*"abcdefghijklmnopqrstuvwxy", "ab", "abc", "\u0120a", "\u00c3\u00a9", "<|endoftext|>"]


def save_tokenizer(folder: Path, tokens: list[str] = TOKENS) -> None:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    GPT2Tokenizer(vocab=vocabulary, merges=[("a", "b"), ("ab", "c")]).save_pretrained(folder)


def nats_of_documents(model: ArbProbForCausalLM, row: dict[str, np.ndarray]) -> float:
    """-log P of the scored tokens of a block, each document asked by itself."""
    total = 0.0
    for document in np.unique(row["document_ids"]):
        here = row["document_ids"] == document
        target = torch.from_numpy(row["target"][here])
        if target.any():
            ask = Conditional(torch.from_numpy(row["given"][here]), target, torch.from_numpy(row["step"][here]))
            nats = -model.log_prob(torch.from_numpy(row["input_ids"][here]).long()[None], ask)[0]
            total += float(nats[torch.from_numpy(row["scored"][here])].double().sum())
    return total


def expected_nats(folder: Path, questions: Path, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Sums of -log P and numbers of scored tokens of each block, by `log_prob`."""
    model, rows = load_network(folder), load_modes(questions)[mode]
    with torch.no_grad():
        sums = np.array([nats_of_documents(model, row) for row in rows])
    return sums, np.array([row["scored"].sum() for row in rows])


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory, save_questions: Save) -> Path:
    return save_questions(tmp_path_factory.mktemp("asked") / "evaluation")


@pytest.mark.parametrize(
    ("layout", "given_sees"),
    [("two_stream", "all"), ("two_stream", "earlier"), ("prefix", "all"), ("sigma", "earlier")],
)
def test_figures_are_those_of_log_prob(
    tmp_path: Path, save_run: Save, questions: Path, layout: str, given_sees: str
) -> None:
    run = save_run(tmp_path / "run", layout=layout, given_sees=given_sees)
    found = compare([run], questions=questions, batch_size=2)
    for mode in MODES:
        sums, counts = expected_nats(run, questions, mode)
        figure = found.of("run", mode)
        assert figure.tokens == counts.sum()
        assert figure.nats_per_token == pytest.approx(sums.sum() / counts.sum(), rel=1e-5)
        assert figure.perplexity == pytest.approx(math.exp(sums.sum() / counts.sum()), rel=1e-4)


def test_orders_are_those_of_the_questions(tmp_path: Path, save_run: Save, save_questions: Save) -> None:
    run = save_run(tmp_path / "run", given_sees="all")
    asked = save_questions(tmp_path / "asked", task="uniform(given=0.3, random=1)")
    sums, counts = expected_nats(run, asked, "task")
    value = compare([run], questions=asked).of("run", "task").nats_per_token
    assert value == pytest.approx(sums.sum() / counts.sum(), rel=1e-5)
    temporal = load_modes(asked)["task"].map(lambda row: {"step": np.cumsum(row["target"]) * row["target"]})
    again = block_nats(load_network(run), "task", temporal[:], batch_size=1)
    assert abs(again.sum() - sums.sum()) > 0.1


def test_the_mean_is_over_tokens_and_not_over_batches(tmp_path: Path, save_run: Save, questions: Path) -> None:
    run = save_run(tmp_path / "run")
    values = [compare([run], questions=questions, batch_size=size).of("run", "task") for size in (1, 2, 5)]
    sums, counts = expected_nats(run, questions, "task")
    assert abs((sums / counts).mean() - sums.sum() / counts.sum()) > 1e-3
    for value in values:
        assert value.nats_per_token == pytest.approx(sums.sum() / counts.sum(), rel=1e-5)


def test_mean_and_error_of_two_blocks_by_hand() -> None:
    # 10 nats for 4 tokens; the blocks are 1.5 below and above what the mean says
    assert mean_and_error(np.array([1.0, 9.0]), np.array([1, 3])) == (2.5, 0.75)


def test_the_error_is_that_of_a_mean_where_blocks_are_alike() -> None:
    sums = np.random.default_rng(0).normal(size=50)
    assert mean_and_error(sums, np.full(50, 4))[1] == pytest.approx(sums.std(ddof=1) / math.sqrt(50) / 4)


def test_the_error_says_how_far_means_of_other_blocks_lie() -> None:
    random = np.random.default_rng(0)
    counts = random.integers(1, 30, size=(2000, 40))
    sums = counts * random.normal(3, 1, size=counts.shape)
    found = [mean_and_error(*row) for row in zip(sums, counts, strict=True)]
    means, errors = np.array(found).T
    assert errors.mean() == pytest.approx(means.std(), rel=0.05)


def test_one_block_has_no_error() -> None:
    assert mean_and_error(np.array([4.0]), np.array([2])) == (2.0, None)


def test_differences_are_paired_by_block(tmp_path: Path, save_run: Save, questions: Path) -> None:
    runs = [save_run(tmp_path / "a"), save_run(tmp_path / "b", seed=1, layout="prefix")]
    found = compare(runs, questions=questions)
    (first, counts), (second, _) = (expected_nats(run, questions, "infilling") for run in runs)
    figure = found.of("b", "infilling")
    mean, error = mean_and_error(second - first, counts)
    assert figure.difference == pytest.approx(mean, rel=1e-4)
    assert figure.difference_standard_error == pytest.approx(error, rel=1e-4)
    assert found.of("a", "infilling").difference is None


def test_the_same_weights_differ_by_nothing_and_surely(tmp_path: Path, save_run: Save, questions: Path) -> None:
    found = compare([save_run(tmp_path / "a"), save_run(tmp_path / "b")], questions=questions)
    for name in (*MODES, *GAINS):
        figure = found.of("b", name)
        assert (figure.difference, figure.difference_standard_error) == (0.0, 0.0)
        assert figure.standard_error > 0


def test_gains_are_differences_of_modes_paired_by_block(tmp_path: Path, save_run: Save, questions: Path) -> None:
    run = save_run(tmp_path / "run")
    found = compare([run], questions=questions)
    for gain, (plain, informed) in GAINS.items():
        (more, counts), (less, _) = (expected_nats(run, questions, mode) for mode in (plain, informed))
        mean, error = mean_and_error(more - less, counts)
        figure = found.of("run", gain)
        assert figure.nats_per_token == pytest.approx(mean, rel=1e-4)
        assert figure.standard_error == pytest.approx(error, rel=1e-4)
        assert (figure.perplexity, figure.bits_per_byte) == (None, None)


def test_causal_answers_what_it_can_and_says_why_not_the_rest(tmp_path: Path, save_run: Save, questions: Path) -> None:
    run = save_run(tmp_path / "run", layout="causal")
    found = compare([run], questions=questions)
    for mode in ("left_to_right", "infilling_left_to_right", "task_left_to_right"):
        sums, counts = expected_nats(run, questions, mode)
        assert found.of("run", mode).nats_per_token == pytest.approx(sums.sum() / counts.sum(), rel=1e-5)
    for name in ("infilling", "task", *GAINS):
        figure = found.of("run", name)
        assert figure.nats_per_token is None
        assert figure.missing_because == (
            "causal only continues a text, and this question has unseen tokens or later given ones"
        )


def test_a_first_run_without_a_figure_leaves_the_difference_out(
    tmp_path: Path, save_run: Save, questions: Path
) -> None:
    found = compare([save_run(tmp_path / "a", layout="causal"), save_run(tmp_path / "b")], questions=questions)
    figure = found.of("b", "infilling")
    assert (figure.difference, figure.missing_because) == (None, "")
    assert figure.nats_per_token > 0
    assert found.of("b", "left_to_right").difference is not None


def test_prefix_cannot_ask_in_random_orders(tmp_path: Path, save_run: Save, save_questions: Save) -> None:
    asked = save_questions(tmp_path / "asked", task="uniform(given=0.3, random=1)")
    found = compare([save_run(tmp_path / "run", layout="prefix")], questions=asked)
    assert found.of("run", "task").missing_because == "the layout prefix asks from left to right only"
    assert found.of("run", "infilling").nats_per_token > 0


def test_masked_has_no_joint_probability(tmp_path: Path, save_run: Save, questions: Path) -> None:
    found = compare([save_run(tmp_path / "run", layout="masked")], questions=questions)
    assert {figure.missing_because for figure in found.figures} == {
        "the layout masked has no joint probability of several targets"
    }


def test_a_mask_of_its_own_holds_for_reading_from_left_to_right(
    tmp_path: Path, save_run: Save, questions: Path
) -> None:
    run = save_run(tmp_path / "run", mask="causal & window(2)")
    found = compare([run], questions=questions)
    model, rows = ArbProbForCausalLM.from_pretrained(run).eval(), load_modes(questions)["left_to_right"]
    batch = BlockCollator()([rows[index] for index in range(len(rows))])
    begins = batch["position_ids"] == 0
    with torch.no_grad():
        loss = model(**{**batch, "labels": batch["labels"].masked_fill(begins, -100)}).loss
    assert found.of("run", "left_to_right").nats_per_token == pytest.approx(float(loss), rel=1e-5)
    assert found.of("run", "task").missing_because.startswith("its own mask, causal & window(2), says how")


def test_a_mask_that_shows_answers_has_no_figures(tmp_path: Path, save_run: Save, questions: Path) -> None:
    run = save_run(tmp_path / "run", mask=["causal", "causal | prefix(3)"])
    with pytest.raises(UnanswerableError, match="its own mask, causal, then .* lets tokens see later ones"):
        block_nats(load_network(run), "left_to_right", load_modes(questions)["left_to_right"][:], batch_size=2)


def test_bits_per_byte_count_the_bytes_of_scored_tokens(tmp_path: Path, save_run: Save, questions: Path) -> None:
    runs = [save_run(tmp_path / "a"), save_run(tmp_path / "b")]
    save_tokenizer(runs[0])
    found = compare(runs, questions=questions)
    lengths = np.array([*[1] * 25, 2, 3, 2, 2, 0])
    for mode, rows in load_modes(questions).items():
        in_bytes = sum(lengths[row["input_ids"]][row["scored"]].sum() for row in rows)
        figure = found.of("a", mode)
        expected = figure.nats_per_token * figure.tokens / math.log(2) / in_bytes
        assert figure.bits_per_byte == pytest.approx(expected)
        assert found.of("b", mode).bits_per_byte is None


def test_questions_of_the_first_run_that_has_some(tmp_path: Path, save_run: Save, save_questions: Save) -> None:
    runs = [save_run(tmp_path / name, seed=seed) for seed, name in enumerate("abc")]
    save_questions(runs[1] / "evaluation")
    save_questions(runs[2] / "evaluation", task="spans(2)")
    found = compare(runs)
    assert found.source == str(runs[1] / "evaluation")
    sums, counts = expected_nats(runs[0], runs[1] / "evaluation", "task")
    assert found.of("a", "task").nats_per_token == pytest.approx(sums.sum() / counts.sum(), rel=1e-5)


def test_a_checkpoint_has_the_questions_and_the_tokenizer_of_its_run(
    tmp_path: Path, save_run: Save, save_questions: Save
) -> None:
    save_questions(tmp_path / "run" / "evaluation")
    checkpoint = save_run(tmp_path / "run" / "checkpoint-4")
    save_tokenizer(tmp_path / "run")
    found = compare([checkpoint])
    assert list(found.runs) == ["checkpoint-4"]
    assert found.of("checkpoint-4", "task").bits_per_byte > 0


def test_runs_of_one_name_are_reported_apart(tmp_path: Path, save_run: Save, questions: Path) -> None:
    runs = [save_run(tmp_path / parent / "run") for parent in "xy"]
    assert list(compare(runs, questions=questions).runs) == [str(run) for run in runs]
