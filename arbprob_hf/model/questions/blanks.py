"""Texts with blanks, for people: `The cat [M] on the [M:2]`; `[M:2]` stands for two tokens.

GPT-2's tokens begin with their space, so one space before a blank is the blank's own: `The cat [M]` may be filled with
" sat", and an answer "sat" to it is read as " sat".
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .conditional import Conditional
from .layouts import MASK_ID

_BLANK = re.compile(r"\[M(?::([0-9]+))?\]")
# what a person writes who means a blank; a word in brackets, such as [Music], is none
_NEARLY = re.compile(r"[\[<]\s*mask\s*[\]>]|\[\s*m(?![a-z])[^\]]{0,20}\]?", re.IGNORECASE)
_LONGEST = 100_000


@dataclass(frozen=True)
class Scored:
    """A candidate for the blanks of a text.

    Attributes:
        answers: the text of each blank. log_prob: log P of all of them given the rest of the text, in nats.
        token_log_probs: one for each token, in the order of the text; they sum to `log_prob`.
    """

    answers: tuple[str, ...]
    log_prob: float
    token_log_probs: tuple[float, ...]


@dataclass(frozen=True)
class Infilled:
    """A text whose blanks were sampled: whole, and blank by blank, with log P of the blanks given the rest in nats."""

    text: str
    answers: tuple[str, ...]
    log_prob: float

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Blanked:
    """A text with blanks as ids, the start of a text in front.

    Attributes:
        ids: MASK_ID where a token is missing. blanks: first and last + 1 position of each blank.
        is_spaced: whether a blank owns the space before it.
    """

    ids: tuple[int, ...]
    blanks: tuple[tuple[int, int], ...]
    is_spaced: tuple[bool, ...]

    def tensor(self, device: torch.device) -> Tensor:
        """The ids as long (1, T)."""
        return torch.tensor([self.ids], device=device)

    def ask(self) -> Conditional:
        """All blanks given everything else, from left to right."""
        return ask_blanks(torch.tensor([self.ids]))

    def filled(self, answers: Sequence[str], tokenizer: Any) -> list[int]:
        """The ids with an answer in each blank. Raises ValueError where one has another number of tokens."""
        if len(answers) != len(self.blanks):
            raise ValueError(f"answers: expected a text for each of {len(self.blanks)} blanks, got {len(answers)}")
        ids = list(self.ids)
        for answer, (begin, end), is_spaced in zip(answers, self.blanks, self.is_spaced, strict=True):
            if not answer.strip():
                raise ValueError(f"answers: expected a text for each blank, got {answer!r:.40}")
            own = f" {answer}" if is_spaced and not answer.startswith(" ") else answer
            tokens = tokenizer.encode(own, add_special_tokens=False)
            if len(tokens) != end - begin:
                wanted = "[M]" if len(tokens) == 1 else f"[M:{len(tokens)}]"
                raise ValueError(
                    f"answers: {own!r:.60} has {len(tokens)} tokens, its blank {end - begin}; write {wanted} for it"
                )
            ids[begin:end] = tokens
        return ids


def read_blanks(text: str, tokenizer: Any) -> Blanked:
    """Tokenise a text around its blanks.

    Raises:
        TypeError, ValueError: no text, no blank in it, something that is nearly a blank, or a tokenizer without a token
            that starts a text.
    """
    if not isinstance(text, str):
        raise TypeError(f"text: expected a text with blanks [M], got {type(text).__name__}")
    start = next((one for one in (tokenizer.bos_token_id, tokenizer.eos_token_id) if one is not None), None)
    if start is None:
        raise ValueError("tokenizer: has neither bos_token nor eos_token to start a text with; set one")
    nearly = next((one for one in _NEARLY.findall(text) if not _BLANK.fullmatch(one)), None)
    if nearly is not None:
        raise ValueError(f"text: expected blanks [M], or [M:3] for three tokens, got {nearly!r:.40}")
    ids, blanks, spaced, begin = [start], [], [], 0
    for found in _BLANK.finditer(text):
        before, size = text[begin : found.start()], int((found[1] or "1")[:40])
        if not 1 <= size <= _LONGEST:
            raise ValueError(f"text: expected a blank of 1 to {_LONGEST} tokens, got {found[0]!r:.40}")
        # a blank right behind another one, or at the start, owns no space
        is_spaced = before.endswith(" ")
        ids += tokenizer.encode(before[:-1] if is_spaced else before, add_special_tokens=False)
        blanks.append((len(ids), len(ids) + size))
        spaced.append(is_spaced)
        ids += [MASK_ID] * size
        begin = found.end()
    if not blanks:
        raise ValueError(f"text: expected a blank, written [M], in {text!r:.60}")
    ids += tokenizer.encode(text[begin:], add_special_tokens=False)
    return Blanked(tuple(ids), tuple(blanks), tuple(spaced))


def ask_blanks(input_ids: Tensor) -> Conditional:
    """The question about ids (B, T) in which MASK_ID marks what is asked; all else is given."""
    blank = (input_ids == MASK_ID).cpu()
    if not bool(blank.any()):
        raise ValueError(f"input_ids: expected {MASK_ID} at the tokens to fill in, got none")
    return Conditional(~blank, blank)


def answers_of(row: Sequence[int], blanked: Blanked, tokenizer: Any) -> tuple[str, ...]:
    """What stands in each blank of a filled row of ids."""
    return tuple(str(tokenizer.decode(row[begin:end])) for begin, end in blanked.blanks)


def read_answers(answers: Any, count: int) -> list[tuple[str, ...]]:
    """Candidates as tuples of texts, one text a blank. A text stands for itself where there is one blank."""
    if isinstance(answers, str | bytes) or not isinstance(answers, Iterable):
        raise TypeError(f"answers: expected a list of candidates, got {type(answers).__name__}; put it in brackets")
    rows = [(one,) if isinstance(one, str) and count == 1 else one for one in answers]
    for row in rows:
        if isinstance(row, str) or not isinstance(row, Sequence) or not all(isinstance(one, str) for one in row):
            raise TypeError(f"answers: expected a text for each of {count} blanks, as a tuple, got {row!r:.60}")
    if not rows:
        raise ValueError("answers: expected at least one candidate, got an empty list")
    return [tuple(row) for row in rows]
