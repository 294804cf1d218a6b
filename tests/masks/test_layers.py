"""The mask of the configuration: one text or one per layer, saved with the weights, obeyed when it changes."""

import json
from pathlib import Path

import pytest
import torch

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, Mask, causal, full, heads, window
from tests.masks.oracles import micro, random_ids, reference_logits, whole

T = 9
LAYERS = ["causal & window(2)", "causal", "full"]


def keeps(texts: list[str]) -> list[torch.Tensor]:
    return [whole(Mask.parse(text).dense(T), 2, 2) for text in texts]


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("texts", [LAYERS, LAYERS[::-1], ["causal", "full", "causal"]], ids=" / ".join)
def test_each_layer_obeys_its_own_text(backend: str, texts: list[str]) -> None:
    model, ids = micro(layers=3, backend=backend, mask=texts), random_ids(2, T)
    expected = reference_logits(model, ids, keeps(texts))
    torch.testing.assert_close(model(ids).logits.double(), expected, atol=1e-5, rtol=0)


def test_layers_of_one_text_share_one_mask() -> None:
    model, ids = micro(layers=3, mask=["causal & window(2)", "full", "causal & window(2)"]), random_ids(2, T)
    seen = []
    for block in model.transformer.h:
        block.attn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    model(ids)
    assert seen[0] is seen[2]
    assert seen[0] is not seen[1]


def test_a_mask_argument_replaces_those_of_all_layers() -> None:
    model, ids = micro(layers=3, mask=LAYERS), random_ids(2, T)
    expected = reference_logits(model, ids, keeps(["causal & window(3)"] * 3))
    got = model(ids, mask=causal() & window(3)).logits
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=0)


def test_padding_holds_in_every_layer() -> None:
    model, ids = micro(layers=3, mask=LAYERS), random_ids(2, T)
    exists = torch.ones(2, T, dtype=torch.bool)
    exists[1, 6:] = False
    expected = reference_logits(model, ids, [keep & exists[:, None, None] for keep in keeps(LAYERS)])
    got = model(ids, attention_mask=exists).logits
    torch.testing.assert_close(got[exists].double(), expected[exists], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mask", ["causal & window(3) | prefix(2)", LAYERS], ids=str)
def test_the_mask_survives_saving_and_loading(mask: str | list[str], tmp_path: Path) -> None:
    model, ids = micro(layers=3, mask=mask), random_ids(2, T)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["mask"] == mask
    assert ArbProbConfig.from_pretrained(tmp_path).mask == mask
    loaded = ArbProbForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert loaded.config.mask == mask
    assert loaded(ids).logits.equal(model(ids).logits)


def test_a_mask_put_into_the_config_later_is_obeyed() -> None:
    model, ids = micro(layers=3), random_ids(2, T)
    model(ids)
    for mask in ("full", LAYERS, "causal & window(2)"):
        model.config.mask = mask
        texts = [mask] * 3 if isinstance(mask, str) else mask
        expected = reference_logits(model, ids, keeps(texts))
        torch.testing.assert_close(model(ids).logits.double(), expected, atol=1e-5, rtol=0)


def test_an_entry_replaced_in_place_is_obeyed() -> None:
    model, ids = micro(layers=3, mask=list(LAYERS)), random_ids(2, T)
    model(ids)
    model.config.mask[1] = "causal & window(3)"
    expected = reference_logits(model, ids, keeps([LAYERS[0], "causal & window(3)", LAYERS[2]]))
    torch.testing.assert_close(model(ids).logits.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("casual", "unknown pattern 'casual'"),
        ("", "cannot read ''"),
        (["causal"], "one text or one per layer \\(n_layer=3\\), got 1"),
        (causal(), "the text of a mask or a list of texts"),
        (["causal", "full", None], "the text of a mask or a list of texts"),
    ],
    ids=["misspelt", "empty", "too few", "pattern", "mixed"],
)
def test_a_wrong_mask_put_into_the_config_later_is_refused(mask: object, message: str) -> None:
    model, ids = micro(layers=3), random_ids(2, T)
    model.config.mask = mask
    with pytest.raises((ValueError, TypeError), match=f"mask: .*{message}"):
        model(ids)


def test_a_text_that_cannot_be_read_is_refused_before_there_is_a_model() -> None:
    with pytest.raises(ValueError, match="mask: unknown pattern 'casual'"):
        micro(mask="casual")
    with pytest.raises(ValueError, match="mask: unknown pattern 'casual'"):
        micro(layers=2, mask=["causal", "casual"])


# local and global attention, layer by layer and head by head

