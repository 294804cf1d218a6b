"""generate, whichever way it decodes and caches, gives at every step the logits of the written mask's reference."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from arbprob_hf import ArbProbForCausalLM, Mask, causal, documents, heads, padding, tree, window
from tests.masks.oracles import micro, reference_logits

PROMPT, NEW, BATCH = 6, 4, 2
# row b, head h, layer, query column q, key column k, first real column of the row -> may q see k
Rule = Callable[[int, int, int, int, int, int], bool]

WAYS: dict[str, dict[str, Any]] = {
    "greedy": dict(do_sample=False),
    "sampled": dict(do_sample=True, temperature=1.3),
    "several sampled": dict(do_sample=True, num_return_sequences=3),
    "beams": dict(do_sample=False, num_beams=3),
    "several beams": dict(do_sample=False, num_beams=3, num_return_sequences=2),
    "sampled beams": dict(do_sample=True, num_beams=3),
}
CACHES: dict[str, dict[str, Any]] = {
    "dynamic": dict(),
    "static": dict(cache_implementation="static"),
    "chunks": dict(prefill_chunk_size=4),
    "static chunks": dict(prefill_chunk_size=2, cache_implementation="static"),
}

generator = torch.Generator().manual_seed(5)
TABLE = (torch.rand(BATCH, PROMPT, PROMPT, generator=generator) < 0.5).tril() | torch.eye(PROMPT, dtype=torch.bool)
AHEAD = (torch.rand(BATCH, PROMPT, PROMPT, generator=generator) < 0.5) | torch.eye(PROMPT, dtype=torch.bool)
BY_HEAD = (torch.rand(BATCH, 2, PROMPT, PROMPT, generator=generator) < 0.5).tril() | torch.eye(PROMPT, dtype=torch.bool)
IDS = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2]])
KEPT = torch.tensor([[1, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 1]])


def continued(table: Tensor) -> Rule:
    """The rule of a prompt's tensor (B, P, P) or (B, H, P, P), spelt out."""

    def rule(b: int, h: int, layer: int, q: int, k: int, start: int) -> bool:
        if k >= PROMPT:
            return k <= q
        own = table[b] if table.dim() == 3 else table[b, h]
        return bool(own[min(q, PROMPT - 1), k])

    return rule


def near(size: int) -> Rule:
    return lambda b, h, layer, q, k, start: 0 <= q - k < size


same_document = continued(IDS[:, :, None] == IDS[:, None, :])
kept = continued((KEPT[:, None, :] == 1).expand(BATCH, PROMPT, PROMPT))
PARENTS = torch.tensor([[-1, 0, 0, 1, 1, 4], [-1, -1, 0, 1, 3, 2]])
LINES = torch.tensor(
    [
        [[k in line for k in range(PROMPT)] for line in ([0], [0, 1], [0, 2], [0, 1, 3], [0, 1, 4], [0, 1, 4, 5])],
        [[k in line for k in range(PROMPT)] for line in ([0], [1], [0, 2], [1, 3], [1, 3, 4], [0, 2, 5])],
    ]
)
ancestors = continued(LINES)
table, by_head, ahead = continued(TABLE), continued(BY_HEAD), continued(AHEAD)

