"""Which path sdpa takes under which mask, and the same numbers on each, at the sizes it is made for."""

import pytest
import torch
from torch import Tensor

from arbprob_hf import HIDDEN, Mask, causal, documents, full, heads, order, padding, prefix, sinks, window
from arbprob_hf.model.attention.backends import prepare_attention
from arbprob_hf.model.attention.sdpa import SHORTEST
from arbprob_hf.model.masks.tiles import Sizes
from tests.masks.oracles import micro, random_ids

BATCH, HEADS, LENGTH, WIDTH = 2, 4, 700, 8


def ranks() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(LENGTH, generator=generator) for _ in range(BATCH)])


def half_hidden() -> Tensor:
    return ranks().masked_fill(ranks() % 3 == 0, HIDDEN)


def some_pairs(share: float) -> Tensor:
    return torch.rand(BATCH, LENGTH, LENGTH, generator=torch.Generator().manual_seed(1)) < share


def some_documents() -> Tensor:
    # short ones that stand together, and long ones
    lengths = torch.tensor([[1, 2, 300, 5, 60, 4, 4, 200, 64, 60], [65, 63, 1, 1, 1, 500, 60, 4, 2, 3]])
    return torch.stack([torch.arange(10).repeat_interleave(row)[:LENGTH] for row in lengths])


