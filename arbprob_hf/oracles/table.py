"""The table of `arbprob oracles`: a line for each source and layout, as it is found."""

import csv
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..model.modeling_arbprob import ArbProbForCausalLM
from .consistency import Gap
from .options import SOURCE_NAMES, check_options
from .registry import Source, load_source
from .score import Verdict, judge
from .train import Recipe, train_on

# the default: measured on two cores only, and parts of few rows are mostly Python under one lock
MOST_THREADS = 4
HEADINGS = ("source", "layout", "minutes", "temporal", "random", "order", "chain", "marginalisation", "sure bits")
COLUMNS = (
    *("source", "length", "layout", "layers", "minutes", "steps", "trained_random", "seed", "threads"),
    *(f"{gap}{part}" for gap in ("temporal", "random", "order", "chain", "marginalisation") for part in ("", "_error")),
    "determined",
)


def oracle_rows(
    sources: Sequence[str] | None,
    layouts: Sequence[str],
    *,
    minutes: float = 3.0,
    random: float = 0.0,
    threads: int = 0,
    seed: int = 0,
    out: Path | None = None,
) -> Iterator[str]:
    """Train on every source in every layout and give the lines of a Markdown table, each as soon as it is known.

    Args:
        sources: names of `load_source`; all when None. minutes: of each training. random: share of the training
            questions asked in random order. threads: that share each step; 0 for torch's number, at most MOST_THREADS.
        out: a CSV to append to.

    Raises:
        ValueError: an unknown name or a number out of range, before anything is trained.
    """
    sources = list(sources) if sources else list(SOURCE_NAMES)
    check_options(sources, layouts, minutes=minutes, random=random, threads=threads, seed=seed)
    _check_csv(out)
    threads = threads or min(torch.get_num_threads(), MOST_THREADS)
    yield f"| {' | '.join(HEADINGS)} |"
    yield f"|{'---|' * len(HEADINGS)}"
    for source in sources:
        for layout in layouts:
            recipe = Recipe(layout, minutes, random=random, seed=seed, threads=threads)
            yield _line(source, recipe, out)
    yield ""
    yield (
        "temporal, random: excess nats per target token over the truth, asked from left to right and in random order; "
        "order, chain, marginalisation: disagreement of the network with itself, in nats per target token; "
        "all with their standard errors. Chains and unseen tokens stand in any order where the layout can ask so, from "
        "left to right in prefix: these two columns compare only layouts of one kind. Sure bits: of those that parity "
        "determines, the share whose right value gets at least 0.99."
    )


def _line(name: str, recipe: Recipe, out: Path | None) -> str:
    source = load_source(name)
    begun = time.monotonic()
    steps: list[int] = []

    def report(text: str, step: int) -> None:
        steps.append(step)
        sys.stderr.write(f"{name} {recipe.layout}: {text}\n")
        sys.stderr.flush()

    model = train_on(source, recipe, report=report)
    minutes = (time.monotonic() - begun) / 60
    verdict = judge(model, source)
    if out is not None:
        _append(out, {**_facts(source, model, recipe, verdict), "minutes": f"{minutes:.2f}", "steps": steps[-1]})
    cells = [verdict.temporal, verdict.random, verdict.order, verdict.chain, verdict.marginalisation]
    shown = ["-" if one is None else str(one) for one in cells]
    sure = "-" if verdict.determined is None else f"{verdict.determined:.2%}"
    return f"| {' | '.join([name, recipe.layout, f'{minutes:.1f}', *shown, sure])} |"


def _facts(source: Source, model: ArbProbForCausalLM, recipe: Recipe, verdict: Verdict) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "source": source.name,
        "length": source.length,
        "layout": recipe.layout,
        "layers": model.config.n_layer,
        "trained_random": recipe.random,
        "seed": recipe.seed,
        "threads": recipe.threads,
        "determined": "" if verdict.determined is None else f"{verdict.determined:.6f}",
    }
    for gap in ("temporal", "random", "order", "chain", "marginalisation"):
        found: Gap | None = getattr(verdict, gap)
        facts[gap] = "" if found is None else f"{found.mean:.6f}"
        facts[f"{gap}_error"] = "" if found is None else f"{found.error:.6f}"
    return facts


def _check_csv(out: Path | None) -> None:
    if out is None or not out.exists():
        return
    with out.open(encoding="utf-8", newline="") as file:
        heading = next(csv.reader(file), [])
    if tuple(heading) != COLUMNS:
        raise ValueError(f"--out: {out} is not a table of this command; name another file")


def _append(out: Path, facts: dict[str, Any]) -> None:
    is_new = not out.exists()
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if is_new:
            writer.writeheader()
        writer.writerow(facts)
