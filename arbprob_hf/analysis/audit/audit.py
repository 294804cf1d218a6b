"""A numeric audit of a live model: does every output depend on what its mask allows, and on nothing else?

No single check finds every bug (a test with one layer cannot see a relay, one in evaluation mode a mask
that is left out in training, one of leaks alone a mask that is too strict), so the audit is a set of them.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from . import checks
from .audited_model import AuditedModel
from .cases import AuditCase, MaskKwargs, Masks, default_mask_kwargs, make_cases
from .report import PASSED, AuditReport, Check, Outcome

ROWS = "rows with masks of their own"


def audit(
    model: nn.Module,
    mask: Masks = None,
    *,
    lengths: tuple[int, ...] | None = None,
    mask_kwargs: MaskKwargs | None = None,
    seed: int = 0,
    give: MaskKwargs | None = None,
) -> AuditReport:
    """Check a live causal language model of transformers, ours or not, against the reach of its mask.

    Inputs are disturbed and outputs compared bit by bit, in evaluation and in training; gradients of forbidden inputs
    must be exactly zero and those of allowed ones not; rows of a batch must not meet; cached decoding must equal one
    pass; a network of GPT-2's shape must equal a second one, written for this. Weights, modes, gradients, dtype and
    random state are as before afterwards; a float64 copy is made on the way.

    Args:
        model: with `config.num_hidden_layers`, `num_attention_heads`, `vocab_size`; outputs `logits`.
        mask: what the model is called with and must hold in every layer: a `Mask`, its text, a keep-mask tensor, or a
            function from a length to a `Mask`. With None the model is called without a mask: `config.mask` must hold,
            layer by layer, and any other network is taken to be causal in every layer. For a network that has windows,
            name the mask and pass nothing: `audit(model, "causal & window(4)", mask_kwargs=lambda mask, grid: {})`.
        lengths: a tuple of numbers of slots; 16, 17 and 272 by default, or what the mask's tensors cover.
        mask_kwargs: from the mask and the grid of a pass (`grid.queries`, `grid.keys`, ...) to keyword arguments of
            forward. By default `mask=` where forward names it, else `attention_mask=` as a bool tensor (B, T_q, T_kv).
            What models of transformers understand on sdpa is a bool tensor of four dimensions:
            `mask_kwargs=lambda mask, grid: {"attention_mask": mask.evaluate(grid)}`.
        give: the former name of `mask_kwargs`; goes with the next release.

    Returns:
        A report, truthy when everything passed; it prints as a table. A forward that raises is a finding.

    Raises:
        ValueError, TypeError: a mask or lengths that cannot be, or do not fit the model; something that is not a model.
    """
    if give is not None:
        if mask_kwargs is not None:
            raise ValueError("give: the former name of mask_kwargs, which is given too; leave give out")
        warnings.warn("audit(give=...) is called mask_kwargs now; give will be removed", FutureWarning, stacklevel=2)
        mask_kwargs = give
    cases = make_cases(model, mask, lengths)
    with _as_before(model), torch.random.fork_rng(devices=_cuda_devices(model)):
        audited = AuditedModel(model, default_mask_kwargs(model) if mask_kwargs is None else mask_kwargs, seed)
        cases = [case for case in cases if not case.with_rows or audited.gets_mask(case)]
        twin = audited.in_double() if checks.runs_in_double(audited, cases[0]) else None
        outcomes = {case: _probe_all(audited, twin, case) for case in cases}
        notes = list(_notes(model, audited, cases))
        if twin is None:
            notes.append(f"{type(model).__name__} does not run in float64: checks in float64 do not apply")
    return AuditReport(_describe(model, mask), tuple(_checks(outcomes)), tuple(notes))


def _probe_all(audited: AuditedModel, twin: AuditedModel | None, case: AuditCase) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    for probe in checks.PROBES:
        subject = twin if probe.in_double else audited
        if subject is None or not probe.applies(subject, case):
            continue
        try:
            found[probe.name] = probe.run(subject, case)
        except Exception as error:
            text = str(error).strip().splitlines() or [""]
            found[probe.name] = Outcome("raised", f"{case}: {type(error).__name__}: {text[0]:.70}")
            if probe is checks.PROBES[0]:
                break
    return found


def _checks(outcomes: dict[AuditCase, dict[str, Outcome]]) -> Iterator[Check]:
    plain = [found for case, found in outcomes.items() if not case.with_rows]
    for probe in checks.PROBES:
        results = [found[probe.name] for found in plain if probe.name in found]
        if results:
            yield _check(probe.name, results, probe.summary)
    with_rows = [found for case, found in outcomes.items() if case.with_rows]
    if with_rows:
        results = [
            Outcome(outcome.verdict, f"{name}, {outcome.figure}")
            for found in with_rows
            for name, outcome in found.items()
        ]
        yield _check(ROWS, results, lambda sizes: f"{len(sizes)} checks of batches of 3")


def _check(name: str, results: list[Outcome], summary: Callable[[list[float]], str]) -> Check:
    failed = [outcome for outcome in results if outcome.verdict != PASSED]
    if failed:
        return Check(name, failed[0].verdict, failed[0].figure)
    return Check(name, PASSED, summary([outcome.measured for outcome in results]))


def _notes(model: nn.Module, audited: AuditedModel, cases: list[AuditCase]) -> Iterator[str]:
    yield f"at {', '.join(str(length) for length in sorted({case.length for case in cases}))} slots"
    if len(cases[0].masks) == 1:
        yield "the model has one layer: relays cannot be seen"
    if all(case.looks_ahead for case in cases if not case.with_rows):
        yield "the mask looks ahead: nothing to decode from a cache"
    if cases[0].given is None:
        yield "no mask is given: rows with masks of their own cannot be checked"
    elif not any(case.with_rows for case in cases):
        yield f"no mask is handed over: {ROWS} do not apply"
    if audited.reference is None:
        yield f"{type(model).__name__} is not shaped as GPT-2: no reference to compare with"


def _describe(model: nn.Module, mask: Masks) -> str:
    config: Any = model.config
    backend = getattr(config, "_attn_implementation", None)
    if mask is None:
        texts = getattr(config, "mask_texts", ["causal"])
        shown = " / ".join(dict.fromkeys(texts))
    else:
        shown = f"a mask {tuple(mask.shape)}" if isinstance(mask, torch.Tensor) else str(mask)
        shown = getattr(mask, "__name__", "a function") if callable(mask) else shown
    return f"{type(model).__name__} ({backend}) under {shown[:80]}"


@contextmanager
def _as_before(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _cuda_devices(model: nn.Module) -> list[int]:
    devices = {parameter.device for parameter in model.parameters()}
    return [device.index or 0 for device in devices if device.type == "cuda"]
