"""The mask of the configuration: one text or one per layer, saved with the weights, obeyed when it changes."""

import json
from pathlib import Path

import pytest
import torch

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, Mask, causal, window

from .oracles import micro, random_ids, reference_logits, whole

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
