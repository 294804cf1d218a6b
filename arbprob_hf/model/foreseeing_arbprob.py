"""Whether a mask lets a token see later ones: keys and values of such a token cannot be cached before those exist."""

import functools

import torch
from torch import Tensor

from .continuing_arbprob import Continued
from .masking_arbprob import And, Dense, Mask, Not, Shifted
from .patterns_arbprob import Causal
from .resolving_arbprob import Sizes
from .tiling_arbprob import Grid

_ROWS_AT_ONCE = 128


def check_past(mask: Mask, sizes: Sizes, n_positions: int) -> None:
    """Raise where a cached token, under a resolved mask, sees one of the tokens of this pass.

    A pattern is looked at once and remembered. Tensors are looked at on the CPU only: an accelerator would have to be
    waited for. A tensor of this pass's queries tells nothing of earlier ones.
    """
    cut = sizes.offset
    if not isinstance(cut, int) or cut == 0 or torch.compiler.is_compiling() or is_settled(mask, cut):
        return
    if holds_tensors(mask):
        if sizes.device.type != "cpu" or _starts_late(mask):
            return
        grid = Grid(range(sizes.batch), range(sizes.heads), range(cut), range(cut, sizes.filled), sizes.device)
        is_crossed = bool(mask.written(grid).any())
    else:
        is_crossed = crosses(foreseen(mask, length=n_positions), cut, sizes.filled)
    if is_crossed:
        raise ValueError(refusal(cut))


def refusal(cut: int) -> str:
    """What to say of a cache of `cut` tokens that should have seen later ones."""
    return (
        f"past_key_values: holds {cut} tokens that, under this mask, see later ones they have not been shown; "
        "start without it"
    )


def is_settled(mask: Mask, cut: int) -> bool:
    """Whether it is plain from the expression that no token before `cut` sees a later one; False if it is not."""
    if isinstance(mask, Causal):
        return True
    if isinstance(mask, Continued):
        return cut >= mask.prompt
    parts = mask.operands()
    if not parts or isinstance(mask, Not):
        return False
    return (any if isinstance(mask, And) else all)(is_settled(part, cut) for part in parts)


def foreseen(mask: Mask, *, length: int, keep: Tensor | None = None) -> Tensor:
    """The first token that sees each token before its time: long (length,); `length` where none does.

    Args:
        mask: an expression over columns.
        keep: bool (B, length), the real tokens of each row; what other queries see does not matter.
    """
    if keep is None and not holds_tensors(mask):
        return _of_pattern(mask, length)
    return _search(mask, length, keep)


def crosses(first: Tensor, cut: int, length: int) -> bool:
    """Whether a token before `cut` sees one of `cut` to `length - 1`; `first` is what `foreseen` returned."""
    return bool((first[cut:length] < cut).any())


def looks_ahead(first: Tensor, cut: int) -> bool:
    """Whether some token from `cut` on is seen before its time; `first` is what `foreseen` returned."""
    return bool((first[cut:] < torch.arange(cut, len(first), device=first.device)).any())


@functools.lru_cache(maxsize=64)
def _of_pattern(mask: Mask, length: int) -> Tensor:
    return _search(mask, length, None)


def _search(mask: Mask, length: int, keep: Tensor | None) -> Tensor:
    # a few queries at a time, as a whole (length, length) mask may not fit
    device = None if keep is None else keep.device
    first = torch.full((length,), length, device=device)
    for start in range(0, length, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, length)
        batch = mask.count_rows() if keep is None else keep.shape[0]
        grid = Grid(range(batch), range(mask.count_heads()), range(start, stop), range(length), device)
        _, _, q, k = grid.indices()
        ahead = mask.written(grid) & (k > q)  # (B, H, queries, T)
        if keep is not None:
            ahead = ahead & keep[:, None, start:stop, None]
        seen = ahead.flatten(0, 1).any(0)  # (queries, T)
        earliest = torch.where(seen, q[0, 0], length).amin(0)
        first = torch.minimum(first, earliest)
    return first


def holds_tensors(mask: Mask) -> bool:
    """Whether a part of the mask is made of tensors."""
    return mask.takes_tensors or isinstance(mask, Shifted) or any(map(holds_tensors, mask.operands()))


def _starts_late(mask: Mask) -> bool:
    is_late = isinstance(mask, Dense) and bool(mask.first != 0)
    return is_late or any(map(_starts_late, mask.operands()))
