"""What every mask argument of forward means, row by row of the table in the design, against the reference."""

import pytest
import torch
from torch import Tensor

from arbprob_hf import HIDDEN, ArbProbForCausalLM, Mask, causal, documents, order, padding, prefix, window
from tests.masks.oracles import micro, random_ids, reference_logits, whole

B, T, H = 3, 6, 2
DTYPES = [torch.bool, torch.long, torch.int32, torch.uint8, torch.float32, torch.float64, torch.bfloat16]
PLAIN = torch.ones(T, T, dtype=torch.bool).tril()
BAND = PLAIN.triu(-1)

pytestmark = pytest.mark.parametrize("backend", ["eager", "sdpa"])


def random_keep(*shape: int) -> Tensor:
    keep = torch.rand(shape) < 0.5
    keep.view(-1)[0] = True
    return keep


def says(model: ArbProbForCausalLM, ids: Tensor, keep: Tensor, **arguments: object) -> None:
    """The arguments mean exactly this keep-mask."""
    expected = reference_logits(model, ids, whole(keep, len(ids), model.config.n_head))
    got = model(ids, **arguments).logits
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=0)


def test_nothing_given_means_the_mask_of_the_config(backend: str) -> None:
    says(micro(backend=backend), random_ids(B, T), PLAIN)
    says(micro(backend=backend, mask="causal & window(2)"), random_ids(B, T), BAND)
    says(micro(backend=backend, mask="full"), random_ids(B, T), torch.ones(T, T))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_dimensions_say_which_tokens_exist(backend: str, dtype: torch.dtype) -> None:
    keep = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]], dtype=dtype)
    seen = keep.bool()[:, None, :]
    says(micro(backend=backend), random_ids(B, T), PLAIN & seen, attention_mask=keep)
    says(micro(backend=backend, mask="full"), random_ids(B, T), seen.expand(B, T, T), attention_mask=keep)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["attention_mask", "mask"])
@pytest.mark.parametrize(
    "shape", [(B, T, T), (1, T, T), (B, H, T, T), (1, H, T, T), (B, 1, T, T), (1, 1, T, T)], ids=str
)
def test_three_and_four_dimensions_are_the_whole_truth(
    backend: str, dtype: torch.dtype, name: str, shape: tuple[int, ...]
) -> None:
    keep = random_keep(*shape)
    says(micro(backend=backend, mask="causal & window(1)"), random_ids(B, T), keep, **{name: keep.to(dtype)})