# what is given as mask=, a list being config.mask, and what it means
MASKS: dict[str, tuple[Any, Rule]] = {
    "causal": ("causal", lambda b, h, layer, q, k, s: k <= q),
    "window": ("causal & window(3)", near(3)),
    "sinks": (
        "causal & (window(2) | prefix(2))",
        lambda b, h, layer, q, k, s: k <= q and (q - k < 2 or k - s < 2),
    ),
    "window | sinks": (
        "causal & window(2) | sinks(2)",
        lambda b, h, layer, q, k, s: k <= q and (q - k < 2 or k - s < 2),
    ),
    "strided": (
        "causal & (window(2) | strided(3))",
        lambda b, h, layer, q, k, s: k <= q and (q - k < 2 or (q - k) % 3 == 0),
    ),
    "dilated": ("causal & dilated(3, 2)", lambda b, h, layer, q, k, s: k <= q and q - k in (0, 2, 4)),
    "blocks": ("causal & blocks(4)", lambda b, h, layer, q, k, s: k <= q and (q - s) // 4 == (k - s) // 4),
    "tree": (tree(PARENTS), ancestors),
    "hole": ("causal & ~(prefix(2) & ~prefix(1))", lambda b, h, layer, q, k, s: k <= q and k - s != 1),
    "per head": (
        "heads(causal, causal & window(2))",
        lambda b, h, layer, q, k, s: k <= q and (h == 0 or q - k < 2),
    ),
    "per layer": (
        ["causal & window(2)", "causal"],
        lambda b, h, layer, q, k, s: k <= q and (layer == 1 or q - k < 2),
    ),
    "3-D": (TABLE, table),
    "per head 4-D": (BY_HEAD, by_head),
    "pattern & table": (causal() & documents(IDS), lambda *a: a[4] <= a[3] and same_document(*a)),
    "pattern | table": (Mask.of(TABLE) | causal() & window(2), lambda *a: table(*a) or near(2)(*a)),
    "not a table": (
        causal() & ~Mask.of(TABLE.logical_not()) & padding(KEPT),
        lambda *a: a[4] <= a[3] and table(*a) and kept(*a),
    ),
    "heads of both": (
        heads(Mask.of(TABLE) & padding(KEPT), causal() & window(3)),
        lambda *a: (table(*a) and kept(*a)) if a[1] == 0 else near(3)(*a),
    ),
}
LOOKING_AHEAD: dict[str, tuple[Any, Rule]] = {
    "full": ("full", lambda *a: True),
    "blocks": ("causal | blocks(4)", lambda b, h, layer, q, k, s: k <= q or (q - s) // 4 == (k - s) // 4),
    "prefix": ("causal | prefix(4)", lambda b, h, layer, q, k, s: k <= q or k - s < 4),
    "3-D": (AHEAD, ahead),
    "mixed": (causal() | Mask.of(AHEAD), lambda *a: a[4] <= a[3] or ahead(*a)),
}
STARTS = {"unpadded": (0, 0), "left-padded": (0, 2)}

ways = pytest.mark.parametrize("way", WAYS)
some_ways = pytest.mark.parametrize("way", ["greedy", "several beams"])
caches = pytest.mark.parametrize("cache", CACHES)
starts = pytest.mark.parametrize("start", STARTS)


def network(mask: Any) -> ArbProbForCausalLM:
    model = micro(mask=mask if isinstance(mask, list) else "causal").double()
    model.generation_config.eos_token_id = None
    return model


@contextmanager
def recorded(model: ArbProbForCausalLM) -> Iterator[list[Tensor]]:
    """The float64 logits (rows, V) of every step; transformers reports them rounded."""
    steps: list[Tensor] = []
    handle = model.lm_head.register_forward_hook(lambda module, given, out: steps.append(out[:, -1]))
    yield steps
    handle.remove()


def prompt(start: str) -> tuple[Tensor, Tensor]:
    ids = torch.randint(1, 31, (BATCH, PROMPT), generator=torch.Generator().manual_seed(2))
    keep = (torch.arange(PROMPT) >= torch.tensor(STARTS[start])[:, None]).long()
    return ids * keep, keep


def decoded(mask: Any, start: str, way: str, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """The sequences and each step's logits."""
    ids, keep = prompt(start)
    model = network(mask)
    given = {} if isinstance(mask, list) else dict(mask=mask)
    torch.manual_seed(3)
    with recorded(model) as steps:
        out = model.generate(ids, attention_mask=keep, max_new_tokens=NEW, **given, **WAYS[way], **options)
    return out, steps


@functools.cache
def uncached(name: str, looks_ahead: bool, start: str, way: str) -> tuple[Tensor, list[Tensor]]:
    return decoded((LOOKING_AHEAD if looks_ahead else MASKS)[name][0], start, way, use_cache=False)


def assert_same(found: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]]) -> None:
    assert torch.equal(found[0], expected[0])
    # a prompt in chunks has logits for each chunk
    for own, reference in zip(found[1][-NEW:], expected[1], strict=True):
        assert float((own - reference).abs().max()) <= 1e-10


def written(rule: Rule, row: int, start: int, layer: int, length: int) -> Tensor:
    """The truth for the real tokens of one row: bool (1, 2, T, T)."""
    columns = range(start, length)
    return torch.tensor([[[[rule(row, h, layer, q, k, start) for k in columns] for q in columns] for h in range(2)]])


def reference_step(model: ArbProbForCausalLM, rule: Rule, ids: Tensor, row: int, start: int) -> Tensor:
    """The next token's logits (V,) of one row of the batch alone, without its padding."""
    truth = [written(rule, row, start, layer, len(ids)) for layer in range(2)]
    return reference_logits(model, ids[None, start:], truth)[0, -1]


@some_ways
@starts
@pytest.mark.parametrize("name", [*MASKS, *(f"ahead: {name}" for name in LOOKING_AHEAD)])
def test_every_uncached_step_is_the_references(name: str, start: str, way: str) -> None:
    looks_ahead = name.startswith("ahead: ")
    name = name.removeprefix("ahead: ")
    mask, rule = (LOOKING_AHEAD if looks_ahead else MASKS)[name]
    ids, keep = prompt(start)
    model, seen = network(mask), []
    given = {} if isinstance(mask, list) else dict(mask=mask)
    handle = model.register_forward_pre_hook(lambda m, a, kw: seen.append(kw["input_ids"].clone()), with_kwargs=True)
    torch.manual_seed(3)
    with recorded(model) as steps:
        model.generate(ids, attention_mask=keep, max_new_tokens=NEW, use_cache=False, **given, **WAYS[way])
    handle.remove()
    assert len(seen) == len(steps) == NEW
    for ids, logits in zip(seen, steps, strict=True):
        times = len(ids) // BATCH
        for row in range(len(ids)):
            own = reference_step(model, rule, ids[row], row // times, STARTS[start][row // times])
            assert float((logits[row] - own).abs().max()) <= 1e-10


@ways
@caches
@starts
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.long
def test_every_cached_step_is_the_uncached(name: str, start: str, cache: str, way: str) -> None:
    found = decoded(MASKS[name][0], start, way, **CACHES[cache])
    assert_same(found, uncached(name, False, start, way))


@some_ways
@pytest.mark.parametrize("cache", ["dynamic", "static chunks"])
@pytest.mark.parametrize("name", MASKS)
def test_cached_steps_are_the_uncached_in_a_left_padded_batch(name: str, cache: str, way: str) -> None:
    found = decoded(MASKS[name][0], "left-padded", way, **CACHES[cache])
    assert_same(found, uncached(name, False, "left-padded", way))


@ways
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@starts
@pytest.mark.parametrize("name", LOOKING_AHEAD)
def test_a_prompt_that_looks_ahead_is_decoded_as_without_a_cache(name: str, start: str, cache: str, way: str) -> None:
    found = decoded(LOOKING_AHEAD[name][0], start, way, **CACHES[cache])
    assert_same(found, uncached(name, True, start, way))


@starts
@pytest.mark.parametrize("name", LOOKING_AHEAD)
def test_a_prompt_that_looks_ahead_is_not_read_in_chunks(name: str, start: str) -> None:
    with pytest.raises(ValueError, match="^prefill_chunk_size: expected None under a mask that lets prompt tokens"):
        decoded(LOOKING_AHEAD[name][0], start, "greedy", prefill_chunk_size=2)


@pytest.mark.parametrize("name", MASKS)
def test_looked_up_drafts_give_the_greedy_sequence(name: str) -> None:
    mask = MASKS[name][0]
    ids, _ = prompt("unpadded")
    model = network(mask)
    row = {key: cut(value) for key, value in ({} if isinstance(mask, list) else dict(mask=mask)).items()}
    plain = model.generate(ids[:1], max_new_tokens=12, do_sample=False, **row)
    drafted = model.generate(ids[:1], max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=3, **row)
    assert torch.equal(plain, drafted)


def cut(mask: Any) -> Any:
    """The same mask for the first row of the batch alone."""
    if isinstance(mask, Tensor):
        return mask[:1]
    if not isinstance(mask, Mask):
        return mask
    if mask.operands():
        return mask.rebuilt(*map(cut, mask.operands()))
    first = object.__new__(type(mask))
    vars(first).update({name: value[:1] if isinstance(value, Tensor) else value for name, value in vars(mask).items()})
    return first
