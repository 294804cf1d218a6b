"""How many targets to draft in the next round of a sampler, by how many of the drafts so far were kept.

Only what earlier rounds decided is looked at, never a draft that is still to be judged: so the law of the samples stays
what it is, whatever is chosen here.
"""

from dataclasses import dataclass

# in units of a pass that reads one slot: a row of logits with its law and its draw, a further slot, another call of the
# head. Measured on one CPU thread at the sizes of tiny and distilgpt2; on a GPU rows and slots cost less than this
_ROW, _SLOT, _HEAD = 0.06, 0.005, 0.6
# so many rows of logits cost the head hardly more than one
FEW_ROWS = 16
LONGEST_WINDOW = 64
# what is looked at of the past: a draft that was judged counts so much less with the next one, and so much less with
# each round that judges none
_MEMORY, _FADING = 0.97, 0.9


@dataclass(frozen=True)
class Window:
    """What a round does: `is_fused` verifies the drafts there are and makes `width` after each stop in the same pass;
    otherwise `width` targets are drafted in one pass and verified in another."""

    is_fused: bool
    width: int


class Acceptance:
    """The share of drafts that are kept, of the last rounds mostly; a half, as of one draft, before any was judged."""

    def __init__(self) -> None:
        self.kept, self.judged = 0.5, 1.0
        self.is_known = False

    def add(self, kept: int, judged: int) -> None:
        """A round kept so many drafts of those that it came to judge; without any, what is known fades."""
        memory = _MEMORY**judged if judged else _FADING
        self.kept = memory * self.kept + (1 - memory) * 0.5 + kept
        self.judged = memory * self.judged + (1 - memory) + judged
        self.is_known = self.is_known or judged > 0

    @property
    def rate(self) -> float:
        """From 0 to below 1."""
        return min(self.kept / self.judged, 0.995)


def choose_window(acceptance: Acceptance, method: str, *, width: int, left: int) -> Window:
    """The round that is expected to decide most targets for its cost.

    Args:
        method: `fused`, `speculative`, or `auto` for either. width: the most drafts of a fused round. left: how many
            targets the row with most of them still has.
    """
    fused = [] if method == "speculative" else range(min(width, max(left - 1, 0)) + 1)
    speculative = [] if method == "fused" else range(1, min(LONGEST_WINDOW, left) + 1)
    if not acceptance.is_known:
        # nothing is known of the network: as many as asked for, or as cost little
        return Window(True, fused[-1]) if fused else Window(False, min(FEW_ROWS, left))
    rate = acceptance.rate
    choices = [(_fused_gain(rate, one), Window(True, one)) for one in fused]
    choices += [(_speculative_gain(rate, one), Window(False, one)) for one in speculative]
    return max(choices, key=lambda choice: choice[0])[1]


def _fused_gain(rate: float, width: int) -> float:
    # targets a unit of cost, where every round has as many drafts
    rows = (width + 1) ** 2
    cost = 1 + _SLOT * width * (width + 2)
    cost += _ROW * (rows - 1) if rows <= FEW_ROWS else _ROW * 2 * width + _HEAD
    return _expected(rate, width) / cost


def _speculative_gain(rate: float, width: int) -> float:
    if width == 1:
        return 1.0
    return (1 + _expected(rate, width - 1)) / (2 + (_ROW + _SLOT) * 2 * (width - 1))


def _expected(rate: float, drafts: int) -> float:
    # targets decided by drafts that are kept one after the other, and the one that follows them
    return (1 - rate ** (drafts + 1)) / (1 - rate)
