"""The steps of `generate` that check nothing twice give the logits, tokens and cache of the usual ones, bit for bit."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.pytorch_utils import Conv1D

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, ArbProbModel, Mask, pattern
from arbprob_hf.model import generation
from arbprob_hf.model.attention.lean_layers import LeanLayers, obstacle
from arbprob_hf.model.lean_step import step_obstacle
from arbprob_hf.model.masks.arguments import MaskArguments
from arbprob_hf.model.modeling_arbprob import ArbProbMLP

MASKS: dict[str, str | list[str]] = {
    "causal": "causal",
    "window": "causal & window(5)",
    "sinks": "causal & (window(3) | sinks(2))",
    "prefix": "causal | prefix(4)",
    "per layer": ["causal", "causal & window(3)", "causal & blocks(8)"],
    "per head": "heads(causal, causal & window(3))",
    "many runs": "causal & strided(2)",
    "blind": "causal & ~window(2)",
}
# so many that rows of a mask are written twice
PROMPT, NEW = 7, 14


def network(mask: Any = "causal", **options: Any) -> ArbProbForCausalLM:
    torch.manual_seed(0)
    sizes = dict(vocab_size=101, n_positions=64, n_embd=32, n_layer=3, n_head=2, initializer_range=0.2)
    model = ArbProbForCausalLM(ArbProbConfig(mask=mask, **{**sizes, **options})).eval()
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
    return model


IDS = torch.randint(1, 101, (3, PROMPT), generator=torch.Generator().manual_seed(1))
KEEP = torch.tensor([[0] * 3 + [1] * 4, [1] * 7, [0] * 2 + [1] * 5])
TABLE = torch.rand(3, 2, PROMPT, PROMPT, generator=torch.Generator().manual_seed(2)) < 0.6
PROMPTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded": {"attention_mask": KEEP},
    "three dimensions": {"mask": TABLE[:, 0]},
    "four dimensions, padded": {"mask": TABLE, "attention_mask": KEEP},
    "mixed": {"mask": Mask.of(TABLE) & Mask.parse("causal & window(4)")},
}
WAYS: dict[str, dict[str, Any]] = {
    "processors": {"do_sample": True, "top_p": 0.9, "temperature": 0.8, "repetition_penalty": 1.2},
    "several": {"do_sample": True, "num_return_sequences": 2},
    "ends": {"do_sample": True, "eos_token_id": list(range(1, 8))},
    "chunks": {"prefill_chunk_size": 3},
    "positions": {"position_ids": torch.arange(3, 3 + PROMPT).expand(3, -1)},
}


class Steps:
    """Counts the passes that were written out, and notes what spoke against them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.reasons = 0, list[str | None]()
        run = LeanLayers.run

        def counted(*args: Any) -> Tensor:
            self.count += 1
            return run(*args)

        def noted(model: Any, options: Any) -> str | None:
            self.reasons.append(step_obstacle(model, options))
            return self.reasons[-1] if self.is_lean else "asked for"

        self.is_lean = True
        monkeypatch.setattr(LeanLayers, "run", counted)
        monkeypatch.setattr(generation, "step_obstacle", noted)

    def both(self, model: ArbProbForCausalLM, **options: Any) -> tuple[Any, Any]:
        """What lean and usual steps make of the same call and seed."""
        made = []
        for self.is_lean in (True, False):
            torch.manual_seed(3)
            outputs = {"return_dict_in_generate": True, "output_logits": True, "output_scores": True}
            made.append(model.generate(**{"inputs": IDS, "max_new_tokens": NEW, **outputs, **options}))
        return made[0], made[1]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


