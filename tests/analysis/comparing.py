"""Whether a mutant differs from the model at all, and, where it does, whether the shipped audit sees it."""

import types
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arbprob_hf.model.masks.tiles import Grid
from tests.analysis.exposing import CASES, LENGTH, PROMPT, Case
from tests.analysis.mutating import Mutant, loaded

# another path may add up in another order; a pair more or less changes far more than this
ROUNDING = 1e-12


def judge(mutants: Iterable[Mutant], folder: Path) -> Iterator[tuple[Mutant, str]]:
    """Each mutant with `caught`, `equivalent` or `missed`.

    Equivalent: in every case the masks written out are the same bits, and so are, up to rounding in float64, the logits
    of one pass, those of a cached one, and the gradients of the inputs.
    """
    with loaded(None, folder) as package:
        right = {name: answers(case, package) for name, case in CASES.items()}
    # mutants of one function tend to show under the same masks: those that caught most are tried first
    telling: Counter[str] = Counter()
    for mutant in mutants:
        order = sorted(CASES, key=lambda name: -telling[name])
        yield mutant, _judged(mutant, folder, order, right, telling)


def _judged(
    mutant: Mutant, folder: Path, order: list[str], right: dict[str, list[Tensor]], telling: Counter[str]
) -> str:
    try:
        with loaded(mutant, folder) as package:
            differing = 0
            for name in order:
                if _agrees(CASES[name], package, right[name]):
                    continue
                differing += 1
                if CASES[name].is_exposed(package):
                    telling[name] += 1
                    return "caught"
            return "missed" if differing else "equivalent"
    except Exception:
        return "caught"  # it does not even import, or its model cannot be built


def _agrees(case: Case, package: types.SimpleNamespace, right: list[Tensor]) -> bool:
    try:
        found = answers(case, package)
    except Exception:
        return False
    return all(
        one.shape == other.shape and bool(((one - other).abs() <= ROUNDING * (1 + other.abs())).all())
        for one, other in zip(found, right, strict=True)
    )


def answers(case: Case, package: types.SimpleNamespace) -> list[Tensor]:
    """The masks written out, logits, cached logits and gradients of the inputs that a package's network gives."""
    model: Any = case.model(package, torch.float64)
    ids = torch.arange(2 * LENGTH).view(2, LENGTH) % 23
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=embeds, **case.given(package, _grid(0, LENGTH))).logits
    direction = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits).cos()
    found = [logits.detach(), torch.autograd.grad((logits * direction).sum(), embeds)[0], *_dense(case, package)]
    return found if _cannot_cache(case) else [*found, *_cached(case, package, model, ids)]


def _grid(start: int, stop: int) -> Grid:
    return Grid(range(2), range(2), range(start, stop), range(stop))


def _dense(case: Case, package: types.SimpleNamespace) -> list[Tensor]:
    if case.make is not None:
        masks = [case.make(package)]
    else:
        texts = [case.arguments.get("mask", case.config)] if "mask" in case.arguments else [case.config]
        flat = [text for one in texts for text in (one if isinstance(one, list) else [one])]
        masks = [package.mask.Mask.parse(text) for text in flat if isinstance(text, str)]
    heads = {1, 2}
    return [mask.dense(LENGTH, batch=2).double() for mask in masks if mask.count_heads() in heads]


def _cannot_cache(case: Case) -> bool:
    truth = case.truth()
    looks_ahead = truth is not None and bool(truth.dense(LENGTH, batch=2).triu(1).any())
    # a mask of tensors made for all slots does not fit a part of them
    return looks_ahead or (case.make is not None and not case.goes_on) or "document_ids" in case.arguments


@torch.no_grad()
def _cached(case: Case, package: types.SimpleNamespace, model: Any, ids: Tensor) -> list[Tensor]:
    cache, found = None, []
    for start, stop in [(0, PROMPT), (PROMPT, PROMPT + 3), (PROMPT + 3, PROMPT + 4), (PROMPT + 4, PROMPT + 5)]:
        given = case.given(package, _grid(start, stop))
        out = model(ids[:, start:stop], past_key_values=cache, use_cache=True, **given)
        cache = out.past_key_values
        found.append(out.logits)
    return found
