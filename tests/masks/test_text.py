"""The text form of masks: what is read, how it prints, and how hostile text is refused."""

import builtins
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from arbprob_hf import (
    ArbProbConfig,
    ArbProbForCausalLM,
    Mask,
    block_diffusion,
    blocks,
    causal,
    dilated,
    documents,
    full,
    heads,
    order,
    padding,
    prefix,
    sinks,
    strided,
    tree,
    window,
)
from arbprob_hf.model.masks.mask import PATTERNS
from arbprob_hf.model.masks.text import MAX_DEPTH, MAX_INTEGER, MAX_OPERATORS

READ = {
    "causal": causal(),
    "causal()": causal(),
    "  full  ": full(),
    "window(3)": window(3),
    "window(size=3)": window(3),
    "~causal": ~causal(),
    "causal&window(4)|prefix(2)": (causal() & window(4)) | prefix(2),
    "causal & (window(4) | prefix(2))": causal() & (window(4) | prefix(2)),
    "~(causal | full) & prefix(0)": ~(causal() | full()) & prefix(0),
    "causal | full | prefix(1)": (causal() | full()) | prefix(1),
    "causal | (full | prefix(1))": causal() | (full() | prefix(1)),
    f"window({MAX_INTEGER})": window(MAX_INTEGER),
    "window(1_000)": window(1000),
    "dilated(3, 2)": dilated(3, 2),
    "dilated(step=2, size=3)": dilated(3, 2),
    "causal & window(8) | sinks(4)": causal() & window(8) | sinks(4),
    "strided(4) & ~blocks(4)": strided(4) & ~blocks(4),
    "block_diffusion(8, size=2)": block_diffusion(8, 2),
    "heads(causal)": heads(causal()),
    "heads(causal & window(4), ~full | heads(full, causal))": heads(
        causal() & window(4), ~full() | heads(full(), causal())
    ),
}

PRINTED = {
    "causal": causal(),
    "window(256)": window(256),
    "causal & window(256) | prefix(64)": causal() & window(256) | prefix(64),
    "causal & (window(256) | prefix(64))": causal() & (window(256) | prefix(64)),
    "~~causal": ~~causal(),
    "~(causal & full)": ~(causal() & full()),
    "~causal & full": ~causal() & full(),
    "causal & full & full": (causal() & full()) & full(),
    "causal & (full & full)": causal() & (full() & full()),
    "dilated(3, 2) | strided(4)": dilated(3, 2) | strided(4),
    "~heads(causal & full, sinks(2)) | blocks(3)": ~heads(causal() & full(), sinks(2)) | blocks(3),
    "block_diffusion(8, 2)": block_diffusion(8, 2),
    "tree(<tensor (1, 8)>)": tree(torch.arange(8) - 1),
    "<tensor (2, 8, 8)>": Mask.of(torch.ones(2, 8, 8)),
    "causal & <tensor (1, 8, 8)>": causal() & Mask.of(torch.ones(1, 8, 8)),
    "documents(<tensor (2, 8)>)": documents(torch.zeros(2, 8, dtype=torch.long)),
    "padding(<tensor (1, 8)>)": padding(torch.ones(8)),
    "order(<tensor (1, 8)>)": order(torch.arange(8)),
    "order(<tensor (1, 8)>, <tensor (1, 8)>)": order(torch.arange(8), torch.arange(8)),
}

