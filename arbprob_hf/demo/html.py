"""Answers as HTML: bars of distributions, infills with their blanks marked, and two columns of log-probabilities.

Everything that comes from a text or a model is escaped.
"""

from collections.abc import Iterable, Sequence
from html import escape

from .masks import Comparison
from .questions import Answer, Distribution, Infill, Likely

HINT = "Click a token to blank it out, or write [M] in the text."
CSS = """
.ask { font-variant-numeric: tabular-nums; color: var(--body-text-color);
  --quiet: color-mix(in srgb, currentColor 65%, transparent); }
.ask .blanks { display: flex; flex-wrap: wrap; gap: 18px 40px; }
.ask table { border-collapse: collapse; width: auto; margin: 0 0 4px; border: 0 !important; }
.ask tr { border: 0 !important; }
.ask th, .ask td { padding: 2px 10px 2px 0 !important; border: 0 !important; text-align: right; white-space: nowrap;
  font-weight: normal; }
.ask th { font-size: 0.85em; color: var(--quiet); }
.ask .token { text-align: left; font-family: var(--font-mono); white-space: pre; }
.ask .blank .token { min-width: 128px; }
.ask th.token { font-family: inherit; }
.ask td.both:not(.bar), .ask td.left:not(.bar) { min-width: 56px; }
.ask td.bar { width: 84px; min-width: 84px; }
.ask .bar i { display: block; height: 12px; border-radius: 2px; background: #0072B2; min-width: 1px; }
.ask .bar.left i { background: #8a8a8a; }
.ask .original .token { font-weight: 700; text-decoration: underline; text-underline-offset: 3px; }
.ask .warning { border-left: 4px solid #D55E00; padding: 4px 10px; margin: 8px 0; }
.ask .remark { color: var(--quiet); margin: 4px 0; }
.ask .remark b { color: var(--body-text-color); }
.ask .informed { color: #D55E00; }
.ask ol { padding-left: 0; list-style: none; margin: 0; }
.ask li { margin: 4px 0; display: flex; gap: 12px; }
.ask li .text { white-space: pre-wrap; }
.ask li .nats { min-width: 52px; text-align: right; flex: none; color: var(--quiet); }
.ask mark { background: #F9C6A4; color: #1A1A1A; border-radius: 2px; }
.ask .scroll { max-height: 430px; overflow-y: auto; width: fit-content; padding-right: 16px; }
#picture img { object-fit: contain; }
"""


