"""Which documents a batch packs, in the forms that callers have for it: ids, bounds, positions that start again."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .arguments import MaskArguments, check_tokens
from .deferred import check_when_run
from .tiles import Sizes

_BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k")
# the forms that are no named arguments of forward; with bounds come the lengths that flash attention wants
PACKING = (*_BOUNDS, "max_length_q", "max_length_k", "seq_idx")


def read_packing(
    given: MaskArguments,
    options: Mapping[str, Any],
    positions: Tensor | None,
    sizes: Sizes,
    *,
    is_cached: bool = False,
) -> MaskArguments:
    """The mask arguments with the documents that are packed, whatever says so, as `document_ids`.

    Args:
        options: further arguments of `forward`, among them `cu_seq_lens_q` and `cu_seq_lens_k`, integer
            (documents + 1,), where the documents of the one row of a batch begin and the last one ends, or `seq_idx`,
            integer (B, T), the document of each token.
        positions: long (B or 1, T), the `position_ids` that were given. Where nothing else says who sees whom, those
            that start again mean packed documents, as everywhere in transformers; and also beside a 2-D
            `attention_mask`, where transformers would let documents see one another.
        is_cached: whether a cache was given; documents cannot go on from one.

    Raises:
        ValueError, TypeError: one line; for positions, where they may mean documents and may not. RuntimeError: the
            same of values, from a compiled graph.
    """
    named = {name: options[name] for name in (*_BOUNDS, "seq_idx") if options.get(name) is not None}
    if named and given.document_ids is not None:
        raise ValueError(f"document_ids: given together with {next(iter(named))}; pass one of them")
    if named:
        return replace(given, document_ids=_named_documents(named, sizes))
    is_open = all(x is None for x in (given.document_ids, given.mask, given.ranks, given.limits))
    if not is_open or positions is None or not _says_which_exist(given.attention_mask, sizes):
        return given
    if positions.shape[1] == 1 and not (_is_looked_at(sizes.device) and sizes.device.type == "cpu"):
        # a step of generation, where an accelerator would have to be waited for
        return given
    positions, keep = positions.expand(sizes.batch, -1), given.attention_mask
    real = _columns(keep, sizes) if isinstance(keep, Tensor) else None
    if sizes.filled != sizes.q_len:
        _refuse_going_back(positions, real, sizes)
    if positions.shape[1] == 1:
        return given
    real = None if real is None else _own(real, sizes)
    return replace(given, document_ids=documents_of(positions, real, is_cached=is_cached))


def _says_which_exist(keep: Any, sizes: Sizes) -> bool:
    # what else stands for a mask is the whole truth, or refused elsewhere
    if not isinstance(keep, Tensor):
        return keep is None
    is_known = isinstance(sizes.offset, int)
    fits = keep.dim() == 2 and (not is_known or keep.shape[1] in (sizes.filled, sizes.kv_len))
    return fits and keep.shape[0] == sizes.batch and keep.device == sizes.device


def _columns(keep: Tensor, sizes: Sizes) -> Tensor:
    # which columns hold tokens, those of a static cache included: bool (B, T_kv)
    return torch.nn.functional.pad(keep, (0, sizes.kv_len - keep.shape[1])) != 0


def _own(real: Tensor, sizes: Sizes) -> Tensor:
    # those of this pass, of (B, T_kv): bool (B, T)
    return real if sizes.kv_len == sizes.q_len else real[:, _index(sizes)]


def _index(sizes: Sizes) -> Tensor:
    return torch.arange(sizes.q_len, device=sizes.device) + sizes.offset


def _named_documents(named: Mapping[str, Any], sizes: Sizes) -> Tensor:
    # -> the document of each token, (B, T); what several arguments say must be the same
    found = {}
    for name, value in named.items():
        if name == "seq_idx":
            check_tokens(name, value, sizes)
            found[name] = value
        else:
            _check_bounds(name, value, sizes)
            ends, index = value.to(sizes.device, torch.long), torch.arange(sizes.q_len, device=sizes.device)
            found[name] = torch.searchsorted(ends.contiguous(), index, right=True)[None]
    first, *others = found
    for other in others:
        are_alike = ((found[first].diff() != 0) == (found[other].diff() != 0)).all()
        message = f"{other}: bounds documents elsewhere than {first} does; pass one of them"
        if not _is_looked_at(sizes.device):
            check_when_run(are_alike, message)
        elif not bool(are_alike):
            raise ValueError(message)
    return found[first]


def _check_bounds(name: str, value: Any, sizes: Sizes) -> None:
    if not isinstance(value, Tensor) or value.dtype not in (torch.int32, torch.int64):
        got = f"dtype {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}: expected an integer tensor (documents + 1,), got {got}")
    if value.dim() != 1 or value.numel() < 2:
        raise ValueError(f"{name}: expected shape (documents + 1,), got {tuple(value.shape)}")
    if sizes.batch != 1:
        raise ValueError(f"{name}: expected a batch of one row that holds all documents, got {sizes.batch} rows")
    are_right = (value.diff() >= 0).all() & (value[0] == 0) & (value[-1] == sizes.q_len)
    message = f"{name}: expected bounds that rise from 0 to the number of tokens, {sizes.q_len}"
    if not _is_looked_at(value.device):
        check_when_run(are_right, message)
    elif not bool(are_right):
        raise ValueError(f"{message}, got {value.tolist()!s:.60}")


def _is_looked_at(device: torch.device) -> bool:
    return device.type != "meta" and not torch.compiler.is_compiling()


_OF_ITS_OWN = (
    "position_ids: start again, which means packed documents, and those cannot go on from a cache; generate each "
    "document by itself, or pass mask="
)


def _refuse_going_back(positions: Tensor, real: Tensor | None, sizes: Sizes) -> None:
    # a position that as many cached tokens have passed already starts again, or belongs to no text in order
    counts: Any = sizes.offset
    is_back = positions < counts
    if real is not None:
        cached = torch.arange(sizes.kv_len, device=sizes.device) < sizes.offset
        counts = (real & cached).sum(1, keepdim=True)  # (B, 1)
        is_back = (positions < counts) & _own(real, sizes)
    if not _is_looked_at(sizes.device):
        check_when_run(~is_back.any(), _another("go back to what is cached"))
    elif bool(is_back.any()):
        row, column = is_back.nonzero()[0].tolist()
        count = int(sizes.offset) if real is None else int(counts[row])
        steps = f"row {row} goes to {int(positions[row, column])} after {count} cached tokens"
        raise ValueError(_another(steps))


def _another(what: str) -> str:
    return (
        f"position_ids: {what}, which may mean another document, and none can go on from a cache; pass attention_mask= "
        "for padding, otherwise mask= for who sees whom, such as mask='causal'"
    )


def documents_of(positions: Tensor, real: Tensor | None, *, is_cached: bool) -> Tensor | None:
    """The document of each token by its position, long (B, T), or None where each row is one.

    Args:
        positions: long (B, T). real: bool (B, T), which are tokens, or None when all are.
        is_cached: whether documents cannot be, as a cache is read or filled.

    Raises:
        ValueError: positions that may mean documents and may not, or documents beside a cache. RuntimeError: the same
            from a compiled graph.
    """
    is_known = _is_looked_at(positions.device)
    real = torch.ones_like(positions, dtype=torch.bool) if real is None else real
    begins = _jumps(positions, real)  # (B, T)
    if is_known and not bool(begins.any()):
        return None
    distinct = _are_distinct(positions, real)  # (B, 1)
    first = positions.gather(1, real.int().argmax(1, keepdim=True))
    packed = ((positions == 0) | (positions == first) | ~begins).all(1, keepdim=True)
    _refuse_unclear(positions, begins, _are_unclear(real, begins, packed, distinct))
    starts = packed & begins
    if is_cached:
        if not is_known:
            check_when_run(~starts.any(), _OF_ITS_OWN)
        elif bool(starts.any()):
            raise ValueError(_OF_ITS_OWN)
        return None
    return None if is_known and not bool(starts.any()) else torch.where(packed, begins.cumsum(1), 0)


def _jumps(positions: Tensor, real: Tensor) -> Tensor:
    # tokens that follow neither the column before nor the real token before, bool (B, T)
    index = torch.arange(positions.shape[1], device=positions.device)
    pad = torch.nn.functional.pad
    newest = torch.where(real, index, -1).cummax(1).values
    before = pad(newest[:, :-1], (1, 0), value=-1)  # the real token before, -1 for none
    follows = positions == positions.gather(1, before.clamp(min=0)) + 1
    follows |= positions == pad(positions[:, :-1], (1, 0)) + 1
    return real & (before >= 0) & ~follows


def _are_distinct(positions: Tensor, real: Tensor) -> Tensor:
    # whether no two real tokens of a row have one position, bool (B, 1)
    highest = torch.iinfo(positions.dtype).max
    ordered = positions.masked_fill(~real, highest).sort(1).values
    return ((ordered.diff() != 0) | (ordered[:, 1:] == highest)).all(1, keepdim=True)


def _are_unclear(real: Tensor, begins: Tensor, packed: Tensor, distinct: Tensor) -> Tensor:
    # a row with jumps is one of two: documents that start again, or one document with positions of its own choice;
    # where many tokens follow the one before, these may be parts of documents, bool (B,)
    tokens, jumps = real.sum(1, keepdim=True), begins.sum(1, keepdim=True)
    in_runs = 3 * (tokens - 1 - jumps) >= tokens
    return ((jumps > 0) & ((packed == distinct) | (distinct & in_runs))).squeeze(1)


def _refuse_unclear(positions: Tensor, begins: Tensor, unclear: Tensor) -> None:
    if not _is_looked_at(positions.device):
        check_when_run(~unclear.any(), _unclear("jump"))
    elif bool(unclear.any()):
        row = int(unclear.int().argmax())
        column = int(begins[row].int().argmax())
        steps = f"{int(positions[row, column - 1])} to {int(positions[row, column])}"
        raise ValueError(_unclear(f"row {row} goes from {steps}"))


def _unclear(what: str) -> str:
    return (
        f"position_ids: {what}, which may mean packed documents and may not; pass document_ids= for documents, "
        "otherwise mask= for who sees whom, such as mask='causal'"
    )
