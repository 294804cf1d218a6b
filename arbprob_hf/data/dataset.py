"""Text to blocks: loads the documents, tokenises as many as are needed, packs them."""

import logging
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerFast

from ..errors import check_integer
from .arguments import DataArguments
from .documents import check_copies, code_of, copies_of_text, pieces
from .packing import LENGTH, PackedBlocks, TokenDocuments, pack, pad_to_blocks
from .sources import Origin, load_streams, load_texts
from .streaming import StreamedBlocks
from .tokenizer import tokenise

logger = logging.getLogger(__name__)

# documents tokenised at first when only some blocks are needed; each further share is twice as large
FIRST_SHARE = 1000
# validation blocks of a stream where no number is given: it may have no end
STREAMED_VALIDATION = 256


@dataclass(frozen=True)
class Blocks:
    """Packed blocks for training and validation.

    `train` and `validation` have rows of `input_ids` and `document_ids`, integers (block_size,), and, where blocks are
    not packed, `length`, behind which there is padding; the separator that ends a document is within it. `train` may be
    a stream. `validation_bytes_per_token` is bytes of validation text per scored token (every one but a block's first):
    bits per byte = mean loss in nats / ln 2 / `validation_bytes_per_token`. `source` says in one line what text it is;
    `origin` where it is from.
    """

    train: Dataset | StreamedBlocks
    validation: Dataset
    validation_bytes_per_token: float
    source: str
    origin: Origin

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return len(self.validation[0]["input_ids"])

    @property
    def amount(self) -> str:
        """How many training blocks there are, in words."""
        if isinstance(self.train, StreamedBlocks):
            return "a stream of blocks"
        return f"{len(self.train):,} block{'s' if len(self.train) != 1 else ''}"


def load_blocks(
    arguments: DataArguments,
    tokenizer: PreTrainedTokenizerFast,
    *,
    block_size: int,
    seed: int,
    process: tuple[int, int] = (0, 1),
) -> Blocks:
    """Blocks of exactly `block_size` tokens of the text that `arguments` name.

    The same for the same text, arguments and seed. The seed chooses which training documents are used when
    `num_train_samples` is given; what is held out, and which part of it `num_val_samples` takes, never depend on it.
    `process`, its number and how many there are, matters to a stream alone: each reads a part of it.
    Raises `ValueError` when the text gives no block, besides what loading the text raises.
    """
    block_size = check_integer("block_size", block_size, low=2)
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token to put between documents; set its eos_token")
    if arguments.streaming:
        return _streamed(arguments, tokenizer, block_size=block_size, seed=seed, process=process)
    texts = load_texts(arguments)
    train_texts = texts.train
    if arguments.num_train_samples is not None:
        train_texts = train_texts.shuffle(seed=seed, keep_in_memory=True)
    validation_texts = texts.validation
    if arguments.num_val_samples is not None:
        # the first documents need not be like the others; every run and seed takes the same ones
        validation_texts = validation_texts.shuffle(seed=0, keep_in_memory=True)
    train = _packed(train_texts, tokenizer, arguments, block_size, training=True)
    validation = _packed(validation_texts, tokenizer, arguments, block_size)
    logger.info(
        "text: %s; %s training and %s validation blocks of %s tokens",
        texts.source,
        len(train.input_ids),
        len(validation.input_ids),
        block_size,
    )
    return Blocks(_dataset(train), _dataset(validation), validation.bytes_per_token, texts.source, texts.origin)


def _streamed(
    arguments: DataArguments,
    tokenizer: PreTrainedTokenizerFast,
    *,
    block_size: int,
    seed: int,
    process: tuple[int, int],
) -> Blocks:
    streams = load_streams(arguments)
    limit = arguments.num_val_samples or STREAMED_VALIDATION
    texts, tokens = [], 0
    for text in streams.validation():
        texts.append(text)
        # a token has at least a byte, and seldom more than eight: what is too much is left over
        tokens += len(text.encode()) // 8 + 1
        if tokens >= limit * block_size:
            break
    validation = _packed(
        Dataset.from_dict({"text": texts}), tokenizer, replace(arguments, num_val_samples=limit), block_size
    )
    train = StreamedBlocks(
        streams.train,
        tokenizer,
        block_size=block_size,
        seed=seed,
        buffer=arguments.shuffle_buffer,
        packing=arguments.packing,
        process=process,
    )
    logger.info("text: %s; %s validation blocks of %s tokens", streams.source, len(validation.input_ids), block_size)
    return Blocks(train, _dataset(validation), validation.bytes_per_token, streams.source, streams.origin)


