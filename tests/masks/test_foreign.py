"""A model loaded with its own code takes masks of the installed package, and the package's functions take its masks."""

import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from arbprob_hf import (
    ArbProbConfig,
    ArbProbForCausalLM,
    Mask,
    audit,
    block_diffusion,
    causal,
    check_leakage,
    documents,
    full,
    heads,
    order,
    padding,
    pattern,
    plot_mask,
    prefix,
    tree,
    window,
)
from arbprob_hf.model.masks.foreign import from_foreign
from arbprob_hf.model.masks.mask import PATTERNS
from tests.bundle.travel_helpers import HUB_NAME, put_in_hub_cache

T = 9
IDS = torch.arange(2 * T).view(2, T)
HALF = torch.arange(T * T).view(T, T) % 3 == 0
SIZES = dict(n_layer=2, n_head=2, n_embd=8, n_positions=24, vocab_size=40, initializer_range=0.4)
SIZES |= dict(bos_token_id=0, eos_token_id=None)
MASKS: dict[str, Callable[[], Mask]] = {
    "causal": causal,
    "window": lambda: causal() & ~window(2),
    "diffusion": lambda: block_diffusion(8, 3) | causal(),
    "tree": lambda: tree(torch.arange(T) // 2 - 1),
    "order": lambda: order(torch.arange(T) // 2),
    "tables": lambda: padding(IDS > 1) & documents(IDS // 4) & causal(),
    "heads": lambda: heads(causal() & window(3), causal() | prefix(4)),
    "heads of tensors": lambda: heads(Mask.of(HALF), tree(torch.arange(T) // 3 - 1) | window(2)),
    "tensor": lambda: Mask.of(HALF[None].repeat(2, 1, 1)) | window(2),
    "shifted": lambda: (causal() & window(3)).shifted(torch.tensor([[0] * 4 + [4] * 5])),
}


def landmarks(b, h, q, k, step):
    return (k % step == 0) & (k <= q)


def local(mask: Any = "causal") -> ArbProbForCausalLM:
    torch.manual_seed(0)
    return ArbProbForCausalLM(ArbProbConfig(**SIZES, mask=mask)).eval()


def remote(folder: Path, mask: Any = "causal") -> tuple[ArbProbForCausalLM, Any]:
    """A model, and the same one loaded with the code that was saved with it."""
    own = local(mask)
    own.save_pretrained(folder)
    return own, AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[ArbProbForCausalLM, Any]:
    return remote(tmp_path_factory.mktemp("adopting"))


def theirs(model: Any) -> Any:
    return sys.modules[type(model).__module__]


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("argument", ["mask", "attention_mask"])
@torch.no_grad()
def test_a_pass_under_an_installed_mask_gives_what_it_gives_here(pair: Any, name: str, argument: str) -> None:
    (own, other), given = pair, {argument: MASKS[name]()}
    assert not isinstance(other, ArbProbForCausalLM)
    assert other(IDS, **given).logits.equal(own(IDS, **given).logits)
    assert name == "causal" or not own(IDS, **given).logits.allclose(own(IDS).logits)


@pytest.mark.parametrize("name", MASKS)
def test_generation_under_an_installed_mask_gives_what_it_gives_here(pair: Any, name: str) -> None:
    own, other = pair
    for argument in ("mask", "attention_mask"):
        given = {argument: MASKS[name](), "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
        if name in ("tensor", "heads of tensors", "diffusion"):
            given["use_cache"] = False
        assert other.generate(IDS, **given).equal(own.generate(IDS, **given))


def test_an_installed_assistant_drafts_for_a_model_with_its_own_code(pair: Any) -> None:
    own, other = pair
    options = dict(max_new_tokens=6, do_sample=False, pad_token_id=0)
    mask = causal() & window(3)
    drafted = other.generate(IDS[:1], mask=mask, assistant_model=own, **options)
    assert drafted.equal(own.generate(IDS[:1], mask=mask, **options))


@pytest.mark.parametrize("name", MASKS)
def test_masks_go_both_ways_and_keep_their_tensors(pair: Any, name: str) -> None:
    there = sys.modules[type(pair[1]).__module__.rpartition(".")[0] + ".masks_arbprob"].from_foreign
    mask = MASKS[name]()
    moved = there(mask)
    assert (type(moved) is type(mask), isinstance(moved, Mask), str(moved)) == (False, False, str(mask))
    assert from_foreign(moved) == mask
    assert there(moved) is moved
    assert check_leakage(moved, length=T).where.equal(check_leakage(mask, length=T).where)
    assert from_foreign(there(Mask.of(HALF))).tensor is not None
    assert plot_mask(moved, T).axes


def test_the_audit_passes_a_model_with_its_own_code(pair: Any) -> None:
    for mask in (None, heads(causal(), causal() & window(3)), lambda length: tree(torch.arange(length) // 2 - 1)):
        report = audit(pair[1], mask, lengths=(16,))
        assert report.passed, str(report)


def test_what_is_no_mask_stays_and_is_refused_as_before(pair: Any) -> None:
    class Mask:
        pass

    given = Mask()
    assert from_foreign(given) is given
    with pytest.raises(TypeError, match="^mask: expected a tensor, a Mask, its text or None, got Mask$"):
        pair[1](IDS, mask=given)


def test_a_pattern_of_ones_own_is_taken_where_it_is_the_same_function(tmp_path: Path) -> None:
    kind = pattern(landmarks)
    own, other = remote(tmp_path, "causal & landmarks(3)")
    mask = kind(2) | window(1)
    with torch.no_grad():
        assert other(IDS, mask=mask).logits.equal(own(IDS, mask=mask).logits)

    @pattern(name="unheard")
    def elsewhere(b, h, q, k):
        return k <= q

    with pytest.raises(ValueError, match=r"^mask: unheard of another copy .* is not known to this one; pass mask.den"):
        other(IDS, mask=elsewhere())
    PATTERNS.pop("landmarks")

    @pattern(name="landmarks")
    def changed(b, h, q, k, step):
        return (k % step == 1) & (k <= q)

    with pytest.raises(ValueError, match=r"^mask: landmarks of another copy .* is another function in this one; pass"):
        other.generate(IDS, mask=changed(2))
    # the audit asks the model for its masks: here the name means something else
    report = audit(other, lengths=(16,))
    assert report.passed, str(report)


def test_a_mask_with_other_fields_is_refused(pair: Any) -> None:
    kind = type(next(iter(pair[1].base_model._default_masks().values())))
    later = dataclasses.make_dataclass("Causal", [("step", int)], bases=(kind,), frozen=True, eq=False, repr=False)
    later.__module__ = kind.__module__
    with pytest.raises(ValueError, match=r"^mask: Causal of another copy .* has other fields in this one; pass mask."):
        from_foreign(later(3))


def saved(folder: Path) -> Path:
    pattern(landmarks)
    local("causal & landmarks(3)").save_pretrained(folder)
    del PATTERNS["landmarks"]
    return folder


REFUSAL = re.escape(
    "pattern landmarks: the function registered here is not the one saved with the model; define that one with "
    "@pattern, or load with AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)"
)


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_our_own_class_takes_only_the_function_that_was_saved(tmp_path: Path, place: str) -> None:
    folder = saved(tmp_path / "saved")
    put_in_hub_cache(folder, tmp_path)
    source, options = (HUB_NAME, {"cache_dir": tmp_path / "hub"}) if place == "hub" else (folder, {})
    unheard = "^mask: the pattern 'landmarks' is a function in custom_arbprob.py of .*: add trust_remote_code=True "
    with pytest.raises(ValueError, match=unheard):
        ArbProbForCausalLM.from_pretrained(source, **options)

    @pattern(name="landmarks")
    def others(b, h, q, k, step):
        return (k % step == 1) & (k <= q)

    with pytest.raises(ValueError, match=f"^{REFUSAL}$"):
        ArbProbForCausalLM.from_pretrained(source, **options)
    del PATTERNS["landmarks"]

    # comments, layout and the function's name are no difference
    @pattern(name="landmarks")
    def same(b, h, q, k, step):
        # every so many
        return (k % step == 0) & (
            k <= q
        )  # fmt: skip

    model = ArbProbForCausalLM.from_pretrained(pretrained_model_name_or_path=source, **options)
    assert model.config.mask == "causal & landmarks(3)"


def test_a_folder_without_code_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / "custom_arbprob.py").unlink()
    pattern(landmarks)
    assert isinstance(ArbProbForCausalLM.from_pretrained(folder), ArbProbForCausalLM)


def test_a_mask_tensor_of_another_copy_stays_the_same_object(pair: Any) -> None:
    there = sys.modules[type(pair[1]).__module__.rpartition(".")[0] + ".masks_arbprob"]
    table: Tensor = HALF
    assert from_foreign(there.Mask.of(table)).tensor is table
    assert from_foreign(there.Mask.parse("full")) == full()
