"""Figures that need no pyplot, and files of them that are whole or not there."""

import io
import textwrap
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..atomic_write import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")


def new_figure(width: float, height: float, dpi: int = 130) -> "Figure":
    """An empty figure of that many inches. No global state of matplotlib is touched; a notebook shows it."""
    # imported here: drawing is rare, matplotlib is slow to import
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    # a notebook shows what can draw itself, also where pyplot was never imported
    figure._repr_png_ = partial(_as_png, figure)  # type: ignore[attr-defined]
    return figure


def check_picture_path(path: Path | str) -> None:
    """Raise ValueError where no picture can be written: another suffix, or no such folder."""
    suffix, folder = Path(path).suffix, Path(path).parent
    if suffix not in SUFFIXES:
        raise ValueError(f"path: expected a name that ends in {' or '.join(SUFFIXES)}, got {str(path)!r:.100}")
    if Path(path).is_dir():
        raise ValueError(f"path: {str(path)!r:.100} is a folder; name a file")
    if not folder.is_dir():
        raise ValueError(f"path: the folder {str(folder)!r:.100} does not exist; make it first")


def save_whole(figure: "Figure", path: Path) -> None:
    """Write a figure as the file that its suffix says, whole or not at all."""
    with replacing(path) as beside:
        figure.savefig(beside, format=path.suffix.removeprefix("."))


def wrapped(text: str, inches: float) -> str:
    """A title in at most four lines of a picture so many inches wide."""
    width = max(12, int(inches * 14))
    return "\n".join(textwrap.fill(line, width, max_lines=4, placeholder=" ...") for line in text.splitlines())


def _as_png(figure: "Figure") -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
