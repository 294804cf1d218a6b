"""What a mask argument of `forward` means: one function decides, everything else follows its answer."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .foreign import from_foreign
from .keep import keep_mask
from .mask import And, Dense, Mask, on_device
from .tensors import Documents, Order, Padding
from .text import kind_of
from .tiles import Sizes


@dataclass(frozen=True)
class MaskArguments:
    """The mask arguments of `forward`, as given."""

    attention_mask: Tensor | Mask | str | None = None
    mask: Tensor | Mask | str | None = None
    ranks: Tensor | None = None
    limits: Tensor | None = None
    document_ids: Tensor | None = None


def resolve_mask(default: Mask, given: MaskArguments, sizes: Sizes) -> Mask:
    """Decide what the mask arguments mean (DESIGN, section 2).

    Args:
        default: the pattern that holds when no argument replaces it: `config.mask`.
        given: the arguments of `forward`.
        sizes: the shape of this pass.

    Returns:
        One mask over absolute token indices; every condition that was given is a part of it.

    Raises:
        ValueError, TypeError: one line naming the argument, what was expected, what came and what to do.
    """
    keep, whole = _split_attention_mask(given, sizes)
    name = "mask" if whole is None else "attention_mask"
    mask = _explicit(given.mask if whole is None else whole, sizes, name)
    if given.ranks is not None or given.limits is not None:
        order = _order(given, sizes)
        mask = order if mask is None else And(order, mask)
    if mask is None:
        mask = default
        _check_fits(mask, sizes)
    if given.ranks is not None and given.document_ids is not None:
        # slots of an order stand in any order, those of a document too
        _check_documents(given.document_ids, sizes)
        mask, given = And(mask, Documents(given.document_ids)), replace(given, document_ids=None)
    restarts = None if given.document_ids is None else _restarts(given.document_ids, sizes)
    if keep is None and restarts is None:
        return mask
    mask = mask.shifted(_starts(keep, restarts, sizes))
    if restarts is not None:
        mask = And(mask, Documents(restarts.cumsum(1)))
    return mask if keep is None else And(mask, Padding(_padded(keep, sizes)))


def _split_attention_mask(given: MaskArguments, sizes: Sizes) -> tuple[Tensor | None, Tensor | Mask | str | None]:
    # -> (keep (B, T_kv), the whole truth)
    value = given.attention_mask
    if value is None:
        return None, None
    if isinstance(value, Tensor) and value.dim() == 2:
        return _keep(value, sizes), None
    if given.mask is not None:
        raise ValueError(
            "mask: given together with an attention_mask that is a mask itself; combine them with & and pass one"
        )
    if isinstance(value, Tensor) and any(x is not None for x in (given.ranks, given.limits, given.document_ids)):
        raise ValueError(
            f"attention_mask: a mask of shape {tuple(value.shape)} is the whole truth; pass it as mask= to AND it with "
            "ranks, limits or document_ids"
        )
    return None, value


def _keep(value: Tensor, sizes: Sizes) -> Tensor | None:
    if tuple(value.shape) == (sizes.batch, sizes.kv_len):
        # every column of a static cache: what stands behind the tokens so far is not looked at
        value = value[:, : sizes.filled]
    shape, expected = tuple(value.shape), (sizes.batch, sizes.filled)
    # inside a compiled static cache the number of filled columns is not known
    fits = shape == expected if isinstance(sizes.offset, int) else shape[0] == sizes.batch
    if not fits:
        hint = "; is it a mask of queries and keys? pass it as mask=" if shape[0] == shape[1] else ""
        hint = hint or ("; it covers the cached tokens too" if sizes.filled > sizes.q_len else "")
        raise ValueError(f"attention_mask: expected shape (batch, keys) = {expected}, got {shape}{hint}")
    _check_device("attention_mask", value, sizes)
    keep = keep_mask(value, "attention_mask", dims=(2,))
    # all tokens real: the common case, and the fast path
    return None if not torch.compiler.is_compiling() and bool(keep.all()) else keep


def _explicit(value: Tensor | Mask | str | None, sizes: Sizes, name: str) -> Mask | None:
    if value is None:
        return None
    if isinstance(value, str):
        if torch.compiler.is_compiling():
            raise ValueError(
                f"{name}: text cannot be read inside torch.compile; pass Mask.parse({value!r:.60}) instead"
            )
        # what has a text holds no tensors that could lie elsewhere
        mask = Mask.parse(value)
        _check_fits(mask, sizes)
        return mask
    if not isinstance(value, Tensor | Mask):
        value = from_foreign(value)
    if isinstance(value, Mask):
        _check_fits(value, sizes)
        # once a pass, and not in every tile; flex's compiled rule could not move them at all
        return value if torch.compiler.is_compiling() else on_device(value, sizes.device)
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, a Mask, its text or None, got {kind_of(value)}")
    return Dense(_table(value, sizes, name), sizes.offset)


def _check_fits(mask: Mask, sizes: Sizes) -> None:
    mask.check_fits(batch=sizes.batch, heads=sizes.heads, q_len=sizes.filled, kv_len=sizes.filled, exact=True)


_AXES = {2: "(queries, keys)", 3: "(batch or 1, queries, keys)", 4: "(batch or 1, heads or 1, queries, keys)"}


def _table(value: Tensor, sizes: Sizes, name: str) -> Tensor:
    _check_device(name, value, sizes)
    keep = keep_mask(value, name, dims=(2, 3, 4))
    lead = (sizes.batch, sizes.heads)[: keep.dim() - 2]
    expected = (*lead, sizes.q_len, sizes.filled)
    fits_lead = all(got in (1, want) for got, want in zip(keep.shape, lead, strict=False))
    if not fits_lead or tuple(keep.shape[-2:]) != expected[-2:]:
        is_padding = tuple(keep.shape) == (sizes.batch, sizes.filled)
        hint = "; which tokens exist goes in as attention_mask=" if is_padding else ""
        raise ValueError(f"{name}: expected shape {_AXES[keep.dim()]} = {expected}, got {tuple(value.shape)}{hint}")
    # the head axis is inserted by hand: torch would read (B, T, T) as per head when B = H
    if keep.dim() == 2:
        return keep[None, None]  # (1, 1, T_q, T_kv)
    return keep[:, None] if keep.dim() == 3 else keep  # (B or 1, H or 1, T_q, T_kv)


def _order(given: MaskArguments, sizes: Sizes) -> Mask:
    if given.ranks is None:
        raise ValueError("limits: given without ranks; pass both, or ranks alone (limits default to them)")
    check_tokens("ranks", given.ranks, sizes)
    if given.limits is None:
        return Order(given.ranks)
    check_tokens("limits", given.limits, sizes)
    return Order(given.ranks, given.limits)


def _restarts(ids: Tensor, sizes: Sizes) -> Tensor:
    _check_documents(ids, sizes)
    first = torch.ones_like(ids[:, :1], dtype=torch.bool)
    return torch.cat([first, ids[:, 1:] != ids[:, :-1]], dim=1)  # (B, T)


def _check_documents(ids: Tensor, sizes: Sizes) -> None:
    if sizes.filled != sizes.q_len or not isinstance(sizes.offset, int):
        raise ValueError(
            "document_ids: packed documents cannot go on from a cache; generate each document by itself, or pass mask="
        )
    check_tokens("document_ids", ids, sizes)


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_tokens(name: str, value: Tensor, sizes: Sizes) -> None:
    """Raise unless the value is an integer tensor (B, T_kv) on the device of the pass."""
    expected = (sizes.batch, sizes.filled)
    if not isinstance(value, Tensor) or value.dtype not in _INTEGERS:
        got = f"dtype {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}: expected an integer tensor of shape (batch, tokens) = {expected}, got {got}")
    if tuple(value.shape) != expected:
        raise ValueError(f"{name}: expected shape (batch, tokens) = {expected}, got {tuple(value.shape)}")
    _check_device(name, value, sizes)


def _check_device(name: str, value: Tensor, sizes: Sizes) -> None:
    if value.device != sizes.device:
        raise ValueError(
            f"{name}: expected device {sizes.device} (that of the input), got {value.device}; move it with .to()"
        )


def _starts(keep: Tensor | None, restarts: Tensor | None, sizes: Sizes) -> Tensor:
    # patterns count tokens of their document, not columns: slot t is token t - starts[b, t]
    known = restarts if keep is None else keep
    assert known is not None
    keep = torch.ones_like(known) if keep is None else keep
    count = keep.long().cumsum(1)  # (B, T)
    before = torch.zeros_like(count)
    if restarts is not None:
        before = torch.where(restarts, count - keep.long(), 0).cummax(1).values
    index = torch.arange(count.shape[1], device=count.device)
    return _padded(index - (count - before - 1), sizes)


def _padded(values: Tensor, sizes: Sizes) -> Tensor:
    # a static cache may have more columns than tokens so far: (B, T) -> (B, T_kv)
    return torch.nn.functional.pad(values, (0, sizes.filled - values.shape[1]))
