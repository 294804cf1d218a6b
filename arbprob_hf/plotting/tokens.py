"""Texts of tokens: as ids for a network, and as labels of a picture."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ..model.configuration_arbprob import ArbProbConfig
from ..model.modeling_arbprob import ArbProbForCausalLM

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# more texts do not fit on an axis
MOST_TOKENS = 64


def read_text(
    model: ArbProbForCausalLM, tokenizer: Any, text: str, *, most: int = MOST_TOKENS
) -> tuple[list[int], list[str]]:
    """The ids of a text with the token that starts one in front, and the text of each.

    Raises:
        TypeError: no text, or another kind of network.
        ValueError: an empty or long text, or a tokenizer that is not the network's; one line.
    """
    # a downloaded model has a configuration of the same name, but of another class
    if getattr(getattr(model, "config", None), "model_type", None) != ArbProbConfig.model_type:
        raise TypeError(f"model: expected an ArbProbForCausalLM, got {type(model).__name__}")
    config = model.config
    if not hasattr(tokenizer, "eos_token_id"):
        raise TypeError(
            f"tokenizer: expected that of the network, got {type(tokenizer).__name__}; it comes before the text"
        )
    if not isinstance(text, str):
        raise TypeError(f"text: expected a text, got {type(text).__name__}")
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise ValueError("tokenizer: has neither bos_token nor eos_token to start a text with; set one")
    ids = [start, *tokenizer.encode(text, add_special_tokens=False)]
    if not 2 <= len(ids) <= min(most, config.n_positions):
        raise ValueError(
            f"text: expected 1 to {min(most, config.n_positions) - 1} tokens, got {len(ids) - 1}; "
            + ("shorten it" if len(ids) > 1 else "write something")
        )
    if max(ids) >= config.vocab_size:
        raise ValueError(
            f"tokenizer: gives ids up to {max(ids)}, the network knows {config.vocab_size} tokens; use the tokenizer "
            "it was trained with"
        )
    return ids, [tokenizer.decode([one]) for one in ids]


@contextmanager
def evaluating(model: ArbProbForCausalLM) -> Iterator[None]:
    """Without dropout and gradients; a network that trains goes on training afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def length_of(tokens: Sequence[str], length: int | None) -> int:
    """The number of tokens, one text each. Raises TypeError, ValueError where they are not such a list, or too many."""
    if isinstance(tokens, str) or not all(isinstance(token, str) for token in tokens):
        raise TypeError("tokens: expected a list of texts, one per token; decode the ids first")
    if not 1 <= len(tokens) <= MOST_TOKENS:
        raise ValueError(f"tokens: expected 1 to {MOST_TOKENS} texts, got {len(tokens)}; leave them out to draw more")
    if length not in (None, len(tokens)):
        raise ValueError(f"tokens: expected {length} texts, one per token, got {len(tokens)}")
    return len(tokens)


def shown(token: str, width: int = 14) -> str:
    """A token as a label: line ends and other invisible signs escaped, a long one cut.

    Signs that matplotlib's font lacks are boxes, as everywhere in matplotlib; bytes that are not a character by
    themselves are replacement characters.
    """
    # what is only space would be no label at all
    text = repr(token)[1:-1] if token.strip(" ") else "\u2423" * len(token)
    return text if len(token) <= width else f"{text[: width - 2]}.."


def text_width(label: str, size: float) -> float:
    """Inches that a text takes in letters of `size` points."""
    from matplotlib.textpath import TextPath

    if not label.strip():
        return 0.0
    # a dollar sign does not begin a formula here
    return float(TextPath((0, 0), label.replace("$", r"\$"), size=size).get_extents().width) / 72


def write_tokens(axes: "Axes", keys: Sequence[str], queries: Sequence[str], *, first: int, cell: float) -> None:
    """Label a square whose cells are `cell` points wide: keys below, queries, from number `first` on, at the left."""
    # a text may hold dollar signs
    style: dict[str, Any] = {"fontsize": min(9, 0.8 * cell), "parse_math": False}
    axes.set_xticks(range(len(keys)), [shown(key) for key in keys], rotation=90, **style)
    axes.set_yticks(range(first, first + len(queries)), [shown(query) for query in queries], **style)
