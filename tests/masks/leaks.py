"""A leak checker: perturb one input at a time and compare what changes with what the mask's reach says.

No single check finds every bug. Here: bit-equal outputs under large finite embeddings, in evaluation and in training,
and under other token ids, and, in float64, outputs that must change where the mask lets them.
"""

import copy

import torch
from torch import Tensor

from arbprob_hf import ArbProbForCausalLM, Mask
from tests.masks.oracles import VOCABULARY

LARGE = 1e3


def findings(model: ArbProbForCausalLM, meant: Mask, *, length: int, batch: int, **arguments: object) -> set[str]:
    """What the model does that the reach of the meant mask forbids or demands; an empty set when all is well.

    `arguments` go to the model; they ought to say what `meant` says.
    """
    reach = meant.reach(length, model.config.n_layer, batch=batch)  # (B, T, T)
    ids = torch.randint(0, VOCABULARY, (batch, length))
    found = set()
    for mode in ("evaluation", "training"):
        model.train(mode == "training")
        if _leaks_embeddings(model, ids, reach, arguments):
            found.add(f"embeddings leak in {mode}")
    model.eval()
    if _leaks_ids(model, ids, reach, arguments):
        found.add("token ids leak")
    if not _depends(copy.deepcopy(model).double(), ids, reach, arguments):
        found.add("an allowed input has no influence")
    return found


def _hidden(model: ArbProbForCausalLM, arguments: dict[str, object], **inputs: Tensor) -> Tensor:
    # the same dropout in every run
    torch.manual_seed(0)
    with torch.no_grad():
        return model.transformer(**inputs, **arguments).last_hidden_state


def _leaks_embeddings(model: ArbProbForCausalLM, ids: Tensor, reach: Tensor, arguments: dict[str, object]) -> bool:
    embeds = model.transformer.wte(ids).detach()
    before = _hidden(model, arguments, inputs_embeds=embeds)
    return any(
        _leaks_from(row, k, before, _hidden(model, arguments, inputs_embeds=_swapped(embeds, row, k)), reach)
        for row in range(len(ids))
        for k in range(ids.shape[1])
    )


def _leaks_ids(model: ArbProbForCausalLM, ids: Tensor, reach: Tensor, arguments: dict[str, object]) -> bool:
    before = _hidden(model, arguments, input_ids=ids)
    for row in range(len(ids)):
        for k in range(ids.shape[1]):
            other = ids.clone()
            other[row, k] = (ids[row, k] + 1) % VOCABULARY
            if _leaks_from(row, k, before, _hidden(model, arguments, input_ids=other), reach):
                return True
    return False


def _depends(model: ArbProbForCausalLM, ids: Tensor, reach: Tensor, arguments: dict[str, object]) -> bool:
    embeds = model.transformer.wte(ids).detach()
    before = _hidden(model, arguments, inputs_embeds=embeds)
    for row in range(len(ids)):
        for k in range(ids.shape[1]):
            other = embeds.clone()
            other[row, k] += torch.randn_like(other[row, k])
            changed = (_hidden(model, arguments, inputs_embeds=other)[row] != before[row]).any(-1)  # (T,)
            if not changed[reach[row, :, k]].all():
                return False
    return True


def _swapped(embeds: Tensor, row: int, k: int) -> Tensor:
    other = embeds.clone()
    other[row, k] = LARGE * torch.randn_like(other[row, k])
    return other


def _leaks_from(row: int, k: int, before: Tensor, after: Tensor, reach: Tensor) -> bool:
    forbidden = torch.ones(reach.shape[:2], dtype=torch.bool)  # every slot of the other rows
    forbidden[row] = ~reach[row, :, k]
    return not before[forbidden].equal(after[forbidden])
