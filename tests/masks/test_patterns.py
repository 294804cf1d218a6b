"""Every pattern against its drawn picture and an oracle, and patterns count tokens wherever they lie."""

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arbprob_hf import (
    HIDDEN,
    Mask,
    block_diffusion,
    blocks,
    causal,
    dilated,
    documents,
    full,
    heads,
    order,
    padding,
    prefix,
    sinks,
    strided,
    tree,
    window,
)
from arbprob_hf.model.masks.mask import PATTERNS
from arbprob_hf.model.masks.patterns import registered
from tests.masks.oracles import micro, random_ids

# the parameters that each picture is drawn for, as its docstring says
DRAWN: dict[str, Mask] = {
    "causal": causal(),
    "full": full(),
    "window": window(2),
    "dilated": dilated(2, 2),
    "strided": strided(3),
    "prefix": prefix(2),
    "sinks": sinks(2),
    "blocks": blocks(2),
    "block_diffusion": block_diffusion(3, 1),
    "heads": heads(causal(), window(2)),
    "tree": tree(torch.tensor([-1, 0, 0, 1, 1, 2])),
    "documents": documents(torch.tensor([0, 0, 0, 1, 1, 1])),
    "padding": padding(torch.tensor([0, 0, 1, 1, 1, 1])),
    "order": order(torch.tensor([0, 3, 1, 2, 5, 4])),
}
SAID = {
    "window": "for size 2",
    "dilated": "for size 2, step 2",
    "strided": "for step 3",
    "prefix": "for length 2",
    "sinks": "for count 2",
    "blocks": "for size 2",
    "block_diffusion": "for\n    length 3, size 1",
    "heads": "of `heads(causal, window(2))`",
    "tree": "for parents\n    -1 0 0 1 1 2",
    "documents": "for ids 0 0 0 1 1 1",
    "padding": "for keep 0 0 1 1 1 1",
    "order": "for rank 0 3 1 2 5 4",
}
ids_rows = st.lists(st.lists(st.integers(0, 3), min_size=9, max_size=9), min_size=1, max_size=3)


def pictures(kind: type[Mask]) -> Tensor:
    """The 6 x 6 pictures of a docstring, side by side where there are several, as bool (pictures, 6, 6)."""
    lines = [re.findall(r"(\d) +((?:[#.] ){5}[#.])", line) for line in (kind.__doc__ or "").splitlines()]
    lines = [line for line in lines if line]
    assert [{number for number, _ in line} for line in lines] == [{number} for number in "012345"]
    rows = [[[sign == "#" for sign in row.split()] for _, row in line] for line in lines]
    return torch.tensor(rows).transpose(0, 1)


def loop(rule: Callable[[int, int], bool], q_len: int = 9, kv_len: int = 9) -> Tensor:
    return torch.tensor([[rule(q, k) for k in range(kv_len)] for q in range(q_len)])


def test_every_pattern_is_drawn() -> None:
    assert set(DRAWN) == set(PATTERNS)


@pytest.mark.parametrize("name", DRAWN)
def test_a_pattern_equals_its_picture(name: str) -> None:
    assert torch.equal(DRAWN[name].dense(6)[0], pictures(PATTERNS[name]))


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


@pytest.mark.parametrize("step", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [1, 2, 3, 20])
def test_a_dilated_window_is_every_step_th_key_and_counts_the_query_itself(size: int, step: int) -> None:
    distances = {jump * step for jump in range(size)}
    expected = loop(lambda q, k: max(q, k) - min(q, k) in distances)
    assert torch.equal(dilated(size, step).dense(9)[0, 0], expected)
    assert (causal() & dilated(size, step)).dense(99)[0, 0, -1].sum() == min(size, 98 // step + 1)


@pytest.mark.parametrize("size", [1, 2, 5, 20])
def test_a_dilated_window_without_gaps_is_a_window(size: int) -> None:
    assert torch.equal(dilated(size, 1).dense(9), window(size).dense(9))


@pytest.mark.parametrize("step", [1, 2, 3, 9])
def test_strided_keys_share_the_remainder_of_the_query(step: int) -> None:
    remainder = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8][i % step] for i in range(9)])
    assert torch.equal(strided(step).dense(9)[0, 0], remainder[:, None] == remainder)


def test_the_strided_attention_of_sparse_transformers_is_an_expression() -> None:
    """Child et al. 2019, section 4.2: the last `stride` positions, and those a multiple of `stride` back."""
    seen = loop(lambda q, k: k in range(max(0, q - 2), q + 1) or (k <= q and (q - k) % 3 == 0))
    assert torch.equal((causal() & (window(3) | strided(3))).dense(9)[0, 0], seen)


