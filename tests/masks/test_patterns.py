"""Every pattern against its drawn picture and an oracle, and patterns count tokens wherever they lie."""

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arbprob_hf import HIDDEN, Mask, causal, documents, full, order, padding, prefix, window
from arbprob_hf.model.masking_arbprob import PATTERNS
from arbprob_hf.model.patterns_arbprob import registered

from .oracles import micro, random_ids

# the parameters that each picture is drawn for, as its docstring says
DRAWN: dict[str, Mask] = {
    "causal": causal(),
    "full": full(),
    "window": window(2),
    "prefix": prefix(2),
    "documents": documents(torch.tensor([0, 0, 0, 1, 1, 1])),
    "padding": padding(torch.tensor([0, 0, 1, 1, 1, 1])),
    "order": order(torch.tensor([0, 3, 1, 2, 5, 4])),
}
SAID = {
    "window": "for size 2",
    "prefix": "for length 2",
    "documents": "for ids 0 0 0 1 1 1",
    "padding": "for keep 0 0 1 1 1 1",
    "order": "for rank 0 3 1 2 5 4",
}
ids_rows = st.lists(st.lists(st.integers(0, 3), min_size=9, max_size=9), min_size=1, max_size=3)


def picture(kind: type[Mask]) -> Tensor:
    """The 6 x 6 picture of a docstring as bool (6, 6)."""
    rows = re.findall(r"^\s*(\d) +((?:[#.] ){5}[#.])\s*$", kind.__doc__ or "", re.MULTILINE)
    assert [number for number, _ in rows] == list("012345")
    return torch.tensor([[sign == "#" for sign in row.split()] for _, row in rows])


def loop(rule: Callable[[int, int], bool], q_len: int = 9, kv_len: int = 9) -> Tensor:
    return torch.tensor([[rule(q, k) for k in range(kv_len)] for q in range(q_len)])


def test_every_pattern_is_drawn() -> None:
    assert set(DRAWN) == set(PATTERNS)


@pytest.mark.parametrize("name", DRAWN)
def test_a_pattern_equals_its_picture(name: str) -> None:
    assert torch.equal(DRAWN[name].dense(6)[0, 0], picture(PATTERNS[name]))


@pytest.mark.parametrize("name", DRAWN)
def test_a_pattern_says_its_rule_its_source_and_what_it_is_drawn_for(name: str) -> None:
    text = PATTERNS[name].__doc__ or ""
    assert re.match(r"Query q sees (every )?key k", text)
    assert re.search(r"[12]\d{3}", text)
    assert SAID.get(name, "") in text


def test_causal_is_the_lower_triangle() -> None:
    assert torch.equal(causal().dense(9)[0, 0], torch.ones(9, 9, dtype=torch.bool).tril())


def test_full_is_everything() -> None:
    assert full().dense(3, 5).all()
    assert full().dense(3, 5).shape == (1, 1, 3, 5)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 9, 20])
def test_a_window_is_a_band_that_counts_the_query_itself(size: int) -> None:
    band = torch.ones(9, 9, dtype=torch.bool).tril(size - 1).triu(1 - size)
    assert torch.equal(window(size).dense(9)[0, 0], band)
    assert (causal() & window(size)).dense(9)[0, 0, -1].sum() == min(size, 9)


@pytest.mark.parametrize("length", [0, 1, 4, 9, 20])
def test_a_prefix_is_its_first_columns(length: int) -> None:
    expected = torch.zeros(9, 9, dtype=torch.bool)
    expected[:, :length] = True
    assert torch.equal(prefix(length).dense(9)[0, 0], expected)


@given(ids_rows)
def test_documents_see_their_own_row_by_row(ids: list[list[int]]) -> None:
    allowed = documents(torch.tensor(ids)).dense(9, batch=len(ids))
    for own, row in zip(ids, allowed, strict=True):
        assert torch.equal(row[0], loop(lambda q, k, own=own: own[q] == own[k]))