# text -> part of the message
HOSTILE = {
    "attribute": ("causal.__class__", "unexpected '.'"),
    "subclasses": ("().__class__.__base__.__subclasses__()", "unexpected '.'"),
    "import": ("__import__('os').system('touch pwned')", "unexpected"),
    "call without quotes": ("exec(input())", "unknown pattern"),
    "unknown call": ("print(1)", "unknown pattern 'print'"),
    "class of the module": ("Mask", "unknown pattern 'Mask'"),
    "dunder": ("__builtins__", "unknown pattern"),
    "call of a call": ("causal()()", "holds a call of what is no name"),
    "many brackets": ("(" * 100_000 + "causal" + ")" * 100_000, "at most 2000 characters"),
    "nested brackets": ("(" * 60 + "causal" + ")" * 60, f"at most {MAX_DEPTH} nested brackets"),
    "nested calls": ("window(" * 60 + "1" + ")" * 60, f"at most {MAX_DEPTH} nested brackets"),
    "unclosed brackets": ("(" * 40, "cannot read"),
    "closing brackets": (")" * 1_000, "cannot read"),
    "square brackets": ("[" * 1_900, "unexpected '\\['"),
    "braces": ("{" * 1_900, "unexpected '{'"),
    "huge integer": ("window(" + "9" * 1_900 + ")", "too large an integer"),
    "large integer": ("window(9999999999)", "integer up to 2147483647"),
    "integer power": ("window(9**9**9)", "unexpected '\\*'"),
    "shift": ("window(1<<99)", "unexpected '<'"),
    "hexadecimal": ("window(0xFFFF)", "unexpected '0xFFFF'"),
    "float": ("window(1e3)", "unexpected '1e3'"),
    "negative": ("window(-1)", "unexpected '-'"),
    "boolean": ("window(True)", "got True"),
    "deep not": ("~" * 1_900 + "causal", f"at most {MAX_OPERATORS} operators"),
    "deep minus": ("-" * 1_900 + "1", "unexpected '-'"),
    "deep word not": ("not " * 480 + "causal", "holds the word not"),
    "long and chain": ("&".join(["full"] * 390), f"at most {MAX_OPERATORS} operators"),
    "long or chain": ("|".join(["full"] * 390), f"at most {MAX_OPERATORS} operators"),
    "starred": ("window(*causal)", "unexpected '\\*'"),
    "double starred": ("window(**causal)", "unexpected '\\*'"),
    "unknown keyword": ("window(width=3)", "expected window\\(size\\)"),
    "keyword twice": ("window(size=3, size=4)", "given twice|repeated"),
    "position and keyword": ("window(3, size=4)", "expected window\\(size\\)"),
    "too many arguments": ("window(3, 4)", "expected window\\(size\\)"),
    "no argument": ("window", "expected window\\(size\\)"),
    "superfluous argument": ("causal(3)", "causal takes no arguments"),
    "superfluous keyword": ("full(size=3)", "full takes no arguments"),
    "one argument of two": ("dilated(3)", "expected dilated\\(size, step\\)"),
    "no head": ("heads()", "heads: expected one mask per head, got none"),
    "integer for a head": ("heads(causal, 3)", "heads: expected masks, got int"),
    "keyword for heads": ("heads(masks=causal)", "expected heads\\(\\*masks\\)"),
    "very many heads": (f"heads({'full, ' * 10_000}full)", "at most 2000 characters"),
    "generator of heads": ("heads(causal for x in full)", "holds the word for"),
    "starred heads": ("heads(*full)", "unexpected '\\*'"),
    "call of an expression": ("(causal & full)(3)", "holds a call of what is no name"),
    "call of a walrus": ("(window := full)(3)", "unexpected ':'"),
    "mask for an integer": ("window(causal)", "expected an integer, got causal"),
    "zero size": ("window(0)", "window\\(size\\): expected at least 1, got 0"),
    "lambda": ("lambda: causal", "unexpected ':'"),
    "comprehension": ("(causal for x in full)", "holds the word for"),
    "f-string": ("f'{causal}'", 'unexpected "\'"'),
    "string": ("'causal'", "unexpected"),
    "walrus": ("(a := causal)", "unexpected ':'"),
    "assignment": ("causal = full", "cannot read"),
    "two statements": ("causal; full", "unexpected ';'"),
    "new line": ("causal\nfull", "cannot read"),
    "statement": ("import os", "cannot read"),
    "conditional": ("causal if full else full", "holds the word if"),
    "word and": ("causal and full", "holds the word and"),
    "tuple": ("causal, full", "holds a comma outside of a call"),
    "comparison": ("causal != full", "unexpected '!'"),
    "equality": ("causal == full", "holds a comparison"),
    "membership": ("causal in full", "holds a comparison"),
    "word or": ("causal or full", "holds the word or"),
    "yield from": ("(yield from causal)", "holds the word yield"),
    "keyword for a name": ("class", "cannot read"),
    "constant for a name": ("None", "holds None where a mask belongs"),
    "set": ("{causal}", "unexpected '{'"),
    "list comprehension": ("[x for x in causal]", "unexpected '\\['"),
    "format field": ("f'{().__class__}'", "unexpected"),
    "names of the interpreter": ("globals()", "unknown pattern 'globals'"),
    "minus": ("causal - full", "unexpected '-'"),
    "await": ("await causal", "holds the word await"),
    "yield": ("(yield)", "holds the word yield"),
    "bare integer": ("5", "holds 5 where a mask belongs"),
    "integer for a mask": ("causal & 3", "holds 3 where a mask belongs"),
    "letters after a digit": ("window(1if 2)", "unexpected '1if'"),
    "stray escape": ("'\\d'", "unexpected"),
    "null byte": ("causal\x00", "unexpected"),
    "control characters": ("\x01" * 60, "unexpected"),
    "look-alike letter": ("c\u0430usal", "expected ASCII"),
    "full-width letters": ("\uff43\uff41\uff55\uff53\uff41\uff4c", "expected ASCII"),
    "full-width digits": ("window(\uff13)", "expected ASCII"),
    "non-characters": ("\U0010ffff" * 60, "expected ASCII"),
    "surrogate": ("causal\ud800", "expected ASCII"),
    "comment": ("causal # & window(3)", "unexpected '#'"),
    "backslash": ("causal\\\n", "unexpected"),
    "backticks": ("`id`", "unexpected '`'"),
    "shell": ("causal & $(touch pwned)", "unexpected '\\$'"),
    "empty": ("", "cannot read ''"),
    "blank": (" \t ", "cannot read"),
    "misspelt": ("casual", "unknown pattern 'casual' in 'casual'; did you mean causal\\?"),
    "misspelt call": ("windw(3)", "unknown pattern 'windw' in 'windw\\(3\\)'; did you mean window\\?"),
    "not defined": ("every_third", "known: block_diffusion, .*; define your own with @pattern first .*, or load with"),
    "long name": ("x" * 1_900, "unknown pattern"),
    "upper case": ("Causal", "did you mean causal"),
    "tensor": ("causal & <tensor (2, 8, 8)>", "has no text form; pass it to forward as mask="),
    "tensor pattern": ("documents(3)", "documents needs a tensor.*to forward as mask="),
}


