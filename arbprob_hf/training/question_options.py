"""The options of a run that trains on questions: task, layout and given_sees, which must fit together and the text."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..data.block_questions import question_rng
from ..data.packing import LENGTH
from ..data.tasks import Fixed, Leaf, Mixture, SampledQuestion, Task
from ..model.questions.conditional import SEES, ResolvedConditional
from ..model.questions.layouts import LAYOUTS, lay_out

# asks from left to right only
_ONE_WAY = ("prefix", "causal")
# slots that see nothing but what stands before them: text goes on as with GPT-2
_CONTINUING = ("two_stream", "prefix", "causal")
# questions looked at to see whether a layout can ask a task, and the tokens of each: the first that fits
_LOOKED_AT, _LENGTHS = 64, (64, 4096)


def read_question_options(task: str | None, layout: str | None, given_sees: str | None) -> tuple[str, str, str] | None:
    """The three options with their defaults filled in, the task in its own spelling; None without a task.

    Raises ValueError where one is unknown or two contradict each other.
    """
    given = {"layout": layout, "given_sees": given_sees}
    if task is None:
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name}: got {value!r:.60} without a task; give one, such as task: uniform")
        return None
    for name, choices in (("layout", tuple(LAYOUTS)), ("given_sees", SEES)):
        if given[name] is not None and given[name] not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {given[name]!r:.60}")
    layout = layout or "two_stream"
    if layout == "masked" and given_sees == "earlier":
        raise ValueError("given_sees: got 'earlier' with the layout masked, where each token sees all others; give all")
    parsed = Task.parse(task)
    _refuse_unaskable(parsed, layout, given_sees or "all")
    return str(parsed), layout, given_sees or "all"


def refuse_mask_options(mask: str | Sequence[str] | None, patterns: str | None) -> None:
    """Raise ValueError for options of masks, which questions would silently overrule."""
    texts = [mask] if isinstance(mask, str) else list(mask or [])
    other = next((text for text in texts if text.strip() != "causal"), None)
    if other is not None:
        raise ValueError(
            f"mask: got {other!r:.80} together with a task, whose questions decide who sees whom; leave mask out, or "
            "leave the task out"
        )
    if patterns is not None:
        raise ValueError(f"patterns: got {patterns!r:.80} together with a task, which uses no mask; leave patterns out")


def refuse_short_documents(task: Task, sets: Iterable[Dataset]) -> None:
    """Raise ValueError where a document of some block lacks positions that `task` names."""
    fixed = [leaf for leaf in _leaves(task) if isinstance(leaf, Fixed)]
    if not fixed:
        return
    lengths = {length for blocks in sets for row in blocks for length in _document_lengths(row)}
    for leaf in fixed:
        try:
            leaf.draw(min(lengths), question_rng(0, 0, 0))
        except ValueError as error:
            raise ValueError(f"task: the text has documents of {min(lengths)} tokens, and {error}") from error


def continues_text(layout: str) -> bool:
    """Whether a network trained in `layout` goes on with a text as GPT-2 does, which `generate` asks of it."""
    return layout in _CONTINUING


def _refuse_unaskable(task: Task, layout: str, given_sees: str) -> None:
    if layout in _ONE_WAY and not task.is_temporal:
        raise ValueError(
            f"layout: {layout} asks from left to right only, and the task has random orders; take random= out of it, "
            "or give layout two_stream or sigma"
        )
    if layout != "causal":
        return
    for leaf in _leaves(task):
        drawn = [_drawn(leaf, index) for index in range(_LOOKED_AT)]
        given, target, step = (
            torch.from_numpy(np.stack([getattr(one, name) for one in drawn])) for name in ("given", "target", "step")
        )
        try:
            lay_out(ResolvedConditional(given, target, step, given_sees), layout)
        except ValueError as error:
            # what the layout says names it first
            raise ValueError(f"task: {leaf!s:.60} cannot be asked, {error}") from error


def _drawn(leaf: Leaf, index: int) -> SampledQuestion:
    try:
        return leaf.draw(_LENGTHS[0], question_rng(0, 0, index))
    except ValueError:
        return leaf.draw(_LENGTHS[1], question_rng(0, 0, index))


def _leaves(task: Task) -> Sequence[Leaf]:
    if isinstance(task, Mixture):
        return task.tasks
    assert isinstance(task, Leaf), "a task is a mixture or has no parts"
    return [task]


def _document_lengths(block: Mapping[str, Any]) -> list[int]:
    # of those that have something to ask
    ids = np.asarray(block["document_ids"])[: block.get(LENGTH)]
    bounds = [0, *(np.flatnonzero(np.diff(ids)) + 1), len(ids)]
    return [length for length in np.diff(bounds).tolist() if length > 1]
