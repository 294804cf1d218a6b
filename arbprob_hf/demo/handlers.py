"""What happens on the page when a visitor writes or clicks: from the values of the controls to what is shown."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import brief, check_integer
from ..model.questions.sampling import METHODS
from .html import answer_html, hint_html, infills_html, message_html, piece, tokens_html, totals_html
from .masks import compare_masks
from .network import Network
from .passage import Passage, current_passage, read_passage, toggled
from .questions import ask, infills, layouts

TEXT = "Return the number of items in the list."
# of TEXT, blank at the start
BLANKS = (3, 5)
BLANK, GIVEN = "blank", "given"

# characters of a text, and of a mask; the network's own limit is in tokens
LONGEST, LONGEST_MASK = 20_000, 2_000
HOTTEST = 2

# a token and which of the two it is
Chips = list[tuple[str, str]]
# the passage, its tokens, the answer, and the samples, which belong to one question only
Shown = tuple[Passage | None, Chips, str, str]
Reader = Callable[[str, Network, Passage | None], Passage]


class PageHandlers:
    """Answers about one network; what a visitor has written is theirs and comes with every call.

    An input that cannot be used gives a message of one line in place of the answer; nothing is raised for it. Whatever
    the controls of the page allow, a server is sent anything: each value is checked here.
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

    def read(self, text: Any, before: Passage | None, layout: Any) -> Shown:
        """A text was written."""
        return self._answer_to(text, before, layout, read_passage)

    def again(self, text: Any, before: Passage | None, layout: Any) -> Shown:
        """Another layout was chosen."""
        return self._answer_to(text, before, layout, current_passage)

    def click(self, text: Any, before: Passage | None, layout: Any, clicked: Any) -> Shown:
        """A token was clicked; `clicked`: its number among the tokens shown, from 0, and its text there."""
        shown = passage, chips, *_ = self.again(text, before, layout)
        if passage is None:
            return shown
        try:
            number, said = _clicked(clicked)
        except (ValueError, TypeError) as error:
            return passage, chips, _message(error), ""
        # who clicks right after writing has seen other tokens
        if number >= len(chips) or chips[number][0] != said:
            return shown
        try:
            return self._show(toggled(passage, number + 1, self.network), layout)
        except ValueError as error:
            return passage, chips, _message(error), ""

    def sample(
        self, text: Any, before: Passage | None, layout: Any, method: Any, samples: Any, temperature: Any, seed: Any
    ) -> Shown:
        """The button for samples was pressed."""
        passage, chips, answer, _ = self.again(text, before, layout)
        if passage is None:
            return passage, chips, answer, ""
        try:
            options: dict[str, Any] = dict(
                method=_choice("method", method, METHODS),
                samples=_whole(samples),
                temperature=_temperature(temperature),
                seed=_whole(seed),
            )
            found, passes = infills(self.network, passage, layout=layout, **options)
        except (ValueError, TypeError) as error:
            return passage, chips, answer, _message(error)
        return passage, chips, answer, infills_html(found, passes, method)

    def compare(self, text: Any, mask: Any) -> tuple[str, str, Any]:
        """A text and a mask were entered: totals and warnings, the numbers of each token, and a figure or None."""
        try:
            text, mask = _text("text", text, LONGEST), _text("mask", mask, LONGEST_MASK)
            found = compare_masks(self.network, text, mask)
        except (ValueError, TypeError) as error:
            return _message(error), "", None
        return totals_html(found), tokens_html(found), found.picture

    def _answer_to(self, text: Any, before: Passage | None, layout: Any, reader: Reader) -> Shown:
        try:
            layout = _choice("layout", layout, self.layouts)
            passage = reader(_text("text", text, LONGEST), self.network, before)
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


def _text(name: str, value: Any, longest: int) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a text, got {brief(value)}")
    if len(value) > longest:
        raise ValueError(f"{name}: expected at most {longest:,} characters, got {len(value):,}; shorten it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: character {error.start + 1} is half of one (a surrogate); write it anew") from None
    return value


def _choice(name: str, value: Any, choices: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {brief(value)}")
    return value


def _whole(value: Any) -> Any:
    # a number of JSON may have a fraction of zero
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _temperature(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 0 <= value <= HOTTEST:
        raise ValueError(f"temperature: expected a number from 0 to {HOTTEST}, got {brief(value)}")
    return float(value)


def _clicked(value: Any) -> tuple[int, str]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"token: expected its number and its text, got {brief(value)}")
    return check_integer("token", value[0], low=0), _text("token", value[1], LONGEST)


def _message(error: Exception) -> str:
    return message_html(" ".join(str(error).split()))
