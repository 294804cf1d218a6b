"""Excess over the truth, gaps, and the command that prints them: right on networks whose answers are known."""

import csv
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from arbprob_hf import Conditional
from arbprob_hf.cli import app
from arbprob_hf.oracles.consistency import chain_gap, gap_of, marginalisation_gap, order_gap
from arbprob_hf.oracles.registry import load_source
from arbprob_hf.oracles.score import excess, judge
from arbprob_hf.oracles.table import COLUMNS, oracle_rows
from arbprob_hf.oracles.train import Recipe, draw, train_on


class Truth:
    """Answers as a source does, plus `bias` nats for every target; the start stands in front of the source's tokens."""

    def __init__(self, source: Any, bias: float = 0.0, turned: float = 0.0, layout: str = "two_stream") -> None:
        self.source, self.bias, self.turned = source, bias, turned
        self.config = SimpleNamespace(layout=layout)

    def log_prob(self, ids: Tensor, ask: Conditional) -> Tensor:
        question = ask.resolve(*ids.shape)
        parts = (part[:, 1:] for part in (ids, question.given, question.target, question.step))
        nats = self.source.chain_log_prob(*parts)
        # a bias that depends on the order: the first target's
        first = question.step[:, 1:] == 1
        place = torch.arange(ids.shape[1] - 1) / ids.shape[1]
        nats = nats - self.bias * question.target[:, 1:] - self.turned * first * place
        return torch.cat([torch.zeros(len(ids), 1), nats], dim=1)

    def marginals(self, ids: Tensor, ask: Conditional) -> Tensor:
        nats = self.source.marginals(ids[:, 1:], ask.resolve(*ids.shape).given[:, 1:]) - self.bias
        # the start, and its token
        return torch.nn.functional.pad(nats, (0, 1, 1, 0), value=-math.inf)


@pytest.fixture(scope="module")
def source() -> Any:
    return load_source("markov", length=6)


def batch(source: Any, rows: int = 300, *, random: float = 0.0) -> Any:
    return draw(source, rows, torch.Generator().manual_seed(0), random=random)


def test_questions_have_a_start_that_is_given_and_at_least_one_target(source: Any) -> None:
    drawn = batch(source)
    assert bool(drawn.given[:, 0].all())
    assert not bool((drawn.given & drawn.target).any())
    assert int(drawn.target.sum(1).min()) >= 1
    assert torch.equal(drawn.tokens[:, 0], torch.full((300,), source.vocabulary))


def test_questions_leave_tokens_unseen_in_some_rows_and_none_in_others(source: Any) -> None:
    drawn = batch(source)
    unseen = (~(drawn.given | drawn.target)).any(1).float().mean().item()
    assert 0.2 < unseen < 0.6


def test_the_share_asked_in_random_order_is_as_told(source: Any) -> None:
    drawn = batch(source, 2000, random=0.3)
    is_temporal = (drawn.order.diff(dim=1) > 0).all(1).float().mean().item()
    assert is_temporal == pytest.approx(0.7, abs=0.04)


def test_the_truth_has_no_excess(source: Any) -> None:
    found = excess(Truth(source), source, batch(source))
    assert found.mean == pytest.approx(0, abs=1e-12)
    assert found.error == pytest.approx(0, abs=1e-12)


def test_the_excess_is_per_target_token(source: Any) -> None:
    found = excess(Truth(source, bias=0.25), source, batch(source))
    assert found.mean == pytest.approx(0.25, abs=1e-6)


def test_a_mean_weights_rows_by_their_targets() -> None:
    found = gap_of(torch.tensor([3.0, 0.0]), torch.tensor([3, 1]))
    assert found.mean == pytest.approx(0.75)
    # residuals 3 - 0.75 * 3 and 0 - 0.75
    assert found.error == pytest.approx(math.sqrt((0.75**2 + 0.75**2) * 2) / 4)


def test_the_truth_agrees_with_itself_in_every_order(source: Any) -> None:
    drawn = batch(source, 100)
    assert order_gap(Truth(source), drawn.tokens, drawn.given, drawn.target).mean == pytest.approx(0, abs=1e-9)
    assert order_gap(Truth(source, turned=1.0), drawn.tokens, drawn.given, drawn.target).mean > 0.01


