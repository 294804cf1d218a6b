"""Which inputs can influence which outputs after several layers: boolean powers of a mask, 64 pairs to a word.

A residual stream carries every slot's own input along, so one layer's reach is the mask or the identity; layers
compose as boolean matrices do. Rows are kept as bits and multiplied eight keys at a time, the sums of every eight rows
looked up in a table (Arlazarov, Dinic, Kronrod and Faradzhev 1970), which is faster than multiplying floats.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def reach_of(seen: Tensor, layers: int | None) -> Tensor:
    """Which inputs can influence which outputs of `layers` layers under one mask, heads united.

    Args:
        seen: bool (B, T, T), True where a query sees a key in some head.
        layers: at least 1, or None for any number of them: the transitive closure.

    Returns:
        bool (B, T, T), True at (b, q, k) where the output of q can depend on the input of k.
    """
    return torch.stack([_unpacked(_power(_packed(row), layers), row) for row in seen])


def reach_through(steps: Sequence[Tensor]) -> Tensor:
    """The same for one mask per layer, first layer first: bool (B, T, T) each; the last layer reads first."""
    alike = zip(*steps, strict=True)  # the layers of each batch row
    return torch.stack([_unpacked(_product([_packed(row) for row in rows]), rows[0]) for rows in alike])


def _power(step: Tensor, layers: int | None) -> Tensor:
    if layers == 1:
        return step
    squared = _composed(step, step)
    if squared.equal(step):
        return step  # more layers add nothing
    if layers is None:
        return _power(squared, None)
    power = _power(squared, layers // 2)
    return _composed(power, step) if layers % 2 else power


def _product(steps: list[Tensor]) -> Tensor:
    total = steps[0]
    for step in steps[1:]:
        total = _composed(step, total)
    return total


def _composed(outer: Tensor, inner: Tensor) -> Tensor:
    # (N, N / 64) twice -> (N, N / 64): row q of the result is the union of the inner rows that outer row q names
    codes = outer.view(torch.uint8).T.int().contiguous()  # (N / 8, N): which of eight rows each query takes
    unions = _unions(inner.unflatten(0, (-1, 8)))
    total = unions[0].index_select(0, codes[0])
    part = torch.empty_like(total)
    for own, code in zip(unions[1:], codes[1:], strict=True):
        torch.index_select(own, 0, code, out=part)
        total |= part
    return total


def _unions(rows: Tensor) -> Tensor:
    # (G, 8, W) -> (G, 256, W): the union of each of the 256 subsets of eight rows
    table = torch.zeros(len(rows), 256, rows.shape[-1], dtype=rows.dtype, device=rows.device)
    for bit in range(8):
        size = 1 << bit
        torch.bitwise_or(table[:, :size], rows[:, bit : bit + 1], out=table[:, size : 2 * size])
    return table


def _packed(seen: Tensor) -> Tensor:
    # bool (T, T) -> int64 (N, N / 64) with the identity, N the next multiple of 64
    more = -len(seen) % 64
    step = seen | torch.eye(len(seen), dtype=torch.bool, device=seen.device)
    bits = torch.nn.functional.pad(step, (0, more, 0, more)).to(torch.uint8).unflatten(1, (-1, 8))
    codes = (bits << torch.arange(8, dtype=torch.uint8, device=seen.device)).sum(-1, dtype=torch.uint8)
    return codes.view(torch.int64)


def _unpacked(rows: Tensor, like: Tensor) -> Tensor:
    bits = rows.view(torch.uint8)[..., None] >> torch.arange(8, dtype=torch.uint8, device=rows.device)
    return (bits & 1).bool().flatten(1)[: len(like), : len(like)]
