"""generate under any mask: cached equals uncached, and a prompt's own mask goes on as documented."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from arbprob_hf import ArbProbForCausalLM, Mask, causal, documents, padding, prefix
from arbprob_hf.model import generation
from arbprob_hf.model.masks import lookahead
from arbprob_hf.model.masks.continuation import Continued
from tests.model.twins import left_padded, ours_alone, tokens
from tests.networks import far

NEW = 7
# generate rounds the logits it reports to fp32
ROUNDING = 2e-6
PATTERNS: dict[str, str | list[str]] = {
    "window": "causal & window(4)",
    "prefix in the prompt": "causal | prefix(3)",
    "prefix beyond the prompt": "causal | prefix(8)",
    "full": "full",
    "sink": "causal & (window(3) | prefix(1))",
    "hole": "causal & ~(prefix(2) & ~prefix(1))",
    "per layer": ["causal", "causal & window(2)", "causal & window(5)"],
    "per layer, one looks ahead": ["causal", "full", "causal & window(5)"],
}
CACHES: dict[str, dict[str, Any]] = {"dynamic": dict(), "static": dict(cache_implementation="static")}
patterns = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
caches = pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)


def model_with(mask: str | list[str] = "causal", **fields: Any) -> ArbProbForCausalLM:
    model = ours_alone(mask=mask, **fields)
    model.generation_config.eos_token_id = None
    return model


def run(model: ArbProbForCausalLM, ids: Tensor | None, **options: Any) -> Any:
    torch.manual_seed(3)
    given = {"max_new_tokens": NEW, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    return model.generate(ids, **{**given, **options})


def assert_same(first: Any, second: Any) -> None:
    assert torch.equal(first.sequences, second.sequences)
    assert max(far(a, b) for a, b in zip(first.logits, second.logits, strict=True)) <= ROUNDING


def continued(mask: Tensor, length: int) -> Tensor:
    """The documented rule, spelt out: bool (B, H, P, P) -> (B, H, length, length)."""
    batch, heads, prompt, _ = mask.shape
    out = torch.zeros(batch, heads, length, length, dtype=torch.bool)
    for q in range(length):
        for k in range(length):
            if q < prompt and k < prompt:
                out[:, :, q, k] = mask[:, :, q, k]
            elif q >= prompt and k < prompt:
                out[:, :, q, k] = mask[:, :, prompt - 1, k]
            elif q >= prompt:
                out[:, :, q, k] = k <= q
    return out


def assert_goes_on(out: Any, model: ArbProbForCausalLM, mask: Tensor, keep: Tensor | None = None) -> None:
    """`out` was decoded greedily under the continued mask: each step's logits are those of one uncached pass."""
    ids, prompt = out.sequences, mask.shape[-1]
    keep = torch.ones_like(ids[:, :prompt]) if keep is None else keep
    keep = torch.nn.functional.pad(keep, (0, NEW), value=1)
    positions = (keep.cumsum(1) - 1).clamp(min=0)
    whole = continued(mask, prompt + NEW)
    logits = model(ids, attention_mask=keep, mask=whole, position_ids=positions).logits[:, prompt - 1 : -1]
    assert far(torch.stack(out.logits, dim=1), logits) <= ROUNDING
    assert torch.equal(logits.argmax(-1), ids[:, prompt:])


def random_mask(*shape: int) -> Tensor:
    """Bool, half True, every query seeing at least itself."""
    return (torch.rand(shape) < 0.5) | torch.eye(shape[-1], dtype=torch.bool)


@patterns
@caches
def test_cached_is_uncached(pattern: Any, cache: dict[str, Any]) -> None:
    model, ids = model_with(pattern), tokens(2, 6)
    assert_same(run(model, ids, **cache), run(model, ids, use_cache=False))


@patterns
@caches
def test_cached_is_uncached_in_left_padded_batches(pattern: Any, cache: dict[str, Any]) -> None:
    model = model_with(pattern)
    ids, keep = left_padded((2, 6, 4), 6)
    assert_same(run(model, ids, attention_mask=keep, **cache), run(model, ids, attention_mask=keep, use_cache=False))


