"""What happens on the page when a visitor writes or clicks: from the values of the controls to what is shown."""

from collections.abc import Callable
from typing import Any

from .html import answer_html, hint_html, infills_html, message_html, piece, tokens_html, totals_html
from .masks import compare_masks
from .network import Network
from .passage import Passage, current_passage, read_passage, toggled
from .questions import ask, infills, layouts

TEXT = "Return the number of items in the list."
# of TEXT, blank at the start
BLANKS = (3, 5)
BLANK, GIVEN = "blank", "given"

# a token and which of the two it is
Chips = list[tuple[str, str]]
# the passage, its tokens, the answer, and the samples, which belong to one question only
Shown = tuple[Passage | None, Chips, str, str]
Reader = Callable[[str, Network, Passage | None], Passage]


class PageHandlers:
    """Answers about one network; what a visitor has written is theirs and comes with every call.

    An input that cannot be used gives a message of one line in place of the answer; nothing is raised for it.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.layouts = layouts(network.model.config)

    def start(self) -> Shown:
        """What the page starts with."""
        shown = self.read(TEXT, None, self.layouts[0])
        # the layout causal only continues a text: its one blank is the last token
        blanks = BLANKS if self.layouts[0] != "causal" else [len(shown[1])]
        for position in blanks:
            if shown[0] is not None:
                shown = self.click(shown[0].text, shown[0], self.layouts[0], (position - 1, shown[1][position - 1][0]))
        return shown

    def read(self, text: str, before: Passage | None, layout: str) -> Shown:
        """A text was written."""
        return self._answer_to(text, before, layout, read_passage)

    def again(self, text: str, before: Passage | None, layout: str) -> Shown:
        """Another layout was chosen."""
        return self._answer_to(text, before, layout, current_passage)

    def click(self, text: str, before: Passage | None, layout: str, clicked: tuple[int, str]) -> Shown:
        """A token was clicked; `clicked`: its number among the tokens shown, from 0, and its text there."""
        shown = passage, chips, *_ = self.again(text, before, layout)
        number, said = clicked
        # who clicks right after writing has seen other tokens
        if passage is None or number >= len(chips) or chips[number][0] != said:
            return shown
        try:
            return self._show(toggled(passage, number + 1, self.network), layout)
        except ValueError as error:
            return passage, chips, _message(error), ""

    def sample(
        self, text: str, before: Passage | None, layout: str, method: str, samples: int, temperature: float, seed: int
    ) -> Shown:
        """The button for samples was pressed."""
        passage, chips, answer, _ = self.again(text, before, layout)
        if passage is None:
            return passage, chips, answer, ""
        options: dict[str, Any] = dict(method=method, samples=samples, temperature=temperature, seed=seed)
        try:
            found, passes = infills(self.network, passage, layout=layout, **options)
        except (ValueError, TypeError) as error:
            return passage, chips, answer, _message(error)
        return passage, chips, answer, infills_html(found, passes, method)

    def compare(self, text: str, mask: str) -> tuple[str, str, Any]:
        """A text and a mask were entered: totals and warnings, the numbers of each token, and a figure or None."""
        try:
            found = compare_masks(self.network, text, mask)
        except (ValueError, TypeError) as error:
            return _message(error), "", None
        return totals_html(found), tokens_html(found), found.picture

    def _answer_to(self, text: str, before: Passage | None, layout: str, reader: Reader) -> Shown:
        try:
            passage = reader(text, self.network, before)
        except (ValueError, TypeError) as error:
            return None, [], _message(error), ""
        return self._show(passage, layout)

    def _show(self, passage: Passage, layout: str) -> Shown:
        # samples belong to one question, so another has none yet
        return passage, self._chips(passage), self._answer(passage, layout), ""

    def _answer(self, passage: Passage, layout: str) -> str:
        if not passage.blanks:
            return hint_html()
        try:
            return answer_html(ask(self.network, passage, layout=layout))
        except (ValueError, TypeError) as error:
            return _message(error)

    def _chips(self, passage: Passage) -> Chips:
        hidden = set(passage.blanks)
        return [
            (piece(self.network.decode([token])) if token >= 0 else "[M]", BLANK if position in hidden else GIVEN)
            for position, token in enumerate(passage.tokens[1:], start=1)
        ]


def _message(error: Exception) -> str:
    return message_html(" ".join(str(error).split()))
