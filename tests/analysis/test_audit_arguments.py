"""What the audit is told: nothing, a bool tensor of four dimensions, or what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, Mask, audit, causal, heads, window
from arbprob_hf.model.masks.tiles import Grid

SIZES: dict[str, Any] = dict(vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=2)
SIZES |= dict(num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.3)
SHORT = (16, 17)


def mistral(sliding_window: int | None) -> MistralForCausalLM:
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=sliding_window))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def gpt2(**fields: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = dict(vocab_size=31, n_positions=40, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, **fields))


def ours() -> ArbProbForCausalLM:
    return ArbProbForCausalLM(ArbProbConfig(n_layer=1, n_head=2, n_embd=8, n_positions=24, vocab_size=31))


@pytest.mark.parametrize(
    ("model", "mask"), [(mistral(4), "causal & window(4)"), (mistral(None), "causal"), (llama(), "causal")]
)
def test_a_model_with_a_mask_of_its_own_is_audited_without_being_told(model: nn.Module, mask: str) -> None:
    report = audit(model, mask, lengths=SHORT, mask_kwargs=lambda mask, grid: {})
    assert report.passed, str(report)
    assert "rows with masks of their own" not in [check.name for check in report.checks]
    assert "no mask is handed over: rows with masks of their own do not apply" in report.notes


def test_the_former_name_of_mask_kwargs_works_and_warns_and_is_refused_beside_it() -> None:
    def ask(mask: Mask, grid: Grid) -> dict[str, Tensor]:
        return {"attention_mask": mask.written(grid)}  # the former name of evaluate

    new = audit(gpt2(), "causal & window(4)", lengths=(16,), mask_kwargs=ask)
    with pytest.warns(FutureWarning, match="is called mask_kwargs now"):
        old = audit(gpt2(), "causal & window(4)", lengths=(16,), give=ask)
    assert old.passed, str(old)
    assert [check.name for check in old.checks] == [check.name for check in new.checks]
    with pytest.raises(ValueError, match="give: the former name of mask_kwargs, which is given too"):
        audit(gpt2(), "causal", lengths=(16,), mask_kwargs=ask, give=ask)


def test_and_fails_where_its_mask_is_another() -> None:
    narrow = audit(mistral(4), "causal", lengths=SHORT, mask_kwargs=lambda mask, grid: {})
    assert {check.verdict for check in narrow.failed} == {"too strict"}
    wide = audit(mistral(5), "causal & window(4)", lengths=SHORT, mask_kwargs=lambda mask, grid: {})
    assert "leaks" in {check.verdict for check in wide.failed}


def test_what_never_changes_is_nothing_either() -> None:
    ones = lambda mask, grid: {"attention_mask": torch.ones(len(grid.rows), len(grid.keys))}  # noqa: E731
    report = audit(gpt2(), "causal", lengths=(16,), mask_kwargs=ones)
    assert report.passed, str(report)
    assert any("do not apply" in note for note in report.notes)


def test_a_mask_that_is_the_same_whatever_is_asked_is_found() -> None:
    tril = torch.ones(1, 1, 16, 16, dtype=torch.bool).tril()

    def give(mask: Mask, grid: Grid) -> dict[str, Tensor]:
        return {"attention_mask": tril[:, :, grid.queries.start : grid.queries.stop, : grid.keys.stop]}

    assert [check.name for check in audit(gpt2(), "causal", lengths=(16,), mask_kwargs=give).failed] == [
        "rows with masks of their own"
    ]


@pytest.mark.parametrize("mask", ["causal & window(4)", "heads(causal, causal & window(3))", "causal | prefix(3)"])
def test_models_of_transformers_pass_under_a_bool_mask_of_four_dimensions(mask: str) -> None:
    report = audit(gpt2(), mask, lengths=SHORT, mask_kwargs=lambda mask, grid: {"attention_mask": mask.evaluate(grid)})
    assert report.passed, str(report)
    assert "rows with masks of their own" in [check.name for check in report.checks]


CASES: dict[str, tuple[Any, type[Exception], str]] = {
    "one length": (lambda: audit(ours(), lengths=16), TypeError, r"lengths: expected a tuple of integers, .*got 16$"),
    "texts": (lambda: audit(ours(), lengths=("16",)), TypeError, r"lengths: expected a tuple .*got \('16',\)$"),
    "a list": (lambda: audit(ours(), ["causal"]), TypeError, "mask: expected a Mask, .*got list; masks of the layers"),
    "a class": (
        lambda: audit(ours(), causal),
        TypeError,
        "mask: .*got the pattern causal; a pattern is called: write causal",
    ),
    "a text made": (lambda: audit(ours(), lambda n: "causal"), TypeError, "mask: expected a function .*one to str$"),
    "a name": (lambda: audit("gpt2"), TypeError, "model: expected a language model .*got str, 'gpt2'; load it"),
    "a layer": (lambda: audit(nn.Linear(2, 2)), TypeError, "model: .*got Linear, one without such a config; load it"),
    "heads": (
        lambda: audit(ours(), heads(causal(), causal(), window(2))),
        ValueError,
        "heads: expected one mask per head, 2 in all, got 3$",
    ),
    "a tensor of heads": (
        lambda: audit(ours(), torch.ones(1, 3, 16, 16)),
        ValueError,
        r"mask: a tensor of shape \(1, 3, 16, 16\) does not fit batch=2, heads=2",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_audited_is_refused_in_one_line(name: str) -> None:
    call, kind, message = CASES[name]
    with pytest.raises(kind, match=f"^{message}") as caught:
        call()
    said = str(caught.value)
    assert (len(said) <= 300, "\n" in said) == (True, False)