@patterns
def test_cached_is_uncached_where_padding_is_inferred_from_the_pad_token(pattern: Any) -> None:
    model = model_with(pattern)
    ids, keep = left_padded((2, 6), 6)
    assert_same(run(model, ids), run(model, ids, attention_mask=keep, use_cache=False))


@patterns
def test_cached_is_uncached_without_a_prompt(pattern: Any) -> None:
    model = model_with(pattern)
    assert_same(run(model, None), run(model, None, use_cache=False))


@patterns
@pytest.mark.parametrize(
    "way", [dict(num_beams=3), dict(do_sample=True, num_return_sequences=2)], ids=["beams", "sampled"]
)
def test_cached_is_uncached_however_it_decodes(pattern: Any, way: dict[str, Any]) -> None:
    model = model_with(pattern)
    ids, keep = left_padded((2, 6), 6)
    cached, uncached = (
        run(model, ids, attention_mask=keep, use_cache=use_cache, **way).sequences for use_cache in (True, False)
    )
    assert torch.equal(cached, uncached)


@patterns
def test_a_left_padded_row_continues_as_it_does_alone(pattern: Any) -> None:
    model = model_with(pattern)
    ids, keep = left_padded((3, 6), 6)
    batch, alone = run(model, ids, attention_mask=keep), run(model, ids[:1, -3:])
    assert torch.equal(batch.sequences[:1, -NEW:], alone.sequences[:, -NEW:])
    assert max(far(a[:1], b) for a, b in zip(batch.logits, alone.logits, strict=True)) <= ROUNDING


@pytest.mark.parametrize("form", ["text", "mask"])
def test_a_mask_given_to_generate_replaces_the_configurations(form: str) -> None:
    text, ids = "causal & window(3)", tokens(2, 6)
    given = text if form == "text" else Mask.parse(text)
    plain, windowed = model_with("causal"), model_with(text)
    assert_same(run(plain, ids, mask=given), run(windowed, ids))
    assert_same(run(plain, ids, attention_mask=given), run(windowed, ids))
    assert far(run(plain, ids).logits[0], run(windowed, ids).logits[0]) > 1e-3


def test_a_mask_that_looks_ahead_is_said_to_be_uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(generation.logger, "warning_once", said.append)
    assert run(model_with("full"), tokens(2, 6)).past_key_values is None
    assert said == ["mask full lets earlier tokens see later ones: generating without a cache"]
    assert run(model_with("causal & window(3)"), tokens(2, 6)).past_key_values is not None
    assert len(said) == 1


@pytest.mark.parametrize("where", ["argument", "configuration"])
def test_no_cache_is_made_of_what_cannot_be_cached(where: str, caplog: pytest.LogCaptureFixture) -> None:
    model, ids, options = model_with(), tokens(2, 6), {"cache_implementation": "static", "max_new_tokens": 2}
    options |= {"return_dict_in_generate": True, "do_sample": False, "pad_token_id": 0}
    own = GenerationConfig(**options)
    given = options if where == "argument" else {"generation_config": own}
    # transformers keeps its lines from the root
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        found = model.generate(ids, mask=f"full | window({len(where)})", attention_mask=torch.ones(2, 6), **given)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert found.past_key_values is None
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == ["generating without a cache"]
    assert own.cache_implementation == "static"


def test_a_mask_that_does_not_fit_is_refused_before_anything_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(generation.logger, "warning_once", said.append)
    model = model_with()
    with pytest.raises(ValueError, match="^heads: expected one mask per head"):
        run(model, tokens(2, 6), mask="heads(causal, full)")
    assert said == []


def test_a_square_attention_mask_is_told_from_padding() -> None:
    with pytest.raises(ValueError, match=r"^attention_mask: expected .* = \(2, 6\), got \(8, 8\); .* pass it as mask="):
        run(model_with(), tokens(2, 6), attention_mask=torch.ones(8, 8))
    with pytest.raises(ValueError, match=r"^attention_mask: expected .* = \(2, 6\), got \(2, 5\)$"):
        run(model_with(), tokens(2, 6), attention_mask=torch.ones(2, 5))


