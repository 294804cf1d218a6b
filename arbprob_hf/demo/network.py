"""The network of the page, from a folder or from the Hub, by this package's own classes: no code beside it runs."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from ..data.tokenizer import load_tokenizer
from ..model.modeling_arbprob import ArbProbForCausalLM

ADVICE = "train one with configs/conditional_tiny.yaml, or name a repository on the Hub"


@dataclass(frozen=True, eq=False)
class Network:
    """A model in evaluation mode, the tokenizer it was trained with, and the name it was loaded by."""

    model: ArbProbForCausalLM
    tokenizer: PreTrainedTokenizerFast
    name: str

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.lm_head.weight.device
        return device

    def said(self, token: int) -> str:
        """The text of one token, which may be less than a character."""
        return str(self.tokenizer.decode([token], clean_up_tokenization_spaces=False))


def load_network(name: str | None) -> Network:
    """Load a run's output folder, one of its checkpoints, or a repository on the Hub, by this package's own classes.

    GPT-2's weights load too. A GPU is used where there is one.

    Raises:
        ValueError: no name, or nothing usable under it; one line that says what to do.
    """
    if not name or not name.strip():
        raise ValueError(f"model: expected a folder or a name on the Hub, got none; {ADVICE}")
    name = name.strip()
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"model: the folder {name} holds no config.json; {_newest(folder)}")
    if folder.is_file():
        raise ValueError(f"model: {name} is a file; name its folder")
    # what begins like a folder that is here is none of the Hub's
    is_local = "/" in name and Path(name.split("/")[0]).is_dir()
    is_local = is_local or folder.is_absolute() or name.startswith(("outputs/", ".", "~")) or name.count("/") > 1
    if is_local and not folder.is_dir():
        raise ValueError(f"model: there is no folder {name}; {ADVICE}")
    try:
        model, found = ArbProbForCausalLM.from_pretrained(name, output_loading_info=True)
    except Exception as error:
        # a damaged file, a name nobody has and a Hub that does not answer all raise something else
        raise ValueError(f"model: {name} cannot be loaded: {' '.join(str(error).split()):.300}; {ADVICE}") from error
    lost = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
    if lost:
        raise ValueError(f"model: {name} lacks {len(lost)} of the network's weights, such as {lost[0]}; {ADVICE}")
    tokenizer = load_tokenizer(name)
    # transformers' own `to` hides what it takes from the type checker
    torch.nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
    return Network(model.eval(), tokenizer, name)


def _newest(folder: Path) -> str:
    steps = [int(one.name[11:]) for one in folder.glob("checkpoint-*") if one.name[11:].isdecimal()]
    return f"name one of its checkpoints, such as {folder}/checkpoint-{max(steps)}" if steps else ADVICE