@given(ids_rows)
def test_padding_hides_columns_row_by_row(ids: list[list[int]]) -> None:
    keep = torch.tensor(ids) > 0
    for form in (keep, keep.long()):
        allowed = padding(form).dense(9, batch=len(ids))
        for own, row in zip(ids, allowed, strict=True):
            assert torch.equal(row[0], loop(lambda q, k, own=own: own[k] > 0))


@given(ids_rows, st.booleans())
def test_order_compares_ranks_with_limits_row_by_row(ids: list[list[int]], has_limits: bool) -> None:
    ranks = torch.tensor(ids)
    ranks[ranks == 3] = HIDDEN
    limits = torch.tensor(ids).flip(-1) if has_limits else None
    allowed = order(ranks, limits).dense(9, batch=len(ids))
    own_limits = ranks if limits is None else limits
    for rank, limit, row in zip(ranks.tolist(), own_limits.tolist(), allowed, strict=True):
        seen = loop(lambda q, k, r=rank, m=limit: q == k or (r[k] < HIDDEN and r[k] <= m[q]))
        assert torch.equal(row[0], seen)


def test_a_hidden_slot_is_seen_by_itself_alone_even_without_a_limit() -> None:
    ranks, limits = torch.tensor([0, HIDDEN, 1]), torch.tensor([HIDDEN, HIDDEN, HIDDEN])
    assert order(ranks, limits).dense(3)[0, 0].tolist() == [[True, False, True], [True] * 3, [True, False, True]]


