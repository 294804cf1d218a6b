"""Seeded bugs of three kinds, and the shipped checker that must find every one of them.

`python -m pytest tests/analysis -k table -s` prints the table. Each bug counts once: caught; equivalent, where
nothing that is asked of it differs; or missed, which fails the test.
"""

import ast
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, Mask, audit, certify, check_leakage, order
from arbprob_hf.analysis.audit import checks as auditing
from arbprob_hf.analysis.audit.cases import dense_on_grid
from arbprob_hf.model import modeling_arbprob
from arbprob_hf.model.attention.plan import AdditivePlan, FusedPlan, Plan, to_dense
from arbprob_hf.model.masks.tiles import Grid, Sizes
from tests.analysis.comparing import judge
from tests.analysis.exposing import CASES
from tests.analysis.finding import is_found
from tests.analysis.mutating import MODEL, find_function, loaded, mutants_of
from tests.analysis.targets import TARGETS

# of the changes to the code every so many are seeded; benchmarks/mutants.py seeds all
EVERY = 32
LENGTHS = (16, 17)
SIZES = dict(vocab_size=23, n_positions=32, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
SIZES |= dict(initializer_range=0.3, attn_pdrop=0.0, resid_pdrop=0.1, embd_pdrop=0.0)


@dataclass(frozen=True)
class Tally:
    """Verdicts of the bugs of one kind."""

    kind: str
    caught: tuple[str, ...]
    equivalent: tuple[str, ...]
    missed: tuple[str, ...]

    @property
    def seeded(self) -> int:
        return len(self.caught) + len(self.equivalent) + len(self.missed)

    def __str__(self) -> str:
        counts = (self.seeded, len(self.caught), len(self.equivalent), len(self.missed))
        return f"{self.kind:<44}" + "".join(f"{count:>12}" for count in counts)


def tally(kind: str, verdicts: dict[str, str]) -> Tally:
    named = {verdict: tuple(name for name, found in verdicts.items() if found == verdict) for verdict in VERDICTS}
    assert sum(map(len, named.values())) == len(verdicts)
    return Tally(kind, *named.values())


VERDICTS = ("caught", "equivalent", "missed")


def model(**fields: Any) -> ArbProbForCausalLM:
    torch.manual_seed(0)
    return ArbProbForCausalLM(ArbProbConfig(**{**SIZES, **fields}))


PATTERNS = ["causal", "causal & window(4)", "causal | prefix(5)", "window(3)", "blocks(5)", "causal & strided(3)"]
PATTERNS += ["heads(causal & window(3), causal | prefix(2))", "causal & ~window(1)"]


def with_entry(row: int, head: int, query: int, key: int, value: bool) -> Callable[[Tensor], Tensor]:
    def change(keep: Tensor) -> Tensor:
        keep[row, head, query, key] = value
        return keep

    return change


def one_head_open(keep: Tensor) -> Tensor:
    keep[:, 1] = True
    return keep


def beyond_sixteen(keep: Tensor) -> Tensor:
    keep[..., 16:, :] = keep[..., 16:, :].flip(-1)
    return keep


MASK_BUGS: dict[str, Callable[[Tensor], Tensor]] = {
    "queries see one token further": lambda keep: keep | keep.roll(1, -1),
    "keys shifted by one": lambda keep: keep.roll(1, -1),
    "queries shifted by one": lambda keep: keep.roll(-1, -2),
    "transposed": lambda keep: keep.mT,
    "negated": lambda keep: ~keep,
    "batch row 0 for all": lambda keep: keep[:1].expand_as(keep),
    "rows of the batch exchanged": lambda keep: keep.flip(0),
    "heads exchanged": lambda keep: keep.flip(1),
    "head 0 for all": lambda keep: keep[:, :1].expand_as(keep),
    "one head sees all": one_head_open,
    "one entry too many": with_entry(-1, 0, 9, 12, True),
    "one entry too few": with_entry(-1, 1, 9, 9, False),
    "the first key forgotten": with_entry(0, slice(None), slice(None), 0, False),
    "the diagonal left out": lambda keep: keep & ~torch.eye(keep.shape[-1], dtype=torch.bool),
    "no mask at all": lambda keep: torch.ones_like(keep),
    "nothing allowed": lambda keep: torch.zeros_like(keep),
    "causal whatever is asked": lambda keep: torch.ones_like(keep).tril(),
    "only itself": lambda keep: keep & torch.eye(keep.shape[-1], dtype=torch.bool),
    "wrong at odd lengths": lambda keep: ~keep if keep.shape[-1] % 2 else keep,
    "wrong beyond sixteen": beyond_sixteen,
}


def bug_in_a_mask(pattern: str, change: Callable[[Tensor], Tensor]) -> str:
    """Hand a model the mask with a bug in it, whole or in parts, and let the audit say whether it is the one meant."""
    changed: list[bool] = []

    def give(mask: Mask, grid: Grid) -> dict[str, Tensor]:
        whole = Grid(grid.rows, grid.heads, range(grid.keys.stop), grid.keys)
        right = dense_on_grid(mask, whole).expand(-1, 2, -1, -1)
        wrong = change(right.clone())
        changed.append(not wrong.equal(right))
        return {"mask": wrong[:, :, grid.queries.start :]}

    found = is_found(model(), pattern, lengths=(17,), mask_kwargs=give)
    return "caught" if found else "missed" if any(changed) else "equivalent"


@functools.cache
def bugs_in_masks(*patterns: str) -> Tally:
    pairs = itertools.product(patterns, MASK_BUGS.items())
    return tally("masks, by audit", {f"{p}: {name}": bug_in_a_mask(p, change) for p, (name, change) in pairs})


ORDERS = {
    "causal": torch.arange(16),
    "prefix": (torch.arange(16) - 4).clamp(min=0),
    "shuffled": torch.arange(16) * 7 % 16,
    "two at a time": torch.arange(16) // 2,
}
ORDER_BUGS: dict[str, Callable[[Tensor], Tensor]] = {
    "every limit one higher": lambda limits: limits + 1,
    "the first limit unbounded": lambda limits: limits.masked_fill(torch.arange(16) == 0, 99),
    "the last limit one higher": lambda limits: limits + (torch.arange(16) == 15).long(),
    "one limit in the middle": lambda limits: limits + 3 * (torch.arange(16) == 7).long(),
    "limits shifted by a slot": lambda limits: limits.roll(-1),
    "limits reversed": lambda limits: limits.flip(0),
    "all limits the largest": lambda limits: limits.max().expand(16),
    "every other limit two higher": lambda limits: limits + 2 * (torch.arange(16) % 2),
}


def bug_in_an_order(ranks: Tensor, change: Callable[[Tensor], Tensor]) -> str:
    """Both checkers must refuse: certify in one look, check_leakage by a path to what the order forbids."""
    limits = change(ranks)
    meant = order(ranks).dense(16)[0]
    found = {not certify(ranks, limits), bool(check_leakage(order(ranks, limits), ~meant))}
    is_same = order(ranks, limits).dense(16)[0].equal(meant)
    return "caught" if found == {True} else "equivalent" if is_same and False in found else "missed"


@functools.cache
def bugs_in_orders() -> Tally:
    pairs = itertools.product(ORDERS.items(), ORDER_BUGS.items())
    named = {f"{of}: {name}": bug_in_an_order(ranks, change) for (of, ranks), (name, change) in pairs}
    return tally("orders, by certify and check_leakage", named)


def relay(depth: int) -> Tensor:
    # causal, and slot t also seen through a ladder: t sees t + 1 only by way of `depth` hidden steps
    keep = torch.eye(12, dtype=torch.bool)
    for step in range(depth):
        keep[step, step + 1] = True
    return keep


@functools.cache
def bugs_of_relays() -> Tally:
    """A ladder of so many steps leaks from so many layers on, and not before."""
    found = {}
    for depth, layers in itertools.product(range(2, 8), range(1, 8)):
        forbidden = torch.zeros(12, 12, dtype=torch.bool)
        forbidden[0, depth] = True
        leaks = bool(check_leakage(relay(depth), forbidden, layers=layers))
        if layers < depth:
            assert not leaks
        else:
            found[f"{depth} steps in {layers} layers"] = "caught" if leaks else "missed"
    return tally("relays, by check_leakage", found)


Patched = pytest.MonkeyPatch
LAYERED = dict(n_layer=3, mask=["causal & window(3)", "causal | prefix(4)", "causal"])


def wrong_plan(patch: Patched, change: Callable[[list[Plan], Any], list[Plan]]) -> None:
    right = modeling_arbprob.ArbProbModel._layer_plans
    wrong = lambda self, *arguments: change(right(self, *arguments), self)  # noqa: E731
    patch.setattr(modeling_arbprob.ArbProbModel, "_layer_plans", wrong)


def opened(number: int) -> Callable[[list[Plan], Any], list[Plan]]:
    return lambda plans, _: [FusedPlan(causal=False) if i == number % len(plans) else p for i, p in enumerate(plans)]


def penalty(value: float) -> Callable[[Patched], None]:
    def plan(mask: Mask, sizes: Sizes, *, dtype: torch.dtype, bias: Tensor | None = None) -> Plan:
        keep = to_dense(mask, sizes)
        low = max(value, torch.finfo(dtype).min)
        return AdditivePlan(torch.zeros(keep.shape, dtype=dtype).masked_fill(~keep, low))

    return lambda patch: patch.setitem(modeling_arbprob.prepare_attention.__globals__["BACKENDS"], "sdpa", plan)


def kept_from_the_first_call(patch: Patched) -> None:
    kept: dict[tuple[int, int, torch.dtype], Plan] = {}
    right = modeling_arbprob.prepare_attention

    def prepare(mask: Mask, sizes: Sizes, **options: Any) -> Plan:
        made = right(mask, sizes, **options)
        return kept.setdefault((sizes.q_len, sizes.kv_len, options["dtype"]), made)

    patch.setattr(modeling_arbprob, "prepare_attention", prepare)


def wrong_offset(by: int) -> Callable[[Patched], None]:
    right = modeling_arbprob.ArbProbModel._sizes

    def wrong(self: Any, *arguments: Any) -> Sizes:
        sizes = right(self, *arguments)
        if not isinstance(sizes.offset, int) or sizes.offset == 0:
            return sizes
        return Sizes(sizes.batch, sizes.heads, sizes.q_len, sizes.kv_len, sizes.offset + by, sizes.device)

    return lambda patch: patch.setattr(modeling_arbprob.ArbProbModel, "_sizes", wrong)


def rows_meet(patch: Patched) -> None:
    right = modeling_arbprob.ArbProbMLP.forward
    wrong = lambda self, states: right(self, states) + 1e-6 * states.mean(0, keepdim=True)  # noqa: E731
    patch.setattr(modeling_arbprob.ArbProbMLP, "forward", wrong)


def slots_meet(patch: Patched) -> None:
    right = modeling_arbprob.ArbProbMLP.forward
    wrong = lambda self, states: right(self, states - 1e-6 * states.mean(1, keepdim=True))  # noqa: E731
    patch.setattr(modeling_arbprob.ArbProbMLP, "forward", wrong)


def unmasked_in(mode: bool) -> Callable[[Patched], None]:
    return lambda patch: wrong_plan(
        patch, lambda plans, own: [FusedPlan(causal=False)] * len(plans) if own.training is mode else plans
    )


def wrong_cache(patch: Patched) -> None:
    backends = modeling_arbprob.prepare_attention.__globals__["BACKENDS"]
    right = backends["sdpa"]

    def plan(mask: Mask, sizes: Sizes, **options: Any) -> Plan:
        # a step sees all that is cached, whatever its mask
        return FusedPlan(causal=False) if sizes.q_len == 1 and sizes.kv_len > 1 else right(mask, sizes, **options)

    patch.setitem(backends, "sdpa", plan)


MODEL_BUGS: dict[str, tuple[Callable[[Patched], None], dict[str, Any], str | None]] = {
    "first layer unmasked": (lambda patch: wrong_plan(patch, opened(0)), {}, "causal & window(4)"),
    "last layer unmasked": (lambda patch: wrong_plan(patch, opened(-1)), {}, "causal & window(4)"),
    "first layer unmasked, own masks": (lambda patch: wrong_plan(patch, opened(0)), LAYERED, None),
    "last layer unmasked, own masks": (lambda patch: wrong_plan(patch, opened(-1)), LAYERED, None),
    "layers exchanged": (lambda patch: wrong_plan(patch, lambda plans, _: plans[::-1]), LAYERED, None),
    "layers turned": (lambda patch: wrong_plan(patch, lambda plans, _: plans[1:] + plans[:1]), LAYERED, None),
    "the first layer's mask for all": (
        lambda patch: wrong_plan(patch, lambda plans, _: [plans[0]] * len(plans)),
        LAYERED,
        None,
    ),
    "unmasked in training only": (unmasked_in(True), {}, "causal & window(4)"),
    "unmasked in evaluation only": (unmasked_in(False), {}, "causal & window(4)"),
    "finfo.min instead of -inf": (penalty(-torch.inf), {}, "causal"),
    "-1e4 instead of -inf": (penalty(-1e4), {}, "causal"),
    "-10 instead of -inf": (penalty(-10.0), {}, "causal"),
    "a mask kept from the first call": (kept_from_the_first_call, {}, "causal"),
    "the cache one too long": (wrong_offset(1), {}, "causal & window(4)"),
    "the cache one too short": (wrong_offset(-1), {}, "causal & window(4)"),
    "a step sees all that is cached": (wrong_cache, {}, "causal & window(4)"),
    "rows of the batch meet": (rows_meet, {}, "causal"),
    "slots meet outside attention": (slots_meet, {}, "causal"),
}


def bug_in_a_model(seed: Callable[[Patched], None], fields: dict[str, Any], mask: str | None) -> str:
    with pytest.MonkeyPatch.context() as patch:
        seed(patch)
        return "caught" if is_found(model(**fields), mask, lengths=LENGTHS) else "missed"


@functools.cache
def bugs_in_models() -> Tally:
    return tally("the model at work, by audit", {name: bug_in_a_model(*bug) for name, bug in MODEL_BUGS.items()})


@functools.cache
def bugs_in_code(folder: Path, every: int = EVERY) -> Tally:
    seeded = [mutant for file, names in TARGETS.items() for name in names for mutant in mutants_of(file, name)]
    named = {f"{number} {mutant}": verdict for number, (mutant, verdict) in enumerate(judge(seeded[::every], folder))}
    return tally("the model's code, by audit", named)


@pytest.mark.parametrize("file", TARGETS)
def test_every_target_is_there(file: str) -> None:
    tree = ast.parse((MODEL / f"{file}.py").read_text(encoding="utf-8"))
    assert [find_function(tree, name).name for name in TARGETS[file]] == [name.split(".")[-1] for name in TARGETS[file]]


def test_what_is_put_by_tiles_is_computed_by_tiles(tmp_path: Path) -> None:
    with loaded(None, tmp_path) as package:
        for name, paths in (("causal & window(4) by tiles", {"tiled"}), ("causal & window(4)", {"additive"})):
            network = CASES[name].model(package)
            network(torch.arange(16)[None], mask="causal & window(4)")
            assert set(network.transformer.attention_paths) == paths


def test_a_target_that_is_gone_is_named() -> None:
    for gone in ("Heads._united", "Nobody.allowed", "nothing"):
        with pytest.raises(LookupError, match=rf"targets: no function {gone}; was it renamed or moved\?$"):
            mutants_of("masks/patterns", gone)


@pytest.mark.parametrize("fields", [{}, LAYERED], ids=["one mask", "masks of the layers"])
def test_the_unbroken_model_raises_no_alarm(fields: dict[str, Any]) -> None:
    report = audit(model(**fields), None if fields else "causal & window(4)", lengths=LENGTHS)
    assert report.passed, str(report)


@pytest.mark.parametrize("bug", [None, "unmasked in training only", "the cache one too long", "rows of the batch meet"])
def test_an_audit_that_stops_at_its_first_finding_fails_where_the_whole_one_does(bug: str | None) -> None:
    seed, fields, mask = (lambda patch: None, {}, "causal & window(4)") if bug is None else MODEL_BUGS[bug]
    shipped = auditing.PROBES
    with pytest.MonkeyPatch.context() as patch:
        seed(patch)
        report = audit(model(**fields), mask, lengths=(16,))
        assert is_found(model(**fields), mask, lengths=(16,)) is not report.passed
    assert report.passed is (bug is None)
    assert auditing.PROBES is shipped


def test_a_forward_that_raises_is_found() -> None:
    assert is_found(model(), "causal", lengths=(16,), mask_kwargs=lambda mask, grid: {"mask": "nonsense"})


@pytest.mark.parametrize("bug", MODEL_BUGS)
def test_a_bug_in_the_model_at_work_is_caught(bug: str) -> None:
    assert bug_in_a_model(*MODEL_BUGS[bug]) == "caught"


def test_bugs_in_orders_and_relays_are_caught() -> None:
    assert bugs_in_orders().missed == ()
    assert bugs_of_relays().missed == ()


def test_bugs_in_a_mask_and_some_in_the_code_are_caught(tmp_path: Path) -> None:
    masks, code = bugs_in_masks("causal & window(4)"), bugs_in_code(tmp_path, every=16 * EVERY)
    assert masks.missed == code.missed == ()
    assert len(masks.caught) >= 15
    assert code.caught


@pytest.mark.long
def test_the_table_of_seeded_bugs(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("mutants")
    rows = [bugs_in_masks(*PATTERNS), bugs_in_orders(), bugs_of_relays(), bugs_in_models(), bugs_in_code(folder)]
    total = tally(
        "all",
        {f"{row.kind}: {name}": verdict for row in rows for verdict in VERDICTS for name in getattr(row, verdict)},
    )
    print("\n" + f"{'seeded bugs':<44}" + "".join(f"{name:>12}" for name in ("seeded", *VERDICTS)))
    print("\n".join(map(str, [*rows, total])))
    assert total.missed == ()
    assert len(total.caught) >= 200
