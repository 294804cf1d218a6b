"""`@pattern`: a function as a mask, in Python and in text, and what cannot be one."""

import copy
import importlib
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from arbprob_hf import Mask, causal, full, heads, pattern, window
from arbprob_hf.model.masks.custom import BUILT_IN
from arbprob_hf.model.masks.mask import PATTERNS
from tests.masks.oracles import micro, random_ids, reference_logits, whole


def every_third(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Query q sees every third key."""
    return (q - k) % 3 == 0


def zebra(b: Tensor, h: Tensor, q: Tensor, k: Tensor, step: int, phase: int = 0) -> Tensor:
    return (q + k + phase) % step == 0


def test_the_patterns_of_the_package_are_known_as_such() -> None:
    assert set(BUILT_IN) == set(PATTERNS.values())


def test_a_function_becomes_a_mask_under_its_name() -> None:
    own = pattern(every_third)
    expected = torch.tensor([[(q - k) % 3 == 0 for k in range(7)] for q in range(7)])
    assert isinstance(own(), Mask)
    assert torch.equal(own().dense(7)[0, 0], expected)
    assert own.__doc__ == "Query q sees every third key."
    assert torch.equal((causal() & ~own()).dense(7)[0, 0], expected.logical_not().tril())


def test_a_definition_may_be_decorated_with_or_without_a_name() -> None:
    @pattern
    def evens(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k % 2 == 0

    @pattern(name="odds")
    def something(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k % 2 == 1

    @pattern()
    def ends(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k == 0

    assert (str(evens()), str(something()), str(ends())) == ("evens", "odds", "ends")
    assert torch.equal(Mask.parse("odds").dense(6), Mask.parse("~evens").dense(6))


@pytest.mark.parametrize(
    ("text", "printed", "step", "phase"),
    [
        ("zebra(3)", "zebra(3, 0)", 3, 0),
        ("zebra(3, 1)", "zebra(3, 1)", 3, 1),
        ("zebra(phase=2, step=4)", "zebra(4, 2)", 4, 2),
    ],
)
def test_integers_are_arguments_in_python_and_in_text(text: str, printed: str, step: int, phase: int) -> None:
    own = pattern(zebra)
    mask = Mask.parse(text)
    assert str(mask) == printed
    assert mask == own(step, phase) == Mask.parse(printed)
    assert hash(mask) == hash(own(step, phase=phase))
    assert mask != own(step, phase + 1)
    expected = torch.tensor([[(q + k + phase) % step == 0 for k in range(7)] for q in range(7)])
    assert torch.equal(mask.dense(7)[0, 0], expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zebra", "expected zebra(step, phase=0)"),
        ("zebra(1, 2, 3)", "expected zebra(step, phase=0)"),
        ("zebra(causal)", "zebra(step): expected an integer, got causal"),
        ("zebr(3)", "did you mean zebra?"),
        ("every_third", "unknown pattern 'every_third' in 'every_third'; known: "),
    ],
)
def test_a_text_that_does_not_fit_is_refused(text: str, message: str) -> None:
    pattern(zebra)
    with pytest.raises(ValueError, match=re.escape(message)):
        Mask.parse(text)


def test_it_goes_anywhere_in_an_expression() -> None:
    own = pattern(zebra)
    mask = heads(causal() & own(2), ~own(3, 1) | window(2))
    assert Mask.parse(str(mask)) == mask
    assert torch.equal(Mask.parse(str(mask)).dense(7), mask.dense(7))


def test_torch_reads_it_too() -> None:
    mask = pattern(zebra)(3) & causal()
    assert torch.equal(create_mask(mask.mask_mod, 2, 3, 7, 7, device="cpu"), mask.dense(7, batch=2, heads=3))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_it_counts_tokens_not_columns(backend: str) -> None:
    pattern(zebra)
    model, ids, text = micro(backend=backend), random_ids(2, 9), "causal & zebra(2) | window(1)"
    exists = torch.ones(2, 9, dtype=torch.bool)
    exists[0, :4] = False
    positions = (exists.long().cumsum(1) - 1).clamp(min=0)
    padded = model(ids, attention_mask=exists, position_ids=positions, mask=text).logits
    torch.testing.assert_close(padded[0, 4:], model(ids[:1, 4:], mask=text).logits[0], atol=1e-5, rtol=0)


def test_it_is_the_mask_of_a_configuration() -> None:
    own = pattern(zebra)
    model, ids = micro(mask=["causal & zebra(2) | window(1)", "heads(zebra(1), causal)"]), random_ids(2, 9)
    keeps = [causal() & own(2) | window(1), heads(full(), causal())]
    expected = reference_logits(model, ids, [whole(keep.dense(9, heads=2), 2, 2) for keep in keeps])
    torch.testing.assert_close(model(ids).logits.double(), expected, atol=1e-5, rtol=0)


def test_generation_follows_it() -> None:
    pattern(zebra)
    model, ids = micro(mask="causal & zebra(2) | window(1)"), random_ids(2, 5)
    options = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options))


def test_a_model_follows_one_rule_after_a_name_is_defined_anew() -> None:
    def define(size: int) -> None:
        @pattern
        def near(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (k <= q) & (q - k < size)

    define(1)
    model, ids = micro(mask="near"), random_ids(2, 5)
    alone = model(ids).logits
    options = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)
    define(3)
    now = model(ids).logits
    assert not torch.allclose(now, alone, atol=1e-3)
    assert torch.equal(now, model(ids, mask="near").logits)
    generated = model.generate(ids, output_logits=True, return_dict_in_generate=True, **options)
    expected = model(generated.sequences, mask="causal & window(3)").logits[:, 4:-1]
    torch.testing.assert_close(torch.stack(generated.logits, dim=1), expected, atol=1e-5, rtol=0)


class Table:
    """A rule with a table of its own, as long as the model's positions."""

    size = 16
    rows = torch.ones(size, size, dtype=torch.bool).tril()


def looks_up(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return Table.rows[q, k]


def test_a_rule_is_asked_only_for_tokens_that_may_exist() -> None:
    pattern(looks_up)
    model, ids = micro(n_positions=Table.size, mask="looks_up"), random_ids(2, 5)
    options = dict(max_new_tokens=99, do_sample=False, eos_token_id=None)
    found = model.generate(ids, **options)
    assert found.shape == (2, Table.size)
    assert torch.equal(found, model.generate(ids, mask="causal", **options))


def test_a_rule_is_asked_anew_as_its_table_may_have_changed() -> None:
    pattern(looks_up)
    model, ids = micro(n_positions=Table.size, mask="looks_up"), random_ids(2, 5)
    options = dict(max_new_tokens=9, do_sample=False, eos_token_id=None)
    kept = Table.rows.clone()
    try:
        model.generate(ids, **options)
        Table.rows.copy_(torch.eye(Table.size))
        changed = model.generate(ids, output_logits=True, return_dict_in_generate=True, **options)
        expected = model(changed.sequences, mask="window(1)").logits[:, 4:-1]
        torch.testing.assert_close(torch.stack(changed.logits, dim=1), expected, atol=1e-5, rtol=0)
        Table.rows.fill_(True)
        cache = model(ids, mask="causal", use_cache=True).past_key_values
        with pytest.raises(ValueError, match="past_key_values: holds 5 tokens that, under this mask, see later ones"):
            model(ids[:, :1], past_key_values=cache)
    finally:
        Table.rows.copy_(kept)


def test_defining_a_function_again_replaces_the_pattern_and_leaves_old_masks_alone() -> None:
    def define(step: int) -> Callable[..., Mask]:
        @pattern
        def stripes(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q - k) % step == 0

        return stripes

    old, new = define(2)(), define(3)()
    assert Mask.parse("stripes") == new
    assert old != new
    assert str(old) == str(new) == "stripes"
    assert old.dense(6)[0, 0, 2, 0]
    assert not new.dense(6)[0, 0, 2, 0]


def test_another_function_of_the_same_name_is_refused() -> None:
    pattern(zebra)

    def other(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k <= q

    with pytest.raises(ValueError, match="the name 'zebra' is taken by zebra of .*test_custom; give another name="):
        pattern(name="zebra")(other)


def takes_nothing() -> Tensor:
    return torch.ones(1)


def takes_others(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return i >= j


def takes_any_number(b: Tensor, h: Tensor, q: Tensor, k: Tensor, *more: int) -> Tensor:
    return k <= q


def takes_keywords(b: Tensor, h: Tensor, q: Tensor, k: Tensor, *, step: int) -> Tensor:
    return k <= q


def has_a_float(b: Tensor, h: Tensor, q: Tensor, k: Tensor, share: float = 0.5) -> Tensor:
    return k <= q


def has_a_negative(b: Tensor, h: Tensor, q: Tensor, k: Tensor, step: int = -1) -> Tensor:
    return k <= q


def hides_a_method(b: Tensor, h: Tensor, q: Tensor, k: Tensor, dense: int) -> Tensor:
    return k <= q


class Callable_:
    def __call__(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k <= q

    def method(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k <= q


@pytest.mark.parametrize(
    ("rule", "name", "error", "message"),
    [
        (zebra, "window", ValueError, "the name 'window' is taken by a pattern of the package"),
        (zebra, "documents", ValueError, "the name 'documents' is taken by a pattern of the package"),
        (zebra, "two words", ValueError, "expected a name of ASCII letters, digits and _, got 'two words'"),
        (zebra, "caus\u0430l", ValueError, "expected a name of ASCII letters"),
        (zebra, "not", ValueError, "expected a name of ASCII letters"),
        (zebra, "", ValueError, "expected a name of ASCII letters"),
        (zebra, 3, ValueError, "expected a name of ASCII letters"),
        (lambda b, h, q, k: k <= q, None, ValueError, "got '<lambda>'; give name="),
        ("zebra", None, TypeError, "expected a function, got str; write @pattern or @pattern(name=...) above a def"),
        (Callable_(), None, TypeError, "expected a function, got Callable_"),
        (Callable_().method, None, TypeError, "expected a function, got method"),
        (Callable_.method, None, TypeError, "pattern method: expected a function of (b, h, q, k)"),
        (len, None, TypeError, "expected a function, got builtin_function_or_method"),
        (takes_nothing, None, TypeError, "pattern takes_nothing: expected a function of (b, h, q, k)"),
        (takes_others, None, TypeError, "expected a function of (b, h, q, k) and then of integers by name"),
        (takes_any_number, None, TypeError, "expected a function of (b, h, q, k)"),
        (takes_keywords, None, TypeError, "expected a function of (b, h, q, k)"),
        (has_a_float, None, TypeError, "has_a_float(share): expected an integer, got 0.5 (float)"),
        (has_a_negative, None, ValueError, "has_a_negative(step): expected at least 0, got -1"),
        (hides_a_method, None, ValueError, "the parameter 'dense' has the name of a part of Mask; rename it"),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__),
)
def test_what_is_no_rule_is_refused_when_it_is_registered(
    rule: Any, name: Any, error: type[Exception], message: str
) -> None:
    before = dict(PATTERNS)
    with pytest.raises(error, match=re.escape(message)) as caught:
        pattern(name=name)(rule) if name is not None else pattern(rule)
    assert len(str(caught.value)) <= 300
    assert "\n" not in str(caught.value)
    assert before == PATTERNS


def joins_with_and(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return k <= q and q - k < 3


def chains_comparisons(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return 0 <= q - k < 3


def asks_if(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return k <= q if q > 3 else k < 3


def answers_numbers(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return q - k


def answers_true(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> bool:
    return True


def answers_nothing(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> None:
    return None


def answers_in_another_shape(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (k <= q).flatten()


def answers_with_an_axis_more(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (k <= q)[None].repeat(2, 1, 1, 1, 1)


def uses_heads(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (k <= q) & ((h == 1) | (q - k < 2))


def compares_tokens_with_rows(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (k <= q) & (k != b)


def passes_heads_to_torch(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return torch.where(h > 0, k <= q, k < q)


def broadcasts_rows(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return torch.stack(torch.broadcast_tensors(q, b)).any(0)


def hides_heads_in_a_closure(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    def seen(x: Tensor) -> Tensor:
        return x <= q

    return seen(k) | seen(h)


def asks_for_a_shape(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return k.expand(b.shape[0], 1, 1, 7) <= q


def branches_on_rows(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return k <= q if b else k < q


def indexes_with_heads(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (k <= q) & torch.ones(3, dtype=torch.bool)[h]


def counts_heads_itself(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (k <= q) & (torch.arange(3)[:, None, None] == 1)


def raises(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    raise RuntimeError("many words\nin two lines " + "x" * 400)


def divides(b: Tensor, h: Tensor, q: Tensor, k: Tensor, by: int) -> Tensor:
    return (q - k) % by == 0


@pytest.mark.parametrize(
    ("rule", "arguments", "message"),
    [
        (joins_with_and, (), "pattern joins_with_and: asks a tensor for one truth value; write & | ~ for and, or, not"),
        (chains_comparisons, (), "(a < b) & (b < c) for a < b < c"),
        (asks_if, (), "asks a tensor for one truth value"),
        (answers_numbers, (), "pattern answers_numbers: expected a bool tensor, got dtype torch.int64; compare"),
        (answers_true, (), "expected a bool tensor, got bool"),
        (answers_nothing, (), "expected a bool tensor, got NoneType"),
        (answers_in_another_shape, (), "broadcasts with q and k to (1, 1, 5, 7), got shape (35,)"),
        (
            uses_heads,
            (),
            "uses h, but treats all rows and heads alike; a rule for each head is heads(",
        ),
        (compares_tokens_with_rows, (), "uses b, but treats all rows and heads alike"),
        (passes_heads_to_torch, (), "uses h, but"),
        (broadcasts_rows, (), "uses b, but"),
        (hides_heads_in_a_closure, (), "uses h, but"),
        (asks_for_a_shape, (), "uses b, but"),
        (branches_on_rows, (), "data for each row goes in as a tensor: documents, padding, order, tree, Mask.of"),
        (indexes_with_heads, (), "uses h, but"),
        (counts_heads_itself, (), "got shape (1, 3, 5, 7)"),
        (answers_with_an_axis_more, (), "got shape (2, 1, 1, 5, 7)"),
        (raises, (), "pattern raises: its function raised RuntimeError: many words in two lines xxx"),
        (divides, (0,), "pattern divides(0): its function raised"),
        (divides, (-1,), "divides(by): expected at least 0, got -1"),
        (divides, (2**31,), "divides(by): expected at most 2147483647"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_does_not_answer_as_a_mask_is_refused_when_it_is_built(
    rule: Callable[..., Any], arguments: tuple[int, ...], message: str
) -> None:
    own = pattern(rule)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        own(*arguments)
    assert len(str(caught.value)) <= 300
    assert "\n" not in str(caught.value)


def test_an_argument_that_is_no_integer_is_refused() -> None:
    with pytest.raises(TypeError, match=re.escape("divides(by): expected an integer, got 2.0 (float)")):
        pattern(divides)(2.0)


def test_indices_of_rows_and_heads_may_be_passed_on_unused() -> None:
    def outer(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return every_third(b, h, q, k)

    assert torch.equal(pattern(outer)().dense(7), pattern(every_third)().dense(7))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda mask: pickle.loads(pickle.dumps(mask))])
def test_a_mask_under_another_name_is_copied_and_pickled(copied: Callable[[Mask], Mask]) -> None:
    mask = pattern(name="stripes")(zebra)(3, 1) & causal()
    assert copied(mask) == mask
    assert torch.equal(copied(mask).dense(7), mask.dense(7))


def test_a_model_under_another_name_is_copied_and_pickled(tmp_path: Path) -> None:
    pattern(name="stripes")(zebra)
    model, ids = micro(mask="causal & stripes(3) | window(1)"), random_ids(2, 7)
    torch.save(model, tmp_path / "model.pt")
    for other in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert torch.equal(other(ids).logits, model(ids).logits)


def test_a_pickle_imports_what_defines_the_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "from arbprob_hf import pattern\n\n\n@pattern\ndef pickled(b, h, q, k, step):\n    return (q - k) % step == 0\n"
    )
    (tmp_path / "defines_pickled.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("defines_pickled")
    stored = pickle.dumps(Mask.parse("pickled(2)"))
    del PATTERNS["pickled"]
    monkeypatch.delitem(sys.modules, "defines_pickled")
    assert str(pickle.loads(stored)) == "pickled(2)"


def test_a_mask_of_a_rule_defined_anew_is_not_pickled() -> None:
    mask = pattern(zebra)(3)
    pattern(zebra)
    message = "pattern zebra: was defined anew after this mask was built; build the mask again"
    with pytest.raises(pickle.PicklingError, match=message):
        pickle.dumps(mask)
    assert copy.deepcopy(mask) == mask
