"""torch.compile traces the network as one graph, for every kind of mask, and changes no number."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import StaticCache

from arbprob_hf import Mask, documents, padding
from tests.model.twins import left_padded, ours_alone, tokens
from tests.networks import far
from tests.tables import quick

LENGTH = 12
IDS, KEEP = left_padded((7, LENGTH), LENGTH)
RANDOM = torch.rand(2, 3, LENGTH, LENGTH, generator=torch.Generator().manual_seed(0)) < 0.5
RANKS = torch.arange(LENGTH).flip(0).expand(2, -1)
DOCUMENTS = (torch.arange(LENGTH) // 5).expand(2, -1)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "nothing": dict(),
    "padding": dict(attention_mask=KEEP),
    "bool padding": dict(attention_mask=KEEP.bool()),
    "3-D": dict(attention_mask=RANDOM[:, 0]),
    "3-D of floats": dict(attention_mask=RANDOM[:, 0].float()),
    "3-D, additive": dict(attention_mask=torch.zeros(2, LENGTH, LENGTH).masked_fill(~RANDOM[:, 0], float("-inf"))),
    "per head": dict(attention_mask=RANDOM),
    "mask tensor": dict(mask=RANDOM[0, 0]),
    "mask tensor and padding": dict(mask=RANDOM, attention_mask=KEEP),
    "pattern": dict(mask=Mask.parse("causal & (window(3) | prefix(2))")),
    "pattern as attention mask": dict(attention_mask=Mask.parse("full")),
    "pattern with tensors": dict(mask=Mask.parse("causal") & documents(DOCUMENTS) & padding(KEEP)),
    "ranks": dict(ranks=RANKS),
    "ranks and limits": dict(ranks=RANKS, limits=RANKS - 1),
    "ranks and padding": dict(ranks=RANKS, attention_mask=KEEP),
    "documents": dict(document_ids=DOCUMENTS),
    "bias": dict(attention_bias=torch.linspace(-1, 1, LENGTH, dtype=torch.float64).expand(1, 1, LENGTH, LENGTH)),
    "positions": dict(position_ids=torch.arange(LENGTH).flip(0)[None]),
    "labels": dict(labels=IDS),
    "shifted labels": dict(shift_labels=IDS, num_items_in_batch=torch.tensor(9)),
    "kept logits": dict(logits_to_keep=2),
}
# tracing takes a second: the other backend only where it makes something else of the mask
EAGER = ["nothing", "padding", "per head", "bias"]
CASES = [(name, "sdpa") for name in ARGUMENTS] + [(name, "eager") for name in EAGER]
QUICK = [(name, "sdpa") for name in ("nothing", "padding", "3-D, additive", "per head", "ranks and padding")] + [
    ("bias", "eager")
]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(("name", "backend"), quick(CASES, QUICK))
def test_one_graph_gives_the_same_logits(name: str, backend: str) -> None:
    model, given = ours_alone(backend=backend, n_layer=1), ARGUMENTS[name]
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    own, expected = compiled(IDS, use_cache=False, **given), model(IDS, use_cache=False, **given)
    assert far(own.logits, expected.logits) <= 1e-10
    if expected.loss is not None:
        assert far(own.loss, expected.loss) <= 1e-10


def test_one_graph_gives_the_same_loss_without_logits() -> None:
    model, given = ours_alone(n_layer=1), dict(labels=IDS, return_logits=False)
    own, expected = torch.compile(model, fullgraph=True, backend="eager")(IDS, **given), model(IDS, **given)
    assert own.logits is None
    assert far(own.loss, expected.loss) <= 1e-10


@pytest.mark.parametrize("mask", ["causal & window(3)", ["causal", "causal & window(2)"]], ids=["one", "layers"])
def test_the_configurations_mask_is_traced(mask: Any) -> None:
    model = ours_alone(mask=mask, n_layer=2)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert far(compiled(IDS, use_cache=False).logits, model(IDS, use_cache=False).logits) <= 1e-10


def test_a_query_that_sees_nothing_is_traced() -> None:
    model, mask = ours_alone(n_layer=1), RANDOM.clone()
    mask[:, :, 4] = False
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert far(compiled(IDS, mask=mask, use_cache=False).logits, model(IDS, mask=mask, use_cache=False).logits) <= 1e-10


@pytest.mark.parametrize(
    "given", [dict(), dict(mask=RANDOM), dict(document_ids=DOCUMENTS)], ids=["plain", "3-D", "packed"]
)
def test_gradients_of_a_compiled_step_are_the_same(given: dict[str, Any]) -> None:
    gradients = []
    for wrap in (lambda m: m, lambda m: torch.compile(m, fullgraph=True, backend="aot_eager")):
        model = ours_alone(dtype=torch.float32, n_layer=1)
        wrap(model)(IDS, labels=IDS, **given).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert max(far(gradients[0][name], gradients[1][name]) for name in gradients[0]) <= 1e-5


def test_one_graph_serves_every_step_of_a_static_cache() -> None:
    model, ids = ours_alone(n_layer=1), tokens(2, 8)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    cache = StaticCache(config=model.config, max_cache_len=16)
    with torch.no_grad():
        made = [model(ids[:, :4], past_key_values=cache, use_cache=True).logits]
        for t in range(4, 8):
            step = dict(past_key_values=cache, use_cache=True, position_ids=torch.tensor([[t]]))
            made.append(compiled(ids[:, t : t + 1], **step).logits)
        assert far(torch.cat(made, dim=1), model(ids).logits) <= 1e-10


LENGTHS = range(3, 23)
VARYING: dict[str, Any] = {
    "nothing": lambda length: dict(),
    "padding": lambda length: dict(attention_mask=torch.ones(2, length).index_fill(1, torch.tensor([0]), 0)),
    "3-D": lambda length: dict(attention_mask=torch.ones(2, length, length).tril()),
    "additive": lambda length: dict(attention_mask=torch.full((1, 1, length, length), float("-inf")).triu(1)),
    "mask tensor": lambda length: dict(mask=torch.ones(length, length).tril()),
    "pattern": lambda length: dict(mask=Mask.parse("causal & (window(3) | sinks(2))")),
    "per head": lambda length: dict(mask=Mask.parse("causal & heads(window(3), full, prefix(2))")),
    "pattern with tensors": lambda length: dict(mask=Mask.parse("causal") & documents(packed(length))),
    "ranks": lambda length: dict(ranks=torch.arange(length).flip(0).expand(2, -1)),
    "documents": lambda length: dict(document_ids=packed(length)),
    "documents and padding": lambda length: dict(
        document_ids=packed(length), attention_mask=torch.ones(2, length).index_fill(1, torch.tensor([length - 1]), 0)
    ),
    "bias": lambda length: dict(attention_bias=torch.zeros(1, 1, length, length, dtype=torch.float64)),
    "positions": lambda length: dict(position_ids=torch.arange(length)[None]),
    "labels": lambda length: dict(labels=tokens(2, length)),
}


def packed(length: int) -> torch.Tensor:
    """Documents of other lengths at every length."""
    return (torch.arange(length) // (1 + length // 3)).expand(2, -1)


@pytest.mark.parametrize("name", quick(VARYING, ["documents and padding"]))
def test_twenty_lengths_are_compiled_twice_at_most(name: str) -> None:
    model, graphs = ours_alone(n_layer=1), []

    def count(graph: torch.fx.GraphModule, inputs: list[Any], **options: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=count)
    for length in LENGTHS:
        ids, given = tokens(2, length, seed=length), VARYING[name](length)
        assert far(compiled(ids, use_cache=False, **given).logits, model(ids, use_cache=False, **given).logits) <= 1e-10
    # the first length by itself, and any length
    assert len(graphs) == 2


def test_a_padding_mask_may_be_as_wide_as_a_static_cache() -> None:
    model = ours_alone(n_layer=1)
    cache = StaticCache(config=model.config, max_cache_len=LENGTH + 4)
    # what stands behind the tokens so far does not count
    wide = torch.nn.functional.pad(KEEP, (0, 4), value=1)
    own = model(IDS, attention_mask=wide, past_key_values=cache).logits
    assert far(own, model(IDS, attention_mask=KEEP).logits) <= 1e-10
    again = StaticCache(config=model.config, max_cache_len=LENGTH + 4)
    with pytest.raises(ValueError, match=rf"= \(2, {LENGTH}\), got \(2, {LENGTH + 3}\)"):
        model(IDS, attention_mask=wide[:, 1:], past_key_values=again)


TRIANGLE = torch.ones(LENGTH, LENGTH).tril()
ABOVE = TRIANGLE == 0
DISTANCES = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).abs().double()
INFINITE = float("-inf")
COLUMN = torch.zeros(LENGTH, LENGTH).masked_fill(ABOVE, INFINITE).index_fill(1, torch.tensor([0]), -1e4)
UNREADABLE: dict[str, dict[str, Any]] = {
    "nothing added": dict(attention_mask=torch.zeros(1, 1, LENGTH, LENGTH)),
    "a small penalty": dict(attention_mask=torch.zeros(1, 1, LENGTH, LENGTH).masked_fill(ABOVE, -1e4)),
    "two penalties": dict(mask=COLUMN),
    "distances": dict(mask=(-DISTANCES).masked_fill(ABOVE, INFINITE)),
    "numbered": dict(mask=TRIANGLE.long() * 2),
    "added padding": dict(attention_mask=(1 - KEEP.float()) * torch.finfo(torch.float32).min),
    "numbered documents": dict(attention_mask=DOCUMENTS + 1),
    "no tokens, in floats": dict(attention_mask=torch.zeros(2, LENGTH)),
}


@pytest.mark.parametrize("name", quick(UNREADABLE, ["a small penalty", "distances", "numbered documents"]))
def test_a_graph_refuses_masks_that_are_refused_without_one(name: str) -> None:
    model, given = ours_alone(n_layer=1), UNREADABLE[name]
    argument = next(iter(given))
    with pytest.raises(ValueError, match=f"^{argument}: "):
        model(IDS, use_cache=False, **given)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with pytest.raises(RuntimeError, match=rf"^{argument}: expected only 0 and 1 \(1 = may attend\), and some 1"):
        compiled(IDS, use_cache=False, **given)


def test_text_is_refused_with_the_way_out() -> None:
    compiled = torch.compile(ours_alone(n_layer=1), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"pass Mask\.parse\('causal'\) instead"):
        compiled(IDS, mask="causal", use_cache=False)


# torch's own compiler still imports what torch has deprecated
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.long
def test_the_real_compiler_gives_the_same_numbers() -> None:
    model = ours_alone(dtype=torch.float32, n_layer=1)
    compiled = torch.compile(model, fullgraph=True)
    own, expected = (m(IDS, mask=RANDOM, labels=IDS) for m in (compiled, model))
    own.loss.backward()
    compiled_gradient = model.transformer.h[0].attn.c_attn.weight.grad.clone()
    model.zero_grad()
    with pytest.raises(RuntimeError, match="^mask: expected only 0 and 1"):
        compiled(IDS, mask=RANDOM.long() * 2, labels=IDS)
    with pytest.raises(RuntimeError, match="^position_ids: jump, which may mean packed documents"):
        compiled(IDS, position_ids=torch.arange(LENGTH).roll(4)[None], labels=IDS)
    expected.loss.backward()
    assert far(own.logits, expected.logits) <= 1e-4
    assert far(own.loss, expected.loss) <= 1e-5
    assert far(compiled_gradient, model.transformer.h[0].attn.c_attn.weight.grad) <= 1e-5
