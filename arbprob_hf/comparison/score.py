"""What a model answers to a set of questions, block by block, in the layout that it was trained with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..analysis.layer_reach import shows_later
from ..data.collators import BlockCollator, QuestionCollator
from ..data.eval_sets import MODES
from ..model.configuration_arbprob import ArbProbConfig
from ..model.masks.mask import Mask
from ..model.modeling_arbprob import ArbProbForCausalLM
from ..model.questions.layouts import IGNORED, is_chained
from ..model.questions.log_probs import token_log_probs
from .inputs import Columns

Floats = npt.NDArray[np.float64]
# sets that a text model answers under its own mask
FROM_LEFT = {name for name in MODES if name.endswith("left_to_right")}


class UnanswerableError(ValueError):
    """A layout cannot put questions of some set."""


@torch.no_grad()
def block_nats(model: ArbProbForCausalLM, mode: str, questions: Columns, *, batch_size: int) -> Floats:
    """Sums of -log P over the scored tokens of each block, (blocks,), in the layout that the model was trained with.

    A model whose own mask is not causal is asked from left to right under that mask, and nothing else.

    Args:
        mode: the name of the set in MODES. questions: the columns of the set. batch_size: blocks at a time.

    Raises:
        UnanswerableError: the layout cannot put one of these questions.
    """
    config = model.config
    has_mask = any(text != "causal" for text in config.mask_texts)
    if has_mask:
        _refuse_mask(config, mode, questions["input_ids"].shape[1])
    elif not is_chained(config.layout) and np.any(questions["step"] > 1):
        raise UnanswerableError(f"the layout {config.layout} has no joint probability of several targets")
    ask = QuestionCollator(config.layout, given_sees=config.given_sees, names_target=config.target_positions)
    sums = []
    blocks = len(questions["input_ids"])
    for begin in range(0, blocks, batch_size):
        chosen = range(begin, min(begin + batch_size, blocks))
        rows = [{name: values[row] for name, values in questions.items()} for row in chosen]
        try:
            batch = _plain(rows) if has_mask else ask(rows)
        except ValueError as error:
            raise UnanswerableError(_problem(error)) from error
        found, counts = _row_nats(model, batch)
        assert counts.tolist() == [int(np.sum(row["scored"])) for row in rows]
        sums.append(found.numpy())
    return np.concatenate(sums)


def _plain(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    # blocks as they are, under the model's own mask
    batch = BlockCollator()(rows)
    scored = torch.from_numpy(np.stack([row["scored"] for row in rows]))  # (B, T)
    return {**batch, "labels": batch["labels"].masked_fill(~scored, IGNORED)}


def _row_nats(model: ArbProbForCausalLM, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    # sum of -log P and number of labels of each row, (B,)
    inputs = {name: value.to(model.device) for name, value in batch.items()}
    labels = inputs.pop("labels")[:, 1:]  # (B, S - 1), each predicted by the slot before
    states = model.transformer(**inputs, use_cache=False).last_hidden_state[:, :-1]  # (B, S - 1, D)
    rows, slots = (labels != IGNORED).nonzero(as_tuple=True)
    nats = -token_log_probs(model.lm_head, states[rows, slots], labels[rows, slots])
    rows = rows.cpu()
    # float32 would round a sum of many tokens
    sums = torch.zeros(len(labels), dtype=torch.double).index_add(0, rows, nats.cpu().double())
    return sums, rows.bincount(minlength=len(labels))


def _refuse_mask(config: ArbProbConfig, mode: str, length: int) -> None:
    said = ", then ".join(dict.fromkeys(config.mask_texts))
    if mode not in FROM_LEFT:
        raise UnanswerableError(f"its own mask, {said}, says how a text is read, not what is given and what is asked")
    if any(shows_later(Mask.parse(text), length) for text in config.mask_texts):
        raise UnanswerableError(f"its own mask, {said}, lets tokens see later ones, so answers would be shown")


def _problem(error: ValueError) -> str:
    # an error reads `argument: what is wrong; what to do`; who compares can only take note
    return str(error).split("; ")[0].removeprefix("layout: ").removeprefix("order: ")