def check_same(lean: Any, usual: Any) -> None:
    assert torch.equal(lean.sequences, usual.sequences)
    for name in ("logits", "scores"):
        pairs = zip(getattr(lean, name), getattr(usual, name), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
    if usual.past_key_values is None:
        assert lean.past_key_values is None
        return
    assert type(lean.past_key_values) is DynamicCache
    for own, other in zip(lean.past_key_values.layers, usual.past_key_values.layers, strict=True):
        assert torch.equal(own.keys, other.keys)
        assert torch.equal(own.values, other.values)


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_lean_steps_give_the_bits_of_usual_ones(steps: Steps, mask: Any, prompt: dict[str, Any]) -> None:
    lean, usual = steps.both(network(mask), **prompt)
    check_same(lean, usual)
    assert steps.count == NEW - 1


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("mask", ["causal", "causal & window(5)"])
def test_lean_steps_give_the_same_bits_however_tokens_are_chosen(steps: Steps, mask: str, way: dict[str, Any]) -> None:
    lean, usual = steps.both(network(mask), **way)
    check_same(lean, usual)
    assert steps.count == lean.sequences.shape[1] - PROMPT - 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_lean_steps_give_the_same_bits_in_every_precision(steps: Steps, dtype: torch.dtype) -> None:
    check_same(*steps.both(network("causal & window(5)").to(dtype), attention_mask=KEEP))
    assert steps.count == NEW - 1


def test_lean_steps_give_the_same_bits_under_autocast(steps: Steps) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check_same(*steps.both(network("causal & window(5)"), attention_mask=KEEP))
    assert steps.count == NEW - 1


def test_a_streamer_is_given_the_same_calls(steps: Steps) -> None:
    class Noting(BaseStreamer):
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def put(self, value: Tensor) -> None:
            self.calls.append(value.tolist())

        def end(self) -> None:
            self.calls.append("end")

    notes = []
    for steps.is_lean in (True, False):
        notes.append(Noting())
        network().generate(IDS[:1], max_new_tokens=9, streamer=notes[-1])
    assert notes[0].calls == notes[1].calls
    assert (steps.count, len(notes[0].calls)) == (8, 11)


def test_a_stopping_criterion_ends_lean_steps_where_it_ends_usual_ones(steps: Steps) -> None:
    class AtTwelve(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= 12)

    lean, usual = steps.both(network(), stopping_criteria=StoppingCriteriaList([AtTwelve()]))
    check_same(lean, usual)
    assert (lean.sequences.shape[1], steps.count) == (12, 12 - PROMPT - 1)


def test_lean_steps_end_when_all_positions_are_taken(steps: Steps) -> None:
    lean, usual = steps.both(network(), max_new_tokens=200)
    check_same(lean, usual)
    assert lean.sequences.shape[1] == 64


def test_a_cache_that_is_given_is_filled_and_goes_on(steps: Steps) -> None:
    model, cache = network(), DynamicCache(config=network().config)
    first = model.generate(IDS, past_key_values=cache, max_new_tokens=10, return_dict_in_generate=True)
    assert first.past_key_values is cache
    assert cache.get_seq_length() == PROMPT + 9
    assert cache.layers[0].keys.is_contiguous()
    on = model.generate(first.sequences, past_key_values=cache, max_new_tokens=10)
    assert torch.equal(on, model.generate(IDS, max_new_tokens=20))
    assert steps.count == 9 + 9 + 19


def _derived() -> ArbProbForCausalLM:
    class Cooler(ArbProbForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            outputs = super().forward(*args, **kwargs)
            outputs.logits = outputs.logits / 2
            return outputs

    return Cooler(network().config).eval()


def _preparing() -> ArbProbForCausalLM:
    class Preparing(ArbProbForCausalLM):
        def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
            return super().prepare_inputs_for_generation(*args, **kwargs)

    return Preparing(network().config).eval()


def _prepared_by_another() -> ArbProbForCausalLM:
    # as PEFT does for virtual tokens
    model = network()
    model.prepare_inputs_for_generation = model.prepare_inputs_for_generation
    return model


def _hiding() -> ArbProbForCausalLM:
    class Hiding(ArbProbForCausalLM):
        def _update_model_kwargs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
            options = super()._update_model_kwargs_for_generation(*args, **kwargs)
            options["attention_mask"] = torch.ones(len(IDS), args[0].past_key_values.get_seq_length() + 1).long()
            options["attention_mask"][:, :3] = 0
            return options

    return Hiding(network().config).eval()


def _hooked(part: str) -> ArbProbForCausalLM:
    model = network()
    model.get_submodule(part).register_forward_hook(lambda module, args, output: None)
    return model


def _replaced() -> ArbProbForCausalLM:
    class Wider(nn.LayerNorm):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = network()
    model.transformer.h[1].ln_2 = Wider(32)
    return model


def _patched() -> ArbProbForCausalLM:
    model = network()
    mlp = model.transformer.h[0].mlp
    plain = mlp.forward
    mlp.forward = lambda states: 2 * plain(states)
    return model


OTHERS: dict[str, tuple[Callable[[], ArbProbForCausalLM], dict[str, Any], str]] = {
    "derived": (_derived, {}, "another, or is watched"),
    "preparing": (_preparing, {}, "another, or is watched"),
    "prepared by another": (_prepared_by_another, {}, "another, or is watched"),
    "hiding tokens": (_hiding, {"attention_mask": torch.ones_like(IDS)}, "another, or is watched"),
    "hooked model": (lambda: _hooked(""), {}, "another, or is watched"),
    "hooked network": (lambda: _hooked("transformer"), {}, "another, or is watched"),
    "hooked part": (lambda: _hooked("transformer.h.1.mlp.c_fc"), {}, "is watched"),
    "replaced part": (_replaced, {}, "ln_2 is Wider"),
    "patched part": (_patched, {}, "is watched"),
    "dropout": (lambda: network(resid_pdrop=0.1).train(), {}, "dropout"),
    "eager": (lambda: network(attn_implementation="eager"), {}, "eager"),
    "hidden states": (network, {"output_hidden_states": True}, "output_hidden_states"),
    "attentions": (lambda: network(attn_implementation="eager"), {"output_attentions": True}, "output_attentions"),
    "no cache": (network, {"use_cache": False}, "no cache"),
    "looks ahead": (lambda: network("full"), {}, "no cache"),
    "static cache": (network, {"cache_implementation": "static"}, "no plain DynamicCache"),
}


@pytest.mark.parametrize(("make", "options", "reason"), OTHERS.values(), ids=OTHERS)
def test_other_models_and_calls_take_usual_steps(steps: Steps, make: Any, options: Any, reason: str) -> None:
    model = make()
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
    lean, usual = steps.both(model, max_new_tokens=6, **options)
    assert torch.equal(lean.sequences, usual.sequences)
    assert steps.count == 0
    assert reason in (steps.reasons[0] or "")


@torch.no_grad()
def test_a_compiled_part_is_called() -> None:
    model = network()
    assert obstacle(model.transformer) is None
    model.transformer.h[0].compile(backend="eager")
    assert "watched" in (obstacle(model.transformer) or "")


def _calling(*names: str) -> type:
    """A class that calls what it derives from."""

    def calling(name: str) -> Callable[..., Any]:
        return lambda self, *args, **options: getattr(ArbProbModel, name)(self, *args, **options)

    return type("ArbProbModel", (ArbProbModel,), {name: calling(name) for name in names})


PASSED_OVER = [one.__name__ for one in ArbProbModel._passed_over]


@torch.no_grad()
@pytest.mark.parametrize("names", [*([name] for name in PASSED_OVER), PASSED_OVER], ids=" ".join)
def test_what_a_derived_network_says_otherwise_is_not_passed_over(names: list[str]) -> None:
    transformer = network().transformer
    transformer.__class__ = _calling()
    assert obstacle(transformer) is None
    transformer.__class__ = _calling(*names)
    assert "another" in (obstacle(transformer) or "")


@torch.no_grad()
@pytest.mark.parametrize("name", PASSED_OVER)
def test_nor_is_what_was_put_in_its_place(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    transformer, written = network().transformer, getattr(ArbProbModel, name)
    with monkeypatch.context() as patch:
        patch.setattr(transformer, name, partial(written, transformer))
        assert "another" in (obstacle(transformer) or "")
    assert obstacle(transformer) is None
    monkeypatch.setattr(ArbProbModel, name, wraps(written)(lambda self, *args, **options: written(self, *args)))
    assert "another" in (obstacle(transformer) or "")


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"prompt_lookup_num_tokens": 2}], ids=["beams", "drafts"])
def test_beams_and_drafts_take_usual_steps(steps: Steps, options: dict[str, Any]) -> None:
    network().generate(IDS[:1], max_new_tokens=6, **options)
    assert steps.count == 0


