"""Packs tokenised documents into blocks of one size, on flat numpy arrays.

Every block and every document begins with the separator; a document cut by the end of a block goes on in the
next one behind a new separator. Only the last, partial block is left out.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# rows gathered at a time: the int64 index stays small beside the blocks
ROWS = 4096

Integers = npt.NDArray[np.integer]


@dataclass(frozen=True)
class TokenDocuments:
    """Documents end to end: `tokens` (N,); `lengths` in tokens, at least 1, and `n_bytes` of each (D,)."""

    tokens: Integers
    lengths: Integers
    n_bytes: Integers


@dataclass(frozen=True)
class PackedBlocks:
    """`input_ids` and `document_ids` (B, T), the latter 0, 1, 2, ... in each block; `n_bytes` of text.

    `lengths` (B,): tokens of each block with the separator that ends its document, behind which there is padding; None
    where blocks are full.
    """

    input_ids: Integers
    document_ids: Integers
    n_bytes: float
    lengths: Integers | None = None

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per scored token: every token of a block but its first is predicted, separators too."""
        rows, block_size = self.input_ids.shape
        tokens = rows * block_size if self.lengths is None else int(self.lengths.sum())
        return self.n_bytes / (tokens - rows)


def pack(documents: TokenDocuments, *, block_size: int, separator: int, limit: int | None = None) -> PackedBlocks:
    """Blocks of `block_size` tokens, at most `limit` of them; none when the text is shorter than one.

    The text bytes of a document that the last block cuts are counted in proportion to its tokens.
    """
    stream, begins = _separated(documents, separator)
    starts, end = _block_starts(begins, block_size, limit)
    input_ids = np.empty((len(starts), block_size), stream.dtype)  # (B, T)
    # a block of T tokens holds at most T documents
    document_ids = np.empty((len(starts), block_size), np.min_scalar_type(block_size))  # (B, T)
    for row in range(0, len(starts), ROWS):
        rows = slice(row, row + ROWS)
        continued = ~begins[starts[rows]]  # (R,)
        # a block that continues a document reads one token less and puts the separator in front
        index = starts[rows, None] - continued[:, None] + np.arange(block_size)  # (R, T)
        opened = begins[index]
        opened[:, 0] = True
        input_ids[rows] = stream[index]
        input_ids[rows, 0] = separator
        document_ids[rows] = np.cumsum(opened, axis=1) - 1
    return PackedBlocks(input_ids, document_ids, _bytes_before(documents, end))


def pad_to_blocks(
    documents: TokenDocuments, *, block_size: int, separator: int, limit: int | None = None
) -> PackedBlocks:
    """Blocks that each hold a document, or a piece of one, behind a separator; separators fill up the rest.

    At most `limit` blocks. The first separator behind the end of a document belongs to it, so that a network learns
    where texts end; what fills up the rest behind it has the document number 1.
    """
    room = block_size - 1
    pieces = -(-documents.lengths // room)  # (D,)
    owner = np.repeat(np.arange(len(pieces)), pieces)[:limit]  # (B,)
    begins = np.cumsum(documents.lengths) - documents.lengths
    before = (np.arange(len(owner)) - (np.cumsum(pieces) - pieces)[owner]) * room
    sizes = np.minimum(documents.lengths[owner] - before, room)
    # a document that fills its last block has no room for its end, as in `pack`
    lengths = sizes + 1 + ((before + sizes == documents.lengths[owner]) & (sizes < room))
    input_ids = np.full((len(owner), block_size), separator, documents.tokens.dtype)  # (B, T)
    document_ids = np.zeros((len(owner), block_size), np.min_scalar_type(block_size))  # (B, T)
    for row in range(0, len(owner), ROWS):
        rows = slice(row, row + ROWS)
        is_text = np.arange(room) < sizes[rows, None]  # (R, T - 1)
        index = (begins[owner[rows]] + before[rows])[:, None] + np.arange(room)
        input_ids[rows, 1:][is_text] = documents.tokens[index[is_text]]
        document_ids[rows] = np.arange(block_size) >= lengths[rows, None]
    n_bytes = float((documents.n_bytes[owner] * sizes / documents.lengths[owner]).sum())
    return PackedBlocks(input_ids, document_ids, n_bytes, lengths)


def _separated(documents: TokenDocuments, separator: int) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """The stream (N + D,) with a separator before each document, and where these stand."""
    size = len(documents.tokens) + len(documents.lengths)
    begins = np.zeros(size, np.bool_)
    begins[_boundaries(documents)[:-1]] = True
    stream = np.empty(size, documents.tokens.dtype)
    stream[begins] = separator
    stream[~begins] = documents.tokens
    return stream, begins


def _boundaries(documents: TokenDocuments) -> npt.NDArray[np.int64]:
    """Where each document begins in the stream, then where the last one ends: (D + 1,)."""
    return np.concatenate(([0], np.cumsum(documents.lengths.astype(np.int64) + 1)))


def _block_starts(
    begins: npt.NDArray[np.bool_], block_size: int, limit: int | None
) -> tuple[npt.NDArray[np.int64], int]:
    """The place in the stream of each block's first token, and the place behind the last block's end."""
    # bytes, as indexing a numpy array one element at a time is ten times slower
    flags, place = begins.tobytes(), 0
    starts: list[int] = []
    while limit is None or len(starts) < limit:
        following = place + block_size - (1 if place < len(flags) and not flags[place] else 0)
        if following > len(flags):
            break
        starts.append(place)
        place = following
    return np.asarray(starts, np.int64), place


def _bytes_before(documents: TokenDocuments, end: int) -> float:
    counted = np.concatenate(([0], np.cumsum(documents.n_bytes, dtype=np.int64)))
    return float(np.interp(end, _boundaries(documents), counted))


# of blocks that are not packed: how many of its tokens are not padding
LENGTH = "length"
