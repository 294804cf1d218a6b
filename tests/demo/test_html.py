"""Answers as HTML: nothing of a text or a model is taken for markup, and the numbers are there."""

import re

import pytest

from arbprob_hf.demo.handlers import BLANK, BLANKS, GIVEN, TEXT, PageHandlers
from arbprob_hf.demo.html import answer_html, infills_html, message_html, piece
from arbprob_hf.demo.network import Network
from arbprob_hf.demo.questions import Answer, Distribution, Infill, Likely
from tests.demo.micro_networks import micro_network

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def handlers(network: Network) -> PageHandlers:
    return PageHandlers(network)


def test_what_a_text_or_a_model_says_is_escaped() -> None:
    likely = Likely(EVIL, 0.25, 0.5, True)
    shown = [
        answer_html(Answer((Distribution(1, (likely,)),), (-1.0,), (EVIL,))),
        infills_html([Infill(((EVIL, False), (EVIL, True)), -1.0)], 1, "fused"),
        message_html(EVIL),
    ]
    for one in shown:
        assert "<img" not in one
        assert "&lt;img src=x" in one


def test_a_mask_and_a_text_are_escaped_in_the_answer_about_masks(handlers: PageHandlers) -> None:
    totals, tokens, _ = handlers.compare("a <b> c", "causal & nothing<b>")
    assert "&lt;b&gt;" in totals
    assert "<b>" not in totals
    assert tokens == ""
    _, tokens, _ = handlers.compare("a <b> c", "causal")
    assert "&lt;" in tokens
    assert "<b>" not in tokens


def test_small_shares_show_their_first_digit_and_bars_their_ratio() -> None:
    rows = (Likely("a", 0.25, 0.5, False), Likely("b", 0.000043, 0.0, False))
    shown = answer_html(Answer((Distribution(1, rows),), None, ()))
    assert re.findall(r'<td class="(?:both|left)">([^<]+)<', shown) == ["25.0%", "50.0%", "0.004%", "0%"]
    assert re.findall(r"width:([0-9.]+)%", shown) == ["50.0", "100.0", "0.0", "0.0"]
    assert "log P" not in shown


def test_the_joint_is_the_sum() -> None:
    shown = answer_html(Answer((), (-1.25, -2.5), ()))
    assert "log P of the 2 original tokens (underlined) together, given the rest: <b>-3.750</b> nats" in shown


def test_a_token_is_shown_on_one_line() -> None:
    assert piece(" a\n\tb\u00e9") == " a\\n\\tb\u00e9"


def test_the_page_starts_with_a_question(handlers: PageHandlers) -> None:
    passage, chips, answer, samples = handlers.start()
    assert passage is not None
    assert (passage.blanks, passage.text) == (BLANKS, "Return the [M] of [M] in the list.")
    assert [said for said, kind in chips if kind == BLANK] == [" number", " items"]
    assert "".join(said for said, _ in chips) == TEXT
    assert answer.count('<table class="blank">') == 2
    assert samples == ""


def test_both_views_stay_in_step(handlers: PageHandlers) -> None:
    passage, chips, *_ = handlers.read("The cat sat on", None, "two_stream")
    assert {kind for _, kind in chips} == {GIVEN}
    passage, chips, *_ = handlers.click("The cat sat on", passage, "two_stream", (2, " sat"))
    assert passage is not None
    assert (passage.text, chips[2]) == ("The cat [M] on", (" sat", BLANK))
    passage, chips, *_ = handlers.read("The [M] [M] on", passage, "two_stream")
    assert chips == [("The", GIVEN), (" cat", BLANK), (" sat", BLANK), (" on", GIVEN)]
    passage, chips, *_ = handlers.click("The [M] [M] on", passage, "two_stream", (2, " sat"))
    assert passage is not None
    assert passage.text == "The [M] sat on"


