"""How the mask of a prompt goes on over generated tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .mask import Dense, Mask, Shifted, TensorMask
from .tiles import Grid, Tiles, Tiling


@dataclass(frozen=True, eq=False, repr=False)
class Continued(TensorMask):
    """Query q sees key k when the prompt's table says so; a later query sees what the prompt's last one sees, and
    every token generated since, itself included.

    `table`: bool (B or 1, H or 1, P, P) for a prompt of P tokens. Its indices are columns: padding does not shift it.
    """

    table: Tensor

    @property
    def prompt(self) -> int:
        """Number of tokens P of the prompt."""
        return self.table.shape[-1]

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        last = self.prompt - 1
        table = self.table.to(q.device)
        # one indexing expression: chained ones break compiled flex attention
        known = table[b * (table.shape[0] > 1), h * (table.shape[1] > 1), q.clamp(max=last), k.clamp(max=last)]
        return (known & (k <= last)) | ((k > last) & (k <= q))

    def evaluate(self, grid: Grid) -> Tensor:
        queries, keys = grid.queries, grid.keys
        # by their ends: what a compiler follows has no length
        is_one = grid.offset is None and queries.stop - queries.start == 1
        if not (is_one and queries.stop == keys.stop > self.prompt):
            return super().evaluate(grid)
        # decoding: the last row of the prompt, and every column since
        table = self.table.to(grid.device if grid.device is not None else self.table.device)
        rows = slice(grid.rows.start, grid.rows.stop) if table.shape[0] > 1 else slice(None)
        heads = slice(grid.heads.start, grid.heads.stop) if table.shape[1] > 1 else slice(None)
        known = table[rows, heads, -1:, keys.start :]
        return torch.nn.functional.pad(known, (0, keys.stop - keys.start - known.shape[-1]), value=True)

    def tiles(self, tiling: Tiling) -> Tiles:
        within = tiling.offset + tiling.q_len <= self.prompt and tiling.kv_len <= self.prompt
        return Dense(self.table).tiles(tiling) if within else super().tiles(tiling)

    def count_rows(self) -> int:
        return self.table.shape[0]

    def count_heads(self) -> int:
        return self.table.shape[1]

    def check_fits(self, *, batch: int, heads: int, q_len: int, kv_len: int, exact: bool = False) -> None:
        rows, own = self.table.shape[:2]
        if rows not in (1, batch) or own not in (1, heads):
            raise ValueError(
                f"mask: a prompt's tensor of shape {tuple(self.table.shape)} does not fit batch={batch}, heads={heads}"
            )


def continue_mask(mask: Mask, *, batch: int, length: int, device: torch.device) -> Mask:
    """The mask of a prompt as one that goes on over generated tokens.

    Every largest part made of tensors alone is written out over the prompt and goes on as `Continued`; patterns go on
    by themselves; `& | ~` and `heads` combine the two as they stand.

    Raises:
        ValueError: a tensor that does not cover the prompt exactly.
    """
    if isinstance(mask, Continued):
        return mask
    if _is_table(mask):
        heads = mask.count_heads()
        mask.check_fits(batch=batch, heads=heads, q_len=length, kv_len=length, exact=True)
        return Continued(mask.dense(length, heads=heads, device=device))
    parts = (continue_mask(part, batch=batch, length=length, device=device) for part in mask.operands())
    return mask.rebuilt(*parts)


def repeat_rows(mask: Mask, times: int) -> Mask:
    """A continued mask for a batch of which every row stands `times` times in a row, as beams do."""
    if isinstance(mask, Continued):
        return Continued(mask.table.repeat_interleave(times, dim=0)) if mask.count_rows() > 1 else mask
    return mask.rebuilt(*(repeat_rows(part, times) for part in mask.operands()))


def _is_table(mask: Mask) -> bool:
    # a pattern shifted by hand has as many slots as its tensor; a continued prompt goes on by itself
    if isinstance(mask, Shifted):
        return True
    parts = mask.operands()
    return all(map(_is_table, parts)) if parts else mask.takes_tensors and not isinstance(mask, Continued)
