"""Which documents a batch packs, in the forms that callers have for it: ids, bounds, positions that start again."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .arguments import MaskArguments, check_tokens
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
        is_cached: whether a cache was given.

    Raises:
        ValueError, TypeError: one line; for positions, where they may mean documents and may not.
    """
    named = {name: options[name] for name in (*_BOUNDS, "seq_idx") if options.get(name) is not None}
    if named and given.document_ids is not None:
        raise ValueError(f"document_ids: given together with {next(iter(named))}; pass one of them")
    if named:
        return replace(given, document_ids=_named_documents(named, sizes))
    is_open = all(x is None for x in (given.document_ids, given.mask, given.ranks, given.limits))
    if not is_open or positions is None or positions.shape[1] < 2 or type(sizes.offset) is not int or sizes.offset:
        return given
    keep = given.attention_mask
    if keep is not None and not (isinstance(keep, Tensor) and keep.shape == (sizes.batch, sizes.q_len)):
        return given
    positions = positions.expand(sizes.batch, -1)
    return replace(given, document_ids=_from_positions(positions, keep, is_cached=is_cached))


def _named_documents(named: Mapping[str, Any], sizes: Sizes) -> Tensor:
    # -> the document of each token, (B, T); what several arguments say must be the same
    found = {}
    for name, value in named.items():
        if name == "seq_idx":
            check_tokens(name, value, sizes)
            found[name] = value
        else:
            _check_bounds(name, value, sizes)
            ends, index = value[1:].to(sizes.device, torch.long), torch.arange(sizes.q_len, device=sizes.device)
            found[name] = torch.searchsorted(ends.contiguous(), index, right=True)[None]
    first, *others = found
    for other in others:
        if _is_looked_at(sizes.device) and not torch.equal(found[first].diff() != 0, found[other].diff() != 0):
            raise ValueError(f"{other}: bounds documents elsewhere than {first} does; pass one of them")
    return found[first]


def _check_bounds(name: str, value: Any, sizes: Sizes) -> None:
    if not isinstance(value, Tensor) or value.dtype not in (torch.int32, torch.int64):
        got = f"dtype {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}: expected an integer tensor (documents + 1,), got {got}")
    if value.dim() != 1 or value.numel() < 2:
        raise ValueError(f"{name}: expected shape (documents + 1,), got {tuple(value.shape)}")
    if sizes.batch != 1:
        raise ValueError(f"{name}: expected a batch of one row that holds all documents, got {sizes.batch} rows")
    if _is_looked_at(value.device):
        is_rising = bool((value.diff() >= 0).all())
        if not is_rising or int(value[0]) != 0 or int(value[-1]) != sizes.q_len:
            raise ValueError(
                f"{name}: expected bounds that rise from 0 to the number of tokens, {sizes.q_len}, "
                f"got {value.tolist()!s:.60}"
            )


def _is_looked_at(device: torch.device) -> bool:
    # an accelerator would have to finish everything before it first
    return device.type == "cpu" and not torch.compiler.is_compiling()


def _from_positions(positions: Tensor, keep: Tensor | None, *, is_cached: bool) -> Tensor | None:
    # -> the document of each token, (B or 1, T), or None where there is one in each row
    is_known = not torch.compiler.is_compiling() and positions.device.type != "meta"
    if not is_known and is_cached:
        return None
    real = torch.ones_like(positions, dtype=torch.bool) if keep is None else keep != 0
    begins = _jumps(positions, real)
    if is_known and not bool(begins.any()):
        return None
    distinct = _are_distinct(positions, real)  # (B, 1)
    if is_known:
        first = positions.gather(1, real.int().argmax(1, keepdim=True))
        packed = ((positions == 0) | (positions == first) | ~begins).all(1, keepdim=True)
        _refuse_unclear(positions, begins, packed, distinct)
        if is_cached and bool((packed & begins).any()):
            raise ValueError(
                "position_ids: start again, which means packed documents, and those cannot go on from a cache; "
                "generate each document by itself, or pass mask="
            )
        if not bool((packed & begins).any()):
            return None
    return torch.where(distinct, 0, begins.cumsum(1))


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


def _refuse_unclear(positions: Tensor, begins: Tensor, packed: Tensor, distinct: Tensor) -> None:
    # a row with jumps is one of two: documents that start again, or one document with positions of its own choice
    unclear = (begins.any(1, keepdim=True) & (packed == distinct)).squeeze(1)
    if not bool(unclear.any()):
        return
    row = int(unclear.int().argmax())
    column = int(begins[row].int().argmax())
    steps = f"{int(positions[row, column - 1])} to {int(positions[row, column])}"
    raise ValueError(
        f"position_ids: row {row} goes from {steps}, which may mean packed documents and may not; pass document_ids= "
        "for documents, otherwise mask= for who sees whom, such as mask='causal'"
    )
