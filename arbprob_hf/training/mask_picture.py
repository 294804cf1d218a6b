"""The picture on a run's card: who sees whom under its mask, or in a question of each part of its task."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis.layer_reach import Sheet, sheets
from ..data.collators import QuestionCollator
from ..data.tasks import Mixture, Task
from ..model.masks.tensors import order
from ..model.modeling_arbprob import ArbProbForCausalLM
from ..plotting import plot_mask
from ..plotting.figures import save_whole
from ..plotting.masks import draw_sheets
from .arguments import Arguments, ModelArguments

# tokens of a text whose questions are drawn: few enough to be counted
_SHORT = 16
# more would be too small to be seen
_MOST_PARTS = 9


def draw_mask(path: Path, arguments: Arguments, model: ArbProbForCausalLM, length: int) -> None:
    """Draw to `path` who sees whom in a block of `length` tokens: a mask may be made for that length.

    A question says itself who sees whom: of a run with a task, one question of each part of it is drawn, about a short
    text.
    """
    asked = arguments.model
    if asked.task is None:
        plot_mask(model.config.mask, length, path=path)
        return
    drawn, count = question_sheets(asked, length, seed=arguments.training.seed)
    title = f"layout {asked.layout}: one question of {'each part of ' * (count > 1)}the task"
    if count > len(drawn):
        title += f", the first {len(drawn)} of {count} parts"
    columns = 2 if len(drawn) == 4 else min(3, len(drawn))
    save_whole(draw_sheets(drawn, title=title, columns=columns, side=3.4 if count > 1 else None), path)


def question_sheets(asked: ModelArguments, length: int, *, seed: int) -> tuple[list[Sheet], int]:
    """A square for a question of each part of the task, its caption the part's text, and the number of parts.

    `length`: tokens of a block; fewer are drawn. At most the first `_MOST_PARTS` parts are.
    """
    task = Task.parse(str(asked.task))
    parts = list(task.tasks) if isinstance(task, Mixture) else [task]
    return [_question(part, asked, length, seed=seed) for part in parts[:_MOST_PARTS]], len(parts)


def _question(part: Task, asked: ModelArguments, length: int, *, seed: int) -> Sheet:
    """A question of one part of a task about a text of `_SHORT` tokens, or of `length` where it needs more."""
    try:
        batch = _laid_out(part, asked, min(_SHORT, length), seed=seed)
    except ValueError:
        # its positions are fixed, and lie further on
        batch = _laid_out(part, asked, length, seed=seed)
    (sheet,) = sheets([order(batch["ranks"], batch["limits"])], batch["ranks"].shape[1])
    return replace(sheet, caption=str(part))


def _laid_out(part: Task, asked: ModelArguments, length: int, *, seed: int) -> Mapping[str, Any]:
    collator = QuestionCollator(
        str(asked.layout),
        given_sees=str(asked.given_sees),
        names_target=asked.layout == "sigma",
        task=part,
        seed=seed,
    )
    tokens = np.zeros(length, np.int64)
    return collator([{"input_ids": tokens, "document_ids": tokens, "index": 0}])
