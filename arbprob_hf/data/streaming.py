"""Blocks made while their text is read: for a text too large to prepare, and for one that is far away.

What a process and its data loader's workers get depends on the text, the seed, and the number of processes and workers
alone. With each block comes the state of its reader, from which a resumed run goes on with the very blocks that would
have come.
"""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import IterableDataset
from transformers import PreTrainedTokenizerFast

from ..errors import brief, reason
from ..machine_errors import machine_error
from .documents import WrongColumnError, is_held_out, pieces
from .packing import LENGTH, Integers
from .readers import UnreadableError
from .shares import ReaderState, Share, Start, buffered, deal, first_states
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

    def texts(self, *, validation: bool = False) -> Iterator[str]:
        """The texts for training, or those for validation.

        Raises ValueError, which names the file, for what cannot be read.
        """
        for _, _, texts in self.batches(validation=validation):
            yield from texts

    def batches(
        self, order: Sequence[int] | None = None, *, file: int = 0, row: int = 0, validation: bool = False
    ) -> Iterator[tuple[int, int, list[str]]]:
        """The texts of some files by number, all of them when None, from row `row` of the one at place `file` on.

        Each with the place of its file in the order and the row at which it begins. Raises as `texts`.
        """
        files = self.documents.num_shards
        numbers = list(range(files) if order is None else order)
        for place in range(file, len(numbers)):
            begin = row if place == file else 0
            number = numbers[place]
            try:
                # unlike an iteration over rows, this does not share the files out to the workers of a loader
                rows = self.documents.shard(files, number)
                for batch in (rows.skip(begin) if begin else rows).iter(_TOGETHER):
                    texts = [piece for text in batch["text"] for piece in pieces(text, self.least)]
                    yield place, begin, [text for text in texts if is_held_out(text, self.held_out) == validation]
                    begin += len(batch["text"])
            except (UnreadableError, WrongColumnError, TypeError):
                # says which file it is, and where
                raise
            except Exception as error:
                if machine_error(error) is not None:
                    raise
                what = f"its file {brief(self.files[number])}" if len(self.files) == files else "it"
                raise ValueError(f"source {self.where}: {what} could not be read: {reason(error)}") from error

    def numbered(self, share: Share, order: Sequence[int] | None = None) -> Iterator[tuple[int, str, Start]]:
        """What a reader has of the texts for training, with their numbers, from `share.start` on.

        Together, readers have each text once. `order`: of the files, a permutation; as they are when None. Each reader
        has its own files where there are enough, otherwise every so many-th text. With each text comes a start at which
        it, and all after it, may be read again.
        """
        files = self.documents.num_shards
        numbers = list(range(files) if order is None else order)
        reader, readers = share.reader, share.readers
        if files >= readers:
            numbers, reader, readers = numbers[share.reader :: share.readers], 0, 1
        count, file, row = share.start
        for place, begin, texts in self.batches(numbers, file=file, row=row):
            start = count, place, begin
            for text in texts:
                if count % readers == reader:
                    yield count // readers, text, start
                count += 1


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

        self._states: list[ReaderState] | None = None
        self._turn = 0

    def resume(self, states: Sequence[ReaderState] | None, turn: int = 0) -> None:
        """Let what iterates next go on where readers were at `states`, of all processes; None: from the beginning.

        `turn`: the worker that makes the first batch, of as many workers as before. Other numbers of processes and
        workers share out what is left of the text.
        """
        self._states, self._turn = None if states is None else list(states), turn

    def __iter__(self) -> Iterator[Block]:
        return (block for block, _, _ in self.with_states())

    def with_states(self) -> Iterator[tuple[Block, int, ReaderState]]:
        """The blocks of this process or worker, each with the number of its reader and the reader's state behind it."""
        worker = torch.utils.data.get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        rank, processes = self.process
        # a loader asks its first worker first
        reader, readers = rank * workers + (number + self._turn) % workers, processes * workers
        state = (first_states(readers) if self._states is None else deal(self._states, readers))[reader]
        packer = Packer(self.block_size, self.tokenizer.eos_token_id, self.packing)
        index = itertools.count(state.index, readers)
        for place, share in enumerate(state.shares):
            for block, reached in self._blocks(share, packer):
                number = next(index)
                shares = (reached, *state.shares[place + 1 :])
                yield {**block, "index": number}, reader, ReaderState(shares, number + readers)

    def _blocks(self, share: Share, packer: "Packer") -> Iterator[tuple[Block, Share]]:
        """What one share gives, with what is left of it behind each block."""
        # shuffled files are shared out anew each time; otherwise another reading is like the last
        patience = _PATIENCE if self.buffer > 1 and self.text.documents.num_shards >= share.readers > 1 else 1
        fruitless = 0
        while not share.is_over:
            before = packer.documents
            for reached, tokens in self._tokenised(share):
                for block in packer.add(tokens[reached.tokens :]):
                    used = len(tokens) - packer.left
                    is_done = used == len(tokens)
                    behind = replace(reached, texts=reached.texts + is_done, tokens=0 if is_done else used)
                    yield block, behind
            # one that was begun earlier may be at its end
            is_fruitless = packer.documents == before and not share.texts and share.step == 1
            fruitless = fruitless + 1 if is_fruitless else 0
            if fruitless == patience:
                raise ValueError(
                    f"source {self.text.where}: reader {share.reader + 1} of {share.readers} found no text; use fewer "
                    "workers, a smaller validation_share or min_document_length, or put <|endoftext|> between documents"
                )
            share = share.next_reading()

    def _tokenised(self, share: Share) -> Iterator[tuple[Share, list[int]]]:
        """The texts of one reading as tokens, each with the share from that text on."""
        texts = ((one, text) for one, text in self._texts(share) if one.texts % share.step == share.first)
        while some := list(itertools.islice(texts, _TOGETHER)):
            encoded = tokenise(self.tokenizer, [text for _, text in some])
            for (one, _), tokens in zip(some, encoded, strict=True):
                if tokens:
                    yield one if one.texts == share.texts else replace(one, tokens=0), tokens

    def _texts(self, share: Share) -> Iterator[tuple[Share, str]]:
        if self.buffer == 1:
            for number, text, start in self.text.numbered(share):
                if number >= share.texts:
                    yield replace(share, texts=number, start=start), text
            return
        # all readers share the files out alike
        order = np.random.default_rng([self.seed, share.reading]).permutation(self.text.documents.num_shards).tolist()
        random = np.random.default_rng([self.seed, share.reading, share.reader])
        yield from _shuffled(self.text.numbered(share, order), self.buffer, share, random)


