"""What the page shows about a mask: each token's log-probability under it beside that under the model's own mask."""

from dataclasses import dataclass
from typing import Any

import torch

from ..analysis.describe import describe
from ..analysis.layer_reach import AnyMask
from ..model.masks.mask import Mask
from ..model.questions.log_probs import token_log_probs
from ..plotting import plot_mask
from .network import Network
from .passage import Passage, read_passage

# more texts do not fit on the axes of a picture
MOST_NAMED = 64


@dataclass(frozen=True)
class Scores:
    """The tokens of a text, read from left to right under one mask.

    Attributes:
        log_probs: log P of each token in nats, the start of the text left out.
        is_informed: for each of them whether later tokens, through all layers, reach the slot that predicts it. Such a
            number is not a likelihood.
    """

    log_probs: tuple[float, ...]
    is_informed: tuple[bool, ...]

    @property
    def total(self) -> float:
        """Of all tokens, in nats."""
        return sum(self.log_probs)


@dataclass(frozen=True, eq=False)
class Comparison:
    """A text under a mask and under the model's own: the texts of its tokens, both readings, the mask as a figure."""

    tokens: tuple[str, ...]
    mask: str
    own_mask: str
    chosen: Scores
    own: Scores
    picture: Any


def own_mask(network: Network) -> str:
    """The mask of the model's configuration, for people: one text, or one per layer."""
    return ", then ".join(network.model.config.mask_texts)


@torch.inference_mode()
def compare_masks(network: Network, text: str, mask: str) -> Comparison:
    """Read a text under a mask and under the model's own, and draw the mask.

    Raises:
        ValueError: no text, a text with blanks or too many tokens, or a mask that cannot be read or does not fit the
            model; one line.
    """
    passage = read_passage(text, network)
    if passage.blanks:
        raise ValueError("text: expected a whole text here, got one with blanks; write words in place of [M]")
    read = Mask.parse(" ".join(mask.split()))
    chosen, own = (_scores(network, passage, one) for one in (read, None))
    tokens = tuple(network.decode([token]) for token in passage.tokens)
    # the start is written as the tokenizer has it, which is long
    names = ["start", *tokens[1:]]
    picture = plot_mask(read, len(passage), tokens=names if len(names) <= MOST_NAMED else None)
    return Comparison(tokens[1:], str(read), own_mask(network), chosen, own, picture)


def _scores(network: Network, passage: Passage, mask: Mask | None) -> Scores:
    model = network.model
    ids = passage.answers().to(network.device)
    states = model.transformer(ids, mask=mask, use_cache=False).last_hidden_state[0, :-1]  # (T - 1, D)
    nats = token_log_probs(model.lm_head, states, ids[0, 1:])  # (T - 1,)
    masks: AnyMask | list[AnyMask] = mask if mask is not None else list(model.config.mask_texts)
    layers = model.config.n_layer
    informed = {query + 1 for query in describe(masks, len(passage), layers=layers).informed_queries}
    return Scores(tuple(nats.tolist()), tuple(position in informed for position in range(1, len(passage))))