def split(drawn: Any) -> tuple[Tensor, Tensor]:
    halves = torch.rand(drawn.target.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    return drawn.target & halves, drawn.target & ~halves


def test_the_truth_obeys_the_chain_rule(source: Any) -> None:
    drawn = batch(source, 100)
    first, second = split(drawn)
    rows = first.any(1) & second.any(1)
    parts = [part[rows] for part in (drawn.tokens, drawn.given, first, second)]
    assert chain_gap(Truth(source), *parts).mean == pytest.approx(0, abs=1e-9)
    assert chain_gap(Truth(source, turned=1.0), *parts).mean > 0.01


def test_the_truth_sums_over_what_is_unseen(source: Any) -> None:
    drawn = batch(source, 100)
    given, target = drawn.given, drawn.target
    fair = marginalisation_gap(Truth(source), drawn.tokens, given, target, vocabulary=source.vocabulary)
    unfair = marginalisation_gap(Truth(source, bias=0.5), drawn.tokens, given, target, vocabulary=source.vocabulary)
    assert fair.mean == pytest.approx(0, abs=1e-9)
    assert unfair.mean > 0.05


def test_a_gap_that_cannot_be_measured_is_refused(source: Any) -> None:
    drawn = batch(source, 4)
    with pytest.raises(ValueError, match="orders: expected an integer of at least 2, got 1"):
        order_gap(Truth(source), drawn.tokens, drawn.given, drawn.target, orders=1)
    with pytest.raises(ValueError, match="expected a position that is neither in some row"):
        marginalisation_gap(Truth(source), drawn.tokens, drawn.given, ~drawn.given, vocabulary=2)


@pytest.mark.parametrize("layout", ["two_stream", "prefix", "sigma"])
def test_training_brings_a_network_nearer_to_the_truth(source: Any, layout: str) -> None:
    drawn = batch(source, 500)
    recipe = Recipe(layout=layout, steps=1, width=32, heads=2)
    before = excess(train_on(source, recipe), source, drawn)
    after = excess(train_on(source, Recipe(**{**recipe.__dict__, "steps": 120})), source, drawn)
    assert after.mean < before.mean / 2


def test_steps_in_place_of_minutes_make_training_repeatable(source: Any) -> None:
    one, two = (train_on(source, Recipe(steps=5, width=16, heads=2)) for _ in range(2))
    assert torch.equal(one.transformer.wte.weight, two.transformer.wte.weight)


def test_a_left_to_right_layout_has_no_verdict_on_orders(source: Any) -> None:
    verdict = judge(train_on(source, Recipe(layout="prefix", steps=2, width=16, heads=2)), source, questions=64)
    assert verdict.random is None
    assert verdict.order is None


@pytest.mark.parametrize("layout", ["two_stream", "prefix"])
def test_the_truth_is_judged_to_be_without_fault(source: Any, layout: str) -> None:
    verdict = judge(Truth(source, layout=layout), source, questions=400)
    gaps = [verdict.temporal, verdict.random, verdict.order, verdict.chain, verdict.marginalisation]
    assert [gap is None for gap in gaps] == [False, *[layout == "prefix"] * 2, False, False]
    for gap in gaps:
        assert gap is None or gap.mean == pytest.approx(0, abs=1e-9)
    biased = judge(Truth(source, bias=0.25, layout=layout), source, questions=400)
    assert biased.temporal.mean == pytest.approx(0.25, abs=1e-6)
    # one target more than when it is not asked
    assert biased.marginalisation.mean > 0.05


def test_the_truth_is_sure_of_every_determined_bit() -> None:
    source = load_source("ldpc", length=8, checks=4, weight=2)
    assert judge(Truth(source), source, questions=200).determined == 1.0
    # 0.99 is the least that counts
    assert judge(Truth(source, bias=0.009), source, questions=200).determined == 1.0
    assert judge(Truth(source, bias=0.011), source, questions=200).determined == 0.0


def test_determined_bits_are_counted_where_parity_fixes_them() -> None:
    source = load_source("ldpc")
    verdict = judge(train_on(source, Recipe(steps=2, width=16, heads=2)), source, questions=64)
    # an untrained network is sure of nothing
    assert verdict.determined == 0.0


@pytest.mark.long
def test_the_table_and_its_csv_hold_the_same_figures(tmp_path: Path) -> None:
    out = tmp_path / "table.csv"
    lines = list(oracle_rows(["markov"], ["two_stream"], minutes=0.02, out=out))
    with out.open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    cells = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert cells[:2] == ["markov", "two_stream"]
    # both are rounded from the same figure, to another number of digits
    shown = [float(number) for number in cells[3].split(" +- ")]
    assert shown == pytest.approx([float(row["temporal"]), float(row["temporal_error"])], abs=6e-5)
    assert int(row["steps"]) >= 1
    assert tuple(row) == COLUMNS


REFUSED = {
    "source": (["--source", "moon"], "source: expected one of markov, hmm, tree, ising, pcfg, ldpc, got 'moon'"),
    "layout": (["--layout", "causal"], "layout: expected one of two_stream, prefix, sigma, got 'causal'"),
    "minutes": (["--minutes", "0"], "minutes: expected a number above 0, got 0.0"),
    "random": (["--random", "2"], "random: expected a share from 0 to 1, got 2.0"),
    "prefix": (["--random", "0.5", "--layout", "prefix"], "random: the layout prefix asks from left to right only"),
    "out": (["--out", "other.csv"], "--out: other.csv is not a table of this command; name another file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_command_refuses_in_one_line_before_it_trains(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    words, message = REFUSED[name]
    ran = CliRunner().invoke(app, ["oracles", *words])
    assert ran.exit_code == 2
    assert ran.stderr.startswith(f"arbprob oracles: error: {message}")
    assert ran.stderr.count("\n") == 1
    assert ran.stdout == ""
