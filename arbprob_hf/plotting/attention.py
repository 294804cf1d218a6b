"""Pictures of attention: what weight each query puts on each key that the mask lets it see."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..analysis.layer_reach import AnyMask, allowed_pairs, read_masks
from ..errors import check_integer
from ..model.masks.mask import Mask
from ..model.modeling_arbprob import ArbProbForCausalLM
from .figures import check_picture_path, new_figure, save_whole, wrapped
from .masks import BORDER, EARLIER, LATER, MOST_SHEETS, NOTHING
from .tokens import evaluating, read_text, shown, text_width, write_tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# weights at which the scale of colours is labelled
TICKS = (0.01, 0.1, 0.25, 0.5, 1.0)
WIDTH = 8.3  # inches


def plot_attention(
    model: ArbProbForCausalLM,
    tokenizer: Any,
    text: str,
    *,
    mask: AnyMask | None = None,
    layer: int | None = None,
    head: int | None = None,
    path: Path | str | None = None,
) -> "Figure":
    """Draw the attention weights of a text under a mask: queries down, keys across, a square for each layer and head.

    Weights on keys up to the query are blue, those on later ones orange; what the mask hides is white. Colours follow
    the root of the weight, so that small ones can be distinguished. Where squares are too small for texts, the axes
    have numbers.

    Args:
        model: a network; it is run once, without dropout.
        tokenizer: that of the network.
        text: of at most 63 tokens; the token that starts a text is put in front and drawn.
        mask: a `Mask`, its text, or a 0-1 tensor (T, T) or (1, 1 or H, T, T); None for the network's own.
        layer, head: which to draw, counted from 0; all when None.
        path: also write a .png or .svg there, whole or not at all; as in matplotlib, a file of that name is replaced.

    Returns:
        The figure; a notebook shows it. No global state of matplotlib is touched.

    Raises:
        ValueError: a text, mask, layer, head or path that cannot be, or more squares than a picture holds; one line.
        TypeError: an argument of another type.
    """
    if path is not None:
        check_picture_path(path)
    if isinstance(mask, list | tuple):
        raise TypeError("mask: expected one mask, got a list; a mask per layer belongs into config.mask")
    ids, tokens = read_text(model, tokenizer, text)
    layers = _chosen("layer", layer, model.config.n_layer)
    heads = _chosen("head", head, model.config.n_head)
    if len(layers) * len(heads) > MOST_SHEETS:
        raise ValueError(
            f"layer, head: {len(layers)} layers of {len(heads)} heads, a picture holds {MOST_SHEETS} squares; choose "
            "one with layer= or head="
        )
    masks = [Mask.parse(one) for one in model.config.mask_texts] if mask is None else read_masks(mask)
    weights = _weights(model, ids, None if mask is None else masks[0])
    allowed = [allowed_pairs(one, len(ids)) for one in masks]
    squares = {}
    for at, by in itertools.product(layers, heads):
        seen = allowed[at % len(allowed)]  # (1 or H, T, T)
        squares[f"layer {at}, head {by}"] = weights[at][by], seen[by % len(seen)]
    # a row for each layer; one layer alone takes several
    across = min(len(heads), 4) if len(layers) == 1 else len(heads)
    columns = across if across > 1 else math.ceil(math.sqrt(len(squares)))
    figure = _draw(squares, tokens, columns=columns)
    title = "one mask per layer" if len(masks) > 1 else str(masks[0])
    figure.suptitle(wrapped(title, figure.get_figwidth()), fontsize=10, parse_math=False)
    if path is not None:
        save_whole(figure, Path(path))
    return figure


def _chosen(name: str, number: int | None, count: int) -> Sequence[int]:
    if number is None:
        return range(count)
    return [check_integer(name, number, low=0, high=count - 1)]


def _weights(model: ArbProbForCausalLM, ids: Sequence[int], mask: Mask | None) -> list[Tensor]:
    """The weights of each layer, float32 (H, T, T) on the CPU."""
    input_ids = torch.tensor([ids], device=model.device)
    with evaluating(model):
        found = model(input_ids=input_ids, mask=mask, output_attentions=True, use_cache=False).attentions
    return [layer[0].float().cpu() for layer in found]


def _draw(squares: Mapping[str, tuple[Tensor, Tensor]], tokens: Sequence[str], *, columns: int) -> "Figure":
    length, rows = len(tokens), math.ceil(len(squares) / columns)
    has_later = any(bool(allowed.triu(1).any()) for _, allowed in squares.values())
    labels = max(text_width(shown(token), 9) for token in tokens)  # inches beside and below the squares
    side = min(5.2, 1.0 + 0.25 * length) if len(squares) == 1 else max(1.6, (WIDTH - labels) / columns)
    figure = new_figure(
        max(4.2, side * columns + labels + 0.4), (side + 0.2) * rows + labels + 0.25 + 0.6 * (1 + has_later), dpi=150
    )
    ramps, norm = _scale()
    cell = 72 * 0.85 * side / length  # points
    for number, (caption, (weights, allowed)) in enumerate(squares.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        _draw_square(axes, weights, allowed, ramps, norm)
        axes.set_title(caption, fontsize=9)
        if cell >= 4.5:
            axes.set_xticks([k + 0.5 for k in range(length - 1)], minor=True)
            axes.set_yticks([q + 0.5 for q in range(length - 1)], minor=True)
            axes.grid(True, which="minor", color=BORDER, linewidth=0.4)
            axes.tick_params(which="minor", length=0)
        axes.tick_params(labelsize=8, length=2)
        if cell >= 6:
            write_tokens(axes, tokens, tokens, first=0, cell=cell)
        # one name an axis is enough where squares stand side by side
        is_left, is_below = number % columns == 0, number >= len(squares) - columns
        axes.tick_params(labelleft=is_left, labelbottom=is_below)
        axes.set_ylabel("query" if is_left else "", fontsize=9)
        axes.set_xlabel("key" if is_below else "", fontsize=9)
    _draw_scales(figure, ramps if has_later else ramps[:1], norm)
    return figure


def _scale() -> tuple[list[Any], Any]:
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    ramps = [
        LinearSegmentedColormap.from_list(name, list(reversed(colours)))
        for name, colours in (("earlier", EARLIER), ("later", LATER))
    ]
    return ramps, PowerNorm(0.5, vmin=0, vmax=1)


def _draw_square(axes: "Axes", weights: Tensor, allowed: Tensor, ramps: Sequence[Any], norm: Any) -> None:
    import numpy as np

    axes.set_facecolor(NOTHING)
    later = torch.ones_like(allowed).triu(1)
    for ramp, here in zip(ramps, (allowed & ~later, allowed & later), strict=True):
        shown = np.ma.masked_array(weights.numpy(), ~here.numpy())
        axes.imshow(shown, cmap=ramp, norm=norm, aspect="equal", interpolation="nearest")


def _draw_scales(figure: "Figure", ramps: Sequence[Any], norm: Any) -> None:
    from matplotlib.cm import ScalarMappable

    squares = list(figure.axes)
    names = ("weight", "weight on a later key")
    # the last colour bar drawn is the topmost
    for ramp, name in reversed(list(zip(ramps, names, strict=False))):
        style: dict[str, Any] = {
            "location": "bottom",
            "shrink": 0.6 if figure.get_figwidth() > 6 else 1.0,
            "aspect": 40,
            "pad": 0.02,
        }
        bar = figure.colorbar(ScalarMappable(norm, ramp), ax=squares, **style)
        bar.set_ticks(TICKS, labels=[f"{tick:g}" for tick in TICKS])
        bar.ax.tick_params(labelsize=8)
        bar.set_label(name, fontsize=9)