ALTERNATING = ["causal & window(2) | sinks(1)", "causal"] * 2
PER_HEAD = "heads(causal & window(2), causal, causal & dilated(3, 2), causal & (window(2) | strided(3)))"
BOTH = ["heads(causal & window(2), causal)", "causal & blocks(3)", "heads(causal, causal & window(3) | sinks(2))"]


def drawn(name: str) -> torch.Tensor:
    """The masks of these tests without any pattern: bool (T, T)."""
    past = torch.ones(T, T).tril().bool()
    key, gap = torch.arange(T), torch.arange(T)[:, None] - torch.arange(T)
    return {
        "causal": past,
        "near": past & (gap < 2),
        "near and first": past & ((gap < 2) | (key < 1)),
        "nearby and two first": past & ((gap < 3) | (key < 2)),
        "with gaps": past & ((gap == 0) | (gap == 2) | (gap == 4)),
        "near and every third": past & ((gap < 2) | (gap % 3 == 0)),
        "threes": past & torch.block_diag(*[torch.ones(3, 3)] * 3).bool(),
    }[name]


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("mask", "layers"),
    [
        (ALTERNATING, [["near and first"] * 2, ["causal"] * 2] * 2),
        (PER_HEAD, [["near", "causal", "with gaps", "near and every third"]] * 2),
        (BOTH, [["near", "causal"], ["threes"] * 2, ["causal", "nearby and two first"]]),
    ],
    ids=["local and global layers", "local and global heads", "layers of heads"],
)
def test_layers_and_heads_may_be_local_or_global(backend: str, mask: str | list[str], layers: list[list[str]]) -> None:
    model = micro(layers=len(layers), heads=len(layers[0]), backend=backend, mask=mask)
    ids, keeps = random_ids(2, T), [torch.stack([drawn(name) for name in names])[None] for names in layers]
    expected = reference_logits(model, ids, [keep.expand(2, -1, -1, -1) for keep in keeps])
    torch.testing.assert_close(model(ids).logits.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_heads_of_patterns_count_tokens_and_heads_of_tensors_columns(backend: str) -> None:
    model, ids = micro(backend=backend), random_ids(2, T)
    exists = torch.ones(2, T, dtype=torch.bool)
    exists[0, :3] = False
    table = torch.rand(2, T, T) < 0.6
    mask = heads(causal() & window(2) | Mask.parse("sinks(1)"), Mask.of(table))
    shifted = torch.zeros(2, T, T, dtype=torch.bool)
    for row, first in enumerate((3, 0)):
        for q in range(first, T):
            shifted[row, q, max(first, q - 1) : q + 1] = True
            shifted[row, q, first] = True
    keep = torch.stack([shifted, table], dim=1) & exists[:, None, None]
    got = model(ids, attention_mask=exists, mask=mask).logits
    torch.testing.assert_close(got[exists].double(), reference_logits(model, ids, keep)[exists], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("mask", "got"),
    [
        ("heads(causal)", 1),
        ("heads(causal, full, causal)", 3),
        ("causal & ~heads(causal, full, causal)", 3),
        (["causal", "heads(causal)"], 1),
        ("heads(causal, heads(full, full, full))", 3),
    ],
    ids=str,
)
def test_a_wrong_number_of_heads_is_refused_before_there_is_a_model(mask: str | list[str], got: int) -> None:
    with pytest.raises(ValueError, match=f"heads: expected one mask per head, 2 in all, got {got}"):
        micro(layers=2, heads=2, mask=mask)


def test_a_wrong_number_of_heads_put_into_the_config_later_is_refused() -> None:
    model, ids = micro(), random_ids(2, T)
    model.config.mask = "heads(causal, full, causal)"
    with pytest.raises(ValueError, match="heads: expected one mask per head, 2 in all, got 3"):
        model(ids)


def test_a_wrong_number_of_heads_in_a_pass_is_refused() -> None:
    model, ids = micro(), random_ids(2, T)
    with pytest.raises(ValueError, match="heads: expected one mask per head, 2 in all, got 3"):
        model(ids, mask=heads(causal(), full(), causal()))


def test_masks_per_layer_and_head_survive_saving_and_loading(tmp_path: Path) -> None:
    model, ids = micro(layers=3, mask=BOTH), random_ids(2, T)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["mask"] == BOTH
    loaded = ArbProbForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert loaded(ids).logits.equal(model(ids).logits)


@pytest.mark.parametrize("mask", [ALTERNATING, [*BOTH, "causal"]], ids=["layers", "layers of heads"])
def test_generation_follows_masks_per_layer_and_head(mask: list[str]) -> None:
    model, ids = micro(layers=4, mask=mask), random_ids(2, 4)
    options = dict(max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options))
