"""A mask is fitted to the heads and slots of every pass, however it is given."""

import re

import pytest

from tests.masks.oracles import micro, random_ids


@pytest.mark.parametrize("give", ["mask", "attention_mask", "config"])
def test_a_text_is_fitted_to_the_heads_and_slots_of_the_pass(give: str) -> None:
    ids = random_ids(2, 8)

    def run(text: str) -> None:
        if give == "config":
            micro(mask=text)(ids)
        else:
            micro()(ids, **{give: text})

    run("heads(causal, full) & block_diffusion(4, 2)")
    with pytest.raises(ValueError, match="heads: expected one mask per head, 2 in all, got 3"):
        run("heads(causal, full, causal)")
    with pytest.raises(ValueError, match=re.escape("block_diffusion(length): expected at most 4 slots")):
        run("block_diffusion(2, 1)")