@pytest.mark.parametrize(
    ("dtype", "lowest"),
    [
        (torch.float32, torch.finfo(torch.float32).min),
        (torch.float64, torch.finfo(torch.float32).min),
        (torch.float16, torch.finfo(torch.float16).min),
        (torch.bfloat16, float("-inf")),
        (torch.float32, -1e9),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["attention_mask", "mask"])
@pytest.mark.parametrize("shape", [(B, T, T), (1, 1, T, T), (B, H, T, T)], ids=str)
def test_an_additive_mask_allows_what_it_adds_nothing_to(
    backend: str, dtype: torch.dtype, lowest: float, name: str, shape: tuple[int, ...]
) -> None:
    keep = random_keep(*shape)
    keep[..., 2, :] = False  # a query that may see nothing
    additive = torch.zeros(shape, dtype=dtype).masked_fill(~keep, lowest)
    says(micro(backend=backend), random_ids(B, T), keep, **{name: additive})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_queries_by_keys_go_in_as_mask(backend: str, dtype: torch.dtype) -> None:
    keep = random_keep(T, T)
    says(micro(backend=backend), random_ids(B, T), keep, mask=keep.to(dtype))


def test_a_square_that_is_batch_by_keys_is_read_as_padding(backend: str) -> None:
    keep = torch.ones(T, T, dtype=torch.bool).tril()
    says(micro(backend=backend), random_ids(T, T), PLAIN & keep[:, None, :], attention_mask=keep)


@pytest.mark.parametrize("name", ["attention_mask", "mask"])
def test_patterns_and_texts_replace_the_mask_of_the_config(backend: str, name: str) -> None:
    model = micro(backend=backend, mask="full")
    says(model, random_ids(B, T), BAND, **{name: causal() & window(2)})
    says(model, random_ids(B, T), BAND, **{name: "causal & window(2)"})
    keep = random_keep(B, T, T)
    says(model, random_ids(B, T), keep & PLAIN, **{name: causal() & Mask.of(keep)})
    ids = torch.tensor([[0, 0, 0, 1, 1, 2]])
    says(model, random_ids(B, T), PLAIN & (ids == ids.T), **{name: causal() & documents(ids)})
    says(model, random_ids(B, T), PLAIN & (ids < 2), **{name: causal() & padding(ids < 2)})


def test_a_padding_mask_is_anded_with_a_mask_tensor(backend: str) -> None:
    keep, exists = random_keep(B, T, T), torch.ones(B, T, dtype=torch.long)
    exists[1, 4:] = 0
    says(micro(backend=backend), random_ids(B, T), keep & exists[:, None].bool(), mask=keep, attention_mask=exists)
    says(
        micro(backend=backend),
        random_ids(B, T),
        PLAIN.mT & exists[:, None].bool(),
        mask=PLAIN.mT,
        attention_mask=exists,
    )


def ranked(ranks: Tensor, limits: Tensor) -> Tensor:
    seen = (ranks[:, None, :] <= limits[:, :, None]) & (ranks < HIDDEN)[:, None, :]
    return seen | torch.eye(ranks.shape[1], dtype=torch.bool)


@pytest.mark.parametrize("dtype", [torch.long, torch.int32], ids=str)
def test_ranks_and_limits_are_the_whole_truth(backend: str, dtype: torch.dtype) -> None:
    model = micro(backend=backend, mask="causal & window(1)")
    ranks, limits = torch.randint(0, 4, (B, T)), torch.randint(-1, 4, (B, T))
    ranks[0, 2] = HIDDEN
    keep = ranked(ranks, limits)
    says(model, random_ids(B, T), keep, ranks=ranks.to(dtype), limits=limits.to(dtype))
    says(model, random_ids(B, T), ranked(ranks, ranks), ranks=ranks.to(dtype))
    says(model, random_ids(B, T), keep, mask=order(ranks, limits))
    says(model, random_ids(B, T), keep & BAND, ranks=ranks, limits=limits, mask="causal & window(2)")
    table = random_keep(B, T, T)
    says(model, random_ids(B, T), keep & table, ranks=ranks, limits=limits, mask=table)
    exists = torch.ones(B, T, dtype=torch.long)
    exists[1, 4:] = 0
    says(model, random_ids(B, T), keep & exists[:, None].bool(), ranks=ranks, limits=limits, attention_mask=exists)


@pytest.mark.parametrize("dtype", [torch.long, torch.int32, torch.int16, torch.uint8], ids=str)
def test_documents_see_only_their_own_run_of_ids(backend: str, dtype: torch.dtype) -> None:
    model = micro(backend=backend)
    ids = torch.tensor([[0, 0, 0, 1, 1, 1], [7, 7, 7, 7, 7, 7], [2, 2, 3, 3, 2, 2]])
    run = torch.tensor([[0, 0, 0, 1, 1, 1], [0] * 6, [0, 0, 1, 1, 2, 2]])
    own = run[:, None] == run[:, :, None]
    says(model, random_ids(B, T), PLAIN & own, document_ids=ids.to(dtype))
    says(model, random_ids(B, T), BAND & own, document_ids=ids.to(dtype), mask="causal & window(2)")
    says(model, random_ids(B, T), own, document_ids=ids.to(dtype), attention_mask="full")
    first = torch.tensor([[0, 0, 0, 3, 3, 3], [0] * 6, [0, 0, 2, 2, 4, 4]])
    says(model, random_ids(B, T), own & (first[:, None] == torch.arange(T)), document_ids=ids, mask=prefix(1))
    table = random_keep(B, T, T)
    says(model, random_ids(B, T), own & table, document_ids=ids, mask=table)


def test_slots_of_an_order_belong_to_the_document_of_their_id_wherever_they_stand(backend: str) -> None:
    model, ids = micro(backend=backend), torch.tensor([[0, 1, 0, 1, 1, 0], [7, 7, 7, 7, 7, 7], [2, 2, 3, 3, 2, 2]])
    ranks = torch.randint(0, 4, (B, T))
    own = ids[:, None] == ids[:, :, None]
    says(model, random_ids(B, T), own & ranked(ranks, ranks), document_ids=ids, ranks=ranks)


@pytest.mark.parametrize("shape", [(B, H, T, T), (1, H, T, T), (B, 1, T, T), (1, 1, T, T), (1, 1, 1, T)], ids=str)
def test_a_bias_is_added_to_the_scores_under_whatever_mask_holds(backend: str, shape: tuple[int, ...]) -> None:
    model, ids, bias, keep = micro(backend=backend), random_ids(B, T), torch.randn(shape), random_keep(B, H, T, T)
    for allowed, arguments in [(PLAIN, {}), (keep, {"mask": keep}), (torch.ones(T, T), {"mask": "full"})]:
        expected = reference_logits(model, ids, whole(allowed, B, H), bias=bias.expand(B, H, T, T))
        got = model(ids, attention_bias=bias, **arguments).logits
        torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("text", ["causal", "causal & window(3)", "causal & (window(2) | prefix(2))"])
@pytest.mark.parametrize("left", [0, 2])
def test_a_cache_changes_nothing(backend: str, text: str, left: int) -> None:
    """Token by token and in two pieces, with left padding too."""
    model, ids = micro(backend=backend, mask=text), random_ids(B, T)
    keep = torch.ones(B, T, dtype=torch.long)
    keep[0, :left] = 0
    positions = (keep.cumsum(1) - 1).clamp(min=0)
    whole_pass = model(ids, attention_mask=keep, position_ids=positions).logits
    for cuts in ([1] * T, [4, 2]):
        cache, pieces, start = None, [], 0
        for size in cuts:
            stop = start + size
            out = model(
                ids[:, start:stop],
                attention_mask=keep[:, :stop],
                position_ids=positions[:, start:stop],
                past_key_values=cache,
                use_cache=True,
            )
            cache, start = out.past_key_values, stop
            pieces.append(out.logits)
        torch.testing.assert_close(torch.cat(pieces, 1)[keep.bool()], whole_pass[keep.bool()], atol=1e-5, rtol=0)
