"""Certificates and leak reports against the definition, a walk over every path, and the bugs they are for."""

import itertools
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from arbprob_hf import HIDDEN, Mask, causal, certify, check_leakage, heads, order, window

ranks_of_slots = st.lists(st.sampled_from([0, 1, 2, 3, HIDDEN]), min_size=1, max_size=7)


@given(ranks_of_slots, st.data())
def test_a_certificate_holds_exactly_where_no_visible_slot_has_a_higher_limit(ranks: list, data: st.DataObject) -> None:
    limits = data.draw(st.lists(st.integers(0, 4), min_size=len(ranks), max_size=len(ranks)))
    found = certify(torch.tensor(ranks), torch.tensor(limits))
    expected = [(0, t, r, m) for t, (r, m) in enumerate(zip(ranks, limits, strict=True)) if r != HIDDEN and m > r]
    assert bool(found) == (expected == [])
    assert (found.total, found.offending) == (len(expected), tuple(expected))


@given(ranks_of_slots, st.data())
def test_what_is_certified_relays_nothing(ranks: list, data: st.DataObject) -> None:
    limits = data.draw(st.lists(st.integers(-1, 4), min_size=len(ranks), max_size=len(ranks)))
    if certify(torch.tensor(ranks), torch.tensor(limits)):
        assert not check_leakage(order(torch.tensor(ranks), torch.tensor(limits)))


def test_a_certificate_names_row_slot_rank_and_limit() -> None:
    ranks = torch.tensor([[0, 1, 2, HIDDEN], [0, 1, 2, 3]])
    assert str(certify(ranks[1])) == "certified: no slot relays what another must not see, at any depth (4 slots)"
    assert str(certify(ranks, ranks)).endswith("at any depth (4 slots, 2 rows)")
    found = certify(ranks, ranks + torch.tensor([[0, 4, 0, -9], [0, 0, 0, 1]]))
    assert not found
    assert str(found) == (
        "not certified: 2 visible slots relay what lies above their rank: "
        "row 0 slot 1 (rank 1, limit 5), row 1 slot 3 (rank 3, limit 4)"
    )
    assert str(certify(torch.zeros(30, dtype=torch.long), torch.ones(30, dtype=torch.long))).endswith("and 20 more")


def test_a_certificate_for_4096_slots_takes_less_than_a_millisecond() -> None:
    """Measured: 0.02 ms; certify looks at each slot once."""
    ranks = torch.randperm(4096)
    taken = []
    for _ in range(20):
        start = time.perf_counter()
        certify(ranks, ranks)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 1e-3


def test_certify_refuses_what_are_no_ranks() -> None:
    ranks = torch.arange(4)
    with pytest.raises(TypeError, match=r"^ranks: expected an integer tensor \(T,\) or .*, got dtype torch.float32$"):
        certify(torch.rand(4))
    with pytest.raises(TypeError, match=r"^limits: expected an integer .*, got list; wrap it in torch.tensor"):
        certify(ranks, [0, 1, 2, 3])
    with pytest.raises(ValueError, match=r"^ranks: expected shape \(T,\) or \(B, T\), got \(1, 1, 4\)$"):
        certify(ranks[None, None])
    with pytest.raises(ValueError, match=r"^limits: expected the shape of ranks, \(1, 4\), got \(1, 5\)$"):
        certify(ranks, torch.arange(5))
    with pytest.raises(ValueError, match=r"^limits: expected the shape of ranks, \(2, 4\), got \(3, 4\)$"):
        certify(ranks.repeat(2, 1), ranks.repeat(3, 1))


def every_path(tables: list[list[list[bool]]], query: int, key: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """All ways from a query down to a key: a choice of layers to step in, and of the slots stepped to."""
    size, found = len(tables[0]), []
    for count in range(len(tables) + 1):
        for taken in itertools.combinations(reversed(range(len(tables))), count):
            for between in itertools.product(range(size), repeat=max(count - 1, 0)):
                slots = (query, *between, key) if count else (query,)
                steps = zip(taken, slots, slots[1:], strict=False)
                if slots[-1] == key and all(tables[layer][q][k] for layer, q, k in steps):
                    found.append((slots, taken))
    return found


def random_table(size: int, seed: int, count: int = 1) -> Tensor:
    return torch.rand(count, size, size, generator=torch.Generator().manual_seed(seed)) < 0.3


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 10_000))
def test_leaks_of_one_mask_are_what_a_search_of_all_paths_finds(size: int, layers: int, seed: int) -> None:
    table = random_table(size, seed)[0]
    found = check_leakage(table, torch.ones(size, size, dtype=torch.bool), layers=layers)
    for q, k in itertools.product(range(size), repeat=2):
        ways = every_path([table.tolist()] * layers, q, k)
        assert bool(found.where[0, q, k]) == bool(ways)
    for leak in found.leaks:
        ways = every_path([table.tolist()] * layers, leak.slots[0], leak.slots[-1])
        assert leak.slots in {slots for slots, _ in ways}
        assert len(leak.slots) == min(len(slots) for slots, _ in ways)


@given(st.integers(1, 4), st.sampled_from([(2, 1), (3, 1), (2, 2)]), st.integers(0, 10_000))
def test_leaks_of_a_mask_per_layer_are_what_a_search_of_all_paths_finds(
    size: int, layers: tuple[int, int], seed: int
) -> None:
    count, turns = layers
    tables = random_table(size, seed, count)
    found = check_leakage(list(tables), torch.ones(size, size), layers=None if turns == 1 else count * turns)
    used = tables.tolist() * turns
    for q, k in itertools.product(range(size), repeat=2):
        assert bool(found.where[0, q, k]) == bool(every_path(used, q, k))
    for leak in found.leaks:
        ways = every_path(used, leak.slots[0], leak.slots[-1])
        assert (leak.slots, leak.layers) in ways
        assert len(leak.slots) == min(len(slots) for slots, _ in ways)