def test_quick_clicks_count_though_the_text_is_not_yet_the_latest(handlers: PageHandlers) -> None:
    text = "The cat sat on"
    passage, *_ = handlers.read(text, None, "two_stream")
    for number, said in ((1, " cat"), (3, " on"), (2, " sat"), (3, " on")):
        passage, *_ = handlers.click(text, passage, "two_stream", (number, said))
    assert passage is not None
    assert passage.text == "The [M:2] on"
    for late in (handlers.again(text, passage, "prefix"), handlers.sample(text, passage, "prefix", "fused", 1, 1, 0)):
        assert late[0] == passage


def test_a_click_on_a_token_that_is_no_longer_there_changes_nothing(handlers: PageHandlers) -> None:
    passage, *_ = handlers.read("The cat sat on", None, "two_stream")
    for clicked in ((2, " sat"), (9, "?")):
        now, chips, *_ = handlers.click("A dog ran off", passage, "two_stream", clicked)
        assert now is not None
        assert now.blanks == ()
        assert "".join(said for said, _ in chips) == "A dog ran off"


def test_a_text_without_blanks_gets_a_hint_and_no_samples(handlers: PageHandlers) -> None:
    _, _, answer, samples = handlers.sample("The cat", None, "two_stream", "fused", 2, 1.0, 0)
    assert "Click a token to blank it out, or write [M] in the text." in answer
    assert "text: has no blanks; click a token" in samples


def test_a_refused_question_keeps_the_text_and_its_tokens(handlers: PageHandlers) -> None:
    passage, chips, answer, samples = handlers.sample("The [M] sat", None, "causal", "sequential", 2, 1.0, 0)
    assert passage is not None
    assert len(chips) == 3
    for said in (answer, samples):
        assert "layout: causal only continues a text" in said


def test_an_unreadable_text_is_said_in_place_of_everything(handlers: PageHandlers) -> None:
    for shown in (
        handlers.read("a [mask]", None, "two_stream"),
        handlers.click("a [mask]", None, "two_stream", (0, "a")),
        handlers.sample("a [mask]", None, "two_stream", "fused", 2, 1.0, 0),
    ):
        assert shown[:2] == (None, [])
        assert "text: expected blanks [M], or [M:3] for three tokens" in shown[2]
        assert shown[3] == ""


def test_a_blank_that_hides_nothing_known_stays(handlers: PageHandlers) -> None:
    passage, chips, answer, _ = handlers.click("The [M] sat", None, "two_stream", (1, "[M]"))
    assert passage is not None
    assert (passage.blanks, chips[1]) == ((2,), ("[M]", BLANK))
    assert "token: nobody knows what this blank hides" in answer


def test_samples_are_of_the_question_shown(handlers: PageHandlers) -> None:
    _, _, answer, samples = handlers.sample("The [M] sat [M:2]", None, "two_stream", "speculative", 3, 1.0, 0)
    assert answer.count('<table class="blank">') == 3
    assert samples.count("<mark>") == 2 * 3
    assert re.search(r"3 samples, speculative, \d forward passes?; log P of the blanks", samples)


def test_a_mask_that_looks_ahead_is_warned_of(handlers: PageHandlers) -> None:
    totals, tokens, picture = handlers.compare(TEXT, "full")
    assert "Under this mask, later tokens reach what predicts 9 of 9 tokens (in orange)" in totals
    assert tokens.count("chosen informed") == 9
    assert picture is not None
    totals, tokens, _ = handlers.compare(TEXT, "causal & window(4)")
    assert "no likelihoods" not in totals
    assert "informed" not in tokens


def test_a_network_that_refuses_questions_still_reads_under_masks() -> None:
    windowed = PageHandlers(micro_network(mask="causal & window(4)"))
    passage, chips, answer, _ = windowed.start()
    assert passage is not None
    assert len(chips) == 9
    assert "config.mask: questions need a network whose mask is causal" in answer
    totals, _, picture = windowed.compare(TEXT, "causal")
    assert "causal &amp; window(4) (the model&#x27;s own)" in totals
    assert picture is not None


def test_a_network_too_short_for_the_first_text_says_so() -> None:
    passage, chips, answer, _ = PageHandlers(micro_network(n_positions=5)).start()
    assert (passage, chips) == (None, [])
    assert "text: expected at most n_positions=5 tokens" in answer
