"""The network of the page, from a folder or from the Hub, by this package's own classes."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from ..data.tokenizer import load_tokenizer
from ..model.modeling_arbprob import ArbProbForCausalLM
from ..model_folder import load_network

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
        device: torch.device = self.model.device
        return device

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; that of a single one may be less than a character."""
        return str(self.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))


def load_with_tokenizer(name: str | None, *, trust_remote_code: bool = False) -> Network:
    """Load a run's output folder, one of its checkpoints, or a repository on the Hub, by this package's own classes.

    GPT-2's weights load too. A GPU is used where there is one. With `trust_remote_code` the custom patterns that come
    with the weights are run, and nothing else of the code there.

    Raises:
        ValueError: no name, or nothing usable under it; one line that says what to do.
    """
    if not name or not name.strip():
        raise ValueError(f"model: expected a folder or a name on the Hub, got none; {ADVICE}")
    name = name.strip()
    try:
        model = load_network(name, trust_remote_code=trust_remote_code)
    except ValueError as error:
        raise ValueError(f"model: {error}") from error
    tokenizer = load_tokenizer(name)
    # transformers' own `to` hides what it takes from the type checker
    torch.nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
    return Network(model, tokenizer, name)
