"""After how many layers each input reaches each output: what pictures and descriptions of masks are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import check_integer
from ..model.masks.foreign import as_mask
from ..model.masks.mask import Mask
from ..model.masks.patterns import Heads
from ..model.masks.reach import reach_through

AnyMask = Mask | str | Tensor
# a slot that does not attend to itself still carries its own input along
OWN = -1
# a picture has no more points than that, and reach takes the cube of it
LONGEST = 4096
MOST_LAYERS = 1000
# layers times pairs that are followed: a few seconds of work
MOST_STEPS = 2**30


@dataclass(frozen=True, eq=False)
class Sheet:
    """One square of a picture: a caption, and for each query and key after how many layers the key reaches it.

    `depth`: int16 (T_q, T_kv): 0 never, 1 allowed, n after n layers, OWN the query's own input. Row 0 is query `first`.
    """

    caption: str
    depth: Tensor
    first: int = 0

    @cached_property
    def later(self) -> Tensor:
        """The keys after the query that reach it: bool (T_q, T_kv)."""
        return (self.depth > 0).triu(1 + self.first)

    def levels(self, *, later: bool) -> list[int]:
        """The depths that occur, ascending and without 0: those of keys after the query, or those of the others."""
        counts = torch.bincount(self.depth[self.later == later].int() - OWN)
        return [level + OWN for level in true_indices(counts) if level + OWN != 0]


def read_masks(mask: AnyMask | Sequence[AnyMask]) -> list[Mask]:
    """Masks, their texts or 0-1 tensors as masks: one, or a list for the layers, first layer first.

    Raises:
        TypeError: something else. ValueError: an unreadable text or tensor, or an empty list.
    """
    given = list(mask) if isinstance(mask, list | tuple) else [mask]
    if not given:
        raise ValueError("mask: expected one mask, or one per layer, got an empty list")
    return [as_mask(one) for one in given]


def sheets(masks: Sequence[Mask], length: int | None = None, *, layers: int | None = None, row: int = 0) -> list[Sheet]:
    """What there is to draw of a mask, or of one mask per layer: equal heads and equal layers share a sheet.

    Args:
        masks: as `read_masks` returns them.
        length: number of tokens; that of the tensor when None.
        layers: how many layers to follow the reach through; None draws the masks alone. Several masks take turns.
        row: which row of the batch to draw.

    Returns:
        A sheet per different head and layer. With `layers`, the reach is on that sheet if it is the only one, else on
        a separate sheet at the end.

    Raises:
        ValueError: a length, number of layers or row that cannot be.
    """
    allowed = [allowed_pairs(mask, length, row=row) for mask in masks]
    plain = _grouped(masks, allowed)
    if layers is None:
        return plain
    steps = [heads.any(0) for heads in allowed]  # heads are united: what one relays, all may read in the next layer
    depth = first_layers(steps, layers)
    if len(plain) == 1:
        return [Sheet(plain[0].caption, depth)]
    return [*plain, Sheet(f"reach through {layers_text(layers)}", depth)]


def allowed_pairs(mask: Mask, length: int | None = None, *, row: int = 0) -> Tensor:
    """One batch row of a mask written out: bool (H, T_q, T_kv), H the number of heads that differ.

    Raises:
        ValueError: a length or row that cannot be. TypeError: one that is not an integer.
    """
    tensor: Any = getattr(mask, "tensor", None)
    if length is None and tensor is None:
        raise ValueError("length: expected the number of tokens, got None; only a tensor has a length")
    q_len, kv_len = (length, length) if length is not None else tensor.shape[-2:]
    for size in (q_len, kv_len):
        check_integer("length", size, low=1, high=LONGEST)
    check_integer("row", row, low=0, high=mask.count_rows() - 1)
    return mask.dense(q_len, kv_len, device="cpu")[row]


def first_layers(steps: Sequence[Tensor], layers: int) -> Tensor:
    """After how many layers each input first reaches each output; several `steps` take turns.

    Args:
        steps: bool (T, T) each, which keys a layer lets each query see.

    Returns:
        int16 (T, T): 0 never, 1 allowed in some layer, n relayed and there after n layers, OWN carried along only.

    Raises:
        ValueError: steps that are not square, or a number of layers that is not a multiple of theirs.
    """
    check_integer("layers", layers, low=1, high=MOST_LAYERS)
    queries, keys = steps[0].shape
    if queries != keys:
        raise ValueError(f"layers: reach needs as many queries as keys, got a mask of {queries} x {keys}; leave it out")
    if layers * queries * keys > MOST_STEPS:
        raise ValueError(
            f"layers: expected at most {MOST_STEPS // queries**2} for {queries} tokens, got {layers}; follow fewer "
            "layers, or a shorter length"
        )
    if layers % len(steps):
        raise ValueError(f"layers: expected a multiple of the {len(steps)} masks, which take turns, got {layers}")
    own = torch.eye(queries, dtype=torch.bool)
    reached, depth, quiet = own, torch.zeros(queries, keys, dtype=torch.int16), 0
    for layer in range(layers):
        reached = reach_through([reached[None], steps[layer % len(steps)][None]])[0]  # (T, T)
        new = reached & (depth == 0)
        depth[new] = layer + 1
        quiet = 0 if new.any() else quiet + 1
        # nothing new in a whole turn of the masks: nothing new ever
        if quiet == len(steps):
            break
    direct = torch.stack(list(steps)).any(0)
    return depth.masked_fill(own, OWN).masked_fill(direct, 1)


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as a text: `0-2, 5`; what is in the middle of more than ten runs is left out."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    texts = ["-".join(map(str, run)) for run in runs]
    return ", ".join(texts if len(texts) <= 10 else [*texts[:5], "...", *texts[-3:]])


def layers_text(layers: int) -> str:
    """`1 layer`, `2 layers`."""
    return f"{layers} layer{'s' * (layers > 1)}"


def shows_later(mask: Mask, length: int) -> bool:
    """Whether a query sees a key after it, in a text of `length` tokens, in some head."""
    return bool(mask.dense(length).triu(1).any())


def true_indices(here: Tensor) -> list[int]:
    """The indices at which a vector is not zero."""
    return [int(number) for number in here.nonzero()]


def _grouped(masks: Sequence[Mask], allowed: Sequence[Tensor]) -> list[Sheet]:
    # equal layers share a sheet, and so do the equal heads of a layer
    by_layer: list[tuple[list[int], Tensor]] = []
    for layer, heads in enumerate(allowed):
        _add_to_equal(by_layer, layer, heads)
    found = []
    for layers, heads in by_layer:
        by_head: list[tuple[list[int], Tensor]] = []
        for head, pairs in enumerate(heads):
            _add_to_equal(by_head, head, pairs)
        mask = masks[layers[0]]
        for numbers, pairs in by_head:
            names = [_named("layer", layers)] * (len(masks) > 1) + [_named("head", numbers)] * (len(by_head) > 1)
            own = mask.masks[numbers[0]] if isinstance(mask, Heads) else mask
            text = str(own) if len(masks) > 1 or isinstance(mask, Heads) else ""
            caption = ": ".join(part for part in (", ".join(names), text) if part)
            found.append(Sheet(caption, pairs.to(torch.int16), first=pairs.shape[1] - pairs.shape[0]))
    return found


def _add_to_equal(groups: list[tuple[list[int], Tensor]], number: int, table: Tensor) -> None:
    for numbers, seen in groups:
        if torch.equal(seen, table):
            numbers.append(number)
            return
    groups.append(([number], table))


def _named(what: str, numbers: list[int]) -> str:
    return f"{what}{'s' * (len(numbers) > 1)} {ranges(numbers)}"
