"""A text as tokens, some of them blank: what a click on a token changes, and the same with `[M]` for the blanks."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from torch import Tensor

from ..model.questions.blanks import read_blanks
from ..model.questions.layouts import MASK_ID
from .network import Network


@dataclass(frozen=True)
class Passage:
    """The tokens of a text, some of them blank.

    Attributes:
        text: as people read and write it, with `[M]` or `[M:3]` where one or three tokens are blank.
        tokens: the start of a text and then its tokens; MASK_ID where a blank was typed and nobody knows what it hides.
        blanks: the positions of the blanks, ascending.
        spaced: for each token whether it begins with a space.
        earlier: what the text was before clicks changed it, as long as nobody wrote another.
    """

    text: str
    tokens: tuple[int, ...]
    blanks: tuple[int, ...]
    spaced: tuple[bool, ...]
    earlier: tuple[str, ...] = field(default=(), compare=False)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def given(self) -> tuple[int, ...]:
        """The positions of the tokens that are not blanks, the start of the text among them."""
        return tuple(position for position in range(len(self)) if position not in set(self.blanks))

    @property
    def is_known(self) -> bool:
        """Whether the token behind every blank is known."""
        return MASK_ID not in self.tokens

    def runs(self) -> list[list[int]]:
        """The blanks, those that follow one another together."""
        groups = groupby(enumerate(self.blanks), key=lambda pair: pair[1] - pair[0])
        return [[position for _, position in group] for _, group in groups]

    def ids(self) -> Tensor:
        """Long (1, T), MASK_ID at the blanks."""
        hidden = set(self.blanks)
        return torch.tensor([[MASK_ID if i in hidden else token for i, token in enumerate(self.tokens)]])

    def answers(self) -> Tensor:
        """Long (1, T), with the tokens behind the blanks; the start of a text stands for those that nobody knows."""
        return torch.tensor([[self.tokens[0] if token == MASK_ID else token for token in self.tokens]])


def read_passage(text: str, network: Network, before: Passage | None = None) -> Passage:
    """Tokenise a text, which may hold blanks.

    Args:
        before: what the text was until now. It is returned where the text is still its own, as clicks may cut a text
            in ways that typing does not. Where only blanks have come, their tokens are remembered from it.

    Raises:
        ValueError: nothing written, something that is nearly a blank, a tokenizer of another network, or too many
            tokens; one line.
    """
    if before is not None and text == before.text:
        return before
    if not text.strip():
        raise ValueError("text: expected a text, got nothing; write some words")
    # a blank at the end, which is dropped again: a text without any is cut into tokens like one with some
    own = " [M]" if text.endswith(" ") else "[M]"
    read = read_blanks(text + own, network.tokenizer)
    tokens = read.ids[:-1]
    check_tokens(tokens, network)
    blanks = tuple(position for position, token in enumerate(tokens) if token == MASK_ID)
    starts = {begin for (begin, _), is_spaced in zip(read.blanks, read.is_spaced, strict=True) if is_spaced}
    spaced = [
        position in starts if token == MASK_ID else network.decode([token]).startswith(" ")
        for position, token in enumerate(tokens)
    ]
    if before is not None and _is_same_but_for_blanks(before.tokens, tokens):
        tokens = tuple(old if new == MASK_ID else new for old, new in zip(before.tokens, tokens, strict=True))
    return Passage(text, tokens, blanks, tuple(spaced))


def current_passage(text: str, network: Network, before: Passage | None) -> Passage:
    """The passage that somebody means who clicks beside a text, of which their page may not show the latest yet.

    Raises:
        ValueError: as `read_passage`.
    """
    if before is not None and text in before.earlier:
        return before
    return read_passage(text, network, before)


def toggled(passage: Passage, position: int, network: Network) -> Passage:
    """Blank out the token at a position, or put it back.

    Raises:
        ValueError: no such token, or a typed blank, behind which there is none to put back.
    """
    if not 1 <= position < len(passage):
        raise ValueError(f"token: expected 1 to {len(passage) - 1}, got {position}")
    if passage.tokens[position] == MASK_ID:
        raise ValueError("token: nobody knows what this blank hides; write a word for it in the text")
    blanks = tuple(sorted({*passage.blanks} ^ {position}))
    changed = replace(passage, blanks=blanks, earlier=(*passage.earlier, passage.text))
    return replace(changed, text=_text_of(changed, network))


def check_tokens(tokens: Sequence[int], network: Network) -> None:
    """Raise ValueError where the network does not know a token, or takes fewer."""
    config = network.model.config
    if max(tokens) >= config.vocab_size:
        raise ValueError(
            f"tokenizer: gives ids up to {max(tokens)}, the network knows {config.vocab_size} tokens; use the "
            "tokenizer it was trained with"
        )
    if len(tokens) > config.n_positions:
        raise ValueError(
            f"text: expected at most n_positions={config.n_positions} tokens with its start and blanks, got "
            f"{len(tokens)}; shorten it"
        )


def _is_same_but_for_blanks(before: Sequence[int], now: Sequence[int]) -> bool:
    return len(before) == len(now) and all(
        MASK_ID in (old, new) or old == new for old, new in zip(before, now, strict=True)
    )


def _text_of(passage: Passage, network: Network) -> str:
    # a blank owns one space before it, so one that hides no space and follows one needs another
    parts: list[str] = []
    hidden = set(passage.blanks)
    for is_blank, group in groupby(range(1, len(passage)), key=lambda position: position in hidden):
        run = list(group)
        if is_blank:
            is_spaced = passage.spaced[run[0]] or (bool(parts) and parts[-1].endswith(" "))
            parts.append(" " * is_spaced + ("[M]" if len(run) == 1 else f"[M:{len(run)}]"))
        else:
            parts.append(network.decode(passage.tokens[position] for position in run))
    return "".join(parts)