SHAPES: dict[str, tuple[int, ...]] = {
    "2-D": (6, 6),
    "one row for all": (1, 6, 6),
    "3-D": (2, 6, 6),
    "per head": (2, 3, 6, 6),
    "per head, one row": (1, 3, 6, 6),
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def four_dimensional(mask: Tensor) -> Tensor:
    return mask[None, None] if mask.dim() == 2 else mask[:, None] if mask.dim() == 3 else mask


@shapes
@pytest.mark.parametrize("cache", [*CACHES.values(), dict(use_cache=False)], ids=[*CACHES, "uncached"])
def test_a_prompts_mask_goes_on_as_documented(shape: tuple[int, ...], cache: dict[str, Any]) -> None:
    model, ids, mask = model_with(), tokens(2, 6), random_mask(*shape)
    assert_goes_on(run(model, ids, mask=mask, **cache), model, four_dimensional(mask))


@pytest.mark.parametrize("shape", [(2, 6, 6), (2, 3, 6, 6)], ids=["3-D", "per head"])
@pytest.mark.parametrize("kind", [torch.bool, torch.long, torch.float32])
def test_the_attention_mask_may_be_the_prompts_mask(shape: tuple[int, ...], kind: torch.dtype) -> None:
    model, ids, mask = model_with(), tokens(2, 6), random_mask(*shape)
    assert_same(run(model, ids, attention_mask=mask.to(kind)), run(model, ids, mask=mask))


def test_a_prompts_mask_is_anded_with_padding() -> None:
    model, mask = model_with(), random_mask(2, 6, 6)
    ids, keep = left_padded((3, 6), 6)
    assert_goes_on(run(model, ids, attention_mask=keep, mask=mask), model, mask[:, None], keep)


def test_every_beam_keeps_its_rows_mask() -> None:
    model, ids, mask = model_with(), tokens(2, 6), random_mask(2, 6, 6)
    both = run(model, ids, mask=mask, num_beams=3).sequences
    each = [run(model, ids[row : row + 1], mask=mask[row : row + 1], num_beams=3).sequences for row in range(2)]
    assert torch.equal(both, torch.cat(each))


@pytest.mark.parametrize("shape", [(5, 5), (3, 6, 6), (2, 2, 6, 6), (2, 6, 7)])
def test_a_prompts_mask_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"mask: expected \(6, 6\), .* got shape") as raised:
        run(model_with(), tokens(2, 6), mask=torch.ones(shape, dtype=torch.bool))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) <= 300


def test_two_masks_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="mask: given together with an attention_mask that is a mask itself"):
        run(model_with(), tokens(2, 6), mask="causal", attention_mask=torch.ones(2, 6, 6, dtype=torch.bool))


@pytest.mark.parametrize(
    "way", [dict(prefill_chunk_size=4), dict(prompt_lookup_num_tokens=3)], ids=["chunks", "drafts"]
)
def test_a_windowed_prompt_may_be_read_in_chunks_and_drafted(way: dict[str, Any]) -> None:
    model, ids = model_with("causal & window(4)"), tokens(1, 5).repeat(1, 2)
    assert_same(run(model, ids, **way), run(model, ids, use_cache=False))


def test_a_prompt_that_looks_ahead_may_be_drafted() -> None:
    model, ids, mask = model_with(), tokens(1, 5).repeat(1, 2), random_mask(1, 10, 10)
    assert_same(run(model, ids, mask=mask, prompt_lookup_num_tokens=3), run(model, ids, mask=mask, use_cache=False))


@pytest.mark.parametrize("mask", ["causal | prefix(4)", torch.ones(6, 6, dtype=torch.bool)], ids=["pattern", "tensor"])
def test_a_prompt_that_looks_ahead_is_not_read_in_chunks(mask: Any) -> None:
    with pytest.raises(ValueError, match=r"^prefill_chunk_size: expected None .* got 3; .* read at once$"):
        run(model_with(), tokens(2, 6), mask=mask, prefill_chunk_size=3)