def _packed(
    texts: Dataset,
    tokenizer: PreTrainedTokenizerFast,
    arguments: DataArguments,
    block_size: int,
    *,
    training: bool = False,
) -> PackedBlocks:
    name = "num_train_samples" if training else "num_val_samples"
    limit = getattr(arguments, name)
    enough = None if limit is None else limit * block_size
    documents = _tokenised(texts, tokenizer, arguments, enough)
    lay_out = pack if arguments.packing else pad_to_blocks
    blocks = lay_out(documents, block_size=block_size, separator=tokenizer.eos_token_id, limit=limit)
    found = len(blocks.input_ids)
    if not found:
        part, more = ("training", "more text") if training else ("validation", "a larger validation_share")
        least = arguments.min_document_length
        if least > 1 and not len(documents.lengths):
            raise ValueError(
                f"min_document_length is {least}, but no document of the {part} text has as many characters; give a "
                f"smaller one, or {more}"
            )
        more += ", a smaller min_document_length" if least > 1 else ""
        raise ValueError(
            f"the {part} text has {len(documents.lengths)} document(s) of {len(documents.tokens)} tokens "
            f"together, less than one block of {block_size}; give {more} or a smaller block_size"
        )
    if limit is not None and found < limit:
        blocks_found = f"{found} block{'s' if found != 1 else ''}"
        logger.warning("%s is %s, but the text gives %s; all are used", name, limit, blocks_found)
    return blocks


def _tokenised(
    texts: Dataset, tokenizer: PreTrainedTokenizerFast, arguments: DataArguments, enough: int | None
) -> TokenDocuments:
    """The documents in order as tokens; once they make `enough` tokens the rest is left alone."""
    # two bytes a token hold GPT-2's vocabulary
    token_type = np.min_scalar_type(len(tokenizer))
    features = Features({"input_ids": List(Value(str(token_type))), "n_bytes": Value("int64")})
    given = {
        "tokenizer": tokenizer,
        "least": arguments.min_document_length,
        "code": code_of("dataset", "documents", "tokenizer"),
    }
    parts: list[TokenDocuments] = []
    begin, share, total = 0, len(texts) if enough is None else FIRST_SHARE, 0
    while begin < len(texts) and (enough is None or total < enough):
        with copies_of_text():
            rows = texts.select(range(begin, min(begin + share, len(texts)))).map(
                _tokenised_batch,
                batched=True,
                batch_size=256,
                remove_columns=["text"],
                features=features,
                fn_kwargs=given,
                num_proc=min(arguments.preprocessing_num_workers, len(texts))
                if arguments.preprocessing_num_workers > 1
                else None,
                desc="tokenising",
            )
        check_copies(rows)
        parts.append(_flat(rows, token_type))
        total += len(parts[-1].tokens) + len(parts[-1].lengths)
        begin, share = begin + share, 2 * share
    return TokenDocuments(
        np.concatenate([np.empty(0, token_type), *(part.tokens for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.lengths for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.n_bytes for part in parts)]),
    )


def _tokenised_batch(
    batch: dict[str, list[str | None]], tokenizer: PreTrainedTokenizerFast, least: int, code: str
) -> dict[str, list[list[int]] | list[int]]:
    documents = [piece for text in batch["text"] for piece in pieces(text, least)]
    if not documents:
        return {"input_ids": [], "n_bytes": []}
    encoded = tokenise(tokenizer, documents)
    return {"input_ids": encoded, "n_bytes": [len(document.encode()) for document in documents]}


def _flat(rows: Dataset, token_type: npt.DTypeLike) -> TokenDocuments:
    table = rows.with_format("arrow")[:]
    lists = table.column("input_ids").combine_chunks()
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    tokens = lists.flatten().to_numpy(zero_copy_only=False)
    n_bytes = table.column("n_bytes").to_numpy()
    has_tokens = lengths > 0
    return TokenDocuments(tokens.astype(token_type, copy=False), lengths[has_tokens], n_bytes[has_tokens])


def _dataset(blocks: PackedBlocks) -> Dataset:
    columns = {"input_ids": blocks.input_ids, "document_ids": blocks.document_ids}
    features = Features({name: List(Value(str(rows.dtype)), length=rows.shape[1]) for name, rows in columns.items()})
    if blocks.lengths is not None:
        columns[LENGTH], features[LENGTH] = blocks.lengths, Value(str(blocks.lengths.dtype))
    return Dataset.from_dict(columns, features=features).with_format("numpy")
