"""Blocks made while their text is read: for a text too large to prepare, and for one that is far away.

What a process and its data loader's workers get depends on the text, the seed, and the number of processes and workers
alone. So a resumed run, which reads again what it has had, goes on with the very blocks that would have come.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import IterableDataset
from transformers import PreTrainedTokenizerFast

from ..errors import brief, reason
from .documents import WrongColumnError, is_held_out, pieces
from .packing import LENGTH, Integers
from .readers import UnreadableError
from .tokenizer import tokenise

# documents tokenised at a time
_TOGETHER = 64
# readings without a text, one after the other, that a reader takes
_PATIENCE = 10

Block = dict[str, Any]


@dataclass(frozen=True)
class Streamed:
    """Documents that are read as they are needed.

    Attributes:
        documents: rows of "text". where: the source, for errors. files: names of the files they are read from.
        held_out: share of the documents that are for validation, chosen by their text; 0 where these are elsewhere.
        least: characters that a document must have. revision: identifies the state of the text.
    """

    documents: IterableDataset
    where: str
    files: Sequence[str] = ()
    held_out: float = 0.0
    least: int = 1
    revision: str = ""

    def texts(self, order: Iterable[int] | None = None, *, validation: bool = False) -> Iterator[str]:
        """The texts for training, or those for validation, of some files by number, all of them when None.

        Raises ValueError, which names the file, for what cannot be read.
        """
        files = self.documents.num_shards
        for number in range(files) if order is None else order:
            try:
                # unlike an iteration over rows, this does not share the files out to the workers of a loader
                for batch in self.documents.shard(files, int(number)).iter(_TOGETHER):
                    for text in (piece for row in batch["text"] for piece in pieces(row, self.least)):
                        if is_held_out(text, self.held_out) == validation:
                            yield text
            except (UnreadableError, WrongColumnError, TypeError):
                # says which file it is, and where
                raise
            except Exception as error:
                what = f"its file {brief(self.files[number])}" if len(self.files) == files else "it"
                raise ValueError(f"source {self.where}: {what} could not be read: {reason(error)}") from error

    def share(self, reader: int, readers: int, order: npt.NDArray[np.int64] | None = None) -> Iterator[str]:
        """What one of several readers has of the texts for training: together they have each of them once.

        `order`: of the files, a permutation; as they are when None. Each reader has its own files where there are
        enough, otherwise every so many-th text.
        """
        files = self.documents.num_shards
        numbers = np.arange(files) if order is None else order
        if files >= readers:
            return self.texts(numbers[reader::readers])
        return itertools.islice(self.texts(numbers), reader, None, readers)


class StreamedBlocks(torch.utils.data.IterableDataset[Block]):
    """Training blocks without an end: the documents of `text` again and again, shuffled anew each time.

    Rows have `input_ids` and `document_ids`, integers (block_size,), and `index`, a number no other row has. Nothing is
    lost where one reading of the text ends: its last, partial block goes on with the next.

    Each process (`process`: its number and how many there are) and each worker of its data loader reads files of its
    own where there are enough of them, otherwise they take turns with the documents: none is read twice in a reading.
    `buffer` documents are shuffled at a time, and held in memory by each; 1 takes files and documents as they come.
    `packing` as in `load_blocks`.
    """

    def __init__(
        self,
        text: Streamed,
        tokenizer: PreTrainedTokenizerFast,
        *,
        block_size: int,
        seed: int,
        buffer: int = 1,
        packing: bool = True,
        process: tuple[int, int] = (0, 1),
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-text token to put between documents; set its eos_token")
        self.text, self.tokenizer, self.block_size = text, tokenizer, block_size
        self.seed, self.buffer, self.packing, self.process = seed, buffer, packing, process

    def __iter__(self) -> Iterator[Block]:
        worker = torch.utils.data.get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        rank, processes = self.process
        reader, readers = rank * workers + number, processes * workers
        packer = Packer(self.block_size, self.tokenizer.eos_token_id, self.packing)
        index = itertools.count(reader, readers)
        fruitless = 0
        # shuffled files are shared out anew each time; otherwise another reading is like the last
        patience = _PATIENCE if self.buffer > 1 and self.text.documents.num_shards >= readers > 1 else 1
        for reading in itertools.count():
            before = packer.documents
            for tokens in self._tokenised(reading, reader, readers):
                for block in packer.add(tokens):
                    yield {**block, "index": next(index)}
            fruitless = fruitless + 1 if packer.documents == before else 0
            if fruitless == patience:
                raise ValueError(
                    f"source {self.text.where}: reader {reader + 1} of {readers} found no text; use fewer workers, a "
                    "smaller validation_share or min_document_length"
                )

    def _tokenised(self, reading: int, reader: int, readers: int) -> Iterator[list[int]]:
        texts = self._texts(reading, reader, readers)
        while some := list(itertools.islice(texts, _TOGETHER)):
            yield from filter(None, tokenise(self.tokenizer, some))

    def _texts(self, reading: int, reader: int, readers: int) -> Iterator[str]:
        if self.buffer == 1:
            return self.text.share(reader, readers)
        # all readers share the files out alike
        order = np.random.default_rng([self.seed, reading]).permutation(self.text.documents.num_shards)
        random = np.random.default_rng([self.seed, reading, reader])
        return shuffled(self.text.share(reader, readers, order), self.buffer, random)


def shuffled(texts: Iterable[str], size: int, random: np.random.Generator) -> Iterator[str]:
    """`texts` in random order, as far as a buffer of `size` of them allows."""
    buffer: list[str] = []
    for text in texts:
        if len(buffer) < size:
            buffer.append(text)
            continue
        place = int(random.integers(size))
        yield buffer[place]
        buffer[place] = text
    yield from (buffer[place] for place in random.permutation(len(buffer)))


@dataclass
class Packer:
    """Packs documents into blocks as they come, as `packing.pack` does with all of them at once.

    Attributes:
        joins: whether a block may hold several; otherwise as `packing.pad_to_blocks`. documents: how many were added.
    """

    block_size: int
    separator: int
    joins: bool = True
    documents: int = 0
    _tokens: list[int] = field(default_factory=list)
    _ids: list[int] = field(default_factory=list)

    def add(self, tokens: list[int]) -> Iterator[Block]:
        """Take a document, and give the blocks that it fills."""
        self.documents += 1
        # behind those that blocks have
        done = 0
        self._begin()
        while True:
            free = self.block_size - len(self._tokens)
            if free == 0:
                yield self._next_block()
                if done == len(tokens):
                    return
                # what a block cuts goes on behind a separator
                self._begin()
                continue
            if done == len(tokens):
                if not self.joins:
                    # its end is part of it
                    self._tokens.append(self.separator)
                    self._ids.append(self._ids[-1])
                    yield self._next_block()
                return
            some = tokens[done : done + free]
            self._tokens += some
            self._ids += [self._ids[-1]] * len(some)
            done += len(some)

    def _begin(self) -> None:
        self._tokens.append(self.separator)
        self._ids.append(self._ids[-1] + 1 if self._ids else 0)

    def _next_block(self) -> Block:
        length = len(self._tokens)
        padding = self.block_size - length
        block: Block = {
            "input_ids": _integers(self._tokens + padding * [self.separator]),
            "document_ids": _integers(self._ids + padding * [1]),
        }
        if not self.joins:
            block[LENGTH] = length
        self._tokens, self._ids = [], []
        return block


def _integers(values: list[int]) -> Integers:
    found: npt.NDArray[np.int64] = np.asarray(values, np.int64)
    return found
