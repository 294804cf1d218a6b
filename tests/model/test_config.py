"""The configuration takes GPT-2's fields and refuses wrong values in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, Mask
from tests.model.twins import SIZES, tokens

# what is given, and how the message begins
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "layers as text": (dict(n_layer="6"), r"n_layer: expected an integer, got '6' \(str\)"),
    "layers as float": (dict(n_layer=6.0), r"n_layer: expected an integer, got 6\.0"),
    "no layer": (dict(n_layer=0), "n_layer: expected 1 to 1000, got 0"),
    "heads that do not divide": (dict(n_head=5), "n_embd: expected a multiple of n_head=5, got 24"),
    "bool heads": (dict(n_head=True), r"n_head: expected an integer, got True \(bool\)"),
    "negative vocabulary": (dict(vocab_size=-1), "vocab_size: expected 1 to 10000000, got -1"),
    "huge vocabulary": (dict(vocab_size=10**12), "vocab_size: expected 1 to 10000000, got 1000000000000"),
    "no position": (dict(n_positions=0), "n_positions: expected 1 to 10000000, got 0"),
    "inner as text": (dict(n_inner="x"), "n_inner: expected an integer, got 'x'"),
    "certain dropout": (dict(attn_pdrop=1.0), r"attn_pdrop: expected a probability in \[0, 1\), got 1\.0"),
    "negative dropout": (dict(resid_pdrop=-0.1), r"resid_pdrop: expected a probability in \[0, 1\), got -0\.1"),
    "dropout as text": (dict(embd_pdrop="0.1"), r"embd_pdrop: expected a probability in \[0, 1\), got '0\.1' \(str\)"),
    "zero epsilon": (dict(layer_norm_epsilon=0), "layer_norm_epsilon: expected a finite number above 0, got 0"),
    "epsilon as text": (dict(layer_norm_epsilon="1e-5"), "layer_norm_epsilon: expected a finite number above 0"),
    "nan range": (dict(initializer_range=float("nan")), "initializer_range: expected a finite number above 0, got nan"),
    "cache as text": (dict(use_cache="yes"), "use_cache: expected true or false, got 'yes'"),
    "tied as none": (dict(tie_word_embeddings=None), "tie_word_embeddings: expected true or false, got None"),
    "activation": (dict(activation_function="tanh"), "activation_function: expected one of gelu_new, .* got 'tanh'"),
    "misspelt field": (dict(n_layr=3), r"n_layr: not a field of ArbProbConfig; did you mean n_layer\?"),
    "mask as number": (dict(mask=3), "mask: expected the text of a mask or a list of texts, one per layer, got 3"),
    "mask as mask": (dict(mask=Mask.parse("causal")), "mask: expected the text of a mask .* got causal"),
    "too few masks": (dict(mask=["causal"]), r"mask: expected one text or one per layer \(n_layer=3\), got 1"),
    "unknown mask": (dict(mask="casual"), "mask: unknown pattern 'casual'"),
    "unreadable mask": (dict(mask="causal &"), "mask: cannot read 'causal &'"),
    "tensor mask": (dict(mask="<tensor (2, 2)>"), "mask: .* holds a tensor, which has no text form"),
    "long value": (dict(activation_function="x" * 5000), "activation_function: expected one of"),
}


@pytest.mark.parametrize(("fields", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_is_refused_in_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{message}") as raised:
        ArbProbForCausalLM(ArbProbConfig(**{**SIZES, **fields}))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) <= 300


def test_a_wrong_value_in_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    ArbProbConfig(**SIZES).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "n_head": 7}))
    with pytest.raises(ValueError, match="^n_embd: expected a multiple of n_head=7, got 24$"):
        ArbProbConfig.from_pretrained(tmp_path)


def test_defaults_are_gpt2s() -> None:
    from transformers import GPT2Config

    ours, theirs = ArbProbConfig(), GPT2Config()
    shared = [name for name in ArbProbConfig.__annotations__ if hasattr(theirs, name)]
    assert {"n_layer", "resid_pdrop", "activation_function", "layer_norm_epsilon"} <= set(shared)
    assert {name: getattr(ours, name) for name in shared} == {name: getattr(theirs, name) for name in shared}


def test_general_names_mean_gpt2s() -> None:
    config = ArbProbConfig(**SIZES)
    general = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
    assert general == (config.n_embd, config.n_layer, config.n_head)
    assert config.max_position_embeddings == config.n_positions
    assert ArbProbConfig(num_hidden_layers=5).n_layer == 5


@pytest.mark.parametrize(
    "mask", ["causal & window(3)", ["causal", "full", "causal | prefix(2)"]], ids=["one", "layers"]
)
def test_the_mask_survives_saving_and_loading(tmp_path: Path, mask: Any) -> None:
    ArbProbConfig(**SIZES, mask=mask).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["mask"] == mask
    assert ArbProbConfig.from_pretrained(tmp_path).mask == mask


def test_every_field_survives_saving_and_loading(tmp_path: Path) -> None:
    changed = dict(n_inner=40, activation_function="relu", scale_attn_weights=False, use_cache=False, resid_pdrop=0.25)
    config = ArbProbConfig(**{**SIZES, **changed}, tie_word_embeddings=False, initializer_range=0.5)
    config.save_pretrained(tmp_path)
    # transformers notes the class that wrote the file
    again = ArbProbConfig.from_pretrained(tmp_path)
    assert {n: getattr(again, n) for n in ArbProbConfig.__annotations__} == {
        n: getattr(config, n) for n in ArbProbConfig.__annotations__
    }


def test_two_configurations_share_no_state() -> None:
    first, second = ArbProbConfig(), ArbProbConfig()
    first.auto_map["AutoConfig"] = "changed"
    assert second.auto_map["AutoConfig"] == "configuration_arbprob.ArbProbConfig"


def test_a_paged_backend_is_refused_at_the_first_pass() -> None:
    model = ArbProbForCausalLM(ArbProbConfig(**SIZES))
    model.config._attn_implementation_internal = "paged|eager"
    with pytest.raises(
        ValueError,
        match=r'^Specified `attn_implementation="paged\|eager"` is not supported; expected eager or sdpa or flex',
    ):
        model(tokens())


@pytest.mark.parametrize("field", ["sep_token_id", "cls_token_id", "tie_encoder_decoder"])
def test_fields_of_transformers_own_past_are_no_misspellings(field: str) -> None:
    assert getattr(ArbProbConfig(**SIZES, **{field: 7}), field) == 7


@pytest.mark.parametrize(
    ("field", "value"), [("eos_token_id", "x"), ("bos_token_id", -1), ("pad_token_id", True), ("eos_token_id", [1, -2])]
)
def test_a_special_token_is_an_id(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field}: expected a token id from 0, or null, got "):
        ArbProbConfig(**{**SIZES, field: value})


def test_the_config_of_another_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 10}))
    with pytest.raises(ValueError, match=r"^model_type: expected gpt2 or arbprob in config.json, got 'llama'$"):
        ArbProbConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("backend", ["flash_attention_2", "nonsense"])
def test_a_backend_that_may_drop_the_mask_is_refused(backend: str) -> None:
    model = ArbProbForCausalLM(ArbProbConfig(**SIZES))
    with pytest.raises(ValueError, match="^Specified `attn_implementation=.*; expected eager or sdpa"):
        model.set_attn_implementation(backend)
    assert model(tokens()).logits.shape == (2, 12, 101)