local = causal() & window(64)
PATHS: dict[str, tuple[Mask, str]] = {
    "full": (full(), "open"),
    "causal": (causal(), "causal"),
    "causal as a tensor": (Mask.of(torch.ones(LENGTH, LENGTH).tril()), "causal"),
    "causal as a tensor for every row and head": (Mask.of(torch.ones(BATCH, HEADS, LENGTH, LENGTH).tril()), "causal"),
    "causal in other words": (window(LENGTH) & ~(causal() & ~causal()) & causal(), "causal"),
    "one pair more than causal": (
        Mask.of(torch.ones(LENGTH, LENGTH).tril() + torch.eye(LENGTH).roll(1, 1).triu()),
        "tiled",
    ),
    "one pair less than causal": (causal() & ~Mask.of(torch.eye(LENGTH).roll(3, 0).tril()), "tiled"),
    "ranks in order": (order(torch.arange(LENGTH) * 3), "causal"),
    "any order": (order(ranks()), "sorted causal"),
    "any order, one for all rows": (order(ranks()[:1]), "sorted causal"),
    "strictly earlier ones": (order(ranks(), ranks() - 1), "sorted causal"),
    "several of a rank": (order(ranks() // 50), "sorted tiled"),
    "hidden slots": (order(half_hidden(), ranks() - 1), "sorted tiled"),
    "window": (local, "tiled"),
    "window and sinks": (local | sinks(2), "tiled"),
    "prefix": (local | prefix(3), "tiled"),
    "documents": (
        causal() & documents(torch.stack([torch.arange(LENGTH) // 100, torch.arange(LENGTH) // 77])),
        "tiled",
    ),
    "documents of every length": (causal() & documents(some_documents()), "tiled"),
    "documents of every length, one for all rows": (causal() & documents(some_documents()[:1]), "tiled"),
    "one document from slot 0": (causal() & documents(torch.zeros(LENGTH, dtype=torch.long)), "causal"),
    "tiny documents": (causal() & documents(torch.arange(LENGTH) // 3), "tiled"),
    "any order within documents": (order(ranks()) & documents(some_documents()), "sorted tiled"),
    "any order within shuffled documents": (documents(ranks() % 5) & order(ranks()), "sorted tiled"),
    "hidden slots within documents": (order(half_hidden(), ranks() - 1) & documents(some_documents()), "sorted tiled"),
    "padding": (causal() & padding(ranks() > 9), "tiled"),
    "per head": (heads(causal(), local, local, window(30)), "tiled"),
    "blind queries": (local & ~prefix(200), "tiled"),
    "nobody sees anything": (~full(), "tiled"),
    "random": (Mask.of(some_pairs(0.1)), "additive"),
    "all but the future of one head": (heads(causal(), full(), full(), full()), "additive"),
}
cases = pytest.mark.parametrize(("mask", "path"), PATHS.values(), ids=PATHS)
SIZES = Sizes(BATCH, HEADS, LENGTH, LENGTH, 0, torch.device("cpu"))


def states(dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    return [x.transpose(1, 2) for x in torch.randn(3, BATCH, LENGTH, HEADS, WIDTH, dtype=dtype).unbind()]


@cases
def test_the_structure_of_a_mask_decides_the_path_and_not_the_numbers(mask: Mask, path: str) -> None:
    results = []
    for backend in ("eager", "sdpa"):
        own = [x.clone().requires_grad_() for x in states(torch.float64)]
        plan = prepare_attention(mask, SIZES, backend=backend, dtype=torch.float64)
        out, _ = plan.attend(*own, scaling=WIDTH**-0.5, dropout=0.0)
        results.append([out, *torch.autograd.grad(out.square().sum(), own)])
    assert plan.path == path
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


@cases
def test_half_precision_goes_the_same_way(mask: Mask, path: str) -> None:
    plan = prepare_attention(mask, SIZES, backend="sdpa", dtype=torch.bfloat16)
    assert plan.path == path
    got, _ = plan.attend(*states(torch.bfloat16), scaling=WIDTH**-0.5, dropout=0.0)
    reference = prepare_attention(mask, SIZES, backend="eager", dtype=torch.float32)
    expected, _ = reference.attend(*(x.float() for x in states(torch.bfloat16)), scaling=WIDTH**-0.5, dropout=0.0)
    torch.testing.assert_close(got.float(), expected, atol=0.03, rtol=0)


@cases
@pytest.mark.parametrize("size", [1e20, 1e38])
def test_what_a_query_may_not_see_changes_no_bit_however_large(mask: Mask, path: str, size: float) -> None:
    """Also where the score of a forbidden key overflows."""
    plan = prepare_attention(mask, SIZES, backend="sdpa", dtype=torch.float32)
    query, key, value = states(torch.float32)
    slot = LENGTH // 2 + 5
    unaware = ~mask.dense(LENGTH, batch=BATCH, heads=HEADS)[..., slot]  # (B, H, T)
    before, _ = plan.attend(query, key, value, scaling=1.0, dropout=0.0)
    for filler in (size, -size):
        key[:, :, slot], value[:, :, slot] = filler, filler
        after, _ = plan.attend(query, key, value, scaling=1.0, dropout=0.0)
        assert before[unaware].equal(after[unaware])


@pytest.mark.parametrize("path", ["sorted causal", "tiled", "additive"])
def test_dropout_drops_the_share_it_says_and_keeps_the_mean(path: str) -> None:
    mask = next(mask for mask, own in PATHS.values() if own == path)
    plan = prepare_attention(mask, SIZES, backend="sdpa", dtype=torch.float32)
    query, key, value = states(torch.float32)
    expected, _ = plan.attend(query, key, value, scaling=0.3, dropout=0.0)
    draws = torch.stack([plan.attend(query, key, value, scaling=0.3, dropout=0.5)[0] for _ in range(20)])
    assert draws[0].ne(draws[1]).any()
    error = (draws.mean(0) - expected).abs().mean() / expected.abs().mean()
    # sums that were not scaled up again would be off by a half, twice scaled by one
    assert error < 0.4


def test_a_network_tells_the_path_of_every_layer() -> None:
    texts = ["causal", "causal & window(50)", "full", "heads(causal, causal & window(50))"]
    model = micro(layers=4, mask=texts, n_positions=400)
    with torch.no_grad():
        model(random_ids(1, 400))
        assert model.transformer.attention_paths == ["causal", "tiled", "open", "tiled"]
        model(random_ids(1, 20))
        assert model.transformer.attention_paths == ["causal", "additive", "open", "additive"]
        model(random_ids(1, 20), output_attentions=True)
        assert model.transformer.attention_paths == ["written"] * 4


def test_short_passes_do_not_look_for_structure() -> None:
    for length, path in ((SHORTEST - 1, "additive"), (SHORTEST, "tiled")):
        sizes = Sizes(1, 1, length, length, 0, torch.device("cpu"))
        assert prepare_attention(causal() & window(8), sizes, backend="sdpa", dtype=torch.float32).path == path


def test_a_long_pass_that_goes_on_from_a_cache_skips_keys_too() -> None:
    model, ids = micro(mask="causal & window(40)", n_positions=700).double(), random_ids(2, 700)
    with torch.no_grad():
        whole = model(ids).logits
        cache = model(ids[:, :300], use_cache=True).past_key_values
        rest = model(ids[:, 300:], past_key_values=cache).logits
    assert model.transformer.attention_paths == ["tiled", "tiled"]
    torch.testing.assert_close(rest, whole[:, 300:], atol=1e-10, rtol=0)