def piece(text: str) -> str:
    """A token's text on one line: line ends and the like as they are written in Python."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def answer_html(answer: Answer) -> str:
    """The distribution at each blank, the joint log-probability of the original tokens, and remarks."""
    tables = "".join(map(_distribution, answer.distributions))
    return _framed(f'{_joint(answer)}<div class="blanks">{tables}</div>{_remarks(answer.remarks)}')


def hint_html() -> str:
    """What to do where nothing is blank."""
    return _framed(_remarks([HINT]))


def message_html(message: str) -> str:
    """A message in place of an answer."""
    # half a character, which a message may quote, cannot be sent
    sendable = message.encode("utf-8", "backslashreplace").decode()
    return _framed(f'<div class="warning said">{escape(sendable)}</div>')


def infills_html(found: Sequence[Infill], passes: int, method: str) -> str:
    """Sampled texts, their blanks marked, each after its log-probability."""
    lines = "".join(
        f'<li><span class="nats">{_nats(one.log_prob)}</span><span class="text">{_marked(one)}</span></li>'
        for one in found
    )
    count = f"{len(found)} sample{'s' * (len(found) > 1)}, {method}, {passes} forward pass{'es' * (passes > 1)}"
    return _framed(f'<ol>{lines}</ol><div class="remark">{count}; log P of the blanks given the rest, in nats</div>')


def totals_html(found: Comparison) -> str:
    """The log-probability of the whole text under both masks, and a warning where one shows tokens later ones."""
    tokens = len(found.tokens)
    rows = "".join(
        f'<tr><td class="token">{escape(name)}</td><td class="number">{_nats(scores.total)}</td>'
        f"<td>{_nats(scores.total / tokens)}</td></tr>"
        for name, scores in ((found.mask, found.chosen), (f"{found.own_mask} (the model's own)", found.own))
    )
    head = '<tr><th class="token">mask</th><th>log P of the text</th><th>per token</th></tr>'
    warnings = "".join(_warning(name, marks) for name, marks in _informed(found))
    return _framed(f'<table class="totals">{head}{rows}</table>{warnings}')


def tokens_html(found: Comparison) -> str:
    """Each token's log-probability under the mask, under the model's own, and their difference."""
    head = '<tr><th class="token">token</th><th>this mask</th><th>own mask</th><th>difference</th></tr>'
    lines = zip(found.tokens, found.chosen.log_probs, found.own.log_probs, found.chosen.is_informed, strict=True)
    rows = "".join(
        f'<tr><td class="token">{escape(piece(text))}</td>'
        f'<td class="chosen{" informed" * informed}">{_nats(chosen)}</td>'
        f"<td>{_nats(own)}</td><td>{_nats(chosen - own, '+')}</td></tr>"
        for text, chosen, own, informed in lines
    )
    return _framed(f'<div class="scroll"><table class="tokens">{head}{rows}</table></div>')


def _nats(value: float, sign: str = "") -> str:
    # zero has no sign
    return f"{round(value, 2) + 0.0:{sign}.2f}"


def _framed(content: str) -> str:
    return f'<div class="ask">{content}</div>'


def _remarks(remarks: Iterable[str]) -> str:
    return "".join(f'<div class="remark">{escape(one)}</div>' for one in remarks)


def _joint(answer: Answer) -> str:
    if answer.log_probs is None:
        return ""
    joint, count = sum(answer.log_probs), len(answer.log_probs)
    tokens = "the original token (underlined)" if count == 1 else f"the {count} original tokens (underlined) together"
    return f'<div class="remark joint">log P of {tokens}, given the rest: <b>{joint:.3f}</b> nats</div>'


def _distribution(found: Distribution) -> str:
    most = max(max(one.both_sides, one.left_only) for one in found.likely)
    head = (
        f'<tr><th class="token">token {found.position}</th><th colspan="2">given both sides</th>'
        '<th colspan="2">given the left only</th></tr>'
    )
    return f'<table class="blank">{head}{"".join(_likely(one, most) for one in found.likely)}</table>'


def _likely(one: Likely, most: float) -> str:
    kind = ' class="original" title="the original token"' if one.is_original else ""
    return (
        f'<tr{kind}><td class="token">{escape(piece(one.text))}</td>'
        f"{_bar(one.both_sides, most, 'both')}{_bar(one.left_only, most, 'left')}</tr>"
    )


def _bar(share: float, most: float, kind: str) -> str:
    width = 100 * share / most if most > 0 else 0
    # small ones by their first digit
    said = f"{share:.1%}" if share >= 0.001 else f"{100 * share:.1g}%"
    return f'<td class="{kind}">{said}</td><td class="bar {kind}"><i style="width:{width:.1f}%"></i></td>'


def _marked(found: Infill) -> str:
    return "".join(f"<mark>{escape(text)}</mark>" if is_blank else escape(text) for text, is_blank in found.pieces)


def _informed(found: Comparison) -> list[tuple[str, Sequence[bool]]]:
    named = (("Under this mask", found.chosen), ("Under the model's own mask", found.own))
    return [(name, scores.is_informed) for name, scores in named if any(scores.is_informed)]


def _warning(name: str, marks: Sequence[bool]) -> str:
    count, tokens = sum(marks), len(marks)
    which = "" if name != "Under this mask" else " (in orange)"
    return (
        f'<div class="warning">{name}, later tokens reach what predicts {count} of {tokens} tokens{which}: these '
        "numbers are not likelihoods.</div>"
    )
