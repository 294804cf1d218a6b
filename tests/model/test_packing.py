"""Packed documents, in every form that callers have for them: each gives what it gives alone, or is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex
from transformers import DynamicCache, StaticCache

from arbprob_hf import Mask
from tests.model.twins import left_padded, ours_alone, tokens, twins
from tests.networks import far
from tests.tables import quick

LENGTHS = (3, 5, 4)
IDS = tokens(1, sum(LENGTHS))
POSITIONS = torch.cat([torch.arange(length) for length in LENGTHS])[None]
BOUNDS = torch.tensor([0, 3, 8, 12], dtype=torch.int32)
NUMBERS = torch.tensor([[0] * 3 + [1] * 5 + [2] * 4], dtype=torch.int32)
# where the lengths come along
FLASH = dict(cu_seq_lens_q=BOUNDS, cu_seq_lens_k=BOUNDS, max_length_q=5, max_length_k=torch.tensor(5))
FORMS: dict[str, dict[str, Any]] = {
    "document_ids": dict(document_ids=NUMBERS),
    "bounds": FLASH,
    "bounds of queries": dict(cu_seq_lens_q=BOUNDS),
    "bounds with an empty document": dict(cu_seq_lens_q=torch.tensor([0, 3, 3, 8, 12])),
    "seq_idx": dict(seq_idx=NUMBERS),
    "bounds and seq_idx": dict(seq_idx=NUMBERS, **FLASH),
    "positions": {},
}


def packed_of(model: Any, **given: Any) -> Tensor:
    return model(IDS, position_ids=POSITIONS, **given).logits


def alone(model: Any, **given: Any) -> Tensor:
    return torch.cat([model(part, **given).logits for part in IDS.split(LENGTHS, dim=1)], dim=1)


@torch.no_grad()
@pytest.mark.parametrize("keep", [{}, {"attention_mask": torch.ones_like(IDS)}], ids=["no mask", "all ones"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex_attention"])
def test_packed_is_unpacked(backend: str, form: str, keep: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    model = ours_alone(backend=backend, dtype=torch.float32, n_layer=2)
    assert far(packed_of(model, **FORMS[form], **keep), alone(model)) <= 1e-5
    assert far(packed_of(model, mask="causal"), alone(model)) > 0.1


@torch.no_grad()
@pytest.mark.parametrize("mask", ["full", "causal & window(2)", ["causal", "prefix(2)"]], ids=str)
@pytest.mark.parametrize("form", ["bounds", "positions"])
def test_packing_goes_with_any_mask_of_the_configuration(form: str, mask: str | list[str]) -> None:
    model = ours_alone(mask=mask, n_layer=2)
    assert far(packed_of(model, **FORMS[form]), alone(model)) <= 1e-10


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("options", [{}, {"use_cache": True}, {"use_cache": False}], ids=str)
def test_positions_that_start_again_are_read_as_gpt2_reads_them(mode: str, options: dict[str, bool]) -> None:
    ours, theirs = twins()
    ours.train(mode == "train")
    expected = theirs(IDS, position_ids=POSITIONS, use_cache=False).logits
    assert far(ours(IDS, position_ids=POSITIONS, **options).logits, expected) <= 1e-10
    # one row of positions serves all rows
    both = IDS.repeat(2, 1)
    assert far(ours(both, position_ids=POSITIONS).logits, expected.repeat(2, 1, 1)) <= 1e-10


def test_the_loss_of_packed_documents_is_that_of_each() -> None:
    model = ours_alone()
    labels = IDS.masked_fill(POSITIONS == 0, -100)
    nats = [model(part, labels=part, num_items_in_batch=1).loss for part in IDS.split(LENGTHS, dim=1)]
    for form in ("bounds", "positions"):
        for return_logits in (True, False):
            given = {"labels": labels, "return_logits": return_logits, **FORMS[form]}
            assert far(model(IDS, position_ids=POSITIONS, **given).loss * 9, sum(nats)) <= 1e-10


@torch.no_grad()
def test_a_row_that_goes_on_in_a_document_starts_a_new_one_at_0() -> None:
    model, positions = ours_alone(), torch.tensor([[5, 6, 7, 8, 0, 1, 2, 3, 0, 1, 2, 3]])
    expected = model(IDS, position_ids=positions, document_ids=(positions == 0).cumsum(1)).logits
    assert far(model(IDS, position_ids=positions).logits, expected) == 0


@torch.no_grad()
def test_packing_is_seen_beside_a_mask_that_leaves_padding_out() -> None:
    # transformers would let the documents see one another here
    model, keep = ours_alone(), torch.tensor([[1] * 10 + [0] * 2, [0] * 2 + [1] * 10])
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 0, 0], [1, 1, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5]])
    both = IDS.repeat(2, 1)
    both[1, 2:] = IDS[0, :10]
    found = model(both, attention_mask=keep, position_ids=positions).logits
    expected = torch.cat([model(IDS[:, :4]).logits, model(IDS[:, 4:10]).logits], dim=1)
    assert far(found[:1, :10], expected) <= 1e-10
    assert far(found[1:, 2:], expected) <= 1e-10


@torch.no_grad()
@pytest.mark.parametrize("filler", [0, 1])
def test_left_padding_packs_nothing(filler: int) -> None:
    model, (ids, keep) = ours_alone(), left_padded((5, 12, 9), 12)
    positions = (keep.cumsum(1) - 1).masked_fill(keep == 0, filler)
    found = model(ids, attention_mask=keep, position_ids=positions).logits
    for row, length in enumerate((5, 12, 9)):
        assert far(found[row, -length:], model(ids[row : row + 1, -length:]).logits[0]) <= 1e-10


@torch.no_grad()
def test_the_positions_of_left_padding_alone_keep_padding_out() -> None:
    model, (ids, keep) = ours_alone(), left_padded((5,), 12)
    positions = (keep.cumsum(1) - 1).clamp(min=0)
    assert far(model(ids, position_ids=positions).logits[:, -5:], model(ids[:, -5:]).logits) <= 1e-10


@torch.no_grad()
def test_columns_left_out_in_the_middle_are_no_documents() -> None:
    model, keep = ours_alone(), torch.ones_like(IDS)
    keep[:, 4:6] = 0
    counted = torch.arange(12)[None]
    expected = model(IDS, attention_mask=keep).logits
    assert far(model(IDS, attention_mask=keep, position_ids=counted).logits, expected) == 0
    closed = (keep.cumsum(1) - 1).clamp(min=0)
    expected = model(IDS, attention_mask=keep, mask="causal", position_ids=closed).logits
    assert far(model(IDS, attention_mask=keep, position_ids=closed).logits, expected) == 0


OTHERS: dict[str, Tensor] = {
    "turned round": torch.arange(12).flip(0)[None],
    "shuffled": torch.randperm(12, generator=torch.Generator().manual_seed(0))[None],
    "spread": torch.arange(12)[None] * 7 % 31,
}


@torch.no_grad()
@pytest.mark.parametrize("name", OTHERS)
def test_positions_of_which_none_comes_twice_are_positions_only(name: str) -> None:
    model = ours_alone()
    assert far(*(model(IDS, position_ids=OTHERS[name], **given).logits for given in ({}, {"mask": "causal"}))) == 0


@torch.no_grad()
@pytest.mark.parametrize(
    "given",
    [dict(mask="causal"), dict(attention_mask=Mask.parse("full")), dict(attention_mask=torch.ones(1, 12, 12).tril())],
    ids=["mask", "pattern", "3-D"],
)
def test_a_mask_is_the_whole_truth_whatever_the_positions(given: dict[str, Any]) -> None:
    model, ids = ours_alone(), IDS.clone()
    before = model(ids, position_ids=POSITIONS, **given).logits
    ids[0, 0] += 1
    # the last document sees the first
    assert far(model(ids, position_ids=POSITIONS, **given).logits[:, -1], before[:, -1]) > 1e-3


@torch.no_grad()
def test_ranks_are_the_whole_truth_whatever_the_positions() -> None:
    model, ranks = ours_alone(), torch.arange(12)[None]
    assert far(model(IDS, position_ids=POSITIONS, ranks=ranks).logits, packed_of(model, mask="causal")) <= 1e-10


def rising(*numbers: int) -> Tensor:
    return torch.tensor([numbers])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "repeated": (
        dict(position_ids=rising(0, 1, 2, 3, 3, 4, 5, 6, 7, 7, 8, 9)),
        r"position_ids: row 0 goes from 3 to 3, which may mean packed documents and may not; pass document_ids= for",
    ),
    "cut before": (
        dict(position_ids=rising(20, 21, 22, 23, *range(4, 12))),
        "position_ids: row 0 goes from 23 to 4, which may mean packed documents and may not; pass document_ids= for",
    ),
    "cut behind": (
        dict(position_ids=rising(0, 1, 2, 3, *range(20, 28))),
        "position_ids: row 0 goes from 3 to 20, which may mean packed documents and may not",
    ),
    "with gaps": (
        dict(position_ids=rising(0, 1, 2, 6, 7, 8, 12, 13, 14, 20, 21, 22)),
        "position_ids: row 0 goes from 2 to 6, which may",
    ),
    "turned": (dict(position_ids=torch.arange(12).roll(4)[None]), r"position_ids: row 0 goes from 11 to 0, which may"),
    "cached": (
        dict(position_ids=POSITIONS, past_key_values=DynamicCache()),
        "position_ids: start again, which means packed documents, and those cannot go on from a cache; generate each",
    ),
    "short bounds": (
        dict(cu_seq_lens_q=BOUNDS[:-1]),
        r"cu_seq_lens_q: expected bounds that rise from 0 to the number of",
    ),
    "late bounds": (
        dict(cu_seq_lens_k=BOUNDS[1:]),
        r"cu_seq_lens_k: expected bounds that rise .* tokens, 12, got \[3, 8,",
    ),
    "falling bounds": (
        dict(cu_seq_lens_q=torch.tensor([0, 8, 3, 12])),
        "cu_seq_lens_q: expected bounds that rise from 0",
    ),
    "float bounds": (
        dict(cu_seq_lens_q=BOUNDS.float()),
        "cu_seq_lens_q: expected an integer tensor .* dtype torch.float32",
    ),
    "listed bounds": (
        dict(cu_seq_lens_q=[0, 12]),
        "cu_seq_lens_q: expected an integer tensor .documents . 1,., got list",
    ),
    "bounds of two rows": (dict(cu_seq_lens_q=BOUNDS[None]), r"cu_seq_lens_q: expected shape .*, got \(1, 4\)"),
    "other bounds": (
        dict(cu_seq_lens_q=BOUNDS, cu_seq_lens_k=torch.tensor([0, 12])),
        "cu_seq_lens_k: bounds documents elsewhere than cu_seq_lens_q does; pass one of them",
    ),
    "other numbers": (
        dict(cu_seq_lens_q=BOUNDS, seq_idx=NUMBERS * 0),
        "seq_idx: bounds documents elsewhere than cu_seq_lens_q does; pass one of them",
    ),
    "short numbers": (dict(seq_idx=NUMBERS[:, 1:]), r"seq_idx: expected shape .* = \(1, 12\), got \(1, 11\)"),
    "twice": (dict(document_ids=NUMBERS, **FLASH), "document_ids: given together with cu_seq_lens_q; pass one of them"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_in_one_line(case: str) -> None:
    given, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=f"^{message}") as raised:
        ours_alone()(IDS, **given)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) <= 300


def test_bounds_of_several_rows_are_refused() -> None:
    with pytest.raises(
        ValueError, match="cu_seq_lens_q: expected a batch of one row that holds all documents, got 2 rows"
    ):
        ours_alone()(IDS.repeat(2, 1), cu_seq_lens_q=BOUNDS)


GENERATING: dict[str, dict[str, Any]] = {
    "at once": {},
    "in chunks of a document": dict(prefill_chunk_size=4),
    "in chunks of a token": dict(prefill_chunk_size=1),
    "static": dict(cache_implementation="static", attention_mask=torch.ones_like(IDS)),
    "without a cache": dict(use_cache=False),
}


@pytest.mark.parametrize("way", GENERATING)
def test_generation_refuses_packed_prompts(way: str) -> None:
    options = dict(max_new_tokens=2, do_sample=False, **GENERATING[way])
    fours = torch.arange(4).repeat(3)[None]
    with pytest.raises(ValueError, match="^position_ids: start again, which means packed documents, and those cannot"):
        ours_alone(n_layer=1).generate(IDS, position_ids=fours, **options)
    with pytest.raises(ValueError, match="^position_ids: row 0 goes from 3 to 20, which may mean packed documents"):
        ours_alone(n_layer=1).generate(IDS, position_ids=rising(0, 1, 2, 3, *range(20, 28)), **options)


def test_generation_takes_no_bounds() -> None:
    with pytest.raises(ValueError, match="cu_seq_lens_q: not taken by generate, where the sequence grows"):
        ours_alone(n_layer=1).generate(IDS, cu_seq_lens_q=BOUNDS, max_new_tokens=2)


@pytest.fixture
def fresh_compiler() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


GRAPHS: dict[str, dict[str, Any]] = {
    "bounds": FLASH,
    "positions": {},
    "ones": dict(attention_mask=torch.ones_like(IDS)),
}


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", quick(GRAPHS, ["positions"]))
def test_one_graph_packs_too(name: str) -> None:
    model = ours_alone(n_layer=1)
    compiled: Callable[..., Any] = torch.compile(model, fullgraph=True, backend="eager")
    found = compiled(IDS, position_ids=POSITIONS, use_cache=False, **GRAPHS[name]).logits
    assert far(found, packed_of(model, document_ids=NUMBERS)) <= 1e-10


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "begun before": (dict(position_ids=rising(9, 10, 11, 12, *range(8))), "position_ids: jump, which may mean packed"),
    "turned": (dict(position_ids=torch.arange(12).roll(4)[None]), "position_ids: jump, which may mean packed"),
    "repeated": (dict(position_ids=rising(0, 1, 2, 3, 3, 4, 5, 6, 7, 7, 8, 9)), "position_ids: jump, which may mean"),
    "cut": (dict(position_ids=rising(0, 1, 2, 3, *range(20, 28))), "position_ids: jump, which may mean packed"),
    "beside ones": (
        dict(position_ids=torch.arange(12).roll(4)[None], attention_mask=torch.ones_like(IDS)),
        "position_ids: jump, which may mean packed",
    ),
    "empty cache": (
        dict(position_ids=POSITIONS, past_key_values=DynamicCache),
        "position_ids: start again, which means",
    ),
    "short bounds": (dict(cu_seq_lens_q=BOUNDS[:-1]), "cu_seq_lens_q: expected bounds that rise from 0"),
    "late bounds": (dict(cu_seq_lens_k=BOUNDS[1:]), "cu_seq_lens_k: expected bounds that rise from 0"),
    "falling bounds": (dict(cu_seq_lens_q=torch.tensor([0, 8, 3, 12])), "cu_seq_lens_q: expected bounds that rise"),
    "other numbers": (
        dict(cu_seq_lens_q=BOUNDS, seq_idx=NUMBERS * 0),
        "seq_idx: bounds documents elsewhere than cu_seq_lens_q does; pass one of them",
    ),
}


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", quick(WRONG, ["begun before", "cut", "late bounds"]))
def test_a_graph_refuses_what_is_refused_without_one(name: str) -> None:
    given, message = WRONG[name]
    model = ours_alone(n_layer=1)
    compiled: Callable[..., Any] = torch.compile(model, fullgraph=True, backend="eager")
    for call, error in ((model, ValueError), (compiled, RuntimeError)):
        fresh = {key: value() if isinstance(value, type) else value for key, value in given.items()}
        line = message if call is compiled else message.split(":")[0]
        with pytest.raises(error, match=f"^{line}"):
            call(IDS, **fresh)


def static(model: Any) -> StaticCache:
    return StaticCache(config=model.config, max_cache_len=20)


@pytest.mark.parametrize("columns", [0, 12, 20], ids=["no mask", "of the tokens", "of the cache"])
def test_a_static_cache_takes_no_documents(columns: int) -> None:
    model = ours_alone(n_layer=1)
    keep = torch.ones(1, columns, dtype=torch.long) if columns else None
    with pytest.raises(ValueError, match="^position_ids: start again, which means packed documents, and those cannot"):
        model(IDS, attention_mask=keep, position_ids=POSITIONS, past_key_values=static(model))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("columns", quick([0, 20], [20]))
def test_a_compiled_static_cache_takes_no_documents_either(columns: int) -> None:
    model = ours_alone(n_layer=1)
    compiled: Callable[..., Any] = torch.compile(model, fullgraph=True, backend="eager")
    keep = torch.ones(1, columns, dtype=torch.long) if columns else None
    with pytest.raises(RuntimeError, match="^position_ids: start again, which means packed documents, and those"):
        compiled(IDS, attention_mask=keep, position_ids=POSITIONS, past_key_values=static(model))
    counted = dict(attention_mask=keep, position_ids=torch.arange(12)[None])
    found = compiled(IDS, past_key_values=static(model), **counted).logits
    assert far(found, model(IDS).logits) <= 1e-10


@torch.no_grad()
@pytest.mark.parametrize("keep", [None, torch.ones_like(IDS)[:, :8]], ids=["no mask", "all ones"])
@pytest.mark.parametrize("make", [DynamicCache, static], ids=["dynamic", "static"])
@pytest.mark.parametrize("end", [5, 8], ids=["one token", "more"])
def test_a_document_that_starts_after_cached_ones_is_refused(end: int, make: Any, keep: Tensor | None) -> None:
    model = ours_alone(n_layer=1)
    cache = DynamicCache(config=model.config) if make is DynamicCache else static(model)
    model(IDS[:, :4], past_key_values=cache)
    positions = torch.arange(end - 4)[None]
    given = dict(past_key_values=cache, attention_mask=None if keep is None else keep[:, :end])
    with pytest.raises(
        ValueError, match="^position_ids: row 0 goes to 0 after 4 cached tokens, which may mean another document, and"
    ):
        model(IDS[:, 4:end], position_ids=positions, **given)
    # under a mask they are positions only
    seen = model(IDS[:, 4:end], position_ids=positions, past_key_values=cache, mask="causal")
    assert seen.logits.shape[1] == end - 4


@torch.no_grad()
def test_padding_may_be_cached() -> None:
    model, (ids, keep) = ours_alone(n_layer=1), left_padded((5, 12), 12)
    positions, cache = (keep.cumsum(1) - 1).clamp(min=0), DynamicCache(config=model.config)
    model(ids[:, :9], attention_mask=keep[:, :9], position_ids=positions[:, :9], past_key_values=cache)
    found = model(ids[:, 9:], attention_mask=keep, position_ids=positions[:, 9:], past_key_values=cache).logits
    assert far(found, model(ids, attention_mask=keep, position_ids=positions).logits[:, 9:]) <= 1e-10