@pytest.mark.parametrize("text", READ)
def test_text_is_read_as_the_operators_read(text: str) -> None:
    assert Mask.parse(text) == READ[text]


@pytest.mark.parametrize("text", PRINTED)
def test_masks_print_as_they_are_written(text: str) -> None:
    assert str(PRINTED[text]) == text
    assert repr(PRINTED[text]) == text


class Watch:
    """Python tells a hook of everything it runs, opens or imports (PEP 578); there is no way to take the hook off."""

    def __init__(self) -> None:
        self.events: list[str] | None = None
        sys.addaudithook(self.note)

    def note(self, event: str, _: tuple[object, ...]) -> None:
        if self.events is not None:
            self.events.append(event)

    @contextmanager
    def nothing_happens(self) -> Iterator[None]:
        """A text may be compiled to a syntax tree, no more."""
        self.events = []
        try:
            yield
        finally:
            events, self.events = set(self.events), None
        assert events <= {"compile", "object.__getattr__", "builtins.id"}


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.mark.parametrize(
    "deed", [lambda: eval("1"), lambda: open(os.devnull).close(), lambda: __import__("nothing_such")]
)
def test_the_watch_would_see_what_a_text_must_not_do(watch: Watch, deed: Callable[[], object]) -> None:
    with pytest.raises(AssertionError), watch.nothing_happens(), suppress(ModuleNotFoundError):
        deed()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_refused_at_once_in_one_line(name: str, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the text of a mask was evaluated")

    text, message = HOSTILE[name]
    with monkeypatch.context() as patched, warnings.catch_warnings(), watch.nothing_happens():
        warnings.simplefilter("error")
        for place, function in [(builtins, "eval"), (builtins, "exec"), (os, "system"), (os, "popen")]:
            patched.setattr(place, function, never)
        start = time.perf_counter()
        with pytest.raises(ValueError, match=message) as caught:
            Mask.parse(text)
        seconds = time.perf_counter() - start
    assert seconds < 1
    assert len(str(caught.value)) <= 300
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "surrogate"])
def test_no_model_is_made_of_a_config_with_hostile_text(name: str) -> None:
    text, message = HOSTILE[name]
    sizes = dict(vocab_size=5, n_positions=8, n_embd=4, n_layer=1, n_head=1)
    with pytest.raises(ValueError, match=message):
        ArbProbForCausalLM(ArbProbConfig(**sizes, mask=text))


