"""Pictures; the only place that knows matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: told apart under every common colour blindness, and in grey
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#595959"
Rows = Sequence[Mapping[str, float | None]]


def draw_training_curves(rows: Rows, path: Path, *, title: str) -> None:
    """Draw loss, learning rate and gradient norm against the step, as a PNG at `path`.

    `rows`: lines of a training log, by column name; None where a line has no such figure. The file appears
    whole or not at all. No global state of matplotlib is touched, so a notebook's own plots are safe.
    """
    # imported here: drawing is rare, matplotlib is slow to import
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.7, 1))
    loss, rate, norm = (
        figure.add_subplot(grid[:, 0]),
        figure.add_subplot(grid[0, 1]),
        figure.add_subplot(grid[1, 1]),
    )
    _draw_loss(loss, rows)
    _draw_line(rate, *_series(rows, "learning_rate"), label="learning rate", color=GREEN)
    _draw_line(norm, *_series(rows, "grad_norm"), label="gradient norm", color=GREY)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    rate.tick_params(labelbottom=False)
    for axes in (loss, norm):
        axes.set_xlabel("step (optimizer updates)")
    figure.suptitle(title, fontsize=13)
    beside = path.with_suffix(".tmp")
    figure.savefig(beside, format="png")
    beside.replace(path)


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
