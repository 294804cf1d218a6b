"""Says what run a checkpoint belongs to, and refuses to resume it as another run.

`run.json`, sealed with every checkpoint, holds what was trained on what, and how. Weights that go on with another
text, seed or mask would be neither run's, and nothing in the log would show it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import TrainingArguments

from ..data import StreamedBlocks
from ..data.shares import READERS_NAME
from ..model.masks.mask import Mask
from ..model.saved_patterns import carried_code, definitions
from .option_table import Resume, identity, with_role

logger = logging.getLogger(__name__)

RECORD_NAME = "run.json"

_SIZES = ("n_layer", "n_head", "n_embd", "n_inner", "n_positions", "vocab_size", "initializer_range")
_DROPOUTS = ("embd_pdrop", "resid_pdrop", "attn_pdrop")
_RESTORED, _SCHEDULE, _TOLD = (with_role(role) for role in (Resume.RESTORED, Resume.SCHEDULE, Resume.TOLD))
_LENGTHS = ("max_steps", "num_train_epochs")
# of which there is no best before one is asked for
_BEST = ("metric_for_best_model", "greater_is_better")
# schedules that keep what they were made with
_STATEFUL = ("reduce_lr_on_plateau", "greedy")
# of a run that trains on questions
_QUESTIONS = ("task", "layout", "given_sees")
# the text comes last: another seed or block size makes it another text, too
_BEFORE_TEXT = ("mask", "patterns", *_QUESTIONS, *_SIZES, "position_init", "seed", "data_seed", "block_size")
_REFUSED = (
    *_BEFORE_TEXT,
    "text",
    "dropout",
    "deepspeed_processes",
    *(name for name in with_role(Resume.REFUSED) if name not in _BEFORE_TEXT),
)
# the weights that a run started from, as `training.model_setup.starting_weights` names them
_START = ("init_from", "init_revision")
_OTHERWISE = "or start from its weights with --init_from in another output_dir"
_ADVICE = f"give the same to resume it, {_OTHERWISE}"
# texts of which a refusal shows where they part
_LONG = ("task", "accelerator_config")
# options of a text with an order of its own
_IDLE_IN_STREAMS = {"train_sampling_strategy", "dataloader_drop_last", "data_seed"}
# what of a stream says who reads it
_READERS = {"processes", "dataloader_num_workers"}
# what a refusal says of parts of a stream that are no numbers
_SHOWN = {
    "tokenizer": "one of the tokens and rules {:.8}",
    "state of the text": "files of the names, sizes and times of change {:.8}",
}

Record = dict[str, Any]


def describe_text(blocks: Dataset, source: str, more: Mapping[str, str] | None = None) -> Record:
    """What `blocks` (rows of `input_ids` and `document_ids`, all of one length) are, with a SHA-256 of all of them.

    `more`: what neither the network nor the trainer's options say of the run: `task`, `layout` and `given_sees` where
    it trains on questions, `position_init` where positions do not start as GPT-2's, and `source_revision`, the commit
    of a data set of the Hub.
    """
    digest = hashlib.sha256()
    for batch in blocks.with_format("numpy").iter(batch_size=1000):
        for name in ("input_ids", "document_ids"):
            digest.update(batch[name].astype("<i8").tobytes())  # (1000, T)
    return {
        "block_size": len(blocks[0]["input_ids"]),
        "blocks": len(blocks),
        "text": digest.hexdigest(),
        "source": source,
        **(more or {}),
    }


def describe_stream(
    blocks: StreamedBlocks, source: str, more: Mapping[str, str] | None = None, *, workers: int
) -> Record:
    """What `describe_text` says, of a stream: nobody reads all of it, so what decides on its blocks stands for them.

    `stream` holds these by name, so that a refusal can name what differs.
    """
    text = blocks.text
    tokenizer = [blocks.tokenizer.backend_tokenizer.to_str(), blocks.tokenizer.eos_token_id]
    decides = {
        "source": source,
        "state of the text": text.revision,
        "files": text.documents.num_shards,
        "validation_share": text.held_out,
        "min_document_length": text.least,
        "shuffle_buffer": blocks.buffer,
        "packing": blocks.packing,
        # before that was so, checkpoints had none
        **({} if blocks.packing else {"ends": "of documents are targets"}),
        "processes": blocks.process[1],
        "dataloader_num_workers": max(1, workers),
    }
    # the names are left out: checkpoints from before they were noted have this digest, too
    digest = _digest([*decides.values(), *tokenizer])
    return {
        "block_size": blocks.block_size,
        "blocks": None,
        "text": digest,
        "source": source,
        "stream": {**decides, "tokenizer": _digest(tokenizer)},
        **(more or {}),
    }


def describe_run(model: nn.Module, args: TrainingArguments, text: Mapping[str, Any] | None = None) -> Record:
    """The record of a run: sizes and mask of `model`, the options that shape training, and `text` if it is known."""
    config: Any = model.config
    options = identity(args)
    # one of the two decides how long the run is
    del options["num_train_epochs" if args.max_steps > 0 else "max_steps"]
    return {
        "format": 1,
        "mask": getattr(config, "mask", None),
        "patterns": _patterns(getattr(config, "mask_texts", [])),
        **{name: getattr(config, name, None) for name in _SIZES},
        "dropout": _dropout(config),
        "attn_implementation": getattr(config, "_attn_implementation", None),
        # it shards the state of the optimizer among them, for no others and for nothing else
        "deepspeed_processes": args.world_size if getattr(args, "deepspeed_plugin", None) else None,
        **options,
        **(text or {}),
    }


def write_record(record: Record, checkpoint: Path) -> None:
    """Put `record` into the folder of a checkpoint that is not sealed yet."""
    text = json.dumps(record, indent=1, sort_keys=True)
    (checkpoint / RECORD_NAME).write_text(text + "\n", encoding="utf-8")


def compare(checkpoint: Path, record: Record) -> None:
    """Raise ValueError, naming the first option that differs, when `checkpoint` is of another run than `record`.

    What may change, such as how long the run is, is warned of in one line.
    """
    path = checkpoint / RECORD_NAME
    if not path.is_file():
        raise ValueError(f"{checkpoint} cannot be resumed from: it has no {RECORD_NAME}; start another output_dir")
    saved, record = json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(record))
    # no other could be chosen before it was noted
    saved.setdefault("initializer_range", 0.02)
    # its folder of shards, which was not noted either
    saved.setdefault("deepspeed_processes", "some" if any(checkpoint.glob("global_step*")) else None)
    changed = {name for name in saved.keys() | record.keys() if saved.get(name) != record.get(name)}
    changed -= _not_comparable(saved, record)
    if "text" not in saved or "text" not in record:
        # a trainer that does not know what its text is cannot compare it, nor the questions about it
        changed -= {"text", "block_size", "position_init", *_QUESTIONS}
    if saved.get("stream") and record.get("stream"):
        changed -= _IDLE_IN_STREAMS
    if (checkpoint / READERS_NAME).is_file() and _differs_by_readers_alone(saved, record):
        changed.discard("text")
    if "text" in changed and changed.isdisjoint(_BEFORE_TEXT):
        _refuse_commit(checkpoint, saved, record)
        _refuse_stream(checkpoint, saved, record)
    for name in [name for name in _REFUSED if name in changed]:
        before, now = _shown(saved, name), _shown(record, name)
        if name in _LONG:
            before, now = _from_where_they_part(before, now)
        raise ValueError(f"{name}: {checkpoint.name} was trained with {before}, this run has {now}: {_ADVICE}")
    restored = [*_RESTORED, *(("lr_scheduler_type", "lr_scheduler_kwargs") if _is_stateful(saved, record) else ())]
    for name in [name for name in restored if name in changed]:
        before, now = _shown(saved, name), _shown(record, name)
        raise ValueError(f"{name}: {checkpoint.name} holds {before}, which it would go on with, not {now}: {_ADVICE}")
    for names, effect in (
        (_SCHEDULE, "the schedule or the order of the text changes from here"),
        ((*_TOLD, "attn_implementation"), "that takes effect from here, and the run is not the one it would have been"),
    ):
        told = [f"{name} {saved.get(name)} -> {record.get(name)}" for name in names if name in changed]
        if told:
            logger.warning("%s goes on with %s: %s", checkpoint.name, ", ".join(told), effect)


def with_saved_start(checkpoint: Path, text: Mapping[str, Any] | None) -> Record | None:
    """`text`, but with what `checkpoint` notes of the weights its run started from, which a resumed run never reads.

    Others that were given now are told of in one line.
    """
    saved = json.loads((checkpoint / RECORD_NAME).read_text(encoding="utf-8"))
    before, now = ({name: one[name] for name in _START if name in one} for one in (saved, text or {}))
    # a folder may be moved: what counts is what is in it
    if text is not None and before.get("init_revision") != now.get("init_revision"):
        logger.warning(
            "%s is of a run from %s, as its card goes on to say: init_from, now %s, has no effect on a resumed run",
            checkpoint.name,
            ", ".join(before.values()) or "weights that it does not name",
            ", ".join(now.values()) or "not given",
        )
    if text is None and not before:
        return None
    return {**{name: value for name, value in (text or {}).items() if name not in _START}, **before}


def _not_comparable(saved: Record, record: Record) -> set[str]:
    """The options that a checkpoint of another version does not note, and those of a best model that nobody had."""
    names = {*with_role(*Resume), "dropout", "attn_implementation"} - {*_LENGTHS}
    nowhere = {name for name in names if name not in saved or name not in record}
    return nowhere | {name for name in _BEST if saved.get(name) is None or record.get(name) is None}


def _is_stateful(*records: Record) -> bool:
    return any(record.get("lr_scheduler_type") in _STATEFUL for record in records)


def _dropout(config: Any) -> Any:
    values = {name: getattr(config, name, None) for name in _DROPOUTS}
    return values["resid_pdrop"] if len(set(values.values())) == 1 else values


def _refuse_commit(checkpoint: Path, saved: Record, record: Record) -> None:
    before, now = saved.get("source_revision"), record.get("source_revision")
    # of another data set, commits say nothing
    if before and now and before != now and saved["source"] == record["source"]:
        raise ValueError(
            f"source_revision: {checkpoint.name} was trained with commit {before} of the data set, this run would read "
            f"{now:.8}, a new commit: add --source_revision {before} to resume it, {_OTHERWISE}"
        )


def _differs_by_readers_alone(saved: Record, record: Record) -> bool:
    # others go on where these were, each in the text that it shares with them
    before, now = saved.get("stream") or {}, record.get("stream") or {}
    changed = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    return bool(changed) and changed <= _READERS


def _refuse_stream(checkpoint: Path, saved: Record, record: Record) -> None:
    before, now = saved.get("stream") or {}, record.get("stream") or {}
    for name in [name for name in now if name in before and before[name] != now[name]]:
        first, second = (f"{_SHOWN.get(name, '{}').format(parts[name]):.80}" for parts in (before, now))
        raise ValueError(f"{name}: {checkpoint.name} was trained with {first}, this run has {second}: {_ADVICE}")


def _digest(values: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _patterns(texts: Sequence[str]) -> str | None:
    # what the custom functions in the masks say, wherever they were defined; not the form of the file that holds them
    code = carried_code(map(Mask.parse, texts))
    return None if code is None else _digest(sorted(definitions(code).items()))


def _shown(record: Record, name: str) -> str:
    if name == "patterns":
        return f"functions ({record.get(name)!s:.8})"
    if name in _LONG:
        value = record.get(name)
        return json.dumps(value, sort_keys=True) if isinstance(value, dict) else str(value)
    if name != "text":
        return f"{record.get(name)!s:.60}"
    if record["blocks"] is None:
        return f"a stream of {record['source']:.40} ({record['text']:.8})"
    return f"{record['blocks']} blocks of {record['source']:.40} ({record['text']:.8})"


def _from_where_they_part(one: str, other: str) -> tuple[str, str]:
    # two long texts, shortened to what tells them apart
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = max(0, min(same - 10, max(len(one), len(other)) - 60))
    first, second = (f"{'...' * (start > 0)}{text[start : start + 60]}" for text in (one, other))
    return first, second
