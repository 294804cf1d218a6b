"""Pictures of masks: which keys each query may see, and what reaches it through several layers."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..analysis.layer_reach import OWN, AnyMask, Sheet, layers_text, read_masks, sheets
from .figures import check_picture_path, new_figure, save_whole, wrapped
from .tokens import length_of, write_tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

# keys up to the query are blue, later ones orange and hatched; the more layers it takes, the lighter
EARLIER = ("#0A4A75", "#2F86C5", "#6DB3E3", "#A9D5F2", "#D9EEFB")
LATER = ("#B84A00", "#E8793A", "#F4A26E", "#F9C6A4", "#FDE4D3")
# which of the lighter shades make that many steps easiest to distinguish
SHADES: Sequence[Sequence[int]] = ((), (2,), (1, 3), (1, 2, 3), (1, 2, 3, 4))
NOTHING, CARRIED, BORDER, HATCH = "#FFFFFF", "#D4D4D4", "#C4C4C4", "#5A2300"
# more squares than that are no longer one picture
MOST_SHEETS = 64


def plot_mask(
    mask: AnyMask | Sequence[AnyMask],
    length: int | None = None,
    *,
    layers: int | None = None,
    row: int = 0,
    tokens: Sequence[str] | None = None,
    title: str | None = None,
    path: Path | str | None = None,
) -> "Figure":
    """Draw which keys each query may see: queries down, keys across.

    Keys up to the query are blue, later ones orange and hatched. Heads and layers that differ get a square each.

    Args:
        mask: a `Mask`, its text, a 0-1 tensor as `Mask.of` takes it, or a list of them, first
            layer first; a list takes turns where there are more layers (`config.mask` wants one per layer).
        length: number of tokens; that of `tokens` or of the tensor when None.
        layers: draw also what reaches a query through relays in so many layers, a multiple of the number of masks:
            the more it takes, the lighter.
        row: which row of the batch to draw, where they differ.
        tokens: a text per token, written along both axes.
        title: the text of the mask when None.
        path: also write a .png or .svg there, whole or not at all; as in matplotlib, a file of that name is replaced.

    Returns:
        The figure; a notebook shows it. No global state of matplotlib is touched.

    Raises:
        ValueError: an unreadable mask, or a length, row, number of layers or tokens, or path that cannot be; one line.
        TypeError: an argument of another type.
    """
    if path is not None:
        check_picture_path(path)
    masks = read_masks(mask)
    if tokens is not None:
        length = length_of(tokens, length)
    drawn = sheets(masks, length, layers=layers, row=row)
    if title is None:
        title = str(masks[0]) if len(masks) == 1 else "one mask per layer"
        title += f", reach through {layers_text(layers)}" if layers is not None and len(drawn) == 1 else ""
    columns = len(drawn) if len(drawn) <= 3 else math.ceil(math.sqrt(len(drawn)))
    figure = draw_sheets(drawn, title=title, columns=columns, tokens=tokens)
    if path is not None:
        save_whole(figure, Path(path))
    return figure


def draw_sheets(
    drawn: Sequence[Sheet],
    *,
    title: str,
    columns: int,
    side: float | None = None,
    tokens: Sequence[str] | None = None,
) -> "Figure":
    """Draw each sheet as a square, `columns` to a row, with one legend for all.

    `side`: of a square, in inches; chosen by the number of columns when None.

    Raises:
        ValueError: more sheets than a picture holds.
    """
    if len(drawn) > MOST_SHEETS:
        raise ValueError(f"mask: {len(drawn)} different heads and layers, expected at most {MOST_SHEETS}; draw fewer")
    shapes = [sheet.depth.shape for sheet in drawn]
    longest, tallest = max(map(max, shapes)), max(q_len / kv_len for q_len, kv_len in shapes)
    # a few tokens need no large picture
    side = side or (min(5.2, 2.0 + 0.4 * longest) if len(drawn) == 1 else max(2.2, 6.8 / columns))
    rows = math.ceil(len(drawn) / columns)
    captions = [wrapped(sheet.caption, side) for sheet in drawn]
    above = 0.15 * max(caption.count("\n") + bool(caption) for caption in captions)  # inches
    size = (side * columns + 0.4, (side * min(1.0, tallest) + above) * rows + 0.8)
    # a pixel for each cell, as far as that is sensible
    figure = new_figure(*size, dpi=min(400, max(150, math.ceil(1.4 * longest / side))))
    steps = _Steps(drawn)
    for number, sheet in enumerate(drawn):
        axes = figure.add_subplot(rows, columns, number + 1)
        _draw_sheet(axes, sheet, steps, side)
        _draw_ticks(axes, sheet, tokens, side)
        axes.set_title(captions[number], fontsize=9, parse_math=False)
        # one name an axis is enough where squares stand side by side
        axes.set_ylabel("query" if number % columns == 0 else "")
        axes.set_xlabel("key" if number >= len(drawn) - columns else "")
    if title:
        figure.suptitle(wrapped(title, side * columns), fontsize=10, parse_math=False)
    _draw_legend(figure, steps.legend(), side * columns)
    return figure


class _Steps:
    """The steps of reach that a picture distinguishes, and a colour for each.

    `bounds`: the least and most layers of each step; the first is (1, 1), what is allowed. `found`: the numbers of
    layers that occur, for keys up to the query and for later ones.
    """

    def __init__(self, drawn: Sequence[Sheet]) -> None:
        self.found = [{level for sheet in drawn for level in sheet.levels(later=later)} for later in (False, True)]
        relayed = sorted(level for level in self.found[0] | self.found[1] if level > 1)
        most = len(SHADES) - 1
        self.bounds = [(1, 1), *((level, level) for level in relayed[:most])]
        if len(relayed) > most:
            self.bounds[-1] = (relayed[most - 1], relayed[-1])
        shades = (0, *SHADES[len(self.bounds) - 1])
        self.colours = [[ramp[shade] for shade in shades] for ramp in (EARLIER, LATER)]

    def paint(self, sheet: Sheet) -> Tensor:
        """A sheet in colours: uint8 (T_q, T_kv, 3)."""
        # by number of layers from OWN on, for keys up to the query and then for later ones
        size = self.bounds[-1][1] - OWN + 1
        table = [[CARRIED, NOTHING] + [NOTHING] * (size - 2) for _ in self.colours]
        for names, colours in zip(table, self.colours, strict=True):
            for (low, high), colour in zip(self.bounds, colours, strict=True):
                names[low - OWN : high - OWN + 1] = [colour] * (high - low + 1)
        palette = torch.tensor([list(bytes.fromhex(name[1:])) for names in table for name in names], dtype=torch.uint8)
        index = sheet.depth.int() - OWN + size * sheet.later
        return palette.index_select(0, index.flatten()).view(*index.shape, 3)

    def legend(self) -> "list[Patch]":
        """A patch for each colour that occurs."""
        from matplotlib.patches import Patch

        patches = []
        styles: list[dict[str, Any]] = [{}, {"hatch": "////", "edgecolor": HATCH}]
        for style, prefix, colours, found in zip(styles, ("", "later key, "), self.colours, self.found, strict=True):
            for (low, high), colour in zip(self.bounds, colours, strict=True):
                name = "allowed" if high == 1 else f"through {low}{f' to {high}' * (high > low)} layers"
                if any(low <= level <= high for level in found):
                    patches.append(Patch(facecolor=colour, label=prefix + name, **style))
            if OWN in found:
                patches.append(Patch(facecolor=CARRIED, label="own input, carried along"))
        return patches


def _draw_sheet(axes: "Axes", sheet: Sheet, steps: _Steps, side: float) -> None:
    q_len, kv_len = sheet.depth.shape
    top, cell = sheet.first - 0.5, 72 * 0.75 * side / max(q_len, kv_len)  # points
    extent = (-0.5, kv_len - 0.5, top + q_len, top)
    # smaller than a pixel, cells are averaged: as colours, since the mean of two numbers would be another step
    is_fine = max(q_len, kv_len) > 0.72 * side * axes.figure.dpi
    interpolation = "antialiased" if is_fine else "nearest"
    axes.imshow(steps.paint(sheet).numpy(), extent=extent, aspect="equal", interpolation=interpolation)
    if cell < 4.5:
        return
    later = sheet.later
    if later.any():
        edges = [k - 0.5 for k in range(kv_len + 1)], [top + q for q in range(q_len + 1)]
        axes.pcolor(*edges, _masked(later), facecolor="none", edgecolor=HATCH, hatch="////", linewidth=0, alpha=0.55)
    axes.set_xticks([k + 0.5 for k in range(kv_len - 1)], minor=True)
    axes.set_yticks([top + q for q in range(1, q_len)], minor=True)
    axes.grid(True, which="minor", color=BORDER, linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    if cell >= 7:
        _draw_digits(axes, sheet, cell)


def _draw_digits(axes: "Axes", sheet: Sheet, cell: float) -> None:
    # one artist for each number of layers, not one for each cell
    for layers in sorted({*sheet.levels(later=False), *sheet.levels(later=True)} - {OWN, 1}):
        queries, keys = (sheet.depth == layers).nonzero(as_tuple=True)
        marker, size = f"${layers}$", (0.5 * cell) ** 2
        axes.scatter(keys, queries + sheet.first, s=size, marker=marker, color="#1A1A1A", linewidths=0.3)


def _draw_ticks(axes: "Axes", sheet: Sheet, tokens: Sequence[str] | None, side: float) -> None:
    q_len, kv_len = sheet.depth.shape
    cell = 72 * 0.75 * side / max(q_len, kv_len)
    axes.tick_params(labelsize=8, length=2)
    if tokens is None:
        step = 2 ** max(0, math.ceil(math.log2(max(14, 9 * len(str(kv_len))) / cell)))
        axes.set_xticks(range(0, kv_len, step))
        axes.set_yticks(range(-(-sheet.first // step) * step, sheet.first + q_len, step))
        return
    write_tokens(axes, tokens[:kv_len], tokens[sheet.first : sheet.first + q_len], first=sheet.first, cell=cell)


def _draw_legend(figure: "Figure", patches: "list[Patch]", width: float) -> None:
    # a plain mask that looks back needs no key
    if len(patches) < 2 and not any(patch.get_hatch() for patch in patches):
        return
    for patch in patches:
        patch.set_linewidth(0.5)
    longest = max(len(str(patch.get_label())) for patch in patches)
    columns = max(1, min(len(patches), int(width / (0.5 + 0.06 * longest))))
    # rows of equal length
    columns = math.ceil(len(patches) / math.ceil(len(patches) / columns))
    figure.legend(handles=patches, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def _masked(here: Tensor) -> Any:
    import numpy as np

    return np.ma.masked_array(np.ones(here.shape), ~here.numpy())