def _shuffled(
    texts: Iterator[tuple[int, str, Start]], size: int, share: Share, random: np.random.Generator
) -> Iterator[tuple[Share, str]]:
    """`texts` in random order, as far as a buffer of `size` of them allows, from `share.texts` on.

    Each with the share from it on.
    """
    held, last = buffered(size, share, random)
    places = {int(number): place for place, number in enumerate(held)}
    buffer: list[str] = [""] * len(held)
    starts: deque[tuple[int, Start]] = deque()
    left, filled = share.texts, 0
    for number, text, start in texts:
        if not starts or starts[-1][1] != start:
            starts.append((number, start))
        if number in places:
            buffer[places[number]], filled = text, filled + 1
        elif number >= size + left and last is None:
            if left % _TOGETHER == 0 or left == share.texts:
                _forget(starts, int(held.min()))
            place = int(random.integers(size))
            yield replace(share, texts=left, start=starts[0][1]), buffer[place]
            buffer[place], held[place], left = text, number, left + 1
    if not starts:
        return
    total = left + filled if last is None else share.total
    order = random.permutation(filled) if last is None else np.arange(len(held))
    for count, place in enumerate(order):
        yield replace(share, texts=left + count, total=total, start=starts[0][1]), buffer[place]


def _forget(starts: "deque[tuple[int, Start]]", oldest: int) -> None:
    """Drop all starts but one that lie before text number `oldest`."""
    while len(starts) > 1 and starts[1][0] <= oldest:
        starts.popleft()


@dataclass
class Packer:
    """Packs documents into blocks as they come, as `packing.pack` does with all of them at once.

    Attributes:
        joins: whether a block may hold several; otherwise as `packing.pad_to_blocks`. documents: how many were added.
        left: how many tokens of the last document are in no block yet.
    """

    block_size: int
    separator: int
    joins: bool = True
    documents: int = 0
    left: int = 0
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
                self.left = len(tokens) - done
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
                    self.left = 0
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
