"""The audit passes sound models under every pattern, and fails unsound ones for the right reason."""

import copy
import random

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, Mask, audit, documents, order, padding, tree
from arbprob_hf.analysis.audit.cases import LENGTHS, by_name, dense_on_grid
from arbprob_hf.analysis.audit.reference_gpt2 import Reference
from arbprob_hf.model.masks.mask import PATTERNS
from arbprob_hf.model.masks.tiles import Grid
from tests.tables import quick

SIZES = dict(vocab_size=31, n_positions=300, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
SHORT = (16, 17)


def ours(*, backend: str = "sdpa", **fields: object) -> ArbProbForCausalLM:
    torch.manual_seed(0)
    config = ArbProbConfig(**{**SIZES, "initializer_range": 0.3, **fields})
    config._attn_implementation = backend
    return ArbProbForCausalLM(config)


def theirs(*, backend: str = "sdpa", **fields: object) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(**{**SIZES, "initializer_range": 0.3, **fields})
    return GPT2LMHeadModel._from_config(config, attn_implementation=backend)


def rows(length: int) -> Tensor:
    return torch.arange(length).repeat(2, 1)


TEXTS = {
    "causal": "causal",
    "full": "full",
    "window": "causal & window(4)",
    "prefix": "causal | prefix(5)",
    "sinks": "causal & (window(3) | sinks(2))",
    "dilated": "dilated(3, 2)",
    "strided": "causal & (window(3) | strided(4))",
    "blocks": "blocks(5)",
    "block_diffusion": "block_diffusion(9, 4)",
    "heads": "heads(causal & window(3), causal | prefix(2))",
}
TABLES = {
    "documents": lambda length: documents(rows(length).ge(torch.tensor([[7], [3]])).long()),
    "padding": lambda length: padding(rows(length).ge(torch.tensor([[2], [0]]))),
    "order": lambda length: order(torch.stack([torch.randperm(length), torch.arange(length) // 3])),
    "tree": lambda length: tree(torch.arange(length) // 2 - 1),
}
# relaying orders, forms that no pattern has, empty rows
OTHERS = {
    "relaying": lambda length: order(rows(length), rows(length) + 1),
    "random": lambda length: Mask.of(torch.rand(2, length, length) < 0.2),
    "random per head": lambda length: Mask.of(torch.rand(2, 2, length, length) < 0.2),
    "random per row and a pattern": lambda length: (
        Mask.of(torch.rand(2, length, length) < 0.5) & ~Mask.parse("window(2)")
    ),
    "nothing": lambda length: Mask.of(torch.zeros(length, length, dtype=torch.bool)),
}


def seeded(make: object) -> object:
    def again(length: int) -> Mask:
        torch.manual_seed(length)
        return make(length)

    return again


def test_every_registered_pattern_is_audited_here() -> None:
    assert set(PATTERNS) == set(TEXTS) | set(TABLES)


# every pattern by the kernels that most people use, and some by the plain one
AUDITED = [(name, backend) for backend in ("sdpa", "eager") for name in (*TEXTS, *TABLES, *OTHERS)]
AUDITED_QUICKLY = [(name, "sdpa") for name in (*TEXTS, *TABLES, *OTHERS)]
AUDITED_QUICKLY += [(name, "eager") for name in ("window", "heads", "order", "random", "nothing")]


@pytest.mark.parametrize(("name", "backend"), quick(AUDITED, AUDITED_QUICKLY))
def test_no_pattern_raises_an_alarm(name: str, backend: str) -> None:
    mask = TEXTS.get(name) or seeded({**TABLES, **OTHERS}[name])
    report = audit(ours(backend=backend), mask, lengths=(17,))
    assert report.passed, str(report)


LEAVES = ["causal", "full", "window(3)", "prefix(4)", "dilated(3, 2)", "strided(3)", "sinks(2)", "blocks(4)"]


def random_text(draw: random.Random, depth: int) -> str:
    if depth == 0 or draw.random() < 0.2:
        return draw.choice(LEAVES)
    if draw.random() < 0.25:
        return f"~({random_text(draw, depth - 1)})"
    return f"({random_text(draw, depth - 1)}) {draw.choice('&|')} ({random_text(draw, depth - 1)})"


@pytest.mark.parametrize("seed", quick(range(12), range(4)))
def test_random_expressions_raise_no_alarm(seed: int) -> None:
    text = random_text(random.Random(seed), 3)
    report = audit(ours(backend=["eager", "sdpa"][seed % 2]), text, lengths=(13,))
    assert report.passed, str(report)


@pytest.mark.parametrize(
    "name", quick(["causal", "window", "sinks", "heads", "order", "documents", "random"], ["window"])
)
def test_no_alarm_where_attention_is_computed_by_structure(name: str) -> None:
    # at the short lengths they are audited above
    report = audit(ours(), TEXTS.get(name) or seeded({**TABLES, **OTHERS}[name]), lengths=LENGTHS[-1:])
    assert report.passed, str(report)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_masks_of_the_config_hold_layer_by_layer(backend: str) -> None:
    model = ours(backend=backend, n_layer=3, mask=["causal & window(3)", "causal", "window(2)"])
    report = audit(model, lengths=SHORT)
    assert report.passed, str(report)
    assert "nothing to decode from a cache" in str(report)


@pytest.mark.parametrize("spread", [0.02, 1.0])
def test_small_and_large_weights_raise_no_alarm(spread: float) -> None:
    report = audit(ours(initializer_range=spread), "causal & window(4)", lengths=(16,))
    assert report.passed, str(report)


def test_our_model_passes_with_dropout_and_in_half_precision() -> None:
    assert audit(ours(attn_pdrop=0.2, resid_pdrop=0.2, embd_pdrop=0.2), "causal & window(4)", lengths=(16,))
    half = ours().to(torch.bfloat16)
    report = audit(half, "causal & window(4)", lengths=(16,))
    assert report.passed, str(report)
    assert half.dtype == torch.bfloat16


def test_gpt2_passes_without_a_mask_and_fails_with_the_one_people_pass() -> None:
    assert audit(theirs(), lengths=SHORT)
    report = audit(theirs(), "causal & window(4)", lengths=SHORT)
    assert not report
    verdicts = {check.name: check.verdict for check in report.checks}
    assert verdicts["embeddings, evaluation"] == verdicts["token ids"] == "leaks"
    assert verdicts["must depend, float64"] == "too strict"
    assert verdicts["prefill and decode, float64"] == "raised"
    assert verdicts["reference, float64"] == "differs"
    assert verdicts["batch rows apart"] == "passed"


def four_d(mask: Mask, grid: Grid) -> dict[str, Tensor]:
    return {"attention_mask": dense_on_grid(mask, grid)}


def test_gpt2_passes_a_4d_bool_mask_on_sdpa_and_fails_it_on_eager() -> None:
    assert audit(theirs(), "causal & window(4)", lengths=SHORT, mask_kwargs=four_d)
    report = audit(theirs(backend="eager"), "causal & window(4)", lengths=SHORT, mask_kwargs=four_d)
    assert "leaks" in {check.verdict for check in report.failed}


def additive(mask: Mask, grid: Grid) -> dict[str, Tensor]:
    keep = dense_on_grid(mask, grid)
    return {"attention_mask": torch.zeros(keep.shape).masked_fill(~keep, torch.finfo(torch.float32).min)}


def test_finfo_min_leaks_where_a_query_may_see_nothing() -> None:
    report = audit(theirs(backend="eager"), "causal", lengths=(16,), mask_kwargs=additive)
    assert [check.name for check in report.failed] == ["rows with masks of their own"]


def test_a_network_that_is_not_gpt2_is_audited_without_a_reference() -> None:
    config = LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    report = audit(LlamaForCausalLM(config), lengths=SHORT)
    assert report.passed, str(report)
    assert "LlamaForCausalLM is not shaped as GPT-2: no reference to compare with" in report.notes


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, states: Tensor) -> Tensor:
        return states.clone()

    @staticmethod
    def backward(ctx: object, upstream: Tensor) -> Tensor:
        return upstream / 2


def test_gradients_that_are_not_those_of_the_outputs_are_found() -> None:
    model = ours()
    model.transformer.h[1].ln_1.register_forward_hook(lambda module, inputs, out: Halved.apply(out))
    report = audit(model, "causal", lengths=(16,))
    assert [check.name for check in report.failed] == ["slopes, float64", "rows with masks of their own"]
    assert "gradients promise a slope of" in report.failed[0].figure


def test_a_forward_that_raises_is_a_finding() -> None:
    report = audit(ours(), "causal", lengths=(16,), mask_kwargs=lambda mask, grid: {"mask": "nonsense"})
    assert [(check.name, check.verdict) for check in report.checks] == [
        ("forward, finite outputs", "raised"),
        ("rows with masks of their own", "raised"),
    ]
    assert "16 slots: ValueError: mask: unknown pattern 'nonsense'" in report.checks[0].figure


def test_outputs_that_are_not_finite_are_a_finding() -> None:
    model = ours()
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.bias[0] = torch.nan
    report = audit(model, "causal", lengths=(16,))
    assert report.checks[0].verdict == "not finite"


def test_one_layer_cannot_show_a_relay_and_the_report_says_so() -> None:
    ranks = torch.tensor([0] * 4 + list(range(1, 13)))
    limits = torch.tensor([12] * 4 + list(range(1, 13)))
    leaky, meant = order(ranks, limits), order(ranks, ranks.where(ranks > 0, torch.tensor(0)))

    def give(mask: Mask, grid: Grid) -> dict[str, object]:
        # the bug of the original research code: conditioning slots see the body
        return by_name(leaky if mask == meant else mask, grid)

    one = audit(ours(n_layer=1), meant, mask_kwargs=give)
    assert "the model has one layer: relays cannot be seen" in one.notes
    assert not any("slot 5 saw" in check.figure for check in one.failed)
    two = audit(ours(), meant, mask_kwargs=give)
    assert {"embeddings, evaluation", "gradients, training"} <= {check.name for check in two.failed}
    assert "the model has one layer: relays cannot be seen" not in two.notes


def test_an_audit_leaves_everything_as_it_was() -> None:
    model = ours().train()
    model.transformer.h[0].eval()
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    torch.manual_seed(7)
    state = torch.get_rng_state()
    audit(model, "causal", lengths=(5,))
    assert torch.get_rng_state().equal(state)
    assert [module.training for module in model.modules()] == modes
    after = model.state_dict()
    assert all(after[name].equal(value) and after[name].dtype == value.dtype for name, value in before.items())
    assert model.lm_head.weight.grad.eq(1).all()
    assert all(p.grad is None for name, p in model.named_parameters() if "wte" not in name and "lm_head" not in name)
    assert torch.is_grad_enabled()


def test_the_same_audit_twice_reads_the_same() -> None:
    assert str(audit(ours(), "window(3)", lengths=(9,))) == str(audit(ours(), "window(3)", lengths=(9,)))


def test_a_report_is_a_table_with_a_line_per_check() -> None:
    report = audit(ours(), "causal & window(3)", lengths=(8,))
    lines = str(report).splitlines()
    assert lines[0] == "audit of ArbProbForCausalLM (sdpa) under causal & window(3): all 11 checks passed"
    assert lines[1].startswith("  passed      forward, finite outputs ")
    assert len(lines) == 1 + len(report.checks) + len(report.notes)
    failed = audit(theirs(), "causal & window(3)", lengths=(8,))
    assert "checks FAILED" in str(failed).splitlines()[0]
    assert any(line.startswith("  LEAKS ") for line in str(failed).splitlines())


def test_lengths_follow_the_mask_and_the_model() -> None:
    assert audit(ours(), Mask.of(torch.ones(9, 9).tril())).notes[0] == "at 9 slots"
    assert audit(ours(n_positions=20), "causal").notes[0] == "at 16, 17, 20 slots"
    assert audit(ours(), torch.ones(6, 6)).notes[0] == "at 6 slots"


def test_what_cannot_be_audited_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^lengths: expected at least 2 slots, got 1$"):
        audit(ours(), "causal", lengths=(1,))
    with pytest.raises(ValueError, match=r"^lengths: expected at most 300, the model's number of positions, got 301$"):
        audit(ours(), "causal", lengths=(16, 301))
    with pytest.raises(ValueError, match=r"^mask: unknown pattern 'diagonal'"):
        audit(ours(), "diagonal")
    with pytest.raises(ValueError, match=r"^mask: a tensor of shape \(6, 6\) does not fit"):
        audit(ours(), torch.ones(6, 6), lengths=(7,))


def test_the_reference_knows_only_what_it_computes() -> None:
    assert Reference.knows(ours())
    assert Reference.knows(theirs())
    assert not Reference.knows(theirs(activation_function="relu"))
    assert not Reference.knows(theirs(scale_attn_by_inverse_layer_idx=True))
    assert not Reference.knows(theirs(scale_attn_weights=False))
    headed = ours()
    headed.lm_head = nn.Linear(16, 31)
    assert not Reference.knows(headed)
