"""What the page shows about the blanks of a text: distributions, log-probabilities and infills."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import check_integer
from ..model.configuration_arbprob import ArbProbConfig
from ..model.questions.conditional import Conditional
from ..model.questions.layouts import LAYOUTS
from .network import Network
from .passage import Passage

MOST_SAMPLES = 16
MOST_ROWS = 20
# each takes further passes, and a page has an end
MOST_DISTRIBUTIONS = 12


@dataclass(frozen=True)
class Likely:
    """A token for a blank: P(token | all given tokens), P(token | the given ones left of it), and if it stood there."""

    text: str
    both_sides: float
    left_only: float
    is_original: bool


@dataclass(frozen=True)
class Distribution:
    """What may stand at a blank by itself, the other blanks unseen.

    Attributes:
        position: of the blank; 1 is the first token of the text.
        likely: the likeliest tokens given both sides, best first, and the original one behind them if it is none.
    """

    position: int
    likely: tuple[Likely, ...]


@dataclass(frozen=True)
class Answer:
    """What a network says of the blanks of a text.

    Attributes:
        distributions: one a blank, from left to right.
        log_probs: log P of the original token at each blank given the rest and the blanks left of it, in nats; they add
            up to the joint. None where the tokens are not known or the layout has no joint.
        remarks: what there is to know about these numbers, a line each.
    """

    distributions: tuple[Distribution, ...]
    log_probs: tuple[float, ...] | None
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Infill:
    """A sampled text in pieces, each with whether it was a blank, and log P of the blanks given the rest, in nats."""

    pieces: tuple[tuple[str, bool], ...]
    log_prob: float

    def __str__(self) -> str:
        return "".join(text for text, _ in self.pieces)


def layouts(config: ArbProbConfig) -> list[str]:
    """The layouts in which a network can answer, its own first."""
    able = [name for name in LAYOUTS if name != "sigma" or config.target_positions]
    return sorted(able, key=lambda name: name != config.layout)


@torch.inference_mode()
def ask(network: Network, passage: Passage, *, layout: str, top: int = 6) -> Answer:
    """The exact marginals of each blank, given both sides and given the left only, and the joint of the tokens blanked.

    Raises:
        ValueError: no blanks, or a question that the network or the layout cannot answer; one line.
    """
    _check_blank(passage)
    check_integer("top", top, low=1, high=MOST_ROWS)
    model, shown = network.model, passage.blanks[:MOST_DISTRIBUTIONS]
    # what stands at a target, or is unseen, has no influence
    ids = passage.answers().to(network.device)
    both = model.marginals(ids, Conditional(passage.given, passage.blanks), layout=layout)[0]  # (T, V)
    found = []
    for position in shown:
        before = [one for one in passage.given if one < position]
        left = model.marginals(ids, Conditional(before, [position]), layout=layout)[0, position]  # (V,)
        found.append(_distribution(network, passage, position, both[position], left, top=top))
    remarks = _remarks(network, layout)
    if len(shown) < len(passage.blanks):
        remarks.append(f"Distributions are shown for the first {len(shown)} of {len(passage.blanks)} blanks.")
    log_probs = None
    if passage.is_known:
        try:
            nats = model.log_prob(ids, Conditional(passage.given, passage.blanks), layout=layout)
            log_probs = tuple(nats[0, list(passage.blanks)].tolist())
        except ValueError as error:
            # `masked` has marginals, which were found, but no joint
            remarks.append(str(error))
    return Answer(tuple(found), log_probs, tuple(remarks))


@torch.inference_mode()
def infills(
    network: Network,
    passage: Passage,
    *,
    layout: str,
    samples: int = 4,
    method: str = "sequential",
    temperature: float = 1.0,
    seed: int = 0,
) -> tuple[list[Infill], int]:
    """Fill the blanks from the exact joint; the same seed gives the same texts.

    Returns:
        The filled texts, likeliest first, and the number of forward passes for all of them.

    Raises:
        ValueError: no blanks, a number that cannot be, or a question that the network cannot answer; one line.
    """
    _check_blank(passage)
    check_integer("samples", samples, low=1, high=MOST_SAMPLES)
    check_integer("seed", seed, low=0, high=2**63 - 1)
    found = network.model.sample(
        passage.ids().to(network.device).repeat(samples, 1),
        Conditional(passage.given, passage.blanks),
        method=method,
        temperature=temperature,
        generator=torch.Generator(network.device).manual_seed(seed),
        layout=layout,
    )
    joints = found.log_probs.sum(1).tolist()
    filled = [
        Infill(_pieces(network, passage, row), joint)
        for row, joint in zip(found.sequences.tolist(), joints, strict=True)
    ]
    return sorted(filled, key=lambda one: -one.log_prob), found.forward_passes


def _distribution(
    network: Network, passage: Passage, position: int, both: Tensor, left: Tensor, *, top: int
) -> Distribution:
    original = passage.tokens[position]
    tokens = both.topk(min(top, len(both))).indices.tolist()
    if original >= 0 and original not in tokens:
        tokens.append(original)
    likely = [
        Likely(network.decode([token]), both[token].exp().item(), left[token].exp().item(), token == original)
        for token in tokens
    ]
    return Distribution(position, tuple(likely))


def _remarks(network: Network, layout: str) -> list[str]:
    config = network.model.config
    remarks = []
    if not config.mask_token and layout != "causal":
        remarks.append("This network has no [MASK] vector: it was not trained on blanks, and its answers show that.")
    if layout != config.layout:
        remarks.append(f"This network was trained in the layout {config.layout}, not in {layout}.")
    return remarks


def _pieces(network: Network, passage: Passage, row: list[int]) -> tuple[tuple[str, bool], ...]:
    pieces, begin = [], 1
    for run in passage.runs():
        pieces.append((network.decode(row[begin : run[0]]), False))
        pieces.append((network.decode(row[run[0] : run[-1] + 1]), True))
        begin = run[-1] + 1
    pieces.append((network.decode(row[begin:]), False))
    return tuple(piece for piece in pieces if piece[0])


def _check_blank(passage: Passage) -> None:
    if not passage.blanks:
        raise ValueError("text: has no blanks; click a token, or write [M] for one token and [M:3] for three")