@pytest.mark.parametrize(
    "shape", [(4, 4), (1, 4, 4), (3, 4, 4), (1, 1, 4, 4), (3, 1, 4, 4), (1, 2, 4, 4), (3, 2, 4, 4)]
)
def test_a_tensor_is_a_mask_as_it_stands(shape: tuple[int, ...]) -> None:
    table = torch.rand(shape) < 0.5
    table[..., 0, 0] = True
    expected = table if table.dim() == 4 else table[:, None] if table.dim() == 3 else table[None, None]
    for form in (table, table.long(), table.to(torch.uint8), table.float(), table.double(), table.bfloat16()):
        assert torch.equal(Mask.of(form).dense(4, batch=3, heads=2), expected.expand(3, 2, 4, 4))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: window(0), ValueError, "window(size): expected at least 1, got 0"),
        (lambda: window(2.0), TypeError, "window(size): expected an integer, got '2.0' (float)"),
        (lambda: window(True), TypeError, "window(size): expected an integer, got 'True' (bool)"),
        (lambda: prefix(-1), ValueError, "prefix(length): expected at least 0, got -1"),
        (lambda: prefix("3"), TypeError, "prefix(length): expected an integer, got '3' (str)"),
        (lambda: documents([0, 1]), TypeError, "documents(ids): expected an integer tensor (T,) or (B, T), got list"),
        (lambda: documents(torch.rand(3)), TypeError, "documents(ids): expected an integer tensor"),
        (lambda: documents(torch.tensor(3)), ValueError, "documents(ids): expected shape (T,) or (B, T), got ()"),
        (lambda: order(torch.rand(3)), TypeError, "order(rank): expected an integer tensor"),
        (lambda: order(torch.arange(3), torch.rand(3)), TypeError, "order(limit): expected an integer tensor"),
        (lambda: order(torch.zeros(1, 1, 1).long()), ValueError, "order(rank): expected shape (T,) or (B, T)"),
        (lambda: padding(torch.tensor([0, 2])), ValueError, "padding(keep): expected only 0 and 1"),
        (lambda: padding([1, 1]), TypeError, "padding(keep): expected a tensor of bool or 0-1, got list"),
        (lambda: Mask.of(torch.ones(3)), ValueError, "tensor: expected 2, 3 or 4 dimensions, got shape (3,)"),
        (lambda: Mask.of(torch.zeros(0, 0)), ValueError, "tensor: expected at least one element"),
        (lambda: Mask.of(torch.zeros(2, 2)), ValueError, "tensor: all zeros in torch.float32"),
        (lambda: Mask.of(torch.full((2, 2), -1.0)), ValueError, "tensor: expected only 0 and 1"),
        (
            lambda: Mask.of(torch.ones(2, 2).cfloat()),
            TypeError,
            "tensor: expected a dense tensor of bool or 0-1, got torch.complex64",
        ),
        (lambda: Mask.of(torch.ones(4, 4)).dense(5), ValueError, "mask: a tensor of shape (4, 4) does not fit"),
        (
            lambda: Mask.of(torch.ones(2, 4, 4)).dense(4, batch=3),
            ValueError,
            "does not fit batch=3, heads=1, 4 queries",
        ),
        (
            lambda: documents(torch.arange(4)).dense(5),
            ValueError,
            "documents(ids): expected 1 rows (or 1) of at least 5",
        ),
        (lambda: padding(torch.ones(2, 4)).dense(4, batch=3), ValueError, "padding(keep): expected 3 rows (or 1)"),
        (lambda: order(torch.arange(4)).dense(5), ValueError, "order(rank): expected 1 rows (or 1)"),
        (lambda: order(torch.arange(5), torch.arange(4)).dense(5), ValueError, "order(limit): expected 1 rows"),
        (lambda: (causal() & ~documents(torch.arange(4))).dense(5), ValueError, "documents(ids): expected"),
        (lambda: causal().reach(4, 0), ValueError, "layers: expected at least 1, got 0"),
        (lambda: registered("causal")(type(full())), ValueError, "pattern: the name 'causal' is taken by Causal"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_pattern_cannot_take_is_refused(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        make()
    assert len(str(caught.value)) <= 300
    assert "\n" not in str(caught.value)


# patterns count tokens, not columns

COUNTED = [
    "causal",
    "causal & window(2)",
    "causal & window(3) | prefix(2)",
    "full",
    "prefix(2)",
    "~(window(2)) | causal",
]


@pytest.mark.parametrize("text", COUNTED)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@settings(max_examples=12)
@given(data=st.data())
def test_tokens_left_out_by_the_attention_mask_might_as_well_not_be_there(
    text: str, backend: str, data: st.DataObject
) -> None:
    """Left, right and inner padding: each row equals its kept tokens run alone."""
    model = micro(backend=backend)
    rows = st.lists(st.booleans(), min_size=8, max_size=8).filter(any)
    keep = torch.tensor(data.draw(st.lists(rows, min_size=1, max_size=3)))
    ids = random_ids(len(keep), 8)
    positions = (keep.long().cumsum(1) - 1).clamp(min=0)
    got = model(ids, attention_mask=keep, position_ids=positions, mask=text).logits
    for row, kept in enumerate(keep):
        alone = model(ids[row, kept][None], mask=text).logits[0]
        torch.testing.assert_close(got[row, kept], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("text", COUNTED)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@settings(max_examples=12)
@given(data=st.data())
def test_packed_documents_equal_separate_runs(text: str, backend: str, data: st.DataObject) -> None:
    """Also with padding anywhere, and with an id that comes back: a document is a run of equal ids."""
    model = micro(backend=backend)
    runs = data.draw(st.lists(st.tuples(st.integers(1, 4), st.sampled_from([0, 1, 2, 9])), min_size=1, max_size=4))
    runs = [(length, 10 * (i % 2) + number) for i, (length, number) in enumerate(runs)]
    length = sum(n for n, _ in runs)
    keep = torch.tensor(data.draw(st.lists(st.booleans(), min_size=length, max_size=length).filter(any)))
    ids = random_ids(1, length)
    document_ids = torch.tensor([number for n, number in runs for _ in range(n)])[None]
    pieces = [piece[keep[piece]] for piece in torch.arange(length).split([n for n, _ in runs])]
    positions = torch.zeros(1, length, dtype=torch.long)
    for piece in pieces:
        positions[0, piece] = torch.arange(len(piece))
    got = model(ids, attention_mask=keep[None], position_ids=positions, mask=text, document_ids=document_ids).logits[0]
    for piece in (piece for piece in pieces if len(piece)):
        alone = model(ids[:, piece], mask=text).logits[0]
        torch.testing.assert_close(got[piece], alone, atol=1e-5, rtol=0)