@pytest.mark.parametrize("count", [0, 1, 4, 9, 20])
def test_sinks_are_a_prefix_that_never_looks_forward(count: int) -> None:
    assert torch.equal(sinks(count).dense(9), (causal() & prefix(count)).dense(9))


def test_a_window_with_sinks_stays_causal_and_with_a_prefix_does_not() -> None:
    with_sinks, with_prefix = (causal() & window(3) | part for part in (sinks(4), prefix(4)))
    assert not with_sinks.dense(9)[0, 0].triu(1).any()
    assert with_prefix.dense(9)[0, 0].triu(1).any()
    assert torch.equal(with_sinks.dense(9)[0, 0, 4:], with_prefix.dense(9)[0, 0, 4:])


@pytest.mark.parametrize("size", [1, 2, 4, 9, 20])
def test_blocks_are_squares_on_the_diagonal(size: int) -> None:
    squares = [torch.ones(piece.shape[0], piece.shape[0]) for piece in torch.arange(9).split(size)]
    assert torch.equal(blocks(size).dense(9)[0, 0], torch.block_diag(*squares).bool())


@pytest.mark.parametrize(("length", "size"), [(4, 1), (4, 2), (4, 4), (5, 2), (6, 4), (4, 9)])
def test_block_diffusion_is_made_of_four_corners(length: int, size: int) -> None:
    """Noisy to noisy, noisy to clean, clean to noisy and clean to clean (Arriola et al. 2025, section 3.1)."""
    own = torch.block_diag(*[torch.ones(len(piece), len(piece)) for piece in torch.arange(length).split(size)]).bool()
    earlier = torch.ones(length, length).tril().bool() & ~own
    corners = torch.cat([torch.cat([own, earlier], 1), torch.cat([torch.zeros_like(own), earlier | own], 1)])
    assert torch.equal(block_diffusion(length, size).dense(2 * length)[0, 0], corners)


def test_the_clean_copy_of_blocks_of_one_is_causal() -> None:
    assert torch.equal(block_diffusion(4, 1).dense(8)[0, 0, 4:, 4:], causal().dense(4)[0, 0])


parent_rows = st.lists(st.tuples(*(st.integers(-1, token - 1) for token in range(9))), min_size=1, max_size=3)


@given(parent_rows)
def test_a_tree_sees_itself_and_what_a_climb_meets_row_by_row(parents: list[tuple[int, ...]]) -> None:
    allowed = tree(torch.tensor(parents)).dense(9, batch=len(parents))
    for own, row in zip(parents, allowed, strict=True):
        for token in range(9):
            met, climber = set(), token
            while climber >= 0:
                met.add(climber)
                climber = own[climber]
            assert set(row[0, token].nonzero().flatten().tolist()) == met


def test_a_chain_is_causal_and_roots_are_alone() -> None:
    assert torch.equal(tree(torch.arange(9) - 1).dense(9), causal().dense(9))
    assert torch.equal(tree(torch.full((9,), -1)).dense(9)[0, 0], torch.eye(9).bool())


def test_trees_are_equal_when_everybody_has_the_same_ancestors() -> None:
    assert tree(torch.tensor([-1, 0, 0])) == tree(torch.tensor([[-1, 0, 0]], dtype=torch.int32))
    assert tree(torch.tensor([-1, 0, 0])) != tree(torch.tensor([-1, 0, 1]))


@given(ids_rows)
def test_each_head_has_its_own_mask_tensors_row_by_row_among_them(ids: list[list[int]]) -> None:
    table = torch.tensor(ids)
    mask = heads(causal() & documents(table), documents(table), ~causal(), documents(table)) & window(4)
    allowed = mask.dense(9)
    assert allowed.shape == (len(ids), 4, 9, 9)
    for own, row in zip(ids, allowed, strict=True):
        same = loop(lambda q, k, own=own: own[q] == own[k] and abs(q - k) < 4)
        assert torch.equal(row[1], same)
        assert torch.equal(row[3], same)
        assert torch.equal(row[0], same.tril())
        assert torch.equal(row[2], loop(lambda q, k: q < k < q + 4))


def test_a_mask_given_twice_serves_both_its_heads() -> None:
    first, second = torch.ones(6, 6).tril().bool(), torch.ones(6, 6).tril(1).triu(-1).bool()
    table = Mask.of(torch.ones(6, 6))
    allowed = heads(causal(), window(2), causal(), table, window(2), table).dense(6)[0]
    assert torch.equal(
        allowed, torch.stack([first, second, first, full().dense(6)[0, 0], second, full().dense(6)[0, 0]])
    )