@pytest.mark.parametrize("text", [3, None, b"causal", ["causal"], causal()], ids=lambda x: type(x).__name__)
def test_only_text_is_parsed(text: object) -> None:
    with pytest.raises(TypeError, match=f"mask: expected the text of a mask, got {type(text).__name__}"):
        Mask.parse(text)


def test_the_longest_legal_chain_is_read_printed_and_evaluated() -> None:
    mask = Mask.parse("|".join(["causal"] * (MAX_OPERATORS + 1)))
    assert Mask.parse(str(mask)) == mask
    assert torch.equal(mask.dense(5), causal().dense(5))


def test_the_deepest_legal_nesting_is_read_printed_and_evaluated() -> None:
    depth = MAX_DEPTH - 1
    mask = Mask.parse("full & (" * depth + "causal" + ")" * depth)
    assert Mask.parse(str(mask)) == mask
    assert torch.equal(mask.dense(5), causal().dense(5))


@pytest.mark.parametrize("name", ["tensor", "documents", "padding", "order"])
def test_a_mask_of_tensors_refuses_to_go_into_a_config(name: str) -> None:
    ids = torch.zeros(1, 8, dtype=torch.long)
    leaf = {"tensor": Mask.of(torch.ones(8, 8)), "documents": documents(ids), "padding": padding(ids + 1)}
    mask = causal() & leaf.get(name, order(ids))
    with pytest.raises(TypeError, match="passed to forward, not kept in a config"):
        ArbProbConfig(mask=mask)
    with pytest.raises(ValueError, match="has no text form"):
        Mask.parse(str(mask))


WORDS = [*PATTERNS, "&", "|", "~", "(", ")", ",", "=", " ", "3", "0", "size", "not", "and", "or", "if", "else", "for"]
WORDS += ["in", "is", "await", "yield", "from", "lambda", "None", "True", "async", "==", "_", "1_0", "\n", "match"]


@settings(max_examples=1_000)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=14).map(" ".join))
@example("heads(causal, yield)")
@example("window(yield)")
def test_any_words_are_read_or_refused_in_one_line(text: str) -> None:
    try:
        mask = Mask.parse(text)
    except ValueError as error:
        message = str(error)
        assert len(message) <= 300
        assert message.isprintable()
        assert "ast." not in message
    else:
        assert Mask.parse(str(mask)) == mask


def test_equal_heads_are_made_one() -> None:
    mask = Mask.parse("heads(causal & window(4), full, causal & window(4))")
    assert mask.operands()[0] is mask.operands()[2]
    assert str(mask) == "heads(causal & window(4), full, causal & window(4))"
