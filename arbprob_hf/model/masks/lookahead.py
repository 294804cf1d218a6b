"""Whether a mask lets a token see later ones: keys and values of such a token cannot be cached before those exist."""

import functools

import torch
from torch import Tensor

from .continuation import Continued
from .custom import Custom
from .mask import And, Dense, Mask, Not, Shifted
from .patterns import Causal, Sinks
from .tiles import Grid, Sizes, Tiling

_ROWS_AT_ONCE = 128


def check_cache_valid(mask: Mask, sizes: Sizes, n_positions: int) -> None:
    """Raise where a cached token, under a resolved mask, sees one of the tokens of this pass.

    A pattern is looked at once and remembered, a custom pattern is evaluated every time. Tensors are looked at on the
    CPU only: an accelerator would have to be waited for. A tensor of this pass's queries tells nothing of earlier ones.
    """
    cut = sizes.offset
    if not isinstance(cut, int) or cut == 0 or torch.compiler.is_compiling() or is_cache_safe(mask, cut):
        return
    if holds_tensors(mask):
        if sizes.device.type != "cpu" or _starts_late(mask):
            return
        grid = Grid(range(sizes.batch), range(sizes.heads), range(cut), range(cut, sizes.filled), sizes.device)
        is_crossed = bool(mask.evaluate(grid).any())
    elif holds_rules(mask):
        heads = range(mask.count_heads())
        parts = (range(start, min(start + _ROWS_AT_ONCE, cut)) for start in range(0, cut, _ROWS_AT_ONCE))
        is_crossed = any(
            bool(mask.evaluate(Grid(range(1), heads, part, range(cut, sizes.filled))).any()) for part in parts
        )
    else:
        is_crossed = crosses(earliest_viewer(mask, length=n_positions), cut, sizes.filled)
    if is_crossed:
        raise ValueError(refusal(cut))


def refusal(cut: int) -> str:
    """What to say of a cache of `cut` tokens that should have seen later ones."""
    return (
        f"past_key_values: holds {cut} tokens that, under this mask, see later ones they have not been shown; "
        "start without it"
    )


def is_cache_safe(mask: Mask, cut: int) -> bool:
    """Whether it is plain from the expression that no token before `cut` sees a later one; False if it is not."""
    if isinstance(mask, Causal | Sinks):
        return True
    if isinstance(mask, Continued):
        return cut >= mask.prompt
    parts = mask.operands()
    if not parts or isinstance(mask, Not):
        return False
    return (any if isinstance(mask, And) else all)(is_cache_safe(part, cut) for part in parts)


def earliest_viewer(mask: Mask, *, length: int, keep: Tensor | None = None) -> Tensor:
    """The first token that sees each token before its time: long (length,); `length` where none does.

    Args:
        mask: an expression over columns.
        keep: bool (B, length), the real tokens of each row; what other queries see does not matter.
    """
    if keep is None and not holds_tensors(mask) and not holds_rules(mask):
        return _of_pattern(mask, length)
    return _search(mask, length, keep)


def crosses(first: Tensor, cut: int, length: int) -> bool:
    """Whether a token before `cut` sees one of `cut` to `length - 1`; `first` is what `earliest_viewer` returned."""
    return bool((first[cut:length] < cut).any())


def looks_ahead(first: Tensor, cut: int) -> bool:
    """Whether some token from `cut` on is seen before its time; `first` is what `earliest_viewer` returned."""
    return bool((first[cut:] < torch.arange(cut, len(first), device=first.device)).any())


@functools.lru_cache(maxsize=64)
def _of_pattern(mask: Mask, length: int) -> Tensor:
    return _search(mask, length, None)


def _search(mask: Mask, length: int, keep: Tensor | None) -> Tensor:
    # a few queries at a time, as a whole (length, length) mask may not fit; and no keys that tiles rule out
    device = None if keep is None else keep.device
    batch = range(mask.count_rows() if keep is None else keep.shape[0])
    heads = range(mask.count_heads())
    first = torch.full((length,), length, device=device)
    stops = _stops(mask, Tiling(_ROWS_AT_ONCE, len(heads), length, length, device=device), keep)
    for start, stop in zip(range(0, length, _ROWS_AT_ONCE), stops, strict=True):
        queries = range(start, min(start + _ROWS_AT_ONCE, length))
        grid = Grid(batch, heads, queries, range(start, stop), device)
        _, _, q, k = grid.indices()
        ahead = mask.evaluate(grid) & (k > q)  # (B, H, queries, keys)
        if keep is not None:
            ahead = ahead & keep[:, None, queries.start : queries.stop, None]
        seen = ahead.flatten(0, 1).any(0)  # (queries, keys)
        earliest = torch.where(seen, q[0, 0], length).amin(0)
        first[start:stop] = torch.minimum(first[start:stop], earliest)
    return first


def _stops(mask: Mask, tiling: Tiling, keep: Tensor | None) -> list[int]:
    # for each tile of queries, where the last tile of keys ends that it may see; its own tile at least
    some = mask.tiles(tiling).any
    if keep is not None:
        some = some & tiling.over_queries(keep.long())[1].bool()
    count = -(-tiling.q_len // tiling.size)
    some = some.flatten(0, 1).any(0).expand(count, count)
    numbers = torch.arange(count, device=some.device)
    last = torch.where(some, numbers, numbers[:, None]).amax(1)
    stops: list[int] = ((last + 1) * tiling.size).clamp(max=tiling.kv_len).tolist()
    return stops


def holds_tensors(mask: Mask) -> bool:
    """Whether a part of the mask is made of tensors."""
    return mask.takes_tensors or isinstance(mask, Shifted) or any(map(holds_tensors, mask.operands()))


def holds_rules(mask: Mask) -> bool:
    """Whether a part of the mask is a custom pattern, which may read anything: nothing is remembered of it."""
    return isinstance(mask, Custom) or any(map(holds_rules, mask.operands()))


def _starts_late(mask: Mask) -> bool:
    is_late = isinstance(mask, Dense) and bool(mask.first != 0)
    return is_late or any(map(_starts_late, mask.operands()))
