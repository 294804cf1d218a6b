"""Every pattern compiles into one graph with the network, whole and counted from the first token of padded rows."""

from collections.abc import Iterator

import pytest
import torch

from arbprob_hf import ArbProbForCausalLM, Mask, pattern
from tests.masks.expressions import LEAVES, WRITABLE, T
from tests.masks.oracles import micro, random_ids
from tests.tables import quick


def stripes(b, h, q, k, step, phase=0):
    return (q - k + phase) % step == 0


@pytest.fixture(autouse=True)
def _registered_and_uncompiled_again() -> Iterator[None]:
    pattern(stripes)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model: ArbProbForCausalLM) -> torch.nn.Module:
    return torch.compile(model, backend="eager", fullgraph=True)


# compiling takes a second
TEXTS = ["stripes(3) & causal", "stripes(2, 1)", *dict.fromkeys(str(mask) for mask, _ in WRITABLE.values())]


@pytest.mark.parametrize("text", quick(TEXTS, TEXTS[:3]))
def test_a_text_in_the_configuration_compiles_padding_included(text: str) -> None:
    model, ids = micro(layers=1, heads=3, mask=text), random_ids(2, T)
    exists = torch.ones(2, T, dtype=torch.bool)
    exists[0, :2] = False
    with torch.no_grad():
        expected, got = (run(ids, attention_mask=exists).logits for run in (model, compiled(model)))
    torch.testing.assert_close(got[exists], expected[exists], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", quick(LEAVES, list(LEAVES)[-2:]))
def test_a_mask_of_a_pass_compiles(name: str) -> None:
    mask: Mask = LEAVES[name][0]
    model, ids = micro(layers=1, heads=3), random_ids(2, T)
    with torch.no_grad():
        expected, got = (run(ids, mask=mask).logits for run in (model, compiled(model)))
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
