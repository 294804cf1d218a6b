"""What happens on the page when a visitor writes, clicks or asks: from the values of the controls to what is shown."""

from typing import TYPE_CHECKING

from arbprob_hf.demo.loading import Network
from arbprob_hf.demo.masks import compare_masks
from arbprob_hf.demo.passages import Passage, read_passage, toggled
from arbprob_hf.demo.questions import ask, infills, layouts
from arbprob_hf.demo.showing import (
    answer_html,
    hint_html,
    infills_html,
    piece,
    said_html,
    tokens_html,
    totals_html,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEXT = "Return the number of items in the list."
# of TEXT, blank at the start
BLANKS = (3, 5)
BLANK, GIVEN = "blank", "given"

# a token and which of the two it is
Chips = list[tuple[str, str]]
# the passage, its tokens, the answer, and the samples, which belong to one question only
Shown = tuple[Passage, Chips, str, str]


class Answering:
    """Answers about one network; what a visitor has written is theirs and comes with every call.

    Every method raises ValueError, in one line, for what cannot be read or asked.
    """

    def __init__(self, network: Network) -> None:
        self.network = network

    def start(self) -> tuple[Passage | None, Chips, str]:
        """The passage that the page starts with, its tokens, and the answer; the reason where it cannot be asked."""
        try:
            passage = read_passage(TEXT, self.network)
            for position in BLANKS:
                passage = toggled(passage, position, self.network)
        except ValueError as error:
            return None, [], said_html(str(error))
        try:
            answer = self._answer(passage, layouts(self.network.model.config)[0])
        except ValueError as error:
            answer = said_html(str(error))
        return passage, self._chips(passage), answer

    def read(self, text: str, before: Passage | None, layout: str) -> Shown:
        """A text was written, or another layout chosen."""
        return self._shown(read_passage(text, self.network, before), layout)

    def click(self, text: str, before: Passage | None, layout: str, clicked: tuple[int, str]) -> Shown:
        """A token was clicked; `clicked`: its number among the tokens shown, from 0, and its text there."""
        passage = read_passage(text, self.network, before)
        number, said = clicked
        chips = self._chips(passage)
        # who clicks right after writing has seen other tokens
        if number < len(chips) and chips[number][0] == said:
            passage = toggled(passage, number + 1, self.network)
        return self._shown(passage, layout)

    def sample(
        self, text: str, before: Passage | None, layout: str, method: str, samples: int, temperature: float, seed: int
    ) -> Shown:
        """Infills were asked for."""
        passage = read_passage(text, self.network, before)
        options = dict(method=method, samples=samples, temperature=temperature, seed=seed)
        found, passes = infills(self.network, passage, layout=layout, **options)
        now, chips, answer, _ = self._shown(passage, layout)
        return now, chips, answer, infills_html(found, passes, method)

    def compare(self, text: str, mask: str) -> "tuple[str, str, Figure]":
        """A text was asked about under a mask: totals and warnings, the numbers of each token, and the picture."""
        found = compare_masks(self.network, text, mask)
        return totals_html(found), tokens_html(found), found.picture

    def _shown(self, passage: Passage, layout: str) -> Shown:
        return passage, self._chips(passage), self._answer(passage, layout), ""

    def _answer(self, passage: Passage, layout: str) -> str:
        return answer_html(ask(self.network, passage, layout=layout)) if passage.blanks else hint_html()

    def _chips(self, passage: Passage) -> Chips:
        hidden = set(passage.blanks)
        tokens = enumerate(passage.tokens[1:], start=1)
        return [
            (piece(self.network.said(token)) if token >= 0 else "[M]", BLANK if position in hidden else GIVEN)
            for position, token in tokens
        ]