def test_tensors_combined_are_the_prompts_mask() -> None:
    model, ids, table = model_with(), tokens(2, 6), random_mask(2, 6, 6)
    keep = torch.tensor([[True] * 6, [False] * 2 + [True] * 4])
    combined = Mask.of(table) & padding(keep)
    assert_same(run(model, ids, mask=combined), run(model, ids, mask=table & keep[:, None]))


@pytest.mark.parametrize("mask", ["causal | prefix(6)", torch.ones(8, 8, dtype=torch.bool)], ids=["pattern", "tensor"])
def test_a_cache_that_never_saw_what_it_should_is_refused(mask: Any) -> None:
    model, ids = model_with(), tokens(2, 8)
    cache = model(ids[:, :4], use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"^past_key_values: holds 4 tokens that, under this mask, see later ones"):
        run(model, ids, mask=mask, past_key_values=cache)


def test_a_cache_that_holds_the_whole_prefix_is_gone_on_from() -> None:
    model, ids = model_with("causal | prefix(4)"), tokens(2, 8)
    cache = model(ids[:, :4], use_cache=True).past_key_values
    assert_same(run(model, ids, past_key_values=cache), run(model, ids, use_cache=False))


@pytest.mark.parametrize("length", [3, 130, 300])
@pytest.mark.parametrize(
    "text", ["full", "causal | prefix(2)", "causal | prefix(200)", "causal & window(9)", "window(2)", "~causal"]
)
def test_what_is_foreseen_is_what_the_written_mask_shows(text: str, length: int) -> None:
    mask, rows, columns = Mask.parse(text), torch.arange(length)[:, None], torch.arange(length)
    allowed = mask.dense(length)[0, 0]
    first = lookahead.earliest_viewer(mask, length=length)
    for cut in {1, min(2, length), min(129, length), length}:
        crossing = bool(allowed[:cut, cut:].any())
        assert lookahead.crosses(first, cut, length) == crossing
        assert not (lookahead.is_cache_safe(mask, cut) and crossing)
        ahead = bool((allowed & (columns > rows) & (columns >= cut)).any())
        assert lookahead.looks_ahead(first, cut) == ahead


def test_a_continued_mask_is_the_same_rule_written_by_rows_and_all_at_once() -> None:
    mask = Continued(random_mask(2, 3, 6, 6)) & causal()
    whole = mask.dense(11, batch=2, heads=3)
    assert torch.equal(whole, continued(mask.left.table, 11).tril())
    for row in range(11):
        assert torch.equal(mask.dense(1, offset=row, batch=2, heads=3), whole[:, :, row : row + 1, : row + 1])


@pytest.mark.parametrize("mask", [Mask.of(torch.ones(5, 5)), causal() & documents(torch.zeros(3, 6).long())], ids=str)
def test_a_tensor_in_a_mask_covers_the_prompt(mask: Mask) -> None:
    with pytest.raises(ValueError, match=r"^(mask: a tensor of shape \(5, 5\) does not|documents\(ids\): expected)"):
        run(model_with(), tokens(2, 6), mask=mask)


def test_a_prompts_mask_has_the_models_number_of_heads() -> None:
    table = Mask.of(torch.ones(1, 2, 6, 6))
    with pytest.raises(ValueError, match=r"^mask: a prompt's tensor of shape \(1, 2, 6, 6\) does not fit .* heads=3$"):
        run(model_with(), tokens(2, 6), mask=table & causal())


def test_a_mask_shifted_by_hand_covers_the_prompt_and_goes_on_as_a_tensor() -> None:
    model, ids = model_with(), tokens(2, 6)
    keep = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    starts = torch.arange(6) - (keep.cumsum(1) - 1)
    mask = prefix(2).shifted(starts) | causal()
    whole = continued(prefix(2).shifted(starts).dense(6, batch=2), 6 + NEW) | torch.ones(6 + NEW, 6 + NEW).tril().bool()
    out = run(model, ids, mask=mask)
    logits = model(out.sequences, mask=whole).logits[:, 5:-1]
    assert far(torch.stack(out.logits, dim=1), logits) <= ROUNDING


