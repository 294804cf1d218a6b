"""What the benchmarks compare: transformers' GPT-2 and our network with the same weights, and that they say the same.

Scripts of this folder import it by its name, as they run with the folder on their path.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM

SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
# under GPT-2's 0.02 a network says its last token again and again, and hardly minds its mask
SPREAD = 0.2


def stock_config(config: ArbProbConfig) -> GPT2Config:
    """transformers' configuration of a network of the same sizes and dropout."""
    names = (*SIZES, "resid_pdrop", "embd_pdrop", "attn_pdrop")
    return GPT2Config(**{name: getattr(config, name) for name in names})


def twins(
    config: ArbProbConfig, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[GPT2LMHeadModel, ArbProbForCausalLM]:
    """transformers' GPT-2 and ours with the same random weights, in evaluation; neither ever draws an end token."""
    torch.manual_seed(0)
    ours = ArbProbForCausalLM(config)
    theirs = GPT2LMHeadModel(stock_config(config))
    theirs.load_state_dict(shared_weights(ours))
    for model in (theirs, ours):
        endless(model.to(device, dtype))
    return theirs, ours


def shared_weights(ours: ArbProbForCausalLM) -> dict[str, Tensor]:
    """The weights that GPT-2 has too: all but the vector of a token that is not known."""
    return {name: value for name, value in ours.state_dict().items() if not name.endswith("wme.weight")}


def endless(model: Any) -> Any:
    """The model in evaluation, never drawing an end token."""
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model.eval()


def check_same_loss(work: str, theirs: Callable[[], Any], ours: Callable[[], Any], *, within: float = 1e-5) -> None:
    """Raise RuntimeError where two losses in float32 differ by more than a share of the first.

    Equal work differs by less than 1e-6. Under weights drawn as wide as SPREAD, a hundredth of a mask makes 3e-4.
    """
    found = [float(loss()) for loss in (theirs, ours)]
    if not abs(found[1] - found[0]) <= within * abs(found[0]):
        raise RuntimeError(f"{work}: the loss is {found[1]:.7g}, transformers' {found[0]:.7g}: not the same work")


def took(times: dict[str, Sequence[float]]) -> str:
    """The least time of transformers' GPT-2 ("hf") and of ours, as a note."""
    return f"{min(times['hf']) * 1000:.0f} and {min(times['ours']) * 1000:.0f} ms at least"
