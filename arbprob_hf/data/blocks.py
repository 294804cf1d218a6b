"""Text to blocks: loads the documents, tokenises as many as are needed, packs them."""

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerFast

from arbprob_hf.data.arguments import DataArguments
from arbprob_hf.data.corpora import load_texts
from arbprob_hf.data.documents import pieces
from arbprob_hf.data.errors import brief
from arbprob_hf.data.packing import PackedBlocks, TokenDocuments, pack

logger = logging.getLogger(__name__)

# documents tokenised at first when only some blocks are asked for; each further share is twice as large
FIRST_SHARE = 1000


@dataclass(frozen=True)
class Blocks:
    """Packed blocks for training and validation.

    `train` and `validation` have rows of `input_ids` and `document_ids`, integers (block_size,).
    `validation_bytes_per_token` is bytes of validation text per scored token (every one but a block's first):
    bits per byte = mean loss in nats / ln 2 / `validation_bytes_per_token`. `source` says in one line what
    text it is.
    """

    train: Dataset
    validation: Dataset
    validation_bytes_per_token: float
    source: str


def load_blocks(arguments: DataArguments, tokenizer: PreTrainedTokenizerFast, *, block_size: int, seed: int) -> Blocks:
    """Blocks of exactly `block_size` tokens of the text that `arguments` name.

    The same for the same text, arguments and seed. The seed chooses which training documents are used when
    `num_train_samples` is given; what is held out, and which part of it `num_val_samples` takes, never depend on it.
    Raises `ValueError` when the text gives no block, besides what loading the text raises.
    """
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 2:
        raise ValueError(f"block_size must be a whole number of at least 2 tokens, got {brief(block_size)}")
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token to put between documents; set its eos_token")
    texts = load_texts(arguments)
    train_texts = texts.train
    if arguments.num_train_samples is not None:
        train_texts = train_texts.shuffle(seed=seed, keep_in_memory=True)
    validation_texts = texts.validation
    if arguments.num_val_samples is not None:
        # the first documents need not be like the others; every run and seed takes the same ones
        validation_texts = validation_texts.shuffle(seed=0, keep_in_memory=True)
    train = _packed(train_texts, tokenizer, block_size, "num_train_samples", arguments.num_train_samples)
    validation = _packed(validation_texts, tokenizer, block_size, "num_val_samples", arguments.num_val_samples)
    logger.info(
        "text: %s; %s training and %s validation blocks of %s tokens",
        texts.source,
        len(train.input_ids),
        len(validation.input_ids),
        block_size,
    )
    return Blocks(_dataset(train), _dataset(validation), validation.bytes_per_token, texts.source)


def _packed(
    texts: Dataset, tokenizer: PreTrainedTokenizerFast, block_size: int, name: str, limit: int | None
) -> PackedBlocks:
    enough = None if limit is None else limit * block_size
    documents = _tokenised(texts, tokenizer, enough)
    blocks = pack(documents, block_size=block_size, separator=tokenizer.eos_token_id, limit=limit)
    found = len(blocks.input_ids)
    if not found:
        training = name == "num_train_samples"
        part, more = ("training", "more text") if training else ("validation", "a larger validation_share")
        raise ValueError(
            f"the {part} text has {len(documents.lengths)} document(s) of {len(documents.tokens)} tokens "
            f"together, less than one block of {block_size}; give {more} or a smaller block_size"
        )
    if limit is not None and found < limit:
        logger.warning("%s is %s, but the text gives %s blocks; all are used", name, limit, found)
    return blocks


def _tokenised(texts: Dataset, tokenizer: PreTrainedTokenizerFast, enough: int | None) -> TokenDocuments:
    """The documents in order as tokens; once they make `enough` tokens the rest is left alone."""
    # two bytes a token hold GPT-2's vocabulary
    token_type = np.min_scalar_type(len(tokenizer))
    features = Features({"input_ids": List(Value(str(token_type))), "n_bytes": Value("int64")})
    parts: list[TokenDocuments] = []
    begin, share, total = 0, len(texts) if enough is None else FIRST_SHARE, 0
    while begin < len(texts) and (enough is None or total < enough):
        rows = texts.select(range(begin, min(begin + share, len(texts)))).map(
            _tokenised_batch,
            batched=True,
            batch_size=256,
            remove_columns=["text"],
            features=features,
            fn_kwargs={"tokenizer": tokenizer},
            desc="tokenising",
        )
        parts.append(_flat(rows, token_type))
        total += len(parts[-1].tokens) + len(parts[-1].lengths)
        begin, share = begin + share, 2 * share
    return TokenDocuments(
        np.concatenate([np.empty(0, token_type), *(part.tokens for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.lengths for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.n_bytes for part in parts)]),
    )


def _tokenised_batch(
    batch: dict[str, list[str | None]], tokenizer: PreTrainedTokenizerFast
) -> dict[str, list[list[int]] | list[int]]:
    documents = [piece for text in batch["text"] for piece in pieces(text)]
    if not documents:
        return {"input_ids": [], "n_bytes": []}
    # verbose=False: that a document is longer than the context is no mistake here
    encoded = tokenizer(documents, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return {"input_ids": encoded["input_ids"], "n_bytes": [len(document.encode()) for document in documents]}


def _flat(rows: Dataset, token_type: npt.DTypeLike) -> TokenDocuments:
    table = rows.with_format("arrow")[:]
    lists = table.column("input_ids").combine_chunks()
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    tokens = lists.flatten().to_numpy(zero_copy_only=False)
    n_bytes = table.column("n_bytes").to_numpy()
    kept = lengths > 0
    return TokenDocuments(tokens.astype(token_type, copy=False), lengths[kept], n_bytes[kept])


def _dataset(blocks: PackedBlocks) -> Dataset:
    columns = {"input_ids": blocks.input_ids, "document_ids": blocks.document_ids}
    features = Features({name: List(Value(str(rows.dtype)), length=rows.shape[1]) for name, rows in columns.items()})
    return Dataset.from_dict(columns, features=features).with_format("numpy")