def test_a_path_reads_query_relay_key() -> None:
    table = torch.zeros(10, 10, dtype=torch.bool)
    table[9, 4] = table[4, 7] = True
    assert (
        str(check_leakage(table)) == "1 leak: 10 slots, any number of layers\n  slot 9 <- slot 4 <- slot 7 (2 layers)"
    )
    assert str(check_leakage(table, layers=1)) == "no leak: 10 slots, 1 layer"
    forbidden = torch.zeros(10, 10, dtype=torch.bool)
    forbidden[9, 4] = forbidden[3, 3] = True
    assert [str(leak) for leak in check_leakage(table, forbidden).leaks] == [
        "slot 3 <- itself (0 layers)",
        "slot 9 <- slot 4 (1 layer)",
    ]


def test_a_path_through_masks_of_their_own_says_which_layer() -> None:
    masks = [causal() & window(2), "causal", window(2)]
    found = check_leakage(masks, ~(causal() & window(5)).dense(6)[0, 0] & causal().dense(6)[0, 0], layers=3)
    assert str(found.leaks[0]) == "slot 5 <- slot 0 (layer 1)"
    one_hop = torch.zeros(2, 3, 3, dtype=torch.bool)
    one_hop[0, 1, 0] = one_hop[1, 2, 1] = True
    assert str(check_leakage(list(one_hop)).leaks[0]) == "slot 2 <- slot 1 <- slot 0 (layers 1, 0)"
    assert not check_leakage(list(one_hop.flip(0)))
    # used in turn where there are more layers
    assert str(check_leakage(list(one_hop.flip(0)), layers=4).leaks[0]).endswith("(layers 2, 1)")


def test_the_bug_of_the_original_research_code_is_named() -> None:
    """Conditioning slots that see the body: nothing forbidden is seen directly, and everything arrives at depth two."""
    ranks, limits = torch.tensor([0] * 4 + list(range(1, 13))), torch.tensor([12] * 4 + list(range(1, 13)))
    assert str(certify(ranks, limits)).count("rank 0, limit 12") == 4
    later = ~order(ranks).dense(16)[0]
    later[:, :4] = False  # what conditioning slots themselves say is nobody's target
    assert not check_leakage(order(ranks, limits), later, layers=1)
    found = check_leakage(order(ranks, limits), later, layers=2)
    assert str(found.leaks[0]) == "slot 4 <- slot 0 <- slot 5 (2 layers)"
    assert found.total == 66


def test_rows_are_reported_apart_and_heads_are_united() -> None:
    rows = torch.zeros(2, 4, 4, dtype=torch.bool)
    rows[1, 3, 2] = rows[1, 2, 1] = True
    found = check_leakage(Mask.of(rows))
    assert found.where.shape == (2, 4, 4)
    assert [str(leak) for leak in found.leaks] == ["row 1: slot 3 <- slot 2 <- slot 1 (2 layers)"]
    either = check_leakage(heads(Mask.of(rows[1]), causal()), torch.ones(4, 4).triu(1).bool())
    assert not either
    assert check_leakage("causal", torch.ones(3, 4, 4).tril(-1).bool()).total == 18


@pytest.mark.parametrize("text", ["causal", "full", "causal | prefix(3)", "window(1)"])
def test_masks_that_relay_nothing_raise_no_alarm(text: str) -> None:
    assert not check_leakage(text, length=9)
    assert not check_leakage([text, text], length=9, layers=4)


def test_only_ten_paths_are_listed_and_all_are_counted() -> None:
    found = check_leakage(window(2), length=12)
    assert (found.total, len(found.leaks)) == (12 * 12 - 12 - 22, 10)
    assert str(found).endswith("and 100 more")


def test_check_leakage_refuses_what_it_cannot_read() -> None:
    table = torch.ones(4, 4, dtype=torch.bool)
    cases = [
        (lambda: check_leakage([]), ValueError, "mask: expected one mask, or one per layer, got an empty list"),
        (lambda: check_leakage(3), TypeError, r"mask: expected a Mask, its text or a 0-1 tensor, got int"),
        (
            lambda: check_leakage(window),
            TypeError,
            r"mask: .*got the pattern window; a pattern is called: write window",
        ),
        (lambda: check_leakage("causal"), ValueError, "length: expected one number of slots, no tensor has it; pass"),
        (lambda: check_leakage([table, table[:3, :3]]), ValueError, "length: .* got 3 and 4; pass length="),
        (lambda: check_leakage(table, layers=0), ValueError, "layers: expected an integer of at least 1, got 0"),
        (
            lambda: check_leakage(["causal", table], layers=3),
            ValueError,
            "layers: expected a multiple of the 2 masks, ",
        ),
        (lambda: check_leakage(table, table.float() * 2), ValueError, "forbidden: expected only 0 and 1, 1 where an"),
        (lambda: check_leakage(table, table[0]), ValueError, r"forbidden: expected shape .*, got \(4,\)"),
        (
            lambda: check_leakage("causal", [[0, 1], [0, 0]]),
            TypeError,
            r"forbidden: expected a tensor of bool or 0-1, .*, got list; wrap it in torch.tensor\(\.\.\.\)",
        ),
        (lambda: check_leakage(table, table, length=3), ValueError, r"forbidden: .* with T = 3, got \(4, 4\)"),
        (lambda: check_leakage("nonsense", length=4), ValueError, "mask: unknown pattern 'nonsense'"),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=f"^{message}"):
            call()
