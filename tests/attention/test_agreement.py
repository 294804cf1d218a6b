"""Eager, sdpa and flex_attention equal an independent reference on 2,000 random masks, whatever the path."""

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

import arbprob_hf
from arbprob_hf import HIDDEN, Mask
from arbprob_hf.model.attention import backends, flex, plan_cache, sdpa
from arbprob_hf.model.attention.backends import prepare_attention
from arbprob_hf.model.masks.arguments import MaskArguments, resolve_mask
from arbprob_hf.model.masks.tiles import Sizes
from tests.tables import quick

CASES, ROUNDS = 2_000, 20
TOLERANCE = 1e-5
# kernels of other processors round otherwise; 1e-5 holds where it was measured
TOLERANCE_OF_GRADIENTS = 2e-5
# small tiles, so that short sequences take every path
TILE = 8


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdpa, "TILE", TILE)
    monkeypatch.setattr(backends, "SHORTEST", 2 * TILE)
    monkeypatch.setattr(sdpa, "SHORTEST_SORTED", 2 * TILE)
    monkeypatch.setattr(flex, "BLOCK", TILE)
    # torch's unfused form without tracing each new mask anew: the same operations
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    # of other tiles than other tests have
    monkeypatch.setattr(plan_cache, "PLANS", plan_cache.PlanCache())


class Draw:
    """A random mask of `length` slots for `batch` rows and `heads` heads, out of one generator."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.batch, self.heads = self.integer(1, 3), self.integer(1, 3)
        self.length = self.integer(1, 40)

    def integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def integers(self, low: int, high: int) -> Tensor:
        rows = self.batch if self.integer(0, 1) else 1
        return torch.randint(low, high + 1, (rows, self.length), generator=self.generator)

    def leaf(self) -> Mask:
        length, some = self.length, self.integer(1, 9)
        makers = [
            arbprob_hf.causal,
            arbprob_hf.full,
            lambda: arbprob_hf.window(some),
            lambda: arbprob_hf.dilated(some, self.integer(1, 4)),
            lambda: arbprob_hf.strided(some),
            lambda: arbprob_hf.prefix(some - 1),
            lambda: arbprob_hf.sinks(some),
            lambda: arbprob_hf.blocks(some),
            lambda: arbprob_hf.block_diffusion((length + 1) // 2, some),
            lambda: arbprob_hf.documents(self.integers(0, 3).sort(1).values),
            lambda: arbprob_hf.padding(self.integers(0, 3) > 0),
            self.order,
            lambda: arbprob_hf.tree(torch.tensor([self.integer(-1, i - 1) for i in range(length)])),
            self.tensor,
        ]
        return makers[self.integer(0, len(makers) - 1)]()

    def order(self) -> Mask:
        ranks = torch.stack([torch.randperm(self.length, generator=self.generator) for _ in range(self.batch)])
        kind = self.integer(0, 3)
        if kind == 0:
            return arbprob_hf.order(ranks)
        if kind == 1:
            return arbprob_hf.order(ranks // 3)
        hidden = ranks.masked_fill(self.integers(0, 3) == 0, HIDDEN)
        return arbprob_hf.order(hidden, ranks - self.integer(0, 1))

    def tensor(self) -> Mask:
        shape = [(), (self.batch,), (self.batch, self.heads), (1, self.heads)][self.integer(0, 3)]
        share = [0.05, 0.5, 0.95][self.integer(0, 2)]
        return Mask.of(torch.rand(*shape, self.length, self.length, generator=self.generator) < share)

    def expression(self, depth: int) -> Mask:
        kind = self.integer(0, 6) if depth else 0
        if kind <= 1:
            return self.leaf()
        if kind <= 3:
            return self.expression(depth - 1) & self.expression(depth - 1)
        if kind == 4:
            return self.expression(depth - 1) | self.expression(depth - 1)
        if kind == 5:
            return ~self.expression(depth - 1)
        return arbprob_hf.heads(*(self.expression(depth - 1) for _ in range(self.heads)))

    def arguments(self) -> MaskArguments:
        keep = self.integers(0, 5).expand(self.batch, -1) > 0 if self.integer(0, 3) == 0 else None
        ids = self.integers(0, 1).expand(self.batch, -1) if self.integer(0, 5) == 0 else None
        return MaskArguments(attention_mask=keep, mask=self.expression(self.integer(0, 3)), document_ids=ids)

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.batch, self.heads, self.length, self.length, 0, torch.device("cpu"))


def reference(query: Tensor, key: Tensor, value: Tensor, keep: Tensor) -> Tensor:
    """Attention in float64 with the sum over allowed keys alone; zero where there is none."""
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / query.shape[-1] ** 0.5
    odds = (scores - scores.amax(-1, keepdim=True)).exp() * keep
    total = odds.sum(-1, keepdim=True)
    return torch.einsum("bhqk,bhkd->bhqd", odds / torch.where(total > 0, total, 1.0), value)


def states(draw: Draw) -> list[Tensor]:
    shape = (3, draw.batch, draw.length, draw.heads, 8)
    return [x.transpose(1, 2) for x in torch.randn(shape, generator=draw.generator).unbind()]  # (B, H, T, 8)


def outcome(mask: Mask, draw: Draw, given: list[Tensor], backend: str) -> tuple[str, list[Tensor]]:
    """The path taken, the output and, where there is a backward, the gradients."""
    plan = prepare_attention(mask, draw.sizes, backend=backend, dtype=torch.float32)
    learns = plan.path != "flex"
    own = [x.clone().requires_grad_(learns) for x in given]
    out, _ = plan.attend(*own, scaling=8**-0.5, dropout=0.0)
    if not learns:
        return plan.path, [out]
    # a lone query that sees nothing has an output that depends on nothing
    loss = out.square().sum() + 0 * own[0].sum()
    return plan.path, [out, *torch.autograd.grad(loss, own, materialize_grads=True)]


@pytest.mark.parametrize("number", quick(range(ROUNDS), range(4)))
def test_every_backend_gives_the_reference(number: int) -> None:
    paths: Counter[str] = Counter()
    for seed in range(number, CASES, ROUNDS):
        draw = Draw(seed)
        mask = resolve_mask(Mask.parse("causal"), draw.arguments(), draw.sizes)
        keep = mask.dense(draw.length, batch=draw.batch, heads=draw.heads)
        given = states(draw)
        exact = [x.double().requires_grad_() for x in given]
        expected = [reference(*exact, keep)]
        expected += torch.autograd.grad(expected[0].square().sum(), exact)
        for backend in ("eager", "sdpa", "flex_attention"):
            path, got = outcome(mask, draw, given, backend)
            if len(plan_cache.PLANS):
                # a kept plan answers as it did when it was made
                again = outcome(mask, draw, given, backend)
                assert again[0] == path
                assert all(map(torch.equal, again[1], got)), f"seed {seed}, {backend}, {mask}: the second time"
                plan_cache.PLANS.clear()
            paths[path] += 1
            for which, (ours, theirs) in enumerate(zip(got, expected, strict=False)):
                # a key that many queries see collects large gradients
                worst = float((ours - theirs).detach().abs().max() / theirs.detach().abs().max().clamp(min=1.0))
                assert worst <= (TOLERANCE_OF_GRADIENTS if which else TOLERANCE), (
                    f"seed {seed}, {backend} by {path}, {mask}: {worst}"
                )
            blind = ~keep.any(-1)
            assert bool((got[0].detach()[blind] == 0).all()), f"seed {seed}, {backend} by {path}, {mask}"
    taken = {"written", "flex", "additive", "tiled"}
    assert taken <= set(paths), paths
