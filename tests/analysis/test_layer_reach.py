"""After how many layers an input reaches an output, against walks counted by hand and `Mask.reach`."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arbprob_hf import Mask, causal, documents, full, heads, prefix, window
from arbprob_hf.analysis.layer_reach import OWN, allowed_pairs, first_layers, ranges, read_masks, sheets

TEXTS = ["causal", "full", "window(2)", "causal & window(3)", "prefix(3)", "causal & ~window(2) | sinks(1)"]


@given(st.sampled_from(TEXTS), st.integers(1, 5), st.integers(1, 9))
def test_depth_says_the_first_layer_at_which_reach_holds(text: str, layers: int, length: int) -> None:
    mask = Mask.parse(text)
    allowed = mask.dense(length)[0, 0]
    depth = first_layers([allowed], layers)
    own = torch.eye(length, dtype=torch.bool) & ~allowed
    assert torch.equal(depth == 1, allowed)
    assert torch.equal(depth == OWN, own)
    for number in range(1, layers + 1):
        reached = ((depth > 0) & (depth <= number)) | own
        assert torch.equal(reached, mask.reach(length, number)[0] | own)


def test_a_window_reaches_its_size_less_one_further_with_each_layer() -> None:
    depth = first_layers([(causal() & window(3)).dense(9)[0, 0]], 3)
    assert depth[8].tolist() == [0, 0, 3, 3, 2, 2, 1, 1, 1]


def test_layers_take_turns_in_order() -> None:
    # token 2 sees 1 in the first layer only, and 1 sees 0 in the second only: too late
    steps = torch.zeros(2, 3, 3, dtype=torch.bool)
    steps[0, 2, 1] = steps[1, 1, 0] = True
    assert first_layers(list(steps), 2)[2].tolist() == [0, 1, OWN]
    assert first_layers(list(steps), 4)[2].tolist() == [3, 1, OWN]
    assert first_layers(list(steps.flip(0)), 2)[2].tolist() == [2, 1, OWN]


def test_depth_stops_where_nothing_more_can_come() -> None:
    depth = first_layers([causal().dense(64)[0, 0]], 1000)
    assert torch.equal(depth > 0, torch.ones(64, 64, dtype=torch.bool).tril())


def test_equal_heads_share_a_sheet() -> None:
    local, wide = causal() & window(2), causal()
    found = sheets([heads(local, wide, local, local)], 6)
    assert [sheet.caption for sheet in found] == ["heads 0, 2-3: causal & window(2)", "head 1: causal"]
    assert torch.equal(found[0].depth.bool(), local.dense(6)[0, 0])


def test_heads_of_a_tensor_are_named_too() -> None:
    tensor = torch.stack([torch.ones(4, 4).tril(), torch.ones(4, 4)])[None]
    assert [sheet.caption for sheet in sheets([Mask.of(tensor)])] == ["head 0", "head 1"]


def test_equal_layers_share_a_sheet_and_the_reach_comes_last() -> None:
    found = sheets(read_masks(["causal & window(2)", "causal", "causal & window(2)"]), 6, layers=3)
    captions = ["layers 0, 2: causal & window(2)", "layer 1: causal", "reach through 3 layers"]
    assert [sheet.caption for sheet in found] == captions
    assert torch.equal(found[2].depth == 1, causal().dense(6)[0, 0])


def test_heads_reach_together() -> None:
    even, odd = (Mask.of(torch.eye(4).roll(by, 0)) for by in (1, 2))
    depth = sheets([heads(even, odd)], 4, layers=2)[-1].depth
    # one back or two back, twice
    assert depth[3].tolist() == [2, 1, 1, OWN]


def test_later_keys_are_those_after_the_query() -> None:
    (sheet,) = sheets([full()], 3)
    assert sheet.later.tolist() == [[False, True, True], [False, False, True], [False] * 3]


def test_the_rows_of_a_wide_tensor_are_the_last_tokens() -> None:
    (sheet,) = sheets([Mask.of(torch.ones(2, 5))])
    assert sheet.first == 3
    assert sheet.later.tolist() == [[False] * 4 + [True], [False] * 5]


def test_each_row_of_the_batch_has_its_own_picture() -> None:
    mask = documents(torch.tensor([[0, 0, 1], [0, 1, 1]]))
    assert allowed_pairs(mask, 3, row=0)[0, 1].tolist() == [True, True, False]
    assert allowed_pairs(mask, 3, row=1)[0, 1].tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([], ""),
        ([4], "4"),
        ([0, 1, 2, 5, 7, 8], "0-2, 5, 7-8"),
        (list(range(0, 20, 2)), "0, 2, 4, 6, 8, 10, 12, 14, 16, 18"),
        (list(range(0, 99, 2)), "0, 2, 4, 6, 8, ..., 94, 96, 98"),
    ],
    ids=["none", "one", "some", "ten", "many"],
)
def test_ranges_are_short(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text


def test_wrong_masks_are_refused() -> None:
    with pytest.raises(TypeError, match="mask: expected a Mask, its text or a 0-1 tensor, got int"):
        read_masks(3)
    with pytest.raises(ValueError, match="mask: expected one mask, or one per layer, got an empty list"):
        read_masks([])
    with pytest.raises(ValueError, match="unknown pattern 'causl'"):
        read_masks("causl")


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="length: expected the number of tokens, got None"):
        sheets([causal()])
    with pytest.raises(ValueError, match="length: expected an integer from 1 to 4096, got 4097"):
        sheets([causal()], 4097)
    with pytest.raises(TypeError, match="length: expected an integer from 1 to 4096, got True"):
        sheets([causal()], True)
    with pytest.raises(ValueError, match="row: expected an integer from 0 to 0, got 1"):
        sheets([causal()], 3, row=1)


def test_wrong_numbers_of_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="layers: expected an integer from 1 to 1000, got 0"):
        sheets([causal()], 3, layers=0)
    with pytest.raises(ValueError, match="layers: expected at most 65 for 4040 tokens, got 66; follow fewer layers"):
        first_layers([torch.ones(1, 1, dtype=torch.bool).expand(4040, 4040)], 66)
    with pytest.raises(ValueError, match="layers: expected a multiple of the 2 masks, which take turns, got 3"):
        sheets([causal(), prefix(1)], 3, layers=3)
    with pytest.raises(ValueError, match="layers: reach needs as many queries as keys, got a mask of 2 x 3"):
        sheets([Mask.of(torch.ones(2, 3))], layers=1)
