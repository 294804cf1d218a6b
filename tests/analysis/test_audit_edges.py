"""Long inputs are audited at the edges that kernels work by, and all that a slot must not see is tried at once."""

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, Mask, audit, order
from arbprob_hf.analysis.audit.cases import make_cases
from arbprob_hf.model.attention import sdpa
from arbprob_hf.model.attention.plan import FusedPlan
from arbprob_hf.model.masks.tiles import Grid
from tests.analysis.finding import is_found
from tests.tables import quick

LENGTH = 272


def llama(backend: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = dict(vocab_size=31, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    config = LlamaConfig(**sizes, max_position_embeddings=LENGTH, attn_implementation=backend)
    return LlamaForCausalLM(config).eval()


def test_a_long_input_without_a_bug_raises_no_alarm() -> None:
    written = lambda mask, grid: {"attention_mask": mask.evaluate(grid)}  # noqa: E731
    assert audit(llama("sdpa"), "causal", lengths=(LENGTH,), mask_kwargs=written)


@pytest.mark.parametrize(
    ("query", "key"), quick([(63, 64), (127, 128), (255, 256), (70, 200), (10, 30)], [(63, 64), (10, 30)])
)
def test_one_pair_too_many_in_a_long_input_is_found(query: int, key: int) -> None:
    def leaky(mask: Mask, grid: Grid) -> dict[str, Tensor]:
        keep = mask.dense(len(grid.queries), len(grid.keys), offset=grid.queries.start).clone()
        if len(grid.queries) == LENGTH:
            keep[..., query, key] = True
        return {"attention_mask": keep}

    report = audit(llama("sdpa"), "causal", lengths=(LENGTH,), mask_kwargs=leaky)
    assert not report
    assert "LEAKS       embeddings, evaluation" in str(report)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_model_that_computes_parts_in_float32_raises_no_alarm(backend: str) -> None:
    assert audit(llama(backend))


def test_checks_in_float64_do_not_apply_to_a_model_without_it() -> None:
    sizes = dict(vocab_size=31, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    experts = dict(num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1, max_position_embeddings=32)
    report = audit(MixtralForCausalLM(MixtralConfig(**sizes, **experts)), lengths=(16,))
    if any("does not run in float64" in note for note in report.notes):
        assert not any("float64" in check.name for check in report.checks)
    assert not [check for check in report.checks if check.verdict == "raised"]


def shuffled(length: int) -> Mask:
    return order(torch.randperm(length, generator=torch.Generator().manual_seed(0)))


def longest_audited() -> tuple[ArbProbForCausalLM, int]:
    sizes = dict(vocab_size=31, n_embd=16, n_layer=2, n_head=2, n_positions=700, bos_token_id=0, eos_token_id=0)
    model = ArbProbForCausalLM(ArbProbConfig(**sizes)).eval()
    return model, max(setting.length for setting in make_cases(model, shuffled, None))


def test_an_audit_is_long_enough_for_slots_to_be_sorted() -> None:
    _, longest = longest_audited()
    assert sdpa.SHORTEST_SORTED <= longest <= 700


@pytest.mark.long
def test_the_path_that_sorts_slots_is_audited(monkeypatch: pytest.MonkeyPatch) -> None:
    model, longest = longest_audited()
    # the shorter ones of an audit do not sort
    assert audit(model, shuffled, lengths=(longest,))
    sort = sdpa._sorted
    # broken only where slots are sorted
    monkeypatch.setattr(sdpa, "_sorted", lambda *given: sort(*given) and FusedPlan(causal=False))
    assert is_found(model, shuffled, lengths=(longest,))
