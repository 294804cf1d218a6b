"""How many bytes of text tokens stand for, for bits per byte."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders

from .eval_sets import Columns

Integers = npt.NDArray[np.int64]


def token_bytes(tokenizer: Tokenizer, size: int) -> Integers | None:
    """Bytes of text that each of `size` tokens stands for, (size,), special ones for none; None unless byte-level."""
    if not isinstance(tokenizer.decoder, decoders.ByteLevel):
        return None
    added = tokenizer.get_added_tokens_decoder()
    found = np.zeros(size, np.int64)
    for text, index in tokenizer.get_vocab().items():
        if index < size:
            # each byte is written as one character; added tokens are written as they are
            found[index] = len(text) if index not in added else 0 if added[index].special else len(text.encode())
    return found


def scored_bytes(sets: Mapping[str, Columns], tokenizer: Tokenizer, size: int) -> dict[str, int]:
    """Bytes of text of the scored tokens of each set of questions, by name; empty unless the tokenizer is byte-level.

    `size`: tokens of the vocabulary.
    """
    lengths = token_bytes(tokenizer, size)
    if lengths is None:
        return {}
    return {name: int(lengths[columns["input_ids"][columns["scored"]]].sum()) for name, columns in sets.items()}
