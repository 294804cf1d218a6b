"""One new token reads only the keys it sees, and gets what the written mask gives it."""

import pytest
import torch

from arbprob_hf import Mask
from arbprob_hf.model.attention.backends import prepare_attention
from arbprob_hf.model.attention.decode import DecodePlan, step_plan
from arbprob_hf.model.attention.plan import eager_plan
from arbprob_hf.model.masks.tiles import Sizes
from tests.model.twins import ours_alone, tokens
from tests.networks import far

TEXTS = [
    "causal & window(5)",
    "causal & (window(3) | prefix(2))",
    "causal & window(4) | sinks(2)",
    "causal & dilated(3, 2)",
    "causal & ~window(2)",
    "causal & ~causal",
    "full",
    "blocks(4)",
]


def sizes(offset: int, *, kv_len: int | None = None, q_len: int = 1) -> Sizes:
    return Sizes(2, 3, q_len, offset + q_len if kv_len is None else kv_len, offset, torch.device("cpu"))


@pytest.mark.parametrize("static", [False, True], ids=["grown", "static"])
@pytest.mark.parametrize("offset", [0, 1, 6, 63, 64, 130])
@pytest.mark.parametrize("text", TEXTS)
def test_a_step_gives_what_the_written_mask_gives(text: str, offset: int, static: bool) -> None:
    mask, given = Mask.parse(text), sizes(offset, kv_len=200 if static else None)
    query, key, value = (torch.randn(2, 3, length, 4).double() for length in (1, given.kv_len, given.kv_len))
    plan = step_plan(mask, given)
    assert plan is not None
    out, weights = plan.attend(query, key, value, scaling=0.5, dropout=0.0)
    expected, _ = eager_plan(mask, given).attend(query, key, value, scaling=0.5, dropout=0.0)
    assert weights is None
    assert far(out, expected) <= 1e-12


@pytest.mark.parametrize("offset", [7, 63, 64, 200])
def test_a_window_reads_as_many_keys_as_it_counts(offset: int) -> None:
    plan = step_plan(Mask.parse("causal & window(5)"), sizes(offset))
    assert plan == DecodePlan((slice(offset - 4, offset + 1),))


def test_neighbouring_runs_are_one() -> None:
    plan = step_plan(Mask.parse("causal & window(4) | sinks(2)"), sizes(5))
    assert plan == DecodePlan((slice(0, 6),))


OTHERS: dict[str, tuple[Mask, Sizes]] = {
    "several queries": (Mask.parse("causal & window(5)"), sizes(7, q_len=2)),
    "heads": (Mask.parse("heads(causal, causal, window(3))"), sizes(7)),
    "tensors": (Mask.of(torch.ones(8, 8)), sizes(7)),
    "many runs": (Mask.parse("causal & strided(2)"), sizes(30)),
}


@pytest.mark.parametrize(("mask", "given"), OTHERS.values(), ids=OTHERS)
def test_other_passes_are_planned_as_ever(mask: Mask, given: Sizes) -> None:
    assert step_plan(mask, given) is None
    assert prepare_attention(mask, given, backend="sdpa", dtype=torch.float32).path == "additive"


def test_the_network_steps_through_a_window_and_reads_all_under_causal() -> None:
    model, ids = ours_alone(mask=["causal", "causal & window(3)", "causal | prefix(2)"]), tokens(2, 7)
    with torch.no_grad():
        cache = model(ids[:, :6], use_cache=True).past_key_values
        last = model(ids[:, 6:], past_key_values=cache, use_cache=True).logits
    assert model.transformer.attention_paths == ["open", "stepped", "stepped"]
    assert far(last[:, 0], model(ids).logits[:, -1]) <= 1e-10


def test_a_bias_leaves_nothing_out() -> None:
    mask, given = Mask.parse("causal & window(3)"), sizes(7)
    assert prepare_attention(mask, given, backend="sdpa", dtype=torch.float64).path == "stepped"
    bias = torch.zeros(1, 1, 1, 8)
    assert prepare_attention(mask, given, backend="sdpa", dtype=torch.float64, bias=bias).path == "additive"
