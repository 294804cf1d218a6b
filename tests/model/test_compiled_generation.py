"""Compiled decoding: `generate` with a static cache compiles one step, whatever the mask, and says the same tokens."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import CompileConfig, DynamicCache, StaticCache

from arbprob_hf import ArbProbForCausalLM, Mask, pattern
from tests.model.twins import left_padded, ours_alone, tokens
from tests.networks import far
from tests.tables import quick

PROMPT, NEW = 6, 5


def slanted(b, h, q, k, step):
    return ((q - k) % step == 0) & (k <= q)


@pytest.fixture(autouse=True)
def _registered_and_uncompiled_again() -> Iterator[None]:
    pattern(slanted)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Graphs(list[Any]):
    """A backend of torch.compile that runs a graph as it is; the list of the graphs it was given."""

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any], **options: Any) -> Any:
        self.append(graph)
        return graph.forward

    # transformers copies a configuration together with its backend
    def __deepcopy__(self, memo: Any) -> "Graphs":
        return self


def everywhere(**options: Any) -> CompileConfig:
    """transformers compiles on accelerators alone, unless told so."""
    made = CompileConfig(fullgraph=True, **options)
    made._compile_all_devices = True
    return made


def endless(**fields: Any) -> ArbProbForCausalLM:
    model = ours_alone(n_layer=2, **fields)
    model.generation_config.eos_token_id = None
    return model


def table(batch: int, heads: int | None = None) -> torch.Tensor:
    """A random mask of the prompt that looks at nothing later: bool (B, P, P) or (B, H, P, P)."""
    shape = (batch, PROMPT, PROMPT) if heads is None else (batch, heads, PROMPT, PROMPT)
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.5
    return (drawn | torch.eye(PROMPT, dtype=torch.bool)).tril()


WINDOW, SINKS = "causal & window(3)", "causal & (window(3) | sinks(2))"
HEADS = "causal & heads(window(2), full, dilated(4, 2))"
# name -> the configuration's mask, and the mask argument for a batch
MASKS: dict[str, tuple[Any, Any]] = {
    "causal": ("causal", None),
    "window": (WINDOW, None),
    "window and sinks": (SINKS, None),
    "per head": (HEADS, None),
    "per layer": (["causal", SINKS], None),
    "custom": ("slanted(2)", None),
    "text": ("causal", lambda batch: SINKS),
    "pattern": ("causal", lambda batch: Mask.parse("causal & dilated(5, 2)")),
    "2-D": ("causal", lambda batch: table(1)[0]),
    "3-D": ("causal", table),
    "4-D": ("causal", lambda batch: table(batch, 3)),
    "3-D and window": ("causal", lambda batch: Mask.of(table(batch)) & Mask.parse(WINDOW)),
}
# batch, padded, sampled
BATCHES = [(1, False, False), (1, True, True), (4, False, True), (4, True, False)]
CASES = [(name, *batch) for number, name in enumerate(MASKS) for batch in BATCHES[number % 2 :: 2]]


@pytest.mark.parametrize(
    ("name", "batch", "is_padded", "is_sampled"), quick(CASES, [("3-D and window", 4, True, False)])
)
def test_one_step_is_compiled_and_serves_every_prompt_of_the_shape(
    name: str, batch: int, is_padded: bool, is_sampled: bool
) -> None:
    text, given = MASKS[name]
    model, graphs = endless(mask=text), Graphs()
    for seed in (1, 2):
        options: dict[str, Any] = dict(max_new_tokens=NEW, do_sample=is_sampled)
        if given is not None:
            options["mask"] = given(batch)
        # other columns are padding the second time
        lengths = tuple(PROMPT - (row + seed) % 4 for row in range(batch)) if is_padded else (PROMPT,) * batch
        ids, keep = left_padded(lengths, PROMPT, seed=seed)
        made = []
        for compiled in (dict(), dict(cache_implementation="static", compile_config=everywhere(backend=graphs))):
            torch.manual_seed(seed)
            made.append(model.generate(ids, attention_mask=keep, **options, **compiled))
        assert made[0].equal(made[1])
    assert len(graphs) == 1


@pytest.mark.long
@pytest.mark.parametrize("name", ["causal", "per head", "per layer", "custom", "3-D"])
def test_a_compiled_forward_compiles_one_prefill_and_one_step(name: str) -> None:
    text, given = MASKS[name]
    model, plain, graphs = endless(mask=text), endless(mask=text), Graphs()
    model.forward = torch.compile(model.forward, fullgraph=True, backend=graphs)
    for seed in (1, 2):
        options = dict(max_new_tokens=NEW, do_sample=False) | ({} if given is None else dict(mask=given(2)))
        ids, keep = left_padded((PROMPT, PROMPT - seed), PROMPT, seed=seed)
        made = model.generate(ids, attention_mask=keep, cache_implementation="static", **options)
        assert made.equal(plain.generate(ids, attention_mask=keep, **options))
    assert len(graphs) == 2


@pytest.mark.long
@pytest.mark.parametrize("text", ["causal", HEADS])
def test_longer_caches_compile_one_more_step_for_every_length(text: str) -> None:
    model, graphs = endless(mask=text), Graphs()
    for length in range(4, 12):
        ids, options = tokens(2, length), dict(max_new_tokens=NEW, do_sample=False)
        compiled = dict(cache_implementation="static", compile_config=everywhere(backend=graphs))
        assert model.generate(ids, **options, **compiled).equal(model.generate(ids, **options))
    assert len(graphs) == 2


@pytest.mark.long
def test_other_sizes_of_a_window_compile_one_more_step() -> None:
    model, graphs, ids = endless(), Graphs(), tokens(2, PROMPT)
    for size in range(2, 12):
        options = dict(max_new_tokens=NEW, do_sample=False, mask=f"causal & window({size})")
        compiled = dict(cache_implementation="static", compile_config=everywhere(backend=graphs))
        assert model.generate(ids, **options, **compiled).equal(model.generate(ids, **options))
    assert len(graphs) == 2


@pytest.mark.long
@pytest.mark.parametrize("text", ["causal", SINKS])
def test_a_prefill_in_chunks_compiles_at_most_three_graphs(text: str) -> None:
    # a whole chunk, the last chunk and a step, as transformers' GPT-2
    for size in (2, 4):
        torch.compiler.reset()
        model, graphs = endless(mask=text), Graphs()
        for seed in (1, 2):
            ids, options = tokens(2, PROMPT, seed=seed), dict(max_new_tokens=NEW, do_sample=False)
            compiled = dict(cache_implementation="static", compile_config=everywhere(backend=graphs))
            made = model.generate(ids, prefill_chunk_size=size, **options, **compiled)
            assert made.equal(model.generate(ids, **options))
        assert len(graphs) <= 3


@pytest.mark.long
@pytest.mark.parametrize("backend", ["sdpa", "eager", "flex_attention"])
def test_a_cache_of_ones_own_is_compiled_once_and_used_again(backend: str) -> None:
    model, graphs = endless(mask=SINKS, backend=backend), Graphs()
    cache = StaticCache(config=model.config, max_cache_len=PROMPT + NEW)
    for seed in (1, 2):
        cache.reset()
        ids, options = tokens(2, PROMPT, seed=seed), dict(max_new_tokens=NEW, do_sample=False)
        made = model.generate(ids, past_key_values=cache, compile_config=everywhere(backend=graphs), **options)
        assert made.equal(model.generate(ids, **options))
    assert len(graphs) == 1


# torch's own compiler still imports what torch has deprecated
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.long
@pytest.mark.parametrize("name", ["causal", "per head", "3-D"])
def test_the_step_is_one_graph_that_is_never_compiled_again(name: str) -> None:
    """As transformers' `test_generate_compile_model_forward_fullgraph`, which its source distribution leaves out."""
    text, given = MASKS[name]
    model = ours_alone(dtype=torch.float32, n_layer=2, mask=text)
    options: dict[str, Any] = dict(
        use_cache=True,
        do_sample=False,
        max_new_tokens=5,
        return_dict_in_generate=True,
        output_scores=True,
        compile_config=everywhere(dynamic=False),
    ) | ({} if given is None else dict(mask=given(2)))
    prompts = [left_padded((PROMPT, PROMPT - seed), PROMPT, seed=seed) for seed in (1, 2)]

    plain = []
    with torch.compiler.set_stance("force_eager"):
        for ids, keep in prompts:
            plain.append(model.generate(ids, attention_mask=keep, **options))
            assert isinstance(plain[-1].past_key_values, DynamicCache)
            assert not hasattr(model, "_compiled_call")

    with torch._dynamo.config.patch(error_on_recompile=True):
        for (ids, keep), expected in zip(prompts, plain, strict=True):
            made = model.generate(ids, attention_mask=keep, cache_implementation="static", **options)
            assert made.past_key_values.is_compileable
            assert hasattr(model, "_compiled_call")
            assert made.sequences.equal(expected.sequences)
            assert max(map(far, made.scores, expected.scores)) <= 1e-4