def test_a_custom_pattern_is_asked_at_every_step(steps: Steps) -> None:
    @pattern(name="lean_custom")
    def lean_custom(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k <= q

    steps.both(network(), mask=lean_custom(), max_new_tokens=6)
    assert steps.count == 0
    assert "custom pattern" in (steps.reasons[0] or "")


def test_what_a_hook_sees_of_the_embeddings_and_the_head_it_goes_on_to_see(steps: Steps) -> None:
    model, seen = network(), list[str]()
    for name in ("transformer.wte", "transformer.ln_f", "lm_head"):
        model.get_submodule(name).register_forward_hook(lambda module, args, output, name=name: seen.append(name))
    model.generate(IDS, max_new_tokens=5)
    assert seen == ["transformer.wte", "transformer.ln_f", "lm_head"] * 5
    assert steps.count == 4


def test_a_token_outside_the_vocabulary_is_named(steps: Steps) -> None:
    model = network()
    with pytest.raises(ValueError, match="input_ids: expected 0 to 100, got 500"):
        model.generate(IDS, max_new_tokens=30, do_sample=True, eos_token_id=list(range(1, 60)), pad_token_id=500)
    assert steps.count > 0


def test_a_cropped_cache_goes_on_without_its_last_tokens() -> None:
    model = network()
    with torch.no_grad():
        cache = model(IDS, use_cache=True).past_key_values
        layers = LeanLayers(model.transformer, cache)
        plans = model.transformer._layer_plans

        def run(hidden: Tensor) -> Tensor:
            sizes = model.transformer._sizes(hidden, cache)
            return layers.run(hidden, plans(MaskArguments(), sizes, "sdpa", hidden.dtype, None))

        hidden = torch.randn(3, 2, 32)
        first = run(hidden)
        layers.crop(2)
        assert layers.length == PROMPT
        buffers = layers.buffers
        assert torch.equal(run(hidden), first)
        assert layers.buffers is buffers
        cache.crop(-2)
        assert torch.equal(run(hidden), first)
        assert layers.buffers is not buffers


@pytest.mark.parametrize("heads", [1, 2])
def test_the_cache_at_the_end_holds_no_room(heads: int) -> None:
    found = network(n_head=heads).generate(IDS[:1], max_new_tokens=5, return_dict_in_generate=True).past_key_values
    keys = found.layers[0].keys
    assert keys.untyped_storage().nbytes() == keys.numel() * keys.element_size()


def _doubled(plain: Any) -> Any:
    def forward(self: Any, states: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = plain(self, states, *args, **kwargs)
        return out if isinstance(out, tuple) else 2 * out

    return forward


@pytest.mark.parametrize("kind", [ArbProbMLP, nn.LayerNorm, Conv1D], ids=lambda kind: kind.__name__)
def test_what_is_patched_for_a_whole_class_is_called(steps: Steps, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind, "forward", _doubled(kind.forward))
    lean, usual = steps.both(network(), max_new_tokens=6)
    check_same(lean, usual)
    assert steps.count == 0
    assert steps.reasons[0] == "a class has been patched"


def test_a_patched_forward_of_the_model_is_called_as_it_wants(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ArbProbForCausalLM.forward
    names = ("input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep")

    def forward(  # noqa: PLR0913
        self: Any,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        use_cache: Any = None,
        logits_to_keep: Any = 0,
        return_dict: Any = None,
        labels: Any = None,
    ) -> Any:
        given = (input_ids, attention_mask, position_ids, past_key_values, use_cache, logits_to_keep)
        return plain(self, **dict(zip(names, given, strict=True)))

    monkeypatch.setattr(ArbProbForCausalLM, "forward", forward)
    assert network().generate(IDS, max_new_tokens=6).shape == (3, PROMPT + 6)
    assert steps.count == 0


def _hook(model: ArbProbForCausalLM) -> None:
    model.transformer.h[0].register_forward_hook(lambda module, args, out: -out)


def _hook_deep(model: ArbProbForCausalLM) -> None:
    model.transformer.h[1].mlp.c_fc.register_forward_hook(lambda module, args, out: -out)


def _narrow(model: ArbProbForCausalLM) -> None:
    model.config.mask = "causal & window(2)"


def _replace_mlp(model: ArbProbForCausalLM) -> None:
    model.transformer.h[0].mlp = network().double().float().transformer.h[2].mlp


def _reorder(model: ArbProbForCausalLM) -> None:
    model.transformer.h = nn.ModuleList(reversed(model.transformer.h))


def _replace_head(model: ArbProbForCausalLM) -> None:
    model.lm_head = nn.Linear(32, 101, bias=False)


@pytest.mark.parametrize("change", [_hook, _hook_deep, _narrow, _replace_mlp, _reorder, _replace_head])
def test_what_is_done_to_the_network_between_two_steps_holds_from_the_next(steps: Steps, change: Any) -> None:
    class Changing(StoppingCriteria):
        def __init__(self, model: ArbProbForCausalLM) -> None:
            self.model = model

        def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
            if input_ids.shape[1] == PROMPT + 5:
                torch.manual_seed(7)
                change(self.model)
            return torch.zeros(len(input_ids), dtype=torch.bool)

    made = []
    for steps.is_lean in (True, False):
        model = network()
        options = dict(stopping_criteria=StoppingCriteriaList([Changing(model)]), output_logits=True)
        made.append(model.generate(IDS, max_new_tokens=NEW, return_dict_in_generate=True, **options))
    assert all(map(torch.equal, made[0].logits, made[1].logits))
    assert steps.count == 4
    undisturbed = network().generate(IDS, max_new_tokens=NEW, return_dict_in_generate=True, output_logits=True)
    assert not torch.equal(made[0].logits[-1], undisturbed.logits[-1])
