"""What is foreseen of a mask is what it shows when written out, however few pairs were looked at."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from arbprob_hf import Mask, causal, padding, pattern, window
from arbprob_hf.model.masks import lookahead
from arbprob_hf.model.masks.continuation import Continued
from arbprob_hf.model.masks.lookahead import crosses, earliest_viewer, holds_rules, is_cache_safe, looks_ahead
from arbprob_hf.model.masks.mask import And
from arbprob_hf.model.masks.tiles import Grid

TEXTS = [
    "causal & window(9) | sinks(4)",
    "causal | prefix(20)",
    "causal | prefix(4) & ~prefix(2)",
    "window(3)",
    "blocks(7)",
    "blocks(8) & ~strided(2) | causal",
    "causal | strided(50)",
    "block_diffusion(40, 4)",
    "heads(causal, causal | prefix(30), window(2))",
    "~causal",
    "causal & own(3) | own(40)",
]


@pytest.fixture(autouse=True)
def _few_queries_at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:

    @pattern
    def own(b: Tensor, h: Tensor, q: Tensor, k: Tensor, step: int) -> Tensor:
        return (q - k) % step == 0

    monkeypatch.setattr(lookahead, "_ROWS_AT_ONCE", 16)
    lookahead._of_pattern.cache_clear()
    yield
    lookahead._of_pattern.cache_clear()


def first_of(allowed: Tensor) -> Tensor:
    """The first query that sees each key before its time, of bool (queries, keys)."""
    length = len(allowed)
    ahead = allowed.triu(1)
    return torch.where(ahead, torch.arange(length)[:, None], length).amin(0)


@pytest.mark.parametrize("length", [1, 16, 17, 75])
@pytest.mark.parametrize("text", TEXTS)
def test_a_pattern_is_foreseen_as_it_is_written(text: str, length: int) -> None:
    mask = Mask.parse(text)
    allowed = mask.dense(length)[0].any(0)
    assert torch.equal(earliest_viewer(mask, length=length), first_of(allowed))
    for cut in range(1, length):
        assert not (is_cache_safe(mask, cut) and bool(allowed[:cut, cut:].any()))


@pytest.mark.parametrize("text", TEXTS)
def test_so_is_one_that_counts_from_the_first_token_of_each_row(text: str) -> None:
    mask, length = Mask.parse(text), 75
    keep = torch.arange(length) >= torch.tensor([[0], [3], [35], [74]])
    starts = torch.arange(length) - (keep.cumsum(1) - 1)
    shifted = mask.shifted(starts) & padding(keep)
    allowed = shifted.dense(length) & keep[:, None, :, None]
    assert torch.equal(earliest_viewer(shifted, length=length, keep=keep), first_of(allowed.flatten(0, 1).any(0)))


def test_a_prompts_tensor_is_foreseen_with_what_it_is_joined_with() -> None:
    table = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0)) < 0.1
    mask = Continued(table) | causal() & window(4)
    assert torch.equal(earliest_viewer(mask, length=50), first_of(mask.dense(50).flatten(0, 1).any(0)))


@pytest.mark.parametrize(
    "text",
    [
        "causal",
        "sinks(4)",
        "causal & window(64) | sinks(4)",
        "(causal & full) | sinks(1) & own(2)",
        "heads(causal, sinks(2))",
    ],
)
def test_what_never_looks_ahead_is_known_from_the_expression(text: str) -> None:
    mask = Mask.parse(text)
    assert is_cache_safe(mask, 1)
    assert is_cache_safe(mask.shifted(torch.tensor([[0] * 9, [0] * 4 + [4] * 5])), 1)


def test_only_tiles_that_may_hold_a_later_key_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0
    evaluate = And.evaluate

    def counting(mask: And, grid: Grid) -> Tensor:
        nonlocal looked
        looked += len(grid.queries) * len(grid.keys)
        return evaluate(mask, grid)

    monkeypatch.setattr(And, "evaluate", counting)
    assert not looks_ahead(earliest_viewer(Mask.parse("causal & window(9) | prefix(4)"), length=1600), 4)
    assert looked == 1600 * 16


def test_a_rule_of_ones_own_is_not_remembered() -> None:
    mask = Mask.parse("own(3) | causal")
    assert holds_rules(mask)
    assert not holds_rules(Mask.parse("causal & window(3)"))
    assert crosses(earliest_viewer(mask, length=40), 5, 40)
    assert lookahead._of_pattern.cache_info().currsize == 0
