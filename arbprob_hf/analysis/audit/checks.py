"""The checks of an audit: each runs a live model under one case and says what it found; PROBES lists them.

Inputs are disturbed by large finite values and outputs compared bit by bit: a tolerance would hide a leak, and infinite
values poison sound kernels.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .audited_model import AuditedModel, tensor_of
from .cases import AuditCase
from .report import PASSED, Outcome

LARGE = 1e3
# beyond so many slots some are disturbed one by one: a few anywhere, and those at the edges that kernels work by
MOST_PROBED = 24
PROBES_OF_MANY = 8
EDGE = 64
# how far apart the slots are for which all that they must not depend on is disturbed together
STRIDE = 8
# both are multiplied by the number of times the slots go into this
MANY = 512
EXACT = 1e-9
# what a model may add that computes parts in float32 whatever its dtype, in multiples of what it shows without a cache
ROUNDING = 100.0
SLOPE = 1e-3
STEPS = (1e-3, 1e-6)


class Probe(NamedTuple):
    """A check by its name, and under which cases it applies; `summary` words what was measured where it passed."""

    name: str
    run: Callable[[AuditedModel, AuditCase], Outcome]
    summary: Callable[[list[float]], str]
    in_double: bool = False
    applies: Callable[[AuditedModel, AuditCase], bool] = lambda audited, case: True


def runs(audited: AuditedModel, case: AuditCase) -> Outcome:
    """A plain pass raises nothing and its outputs are finite, in evaluation and in training."""
    for mode in (False, True):
        with torch.no_grad():
            out = audited.train(mode).outputs(case, input_ids=audited.ids(case))
        if not bool(out.isfinite().all()):
            row, slot = (~out.isfinite()).any(-1).nonzero()[0].tolist()
            return Outcome("not finite", f"row {row}, slot {slot}{' in training' if mode else ''}")
    return Outcome(PASSED, measured=2)


@torch.no_grad()
def runs_in_double(audited: AuditedModel, case: AuditCase) -> bool:
    """Whether the model computes in float64 at all; True where it raises in its own dtype too, which `runs` finds."""
    for one in (audited.in_double(), audited):
        try:
            one.train(False).outputs(case, input_ids=one.ids(case))
        except Exception:
            continue
        return one is not audited
    return True


def embeddings_in_evaluation(audited: AuditedModel, case: AuditCase) -> Outcome:
    """No output changes by a bit where the embedding of a slot it must not depend on becomes large noise."""
    return _disturbed_embeddings(audited.train(False), case)


def embeddings_in_training(audited: AuditedModel, case: AuditCase) -> Outcome:
    """The same in training mode, under the same dropout."""
    return _disturbed_embeddings(audited.train(True), case)


@torch.no_grad()
def token_ids(audited: AuditedModel, case: AuditCase) -> Outcome:
    """No output changes by a bit where a token it must not depend on is another one."""
    audited.train(False)
    ids = audited.ids(case)
    before, others, count = audited.outputs(case, input_ids=ids), audited.other_ids(ids), 0
    for k in _probes(case):
        changed = ids.clone()
        changed[:, k] = others[:, k]
        forbidden = ~case.reach[:, :, k]
        found = _difference(before, audited.outputs(case, input_ids=changed), forbidden)
        if found is not None:
            return _leak(case, (*found[:2], k), found[2])
        count += int(forbidden.sum())
    return Outcome(PASSED, measured=count)


@torch.no_grad()
def batch_rows(audited: AuditedModel, case: AuditCase) -> Outcome:
    """No row of a batch changes by a bit where another becomes large noise."""
    for mode in (False, True):
        audited.train(mode)
        embeds = audited.embed(audited.ids(case))
        before = audited.outputs(case, inputs_embeds=embeds)
        for row in range(case.batch):
            changed = embeds.clone()
            changed[row] = audited.noise(embeds[row], LARGE)
            others = torch.ones(case.reach.shape[:2], dtype=torch.bool)
            others[row] = False
            found = _difference(before, audited.outputs(case, inputs_embeds=changed), others)
            if found is not None:
                return Outcome("leaks", f"row {found[0]} saw row {row}: changed by {found[2]:.2g}")
    return Outcome(PASSED, measured=case.batch * (case.batch - 1))


def gradients(audited: AuditedModel, case: AuditCase) -> Outcome:
    """The gradient of an output is exactly zero for every input it must not depend on, in training."""
    influence = _influence(audited.train(True), case)
    forbidden = ~case.reach[:, _probes(case)]
    if bool((influence[forbidden] != 0).any()):
        row, probe, k = ((influence != 0) & forbidden).nonzero()[0].tolist()
        return _leak(case, (row, _probes(case)[probe], k), float(influence[row, probe, k]), "gradient")
    return Outcome(PASSED, measured=int(forbidden.sum()))


def must_depend(twin: AuditedModel, case: AuditCase) -> Outcome:
    """Every allowed input has an influence: by its gradient, and, where that is not tiny, by the output itself."""
    influence, probes = _influence(twin.train(False), case), _probes(case)
    reach = case.reach[:, probes]
    if bool((influence[reach] == 0).any()):
        row, probe, k = ((influence == 0) & reach).nonzero()[0].tolist()
        return Outcome("too strict", _where(case, row, f"slot {probes[probe]} does not depend on slot {k}"))
    embeds = twin.embed(twin.ids(case))
    with torch.no_grad():
        before = twin.outputs(case, inputs_embeds=embeds)
        strong = reach & (influence * float(embeds.std()) > EXACT * float(before.abs().max()))
        for k in probes:
            other = embeds.clone()
            other[:, k] += twin.noise(embeds[:, k], float(embeds.std()))
            same = (twin.outputs(case, inputs_embeds=other) == before).all(-1)[:, probes].cpu()
            if bool((same & strong[:, :, k]).any()):
                row, probe = (same & strong[:, :, k]).nonzero()[0].tolist()
                text = f"slot {probes[probe]} stays the same whatever slot {k} is"
                return Outcome("too strict", _where(case, row, text))
    return Outcome(PASSED, measured=int(reach.sum()))


def slopes(twin: AuditedModel, case: AuditCase) -> Outcome:
    """Gradients are what the outputs do: the slope along a random direction, by autograd and by small steps."""
    embeds = twin.train(False).embed(twin.ids(case))
    step = twin.noise(embeds, float(embeds.std()))
    followed = embeds.clone().requires_grad_()
    with torch.enable_grad():
        out = twin.outputs(case, inputs_embeds=followed)
        direction = twin.noise(out, 1.0)
        (gradient,) = torch.autograd.grad((out * direction).sum(), followed)
    claimed, best = float((gradient * step).sum()), (torch.inf, 0.0)
    # a curved network asks for small steps, one that computes parts in float32 whatever its dtype for larger ones
    for size in STEPS:
        with torch.no_grad():
            ends = [twin.outputs(case, inputs_embeds=embeds + sign * size * step) for sign in (1, -1)]
        measured = float(((ends[0] - ends[1]) * direction).sum()) / (2 * size)
        scale = max(float((gradient * step).norm()), abs(measured), 1e-30)
        best = min(best, (abs(claimed - measured) / scale, measured))
    if best[0] <= SLOPE:
        return Outcome(PASSED, measured=best[0])
    text = f"{case}: gradients promise a slope of {claimed:.2g}, the outputs have one of {best[1]:.2g}"
    return Outcome("differs", text, best[0])


@torch.no_grad()
def decoding(twin: AuditedModel, case: AuditCase) -> Outcome:
    """A prompt, a few tokens together, then one at a time, cached: as in one pass."""
    twin.train(False)
    ids, length = twin.ids(case), case.length
    whole = twin.outputs(case, input_ids=ids, use_cache=False)
    first = max(length // 2, length - 11)
    cuts = [0, first, *([first + 3] if first + 3 < length else []), *range(first + 4, length + 1)]
    cache, parts = None, []
    for start, stop in itertools.pairwise(cuts):
        inputs = {"input_ids": ids[:, start:stop], "use_cache": True, "past_key_values": cache}
        out = twin.run(case, range(start, stop), **inputs)
        cache = out.past_key_values
        parts.append(out.logits)
    # what kernels of other sizes make of the same sums
    alone = tensor_of(twin.run(case, range(first), input_ids=ids[:, :first], use_cache=False))
    rounding = ROUNDING * float((alone - whole[:, :first]).abs().max())
    return _compared(case, torch.cat(parts, dim=1), whole, "cached and in one pass", rounding=rounding)


@torch.no_grad()
def reference(twin: AuditedModel, case: AuditCase) -> Outcome:
    """The logits are those of GPT-2 written a second time, in evaluation and, without dropout, in training."""
    assert twin.reference is not None
    ids = twin.ids(case)
    right = twin.reference.logits(ids, case.keep_masks(twin.heads))
    outcomes = [
        _compared(case, twin.train(mode).outputs(case, input_ids=ids).cpu(), right, "model and reference")
        for mode in (False, True)
    ]
    return max(outcomes, key=lambda outcome: (outcome.verdict != PASSED, outcome.measured))


# the table of an audit, in the order in which it is run and printed
PROBES = (
    Probe("forward, finite outputs", runs, lambda counts: f"{sum(counts):.0f} passes"),
    Probe("embeddings, evaluation", embeddings_in_evaluation, lambda counts: _pairs(counts, "changed")),
    Probe("embeddings, training", embeddings_in_training, lambda counts: _pairs(counts, "changed")),
    Probe("token ids", token_ids, lambda counts: _pairs(counts, "changed")),
    Probe("batch rows apart", batch_rows, lambda counts: f"{sum(counts):.0f} pairs of rows, none changed"),
    Probe("gradients, training", gradients, lambda counts: _pairs(counts, "with a gradient")),
    Probe("must depend, float64", must_depend, lambda counts: f"all of {sum(counts):.0f} allowed pairs", True),
    Probe("slopes, float64", slopes, lambda sizes: f"within {max(sizes):.0e} of small steps", True),
    Probe(
        "prefill and decode, float64",
        decoding,
        lambda sizes: f"within {max(sizes):.0e} of one pass",
        in_double=True,
        applies=lambda audited, case: not case.looks_ahead,
    ),
    Probe(
        "reference, float64",
        reference,
        lambda sizes: f"within {max(sizes):.0e}",
        in_double=True,
        applies=lambda audited, case: audited.reference is not None,
    ),
)


def _pairs(counts: list[float], what: str) -> str:
    return f"of {sum(counts):.0f} forbidden pairs none {what}"


def _disturbed_embeddings(audited: AuditedModel, case: AuditCase) -> Outcome:
    embeds, count = audited.embed(audited.ids(case)), 0
    with torch.no_grad():
        before = audited.outputs(case, inputs_embeds=embeds)
        for k in _probes(case):
            # in every row at once: what goes from row to row has its own check
            changed = embeds.clone()
            changed[:, k] = audited.noise(embeds[:, k], LARGE)
            forbidden = ~case.reach[:, :, k]
            found = _difference(before, audited.outputs(case, inputs_embeds=changed), forbidden)
            if found is not None:
                return _leak(case, (*found[:2], k), found[2])
            count += int(forbidden.sum())
        if case.length > MOST_PROBED:
            return _disturbed_together(audited, case, count)
    return Outcome(PASSED, measured=count)


def _disturbed_together(audited: AuditedModel, case: AuditCase, count: int) -> Outcome:
    # what one slot must not depend on, all at once: a test of every slot that must depend on none of it
    stride = STRIDE * -(-case.length // MANY)
    embeds = audited.embed(audited.ids(case))
    before = audited.outputs(case, inputs_embeds=embeds)
    for q in sorted({*_probes(case), *range(stride - 1, case.length, stride)}):
        disturbed = ~case.reach[:, q]  # (B, T)
        noise = audited.noise(embeds, LARGE)
        changed = torch.where(disturbed[..., None].to(embeds.device), noise, embeds)
        unaware = ~(case.reach & disturbed[:, None, :]).any(-1)  # (B, T)
        found = _difference(before, audited.outputs(case, inputs_embeds=changed), unaware)
        if found is not None:
            row, slot, change = found
            text = (
                f"slot {slot} saw one of {int(disturbed[row].sum())} slots disturbed together: changed by {change:.2g}"
            )
            return Outcome("leaks", _where(case, row, text), change)
        count += int(unaware.sum())
    return Outcome(PASSED, measured=count)


def _influence(audited: AuditedModel, case: AuditCase) -> Tensor:
    # float (B, probes, T): the norm of the gradient of each probed output with respect to each input
    embeds = audited.embed(audited.ids(case)).requires_grad_()
    with torch.enable_grad():
        out = audited.outputs(case, inputs_embeds=embeds)
        direction = audited.noise(out[:, 0], 1.0)
        rows = [torch.autograd.grad((out[:, q] * direction).sum(), embeds, retain_graph=True)[0] for q in _probes(case)]
    # the largest entry, not the norm: squares of tiny numbers are zero
    return torch.stack([row.abs().amax(-1) for row in rows], dim=1).cpu()


def _probes(case: AuditCase) -> list[int]:
    if case.length <= MOST_PROBED:
        return list(range(case.length))
    anywhere = torch.linspace(0, case.length - 1, PROBES_OF_MANY).long().tolist()
    step = EDGE * -(-case.length // MANY)
    edges = [slot for edge in range(step, case.length, step) for slot in (edge - 1, edge)]
    return sorted({*anywhere, *edges})


def _difference(before: Tensor, after: Tensor, where: Tensor) -> tuple[int, int, float] | None:
    # the row and slot of the largest change among those in `where`; nan that was there before is no change
    changed = ((before != after) & ~(before.isnan() & after.isnan())).any(-1) & where.to(before.device)
    if not bool(changed.any()):
        return None
    size = (before - after).abs().amax(-1).nan_to_num(torch.inf).masked_fill(~changed, -1)
    row, slot = divmod(int(size.argmax()), before.shape[1])
    return row, slot, float(size[row, slot])


def _compared(case: AuditCase, one: Tensor, other: Tensor, names: str, *, rounding: float = 0.0) -> Outcome:
    size = (one - other).abs().amax(-1).nan_to_num(torch.inf)
    largest = float(size.max())
    if largest <= max(rounding, EXACT * max(1.0, float(other.abs().max()))):
        return Outcome(PASSED, measured=largest)
    row, slot = divmod(int(size.argmax()), one.shape[1])
    return Outcome("differs", _where(case, row, f"slot {slot}: {names} differ by {largest:.2g}"), largest)


def _leak(case: AuditCase, pair: tuple[int, int, int], change: float, what: str = "changed by") -> Outcome:
    row, q, k = pair
    return Outcome("leaks", _where(case, row, f"slot {q} saw slot {k}: {what} {change:.2g}"), change)


def _where(case: AuditCase, row: int, text: str) -> str:
    return f"{case}, row {row}: {text}"
