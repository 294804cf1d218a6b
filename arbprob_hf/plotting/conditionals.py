"""Pictures of conditionals: how likely each token of a text is, given what stands before it, or given all the rest."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..model.modeling_arbprob import ArbProbForCausalLM
from ..model.questions.conditional import Conditional
from ..model.questions.layouts import is_chained
from .figures import check_picture_path, new_figure, save_whole, wrapped
from .tokens import evaluating, read_text, shown, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CONDITIONALS, MOST_SLOTS = 256, 4096
# inches: the picture, a strip, the tokens above it, the space between lines
WIDTH, STRIP, TOKENS, BETWEEN = 8.3, 0.25, 0.24, 0.16
SIZE = 9  # points
UNSEEN, GIVEN, INK = "#FFFFFF", "#E4E4E4", "#1A1A1A"
Questions = Conditional | Sequence[Conditional]


@dataclass(frozen=True, eq=False)
class Strip:
    """One row of the picture: `nats` (T,), nan where nothing is asked; `given`: bool (T,), what the question gives."""

    name: str
    nats: Tensor
    given: Tensor

    @property
    def mean(self) -> float:
        """Nats a token that is asked."""
        return float(self.nats.nanmean())


def plot_conditionals(
    model: ArbProbForCausalLM,
    tokenizer: Any,
    text: str,
    *,
    ask: Mapping[str, Conditional] | None = None,
    layout: str | None = None,
    title: str | None = None,
    path: Path | str | None = None,
) -> "Figure":
    """Draw the log-probability of each token of a text as a heat strip, one for each kind of question.

    Yellow is certain, dark blue no better than any token of the vocabulary. A white cell is unseen, a grey one given.

    Args:
        model: a network that answers questions; one trained from left to right alone has one strip.
        tokenizer: that of the network.
        text: of at most 255 tokens; the token that starts a text is put in front, at position 0, and not drawn.
        ask: questions about the text, by the name of their strip. When None two strips: each token given those before
            it, and, where the layout knows more than that, each token given all others, by itself.
        layout: how to put them; None for the way the network was trained, `config.layout`.
        title: the mean of each strip when None.
        path: also write a .png or .svg there, whole or not at all; as in matplotlib, a file of that name is replaced.

    Returns:
        The figure; a notebook shows it. No global state of matplotlib is touched.

    Raises:
        ValueError: a text, question, layout or path that cannot be; one line. TypeError: an argument of another type.
    """
    if path is not None:
        check_picture_path(path)
    ids, tokens = read_text(model, tokenizer, text, most=MOST_CONDITIONALS)
    layout = model.config.layout if layout is None else layout
    strips = [
        _strip(model, ids, name, questions, layout) for name, questions in _questions(ask, len(ids), layout).items()
    ]
    figure = _draw(tokens, strips, worst=math.log(model.config.vocab_size))
    if title is None:
        title = "log P of each token in nats; mean: " + ", ".join(f"{one.name} {number(one.mean, 2)}" for one in strips)
    figure.suptitle(wrapped(title, WIDTH), fontsize=10, parse_math=False)
    if path is not None:
        save_whole(figure, Path(path))
    return figure


def _questions(ask: Mapping[str, Conditional] | None, length: int, layout: str) -> Mapping[str, Questions]:
    if ask is not None:
        if not isinstance(ask, Mapping) or not all(
            isinstance(name, str) and isinstance(one, Conditional) for name, one in ask.items()
        ):
            raise TypeError(
                "ask: expected questions by name, such as {'middle': Conditional(given=[0, 1], target=[2])}"
            )
        if not ask:
            raise ValueError("ask: expected at least one question, got none")
        return ask
    each = range(1, length)
    before = (
        Conditional(given=[0], target=list(each))
        if is_chained(layout)
        else [Conditional(given=list(range(at)), target=[at]) for at in each]
    )
    if layout == "causal":
        # knows nothing else
        return {"left to right": before}
    rest = [Conditional(given=[other for other in range(length) if other != at], target=[at]) for at in each]
    return {"left to right": before, "given the rest": rest}


def _strip(model: ArbProbForCausalLM, ids: Sequence[int], name: str, questions: Questions, layout: str) -> Strip:
    input_ids = torch.tensor([ids], device=model.device)
    several = [questions] if isinstance(questions, Conditional) else questions
    # questions with other given tokens share little, so that all of a long text at once would take much memory
    at_once = max(1, MOST_SLOTS // len(ids))
    parts = [several[first : first + at_once] for first in range(0, len(several), at_once)]
    with evaluating(model):
        nats = torch.cat([model.log_prob(input_ids, part, layout=layout) for part in parts])  # (questions, 1, T)
    resolved = [one.resolve(1, len(ids)) for one in several]
    asked = torch.cat([one.target for one in resolved]).any(0)
    # what all questions give; where they differ, nothing is marked
    given = torch.cat([one.given for one in resolved]).all(0)
    return Strip(name, torch.where(asked, nats.sum((0, 1)).cpu().float(), math.nan), given)


def _draw(tokens: Sequence[str], strips: Sequence[Strip], *, worst: float) -> "Figure":
    labels = [shown(token, 24) for token in tokens]
    names = [shown(strip.name, 24) for strip in strips]
    left_end = max(map(_width, names))
    lines = _lines([_width(label) for label in labels], left_end)
    tall = TOKENS + STRIP * len(strips)
    height = len(lines) * (tall + BETWEEN)
    figure = new_figure(WIDTH, height + 1.1, dpi=150)
    axes = figure.add_subplot()
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    scale = _scale(worst)
    for number, line in enumerate(lines):
        top = number * (tall + BETWEEN)
        for token, (left, width) in line.items():
            axes.text(
                left + width / 2, top + TOKENS / 2, labels[token], size=SIZE, ha="center", va="center", parse_math=False
            )
        for row, strip in enumerate(strips):
            above = top + TOKENS + row * STRIP
            axes.text(
                left_end - 0.1, above + STRIP / 2, names[row], size=SIZE, ha="right", va="center", parse_math=False
            )
            for token, (left, width) in line.items():
                _draw_cell(axes, strip, token, (left, above, width), scale)
    bar = figure.colorbar(scale, ax=axes, location="bottom", shrink=0.6, aspect=45, pad=0.01, extend="min")
    bar.ax.tick_params(labelsize=8)
    bar.set_label(f"log P in nats; {-worst:.1f} is what every token of the vocabulary has by chance", fontsize=9)
    return figure


def _width(label: str) -> float:
    """Inches that a token and the number below it take."""
    return max(0.42, text_width(label, SIZE) + 0.12)


def _lines(widths: Sequence[float], left_end: float) -> list[dict[int, tuple[float, float]]]:
    """Left end and width of each token, line by line; the token that starts the text is not drawn."""
    lines: list[dict[int, tuple[float, float]]] = [{}]
    left = left_end
    for token, width in list(enumerate(widths))[1:]:
        if lines[-1] and left + width > WIDTH:
            lines.append({})
            left = left_end
        lines[-1][token] = (left, width)
        left += width
    return lines


def _scale(worst: float) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    # cividis looks alike with every common colour blindness, and rises evenly in grey
    return ScalarMappable(Normalize(-worst, 0, clip=False), "cividis")


def _draw_cell(axes: "Axes", strip: Strip, token: int, place: tuple[float, float, float], scale: Any) -> None:
    from matplotlib.patches import Rectangle

    left, above, width = place
    nats = float(strip.nats[token])
    if math.isnan(nats):
        colour, label, ink = (GIVEN, "given", INK) if strip.given[token] else (UNSEEN, "", INK)
    else:
        red, green, blue, _ = colour = scale.to_rgba(nats)
        is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        label, ink = number(nats, 1), "white" if is_dark else INK
    axes.add_patch(Rectangle((left, above), width, STRIP, facecolor=colour, edgecolor="white", linewidth=1))
    axes.text(left + width / 2, above + STRIP / 2, label, size=SIZE - 1, color=ink, ha="center", va="center")


def number(value: float, digits: int) -> str:
    """A number with so many decimals, zero without a sign."""
    return f"{round(value, digits) or 0.0:.{digits}f}"
