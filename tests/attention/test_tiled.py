"""Attention piece by piece against an independent reference in float64, by both ways of making its gradients."""

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from arbprob_hf.model.attention import tiled
from arbprob_hf.model.attention.tiled import Piece, tiled_attention
from tests.masks.oracles import masked_attention

WIDTH = 8
SCALING = WIDTH**-0.5
KERNELS = "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward"


@pytest.fixture(params=["fused", "recomputed"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways to a gradient; the first is the one that this torch takes on CPU."""
    if request.param == "fused":
        yield request.param
        return
    with mock.patch.object(tiled, "_is_fused", return_value=False):
        yield request.param


def cut(draw: random.Random, length: int, most: int) -> list[slice]:
    """The slots 0 to length - 1 in at most `most` runs that follow one another."""
    ends = sorted({0, length, *(draw.randrange(1, length) for _ in range(most - 1))} if length > 1 else {0, length})
    return [slice(a, b) for a, b in pairwise(ends)]


def random_pieces(number: int) -> tuple[tuple[int, int, int, int], list[Piece]]:
    """Sizes (B, H, T_q, T_kv) and pieces over them: cut anywhere, some left out, some without scores."""
    draw = random.Random(number)
    torch.manual_seed(number)
    sizes = draw.randint(1, 3), draw.randint(1, 3), draw.randint(1, 20), draw.randint(1, 20)
    batch, heads, q_len, kv_len = sizes
    pieces = []
    for rows in cut(draw, batch, 2):
        for part in cut(draw, heads, 2):
            for queries in cut(draw, q_len, 4):
                runs = tuple(run for run in cut(draw, kv_len, 5) if draw.random() < 0.7)
                if not runs or draw.random() < 0.2:
                    continue
                pieces.append(Piece(rows, part, queries, runs, random_scores(draw, rows, part, queries, runs)))
    return sizes, pieces


def random_scores(
    draw: random.Random, rows: slice, heads: slice, queries: slice, keys: tuple[slice, ...]
) -> Tensor | None:
    """Scores that allow about half of the pairs, one of each query at least; None now and then."""
    if draw.random() < 0.2:
        return None
    b, h, q = (one.stop - one.start for one in (rows, heads, queries))
    k = sum(run.stop - run.start for run in keys)
    shape = draw.choice([b, 1]), draw.choice([h, 1]), q, k
    keep = torch.rand(shape) < 0.5
    keep[..., draw.randrange(k)] = True
    return torch.randn(shape).masked_fill(~keep, float("-inf"))


def dense(sizes: tuple[int, int, int, int], pieces: list[Piece]) -> tuple[Tensor, Tensor]:
    """What the pieces say, written out: allowed bool and scores float64, (B, H, T_q, T_kv) both."""
    allowed, scores = torch.zeros(sizes, dtype=torch.bool), torch.zeros(sizes, dtype=torch.float64)
    for piece in pieces:
        first = 0
        for run in piece.keys:
            last = first + run.stop - run.start
            part = torch.zeros(1) if piece.scores is None else piece.scores[..., first:last]
            scores[piece.rows, piece.heads, piece.queries, run] = part.double()
            allowed[piece.rows, piece.heads, piece.queries, run] = part > float("-inf")
            first = last
    return allowed, scores


def reference(states: list[Tensor], sizes: tuple[int, int, int, int], pieces: list[Piece]) -> Tensor:
    """(B, H, T_q, D), head by head, in float64."""
    allowed, scores = dense(sizes, pieces)
    heads = [[[x[b, h].double() for x in states] for h in range(sizes[1])] for b in range(sizes[0])]
    out = torch.stack(
        [
            torch.stack([masked_attention(*parts, allowed[b, h], scores[b, h]) for h, parts in enumerate(row)])
            for b, row in enumerate(heads)
        ]
    )
    # without any piece the states would be no part of the result
    return out + 0 * sum(x.sum() for x in states)


def states_for(sizes: tuple[int, int, int, int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    batch, heads, q_len, kv_len = sizes
    return [
        torch.randn(batch, heads, length, WIDTH, dtype=dtype, requires_grad=True) for length in (q_len, kv_len, kv_len)
    ]


def attend(states: list[Tensor], pieces: list[Piece], dropout: float = 0.0) -> Tensor:
    return tiled_attention(*states, pieces, scaling=SCALING, dropout=dropout)


def small() -> tuple[tuple[int, int, int, int], list[Piece]]:
    """Two heads of two rows, nine queries; the second head leaves out keys 3 and 4, and queries 7 and 8."""
    everyone = slice(0, 2)
    band = torch.zeros(1, 1, 4, 6).masked_fill(torch.ones(4, 6).triu(3) > 0, float("-inf"))
    return (2, 2, 9, 9), [
        Piece(everyone, slice(0, 1), slice(0, 4), (slice(0, 6),), band),
        Piece(everyone, slice(0, 1), slice(4, 9), (slice(2, 9),)),
        Piece(everyone, slice(1, 2), slice(0, 7), (slice(0, 3), slice(5, 9))),
    ]


def test_random_pieces_agree_with_the_reference(way: str) -> None:
    for number in range(60):
        sizes, pieces = random_pieces(number)
        states = states_for(sizes)
        out, expected = attend(states, pieces), reference(states, sizes, pieces)
        torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=1e-6)
        direction = torch.randn(out.shape)
        ours = torch.autograd.grad(out, states, direction)
        theirs = torch.autograd.grad((expected * direction).sum(), states)
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("few_keys", [0, 512], ids=["many keys", "few keys"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_fused_kernels_are_there_and_agree_with_recomputation(
    dtype: torch.dtype, few_keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled, "FEW_KEYS", few_keys)
    assert tiled._has_fused_kernels(dtype)
    sizes, pieces = small()
    pieces = [one if one.scores is None else replace(one, scores=one.scores.to(dtype)) for one in pieces]
    states, direction = states_for(sizes, dtype), torch.randn(2, 2, 9, WIDTH, dtype=dtype)
    fused = attend(states, pieces)
    with mock.patch.object(tiled, "_is_fused", return_value=False):
        recomputed = attend(states, pieces)
    assert (type(fused.grad_fn).__name__, type(recomputed.grad_fn).__name__) == (
        "_FusedBackward",
        "_RecomputedBackward",
    )
    assert fused.equal(recomputed)
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 0.03}[dtype]
    gradients = (torch.autograd.grad(out, states, direction) for out in (fused, recomputed))
    for one, other in zip(*gradients, strict=True):
        assert one.dtype == other.dtype == dtype
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_sums_the_gradients_of_keys_without_rounding(way: str, dtype: torch.dtype) -> None:
    """A key that 64 pieces see: the error stays that of one rounding."""
    length = 64
    every = slice(0, 1)
    pieces = [Piece(every, every, slice(t, t + 1), (slice(0, 2),)) for t in range(length)]
    query, key, value = torch.zeros(1, 1, length, WIDTH), torch.zeros(1, 1, 2, WIDTH), torch.randn(1, 1, 2, WIDTH)
    states = [x.to(dtype).requires_grad_() for x in (query, key, value)]
    upstream = torch.full((1, 1, length, WIDTH), 1.0078125, dtype=dtype)
    (gradient,) = torch.autograd.grad(attend(states, pieces), states[2], upstream)
    # each query gives half of its gradient to each key
    torch.testing.assert_close(gradient.double(), torch.full((1, 1, 2, WIDTH), 1.0078125 * length / 2).double())


def test_a_query_in_no_piece_outputs_zero_and_teaches_nothing(way: str) -> None:
    sizes, pieces = small()
    states = states_for(sizes)
    out = attend(states, pieces)
    assert (out[:, 1, 7:] == 0).all()
    assert (out[:, 0] != 0).any(-1).all()
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(out[:, 1, 7:].sum(), states))


def test_no_pieces_at_all_give_zeros(way: str) -> None:
    states = states_for((1, 1, 3, 3))
    out = attend(states, [])
    assert (out == 0).all()
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(out.sum(), states))


def test_keys_outside_the_runs_are_not_even_read(way: str) -> None:
    sizes, pieces = small()
    states = states_for(sizes)
    with torch.no_grad():
        for seen in states[1:]:
            seen[:, 1, 3:5] = float("nan")
    out = attend(states, pieces)
    query, key, value = torch.autograd.grad(out.square().sum(), states)
    assert out.isfinite().all()
    assert query.isfinite().all()
    assert (key[:, 1, 3:5] == 0).all()
    assert (value[:, 1, 3:5] == 0).all()


def test_views_of_one_projection_get_the_gradient_of_contiguous_copies(way: str) -> None:
    _, pieces = small()
    projected = torch.randn(2, 9, 3 * 2 * WIDTH, requires_grad=True)
    views = [part.view(2, 9, 2, WIDTH).transpose(1, 2) for part in projected.split(2 * WIDTH, dim=2)]
    copies = [view.contiguous() for view in views]
    assert not any(view.is_contiguous() for view in views)
    direction = torch.randn(2, 2, 9, WIDTH)
    outputs = attend(views, pieces), attend(copies, pieces)
    assert outputs[0].equal(outputs[1])
    gradients = [torch.autograd.grad(out, projected, direction)[0] for out in outputs]
    assert gradients[0].equal(gradients[1])


def test_features_that_do_not_lie_side_by_side_are_read_right() -> None:
    sizes, pieces = small()
    states = [x.detach().mT.contiguous().mT.requires_grad_() for x in states_for(sizes)]
    assert states[0].stride(-1) != 1
    out = attend(states, pieces)
    expected = reference(states, sizes, pieces)
    torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=1e-6)


def test_the_expanded_gradient_of_a_sum_is_read_right(way: str) -> None:
    sizes, pieces = small()
    states = states_for(sizes)
    by_sum = torch.autograd.grad(attend(states, pieces).sum(), states)
    by_ones = torch.autograd.grad(attend(states, pieces), states, torch.ones(2, 2, 9, WIDTH))
    assert all(one.equal(other) for one, other in zip(by_sum, by_ones, strict=True))


@pytest.mark.parametrize("asked", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2)], ids=str)
def test_only_the_gradients_asked_for_are_made(way: str, asked: tuple[int, ...]) -> None:
    sizes, pieces = small()
    states = states_for(sizes)
    every = torch.autograd.grad(attend(states, pieces).square().sum(), states)
    some = [x if number in asked else x.detach() for number, x in enumerate(states)]
    out = attend(some, pieces)
    assert out.grad_fn is not None
    with torch.no_grad():
        made = out.grad_fn.apply(2 * out)  # type: ignore[attr-defined]
    assert [number for number, one in enumerate(made) if one is not None] == list(asked)
    assert all(made[number].equal(every[number]) for number in asked)


def test_gradients_agree_with_finite_differences(way: str) -> None:
    sizes, pieces = small()
    pieces = [one if one.scores is None else replace(one, scores=one.scores.double()) for one in pieces]
    states = states_for(sizes, torch.float64)
    assert torch.autograd.gradcheck(lambda *given: attend(list(given), pieces), states, fast_mode=True)


@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_checkpointing_changes_nothing(way: str, reentrant: bool, dropout: float) -> None:
    sizes, pieces = small()
    states = states_for(sizes)

    def run(*given: Tensor) -> Tensor:
        return attend(list(given), pieces, dropout)

    torch.manual_seed(1)
    plain = by_backward(run(*states), states)
    torch.manual_seed(1)
    again = by_backward(checkpoint(run, *states, use_reentrant=reentrant), states)
    assert all(one.equal(other) for one, other in zip(plain, again, strict=True))


def by_backward(out: Tensor, states: list[Tensor]) -> list[Tensor]:
    # a reentrant checkpoint knows no other way
    for one in states:
        one.grad = None
    out.square().sum().backward()
    return [one.grad.clone() for one in states if one.grad is not None]


def test_autocast_computes_in_its_dtype_and_hands_gradients_back_in_theirs(way: str) -> None:
    sizes, pieces = small()
    halves = [one if one.scores is None else replace(one, scores=one.scores.bfloat16()) for one in pieces]
    states = states_for(sizes)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(states, halves)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), attend(states, pieces), atol=0.02, rtol=0.02)
    gradients = torch.autograd.grad(out.float().square().sum(), states)
    expected = torch.autograd.grad(attend(states, pieces).square().sum(), states)
    for mine, other in zip(gradients, expected, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, other, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_without_gradients_the_numbers_are_the_same(way: str, mode: type) -> None:
    sizes, pieces = small()
    states = states_for(sizes)
    with mode():
        out = attend(states, pieces)
    assert not out.requires_grad
    assert out.equal(attend(states, pieces))


def test_dropout_keeps_the_mean_of_outputs_and_gradients() -> None:
    sizes, pieces = small()
    states = states_for(sizes, torch.float64)
    pieces = [one if one.scores is None else replace(one, scores=one.scores.double()) for one in pieces]
    direction = torch.randn(2, 2, 9, WIDTH, dtype=torch.float64)
    draws: list[list[Tensor]] = [[], []]
    for _ in range(600):
        out = attend(states, pieces, dropout=0.3)
        draws[0].append(out.detach())
        # the output is linear in the values: the mean of their gradient is the gradient without dropout
        draws[1] += torch.autograd.grad(out, states[2], direction)
    out = attend(states, pieces)
    expected = out.detach(), torch.autograd.grad(out, states[2], direction)[0]
    for drawn, meant in zip(draws, expected, strict=True):
        sample = torch.stack(drawn)
        spread = sample.std(0) / len(drawn) ** 0.5
        assert (spread[:, 0] > 0).all()
        assert ((sample.mean(0) - meant).abs() <= 5 * spread + 1e-12).all()


def test_blind_queries_stay_zero_under_dropout() -> None:
    sizes, pieces = small()
    states = states_for(sizes)
    out = attend(states, pieces, dropout=0.5)
    assert (out[:, 1, 7:] == 0).all()
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(out[:, 1, 7:].sum(), states))


def test_two_runs_are_bit_equal(way: str) -> None:
    sizes, pieces = small()
    states = states_for(sizes)
    outputs = [attend(states, pieces) for _ in range(2)]
    gradients = [torch.autograd.grad(out.square().sum(), states) for out in outputs]
    assert outputs[0].equal(outputs[1])
    assert all(one.equal(other) for one, other in zip(*gradients, strict=True))


def test_a_second_derivative_is_refused(way: str) -> None:
    sizes, pieces = small()
    states = states_for(sizes)
    with pytest.raises(
        RuntimeError, match='differentiable once: for second derivatives pass attn_implementation="eager"'
    ):
        torch.autograd.grad(attend(states, pieces).sum(), states, create_graph=True)


@pytest.mark.parametrize("missing", KERNELS)
def test_a_torch_without_the_private_kernels_recomputes(missing: str) -> None:
    sizes, pieces = small()
    states = states_for(sizes)
    expected = attend(states, pieces)
    tiled._has_fused_kernels.cache_clear()
    with mock.patch.object(torch.ops.aten, missing, side_effect=RuntimeError("no such kernel")):
        out = attend(states, pieces)
    tiled._has_fused_kernels.cache_clear()
    assert type(out.grad_fn).__name__ == "_RecomputedBackward"
    assert out.equal(expected)