def test_heads_may_stand_anywhere_in_an_expression_and_in_each_other() -> None:
    local = heads(window(1), full())
    nested = ~(heads(local, local | causal()) & causal())
    alone, past = torch.eye(5).bool(), torch.ones(5, 5).tril().bool()
    assert torch.equal(nested.dense(5)[0], torch.stack([~alone, ~past]))


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
        (lambda: window(2.0), TypeError, "window(size): expected an integer, got 2.0 (float)"),
        (lambda: window(True), TypeError, "window(size): expected an integer, got True (bool)"),
        (lambda: prefix(-1), ValueError, "prefix(length): expected at least 0, got -1"),
        (lambda: prefix("3"), TypeError, "prefix(length): expected an integer, got '3' (str)"),
        (lambda: window(2**31), ValueError, "window(size): expected at most 2147483647, got 2147483648"),
        (lambda: window(10**400), ValueError, "window(size): expected at most 2147483647"),
        (lambda: sinks(-1), ValueError, "sinks(count): expected at least 0, got -1"),
        (lambda: sinks(None), TypeError, "sinks(count): expected an integer, got None (NoneType)"),
        (lambda: dilated(0, 2), ValueError, "dilated(size): expected at least 1, got 0"),
        (lambda: dilated(2, 0), ValueError, "dilated(step): expected at least 1, got 0"),
        (lambda: strided(0), ValueError, "strided(step): expected at least 1, got 0"),
        (lambda: blocks(0), ValueError, "blocks(size): expected at least 1, got 0"),
        (lambda: block_diffusion(0, 1), ValueError, "block_diffusion(length): expected at least 1, got 0"),
        (lambda: block_diffusion(4, 1.5), TypeError, "block_diffusion(size): expected an integer, got 1.5 (float)"),
        (
            lambda: block_diffusion(4, 2).dense(9),
            ValueError,
            "block_diffusion(length): expected at most 8 slots, a noisy and a clean copy of 4 tokens, got 9",
        ),
        (lambda: tree([-1, 0]), TypeError, "tree(parents): expected an integer tensor (T,) or (B, T), got list"),
        (lambda: tree(torch.zeros(2, 2, 2).long()), ValueError, "tree(parents): expected shape (T,) or (B, T)"),
        (
            lambda: tree(torch.tensor([-1, 1])),
            ValueError,
            "tree(parents): expected each token's parent before it, or -1 for a root, got 1 for token 1",
        ),
        (lambda: tree(torch.tensor([[-1, 0], [-1, -2]])), ValueError, "or -1 for a root, got -2 for token 1"),
        (lambda: tree(torch.tensor([-1, 0])).dense(3), ValueError, "tree(parents): expected 1 rows (or 1) of at least"),
        (lambda: heads(), ValueError, "heads: expected one mask per head, got none"),
        (lambda: heads(causal(), "full"), TypeError, "heads: expected masks, got str"),
        (
            lambda: (full() & heads(causal(), full())).dense(3, heads=4),
            ValueError,
            "heads: expected one mask per head, 4 in all, got 2",
        ),
        (lambda: heads(causal(), documents(torch.arange(4))).dense(5), ValueError, "documents(ids): expected 1 rows"),
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
        (
            lambda: order(torch.arange(5), torch.arange(4)),
            ValueError,
            "order(limit): expected the shape of rank, (1, 5), got (1, 4)",
        ),
        (
            lambda: order(torch.zeros(2, 4).long(), torch.zeros(3, 4).long()),
            ValueError,
            "order(limit): expected the shape of rank, (2, 4), got (3, 4)",
        ),
        (
            lambda: order(torch.arange(4), torch.zeros(2, 4).long()).dense(4, batch=3),
            ValueError,
            "order(limit): expected 3 rows (or 1)",
        ),
        (lambda: (causal() & ~documents(torch.arange(4))).dense(5), ValueError, "documents(ids): expected"),
        (lambda: causal().reach(4, 0), ValueError, "layers: expected at least 1, got 0; None means any number"),
        (lambda: causal().reach(4, 2.5), TypeError, "layers: expected an integer, got 2.5 (float)"),
        (lambda: causal().reach(0), ValueError, "length: expected at least 1, got 0"),
        (lambda: causal().reach(-1), ValueError, "length: expected at least 1, got -1"),
        (lambda: causal().reach("4"), TypeError, "length: expected an integer, got '4' (str)"),
        (lambda: causal().dense("3"), TypeError, "q_len: expected an integer, got '3' (str)"),
        (lambda: causal().dense(-1), ValueError, "q_len: expected at least 1, got -1"),
        (lambda: causal().dense(3, 0), ValueError, "kv_len: expected at least 1, got 0"),
        (lambda: causal().dense(3, batch=0), ValueError, "batch: expected at least 1, got 0"),
        (lambda: causal().dense(3, heads=True), TypeError, "heads: expected an integer, got True (bool)"),
        (lambda: causal().dense(3, offset=-1), ValueError, "offset: expected at least 0, got -1"),
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
