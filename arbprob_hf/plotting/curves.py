"""Curves of training: of one run, and of several over one another."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runs.log import CURVES, LOSSES, by_mode, find_log, has_modes, read_log, run_names
from .figures import check_picture_path, new_figure, save_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: distinct under every common colour blindness, and in grey
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#595959"
BLACK = "#1A1A1A"
# of the curves of evaluation modes, in order: each has a colour, a marker and a dash, two of them in grey print
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
Rows = Sequence[Mapping[str, float | None]]


def plot_curves(
    runs: Path | str | Sequence[Path | str], *, title: str | None = None, path: Path | str | None = None
) -> "Figure":
    """Draw what runs logged while they trained: one run's losses, learning rate and gradient norm, or several overlaid.

    Args:
        runs: the output folder of a run (or a checkpoint in it, or its training_log.csv), or a list of them. Several
            are compared by their training loss and by the loss of each evaluation mode; a run without a task has one,
            that of reading from left to right.
        title: of the picture; the name of the folder when None.
        path: also write a .png or .svg there, whole or not at all; as in matplotlib, a file of that name is replaced.

    Returns:
        The figure; a notebook shows it. No global state of matplotlib is touched.

    Raises:
        ValueError: no run, one twice, one without a log, or a path that cannot be; one line.
        TypeError: runs that are not paths.
    """
    if path is not None:
        check_picture_path(path)
    if not isinstance(runs, str | Path) and not (
        isinstance(runs, Sequence) and all(isinstance(run, str | Path) for run in runs)
    ):
        raise TypeError(f"runs: expected the folder of a run, or a list of them, got {runs!r:.60}")
    folders = [Path(runs)] if isinstance(runs, str | Path) else [Path(run) for run in runs]
    names, places = run_names(folders), [_log_of(folder) for folder in folders]
    if len({place.resolve() for place in places}) < len(places):
        raise ValueError(f"runs: two of {', '.join(map(str, folders))} have one log; name each run once")
    logs = [read_log(place) for place in places]
    if len(logs) == 1:
        (rows,) = logs
        # RUN/logs/training_log.csv, also where it was named from inside
        name = places[0].resolve().parent.parent.name
        figure = draw_training_curves(rows, title=title or name, modes=CURVES if has_modes(rows) else None)
    else:
        titles = {"loss": "training", **{column: CURVES[column] for column in LOSSES}}
        figure = draw_comparison(dict(zip(names, map(by_mode, logs), strict=True)), titles=titles)
        if title:
            figure.suptitle(textwrap.fill(title, 100), fontsize=13, parse_math=False)
    if path is not None:
        save_whole(figure, Path(path))
    return figure


def draw_training_curves(rows: Rows, *, title: str, modes: Mapping[str, str] | None = None) -> "Figure":
    """Draw loss, learning rate and gradient norm against the step.

    `rows`: lines of a training log, by column name; None where a line has no such figure. `modes`: further columns to
    draw, to the name of each; `*_loss` beside the training loss, at most as many as MODE_STYLES, `*_gain` below.
    """
    losses, gains = ({n: t for n, t in (modes or {}).items() if n.endswith(end)} for end in ("_loss", "_gain"))
    figure = new_figure(10, 5.6 if modes else 4.6)
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
    return figure


def draw_comparison(logs: Mapping[str, Rows], *, titles: Mapping[str, str]) -> "Figure":
    """Draw the same losses of several runs over one another.

    Args:
        logs: the lines of each run's training log, by the run's name.
        titles: of each column of the logs to draw; one that no run has gets no panel.
    """
    columns = [column for column in titles if any(_series(rows, column)[0] for rows in logs.values())]
    across = min(3, max(1, len(columns)))
    down = math.ceil(len(columns) / across) or 1
    figure = new_figure(max(6.0, 3.9 * across), 3.1 * down + 0.6)
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
    if not lines:
        return figure
    widest = max(map(len, lines))
    across = max(1, min(len(lines), int(12 * figure.get_figwidth() / (widest + 8))))
    # room for the names, below the panels
    figure.set_figheight(figure.get_figheight() + 0.2 * (math.ceil(len(lines) / across) - 1))
    figure.legend(
        handles=list(lines.values()),
        labels=[name.replace("$", r"\$") for name in lines],
        loc="outside lower center",
        ncols=across,
        frameon=False,
        fontsize=10,
    )
    return figure


def _draw_loss(axes: "Axes", rows: Rows) -> None:
    steps, losses = _series(rows, "loss")
    _draw_line(axes, steps, losses, label="loss (nats per token)", color=BLUE, name="training")
    eval_steps, eval_losses = _series(rows, "eval_loss")
    name = "validation"
    if eval_losses:
        perplexities = _series(rows, "perplexity")[1]
        name += f", last {eval_losses[-1]:.2f}"
        name += f" (perplexity {perplexities[-1]:,.0f})" if perplexities else ""
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
    # ticks at whole steps only
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=10)


def _series(rows: Rows, column: str) -> tuple[list[float], list[float]]:
    """Steps and values of `column`, where it has one."""
    points = [(row["step"], row[column]) for row in rows]
    drawn = [(step, value) for step, value in points if step is not None and value is not None]
    return [step for step, _ in drawn], [value for _, value in drawn]


def _log_of(run: Path) -> Path:
    log = find_log(run)
    if log is None:
        raise ValueError(f"runs: {str(run)!r:.100} holds no logs/training_log.csv; name the output folder of a run")
    return log
