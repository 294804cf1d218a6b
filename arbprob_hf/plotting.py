"""Pictures: a run's curves, and masks; the only place that knows matplotlib."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from arbprob_hf.depths import OWN, AnyMask, Sheet, layers_text, read_masks, sheets

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

# Okabe and Ito's palette: told apart under every common colour blindness, and in grey
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#595959"
BLACK = "#1A1A1A"
# of the curves of evaluation modes, in order: a colour, a marker and a dash tell each, two of them in grey print
MODE_STYLES: Sequence[tuple[str, str, str]] = (
    (BLACK, "s", "-"),
    (ORANGE, "o", "-"),
    (GREEN, "^", "-"),
    (ORANGE, "o", ":"),
    (GREEN, "^", ":"),
)
# one colour and marker a run, of the same palette; those that come after are dashed
RUNS = (BLUE, ORANGE, GREEN, "#CC79A7", "#000000", "#56B4E9", "#E69F00")
MARKERS, DASHES = "osD^vPX", ("-", "--", ":", "-.")
# keys up to the query are blue, later ones orange and hatched; the more layers it takes, the lighter
EARLIER = ("#0A4A75", "#2F86C5", "#6DB3E3", "#A9D5F2", "#D9EEFB")
LATER = ("#B84A00", "#E8793A", "#F4A26E", "#F9C6A4", "#FDE4D3")
# which of the lighter shades tell that many steps apart best
SHADES: Sequence[Sequence[int]] = ((), (2,), (1, 3), (1, 2, 3), (1, 2, 3, 4))
NOTHING, CARRIED, BORDER, HATCH = "#FFFFFF", "#D4D4D4", "#C4C4C4", "#5A2300"
SUFFIXES = (".png", ".svg")
# more squares than that are no longer one picture, and more texts do not fit on an axis
MOST_SHEETS, MOST_TOKENS = 64, 64
Rows = Sequence[Mapping[str, float | None]]


def draw_training_curves(rows: Rows, path: Path, *, title: str, modes: Mapping[str, str] | None = None) -> None:
    """Draw loss, learning rate and gradient norm against the step, as a PNG at `path`.

    `rows`: lines of a training log, by column name; None where a line has no such figure. `modes`: further columns to
    draw, to the name of each; `*_loss` beside the training loss, at most as many as MODE_STYLES, `*_gain` below. The
    file appears whole or not at all. No global state of matplotlib is touched, so a notebook's own plots are safe.
    """
    # imported here: drawing is rare, matplotlib is slow to import
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    losses, gains = ({n: t for n, t in (modes or {}).items() if n.endswith(end)} for end in ("_loss", "_gain"))
    figure = Figure(figsize=(10, 5.6 if modes else 4.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(3 if gains else 2, 2, width_ratios=(1.7, 1))
    loss, rate, norm = (
        figure.add_subplot(grid[:, 0]),
        figure.add_subplot(grid[0, 1]),
        figure.add_subplot(grid[1, 1]),
    )
    if losses:
        _draw_mode_losses(loss, rows, losses)
    else:
        _draw_loss(loss, rows)
    if gains:
        norm.sharex(rate)
        norm.tick_params(labelbottom=False)
        below = figure.add_subplot(grid[2, 1], sharex=rate)
        _draw_gains(below, rows, gains)
    _draw_line(rate, *_series(rows, "learning_rate"), label="learning rate", color=GREEN)
    _draw_line(norm, *_series(rows, "grad_norm"), label="gradient norm", color=GREY)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    rate.tick_params(labelbottom=False)
    for axes in (loss, below if gains else norm):
        axes.set_xlabel("step (optimizer updates)")
    # a task may be long
    figure.suptitle(textwrap.fill(title, 110), fontsize=13 if len(title) <= 110 else 11, parse_math=False)
    save_whole(figure, path)


def draw_comparison(logs: Mapping[str, Rows], path: Path, *, titles: Mapping[str, str]) -> None:
    """Draw the same losses of several runs over one another, as a PNG at `path`, whole or not at all.

    Args:
        logs: the lines of each run's training log, by the run's name.
        titles: of each column of the logs to draw; one that no run has gets no panel.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = [column for column in titles if any(_series(rows, column)[0] for rows in logs.values())]
    across = min(3, max(1, len(columns)))
    down = math.ceil(len(columns) / across) or 1
    figure = Figure(figsize=(max(6.0, 3.9 * across), 3.1 * down + 0.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    lines: dict[str, Any] = {}
    for number, column in enumerate(columns):
        axes = figure.add_subplot(down, across, number + 1)
        for run, (name, rows) in enumerate(logs.items()):
            steps, losses = _series(rows, column)
            if steps:
                style = {"linestyle": DASHES[run // len(RUNS) % len(DASHES)], "marker": MARKERS[run % len(MARKERS)]}
                _draw_line(axes, steps, losses, label="", color=RUNS[run % len(RUNS)])
                # markers of curves that lie over one another alternate
                every = max(1, len(steps) // 6)
                axes.lines[-1].set(**style, linewidth=1.3, markersize=4.5, markevery=(run * every // len(logs), every))
                lines.setdefault(name, axes.lines[-1])
        axes.set_title(titles[column], fontsize=10, parse_math=False)
        axes.set_ylabel("nats per target token" if number % across == 0 else "", fontsize=10)
        axes.set_xlabel("step (optimizer updates)" if number >= len(columns) - across else "", fontsize=10)
    widest = max(map(len, lines), default=1)
    figure.legend(
        handles=list(lines.values()),
        labels=[name.replace("$", r"\$") for name in lines],
        loc="outside lower center",
        ncols=max(1, min(len(lines), int(12 * figure.get_figwidth() / (widest + 8)))),
        frameon=False,
        fontsize=10,
    )
    save_whole(figure, path)


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
        length = _length_of(tokens, length)
    drawn = sheets(masks, length, layers=layers, row=row)
    if title is None:
        title = str(masks[0]) if len(masks) == 1 else "one mask per layer"
        title += f", reach through {layers_text(layers)}" if layers is not None and len(drawn) == 1 else ""
    columns = len(drawn) if len(drawn) <= 3 else math.ceil(math.sqrt(len(drawn)))
    figure = draw_sheets(drawn, title=title, columns=columns, tokens=tokens)
    if path is not None:
        save_whole(figure, Path(path))
    return figure


def check_picture_path(path: Path | str) -> None:
    """Raise ValueError where no picture can be written: another suffix, or no such folder."""
    suffix, folder = Path(path).suffix, Path(path).parent
    if suffix not in SUFFIXES:
        raise ValueError(f"path: expected a name that ends in {' or '.join(SUFFIXES)}, got {str(path)!r:.100}")
    if not folder.is_dir():
        raise ValueError(f"path: the folder {str(folder)!r:.100} does not exist; make it first")


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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if len(drawn) > MOST_SHEETS:
        raise ValueError(f"mask: {len(drawn)} different heads and layers, expected at most {MOST_SHEETS}; draw fewer")
    shapes = [sheet.depth.shape for sheet in drawn]
    longest, tallest = max(map(max, shapes)), max(q_len / kv_len for q_len, kv_len in shapes)
    # a few tokens need no large picture
    side = side or (min(5.2, 2.0 + 0.4 * longest) if len(drawn) == 1 else max(2.2, 6.8 / columns))
    rows = math.ceil(len(drawn) / columns)
    captions = [_wrapped(sheet.caption, side) for sheet in drawn]
    above = 0.15 * max(caption.count("\n") + bool(caption) for caption in captions)  # inches
    size = (side * columns + 0.4, (side * min(1.0, tallest) + above) * rows + 0.8)
    # a pixel for each cell, as far as that is sensible
    figure = Figure(figsize=size, dpi=min(400, max(150, math.ceil(1.4 * longest / side))), layout="constrained")
    FigureCanvasAgg(figure)
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
        figure.suptitle(_wrapped(title, side * columns), fontsize=10, parse_math=False)
    _draw_legend(figure, steps.legend(), side * columns)
    # a notebook shows what can draw itself, also where pyplot was never imported
    figure._repr_png_ = partial(_as_png, figure)  # type: ignore[attr-defined]
    return figure


def save_whole(figure: "Figure", path: Path) -> None:
    """Write a figure as the file that its suffix says, whole or not at all."""
    beside = path.with_name(f"{path.name}.tmp")
    try:
        figure.savefig(beside, format=path.suffix.removeprefix("."))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _draw_loss(axes: "Axes", rows: Rows) -> None:
    steps, losses = _series(rows, "loss")
    _draw_line(axes, steps, losses, label="loss (nats per token)", color=BLUE, name="training")
    eval_steps, eval_losses = _series(rows, "eval_loss")
    name = "validation"
    if eval_losses:
        name += f", last {eval_losses[-1]:.2f} (perplexity {_series(rows, 'perplexity')[1][-1]:,.0f})"
    axes.plot(eval_steps, eval_losses, color=ORANGE, linewidth=1.8, marker="o", markersize=6, label=name)
    if losses or eval_losses:
        axes.legend(frameon=False, fontsize=11)


def _draw_mode_losses(axes: "Axes", rows: Rows, names: Mapping[str, str]) -> None:
    _draw_line(axes, *_series(rows, "loss"), label="loss (nats per target token)", color=BLUE, name="training")
    axes.lines[-1].set(linewidth=1.2, alpha=0.6)
    for (column, name), (colour, marker, dash) in zip(names.items(), MODE_STYLES, strict=False):
        steps, values = _series(rows, column)
        if values:
            style: dict[str, Any] = {"color": colour, "linestyle": dash, "marker": marker, "markersize": 5}
            axes.plot(steps, values, linewidth=1.6, label=f"{name}: {values[-1]:.2f}", **style)
    if any(_series(rows, column)[0] for column in ("loss", *names)):
        axes.legend(frameon=False, fontsize=10, title="validation modes with their last value", alignment="left")


def _draw_gains(axes: "Axes", rows: Rows, names: Mapping[str, str]) -> None:
    for (column, name), (colour, marker, _) in zip(names.items(), MODE_STYLES[1:], strict=False):
        steps, values = _series(rows, column)
        _draw_line(axes, steps, values, label="look-ahead gain\n(nats)", color=colour, name=name)
        axes.lines[-1].set(marker=marker, markersize=4)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.legend(frameon=False, fontsize=9)


def _draw_line(axes: "Axes", steps: list[float], values: list[float], **style: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.plot(steps, values, color=style["color"], linewidth=1.8, label=style.get("name"))
    axes.set_ylabel(style["label"], fontsize=11)
    # half a step is no step
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=10)


def _series(rows: Rows, column: str) -> tuple[list[float], list[float]]:
    """Steps and values of `column`, where it has one."""
    points = [(row["step"], row[column]) for row in rows]
    kept = [(step, value) for step, value in points if step is not None and value is not None]
    return [step for step, _ in kept], [value for _, value in kept]


class _Steps:
    """The steps of reach that a picture tells apart, and a colour for each.

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
    # a text may hold dollar signs, line ends and leading spaces
    shown = [repr(token)[1:-1] if len(token) <= 14 else f"{repr(token)[1:13]}.." for token in tokens]
    style: dict[str, Any] = {"fontsize": min(9, 0.8 * cell), "parse_math": False}
    axes.set_xticks(range(kv_len), shown[:kv_len], rotation=90, **style)
    axes.set_yticks(range(sheet.first, sheet.first + q_len), shown[sheet.first : sheet.first + q_len], **style)


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


def _length_of(tokens: Sequence[str], length: int | None) -> int:
    if isinstance(tokens, str) or not all(isinstance(token, str) for token in tokens):
        raise TypeError("tokens: expected a list of texts, one per token; decode the ids first")
    if not 1 <= len(tokens) <= MOST_TOKENS:
        raise ValueError(f"tokens: expected 1 to {MOST_TOKENS} texts, got {len(tokens)}; leave them out to draw more")
    if length not in (None, len(tokens)):
        raise ValueError(f"tokens: expected {length} texts, one per token, got {len(tokens)}")
    return len(tokens)


def _masked(here: Tensor) -> Any:
    import numpy as np

    return np.ma.masked_array(np.ones(here.shape), ~here.numpy())


def _wrapped(text: str, inches: float) -> str:
    width = max(12, int(inches * 14))
    # the captions tell what a longer title would
    return "\n".join(textwrap.fill(line, width, max_lines=4, placeholder=" ...") for line in text.splitlines())


def _as_png(figure: "Figure") -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
