"""Draw the pictures of masks in docs/: `python docs/draw_gallery.py` writes masks.png, reach.png and heads.png."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure

from arbprob_hf import Mask, causal, documents, order, padding, tree
from arbprob_hf.analysis.layer_reach import Sheet, sheets
from arbprob_hf.plotting import draw_sheets

HERE = Path(__file__).parent
# the width of a page of GitHub, 830 points on the screen
WIDTH = 8.3
TEXTS = [
    "causal",
    "full",
    "window(3)",
    "causal & window(4)",
    "causal & dilated(3, 2)",
    "causal & strided(3)",
    "causal & window(4) | sinks(2)",
    "causal | prefix(4)",
    "blocks(4)",
    "block_diffusion(6, 2)",
]
TABLES = {
    "causal & documents(ids)": causal() & documents(torch.tensor([0] * 5 + [1] * 4 + [2] * 3)),
    "causal & padding(keep)": causal() & padding(torch.tensor([0] * 3 + [1] * 9)),
    "order(rank)": order(torch.tensor([0, 5, 2, 7, 1, 4, 3, 10, 6, 8, 11, 9])),
    "tree(parents)": tree(torch.tensor([-1, 0, 0, 1, 1, 2, 2, 3, 3, 5, 6, 6])),
    "causal & ~window(4)": Mask.parse("causal & ~window(4)"),
}
HEADS = "heads(causal & window(4), causal & window(4), causal & strided(4), causal & strided(4))"


def draw_masks() -> Figure:
    """All patterns on one sheet, 12 tokens each."""
    masks = {**{text: Mask.parse(text) for text in TEXTS}, **TABLES}
    drawn = [_sheet(mask, 12, text) for text, mask in masks.items()]
    return draw_sheets(drawn, title="", columns=5, side=(WIDTH - 0.4) / 5)


def draw_reach() -> Figure:
    """What more layers add: to a window, and to a prefix whose given tokens see the body, which leaks at two layers."""
    window, length = Mask.parse("causal & window(4)"), 16
    drawn = [_sheet(window, length, f"{window}\n{n} layer{'s' * (n > 1)}", layers=n) for n in (1, 2, 4)]
    # three given tokens in front, then the body in order
    body = torch.arange(1, length - 2)
    ranks, limits = (torch.cat([torch.full((3,), given), body]) for given in (0, length))
    naive = order(ranks, limits)
    drawn += [
        _sheet(naive, length, "3 given tokens that see the body\n1 layer: the body looks safe", layers=1),
        _sheet(naive, length, "the same, 2 layers: later tokens\nreach the body through them", layers=2),
        _sheet(order(ranks), length, "given tokens see one another only\n4 layers: no leak", layers=4),
    ]
    return draw_sheets(drawn, title="", columns=3, side=(WIDTH - 0.4) / 3)


def draw_heads() -> Figure:
    """Local and strided heads side by side, and what both reach together."""
    drawn = sheets([Mask.parse(HEADS)], 16, layers=2)
    return draw_sheets(drawn, title="", columns=3, side=(WIDTH - 0.4) / 3)


DRAWINGS: dict[str, Callable[[], Figure]] = {"masks.png": draw_masks, "reach.png": draw_reach, "heads.png": draw_heads}


def digest(figure: Figure) -> str:
    """What was drawn, in 16 signs: the captions and colours of every square, whatever the fonts and the file."""
    parts = hashlib.sha256()
    for axes in figure.axes:
        parts.update(axes.get_title().encode())
        parts.update(axes.images[0].get_array().tobytes())
    return parts.hexdigest()[:16]


def main() -> None:
    for name, draw in DRAWINGS.items():
        figure = draw()
        figure.savefig(HERE / name, metadata={"Drawn": digest(figure)})
        print(f"{HERE / name}: {(HERE / name).stat().st_size // 1024} KiB")


def _sheet(mask: Mask, length: int, caption: str, *, layers: int | None = None) -> Sheet:
    (sheet,) = sheets([mask], length, layers=layers)
    return Sheet(caption, sheet.depth)


if __name__ == "__main__":
    main()