@pytest.mark.parametrize("shape", [(2, 5), (3, 6)])
def test_a_shift_by_hand_covers_the_prompt(shape: tuple[int, int]) -> None:
    starts = torch.zeros(shape, dtype=torch.long)
    with pytest.raises(ValueError, match=r"^mask: shifted by a tensor of shape .*, expected 2 rows .* of 6 slots$"):
        run(model_with(), tokens(2, 6), mask=prefix(2).shifted(starts) | causal())


def test_a_configuration_may_stand_in_its_place() -> None:
    model, ids = model_with("full"), tokens(2, 6)
    options = GenerationConfig(max_new_tokens=3, prefill_chunk_size=2)
    with pytest.raises(ValueError, match="^prefill_chunk_size: expected None"):
        model.generate(ids, options)


@pytest.mark.parametrize("name", ["inputs_embeds", "past_key_values"])
def test_what_needs_a_cache_is_refused_under_a_mask_that_rules_it_out(name: str) -> None:
    model, ids = model_with(), tokens(2, 6)
    given = dict(inputs_embeds=model.get_input_embeddings()(ids), past_key_values=DynamicCache())[name]
    with pytest.raises(ValueError, match=f"^{name}: needs a cache, which a mask that lets earlier tokens see later"):
        run(model, None if name == "inputs_embeds" else ids, mask="full", **{name: given})


def test_a_cache_and_no_use_of_it_are_refused() -> None:
    model, ids = model_with(), tokens(2, 6)
    cache = model(ids[:, :4], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="^past_key_values: holds 4 tokens, but use_cache is False"):
        run(model, ids, past_key_values=cache, use_cache=False)


def test_guidance_is_refused_together_with_a_mask() -> None:
    with pytest.raises(ValueError, match="^guidance_scale: cannot be used with mask="):
        run(model_with(), tokens(2, 6), mask="causal & window(3)", guidance_scale=2.0)


def test_guidance_is_under_the_configurations_mask() -> None:
    model, ids = model_with("causal & window(3)"), tokens(2, 6)
    guided = [run(model, ids, guidance_scale=2.0, use_cache=use_cache) for use_cache in (True, False)]
    assert torch.equal(guided[0].sequences, guided[1].sequences)


def test_continuous_batching_is_refused() -> None:
    model, ids = model_with(), tokens(2, 6)
    with pytest.raises(ValueError, match="^cache_implementation: expected dynamic or static, got 'paged'"):
        run(model, ids, cache_implementation="paged")
    for name in ("generate_batch", "continuous_batching_context_manager", "init_continuous_batching"):
        with pytest.raises(TypeError, match=f"^{name}: continuous batching takes no masks, as .* left-padded batch$"):
            getattr(model, name)([[3, 4]])


@pytest.mark.parametrize(
    "way", [dict(penalty_alpha=0.6, top_k=4), dict(num_beams=4, num_beam_groups=2, diversity_penalty=0.5)]
)
def test_modes_that_transformers_moved_out_are_refused(way: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="requires `trust_remote_code=True`"):
        run(model_with(), tokens(2, 6), **way)


@pytest.mark.parametrize("form", ["ids", "embeddings", "the rest of a cache"])
def test_generation_stops_at_the_last_position_whatever_it_starts_from(form: str) -> None:
    model, ids = model_with(), tokens(2, 10)
    cache = model(ids[:, :6], use_cache=True).past_key_values
    given = {
        "ids": dict(inputs=ids),
        "embeddings": dict(inputs_embeds=model.get_input_embeddings()(ids)),
        "the rest of a cache": dict(inputs=ids[:, 6:], past_key_values=cache, attention_mask=torch.ones(2, 10).long()),
    }[form]
    inputs = given.pop("inputs", None)
    out = model.generate(inputs, max_new_tokens=99, do_sample=False, **given)
    whole = model.generate(ids, max_new_tokens=99, do_sample=False)
    assert whole.shape == (2, 32)
    assert torch.equal(out[:, -22:], whole[:, -22:])
