"""What a configuration writes it reads again, whatever tools have set on it; what could not be read is not written."""

import inspect
import json
import re
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, PreTrainedConfig, PreTrainedModel

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
from arbprob_hf.model import configuration_arbprob
from tests.model.twins import SIZES

FIELDS = [field.name for field in fields(ArbProbConfig)]
LETTERS = "abcdefghijklmnopqrstuvwxyz_"
# base classes have had these; a hand may write them as well
FORMER = """
torch_dtype use_bfloat16 torchscript tf_legacy_loss pruned_heads is_decoder cross_attention_hidden_size prefix afn
add_cross_attention tie_encoder_decoder finetuning_task tokenizer_class sep_token_id cls_token_id mask_token_id
decoder_start_token_id unk_token_id task_specific_params gradient_checkpointing xla_device output_past n_ctx
predict_special_tokens summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
reorder_and_upcast_attn name_or_path attn_implementation num_labels output_attentions rope_theta quantization_config
attention_dropout hidden_dropout classifier_dropout head_dim num_key_value_heads sliding_window layer_types
"""


def edited(name: str, place: int, letter: str, kind: str) -> str:
    """A name one letter off."""
    place %= len(name)
    return name[:place] + ("" if kind == "left out" else letter) + name[place + (kind != "added") :]


NEAR = st.builds(
    edited,
    st.sampled_from(FIELDS),
    st.integers(0, 40),
    st.sampled_from(LETTERS),
    st.sampled_from(["left out", "added", "changed"]),
)
KNOWN_ELSEWHERE = st.sampled_from(
    ["layer_norm_eps", "mask_token_id", "n_heads", "num_layers", "emb_pdrop", "use_mask_token", "d_head"]
)
NAMES = st.one_of(NEAR, KNOWN_ELSEWHERE, st.text(LETTERS, min_size=1, max_size=12)).filter(
    lambda name: not name.startswith("_") and not hasattr(ArbProbConfig(), name) and name not in ("self", "kwargs")
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=25, deadline=None)
@given(name=NAMES, value=VALUES)
def test_whatever_a_tool_sets_is_kept_by_a_file(name: str, value: Any) -> None:
    config = ArbProbConfig(**SIZES)
    setattr(config, name, value)
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        read = [ArbProbConfig.from_pretrained(folder), AutoConfig.from_pretrained(folder)]
        read.append(ArbProbConfig.from_json_file(f"{folder}/config.json"))
    read += [ArbProbConfig.from_dict(config.to_dict()), ArbProbConfig(**config.to_dict())]
    assert [getattr(one, name) for one in read] == [value] * 5


def test_a_network_with_a_tools_attributes_loads(tmp_path: Path) -> None:
    model = ArbProbForCausalLM(ArbProbConfig(**SIZES))
    model.config.layer_norm_eps, model.config.mask_token_id = 1e-6, 7
    model.save_pretrained(tmp_path)
    again = ArbProbForCausalLM.from_pretrained(tmp_path).config
    assert (again.layer_norm_eps, again.mask_token_id, again.layer_norm_epsilon) == (1e-6, 7, 1e-5)


def test_a_name_near_a_field_is_warned_of_where_it_comes_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ArbProbConfig(**SIZES)
    config.n_layr = 4
    config.save_pretrained(tmp_path)
    said: list[str] = []
    monkeypatch.setattr(configuration_arbprob.logger, "warning_once", lambda text, *given: said.append(text % given))
    ArbProbConfig.from_pretrained(tmp_path)
    assert said == ["n_layr: not a field of ArbProbConfig, kept without effect; the field is called n_layer"]


@pytest.mark.parametrize("make", [ArbProbConfig, lambda **given: ArbProbConfig.preset("nano", **given)])
@pytest.mark.parametrize("name", ["layer_norm_eps", "n_layr", "n_heads", "use_mask_token", "droput"])
def test_a_name_near_a_field_is_refused_where_a_hand_writes_it(make: Any, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: not a field of ArbProbConfig; did you mean \w+\?$"):
        make(**{name: 1})


def test_the_dropout_of_a_preset_is_no_field_that_a_hand_may_write(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="^dropout: not a field of ArbProbConfig; set resid_pdrop, embd_pdrop, attn_pdr"
    ):
        ArbProbConfig(**SIZES, dropout=0.0)
    assert ArbProbConfig.preset("nano", dropout=0.25).attn_pdrop == 0.25
    # a tool may set it
    config = ArbProbConfig(**SIZES)
    config.dropout = 0.5
    config.save_pretrained(tmp_path)
    assert ArbProbConfig.from_pretrained(tmp_path).dropout == 0.5


LOADERS = [ArbProbConfig, AutoConfig, ArbProbForCausalLM, AutoModelForCausalLM]


@pytest.mark.parametrize("loader", LOADERS, ids=lambda one: one.__name__)
@pytest.mark.parametrize("name", ["n_layers", "layer_norm_eps", "n_layr"])
def test_a_name_near_a_field_is_refused_among_the_options_of_a_call(name: str, loader: Any, tmp_path: Path) -> None:
    ArbProbForCausalLM(ArbProbConfig(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"^{name}: not a field of ArbProbConfig; did you mean n?\w+\?$"):
        loader.from_pretrained(tmp_path, **{name: 3})


def test_no_option_of_loading_is_taken_for_a_field() -> None:
    source = inspect.getsource(PreTrainedModel.from_pretrained)
    options = {
        *re.findall(r'kwargs\.pop\("(\w+)"', source),
        *inspect.signature(PreTrainedModel.from_pretrained).parameters,
    }
    assert {"key_mapping", "output_loading_info", "use_safetensors", "device_map"} <= options
    ArbProbConfig.from_dict(SIZES, return_unused_kwargs=True, **dict.fromkeys(options - {"kwargs", "args", "config"}))


STANDARD = sorted(
    {*(field.name for kind in (PreTrainedConfig, GPT2Config) for field in fields(kind)), *FORMER.split()}
    - {*FIELDS, "torch_dtype"}
)


@pytest.mark.parametrize("name", STANDARD)
def test_a_standard_field_of_transformers_may_be_written_by_hand(name: str) -> None:
    value = {"n_layer": 3, "layer_types": ["full_attention"]}.get(name)
    ArbProbConfig(**SIZES, **{name: value} if name != "num_labels" else {name: 3})


def test_the_keys_of_labels_and_the_type_of_numbers_survive_json(tmp_path: Path) -> None:
    config = ArbProbConfig(**{**SIZES, "eos_token_id": [1, 2]}, num_labels=3, dtype=torch.bfloat16)
    config.mask = ("causal",) * SIZES["n_layer"]
    config.save_pretrained(tmp_path)
    again = ArbProbConfig.from_pretrained(tmp_path)
    assert (again.id2label, again.label2id) == (config.id2label, config.label2id)
    assert (again.num_labels, again.dtype, again.eos_token_id) == (3, torch.bfloat16, [1, 2])
    assert again.mask == ["causal"] * SIZES["n_layer"]


UNREADABLE: dict[str, tuple[str, Any, str]] = {
    "a size": ("n_head", 7, "^n_embd: expected a multiple of n_head=7, got 24$"),
    "none for a size": ("n_layer", None, r"^n_layer: expected an integer, got None \(NoneType\)$"),
    "a layout": ("layout", "sigma", "^target_positions: expected true with the layout sigma, got false"),
    "an object": ("owner", object(), "^owner: expected a value that JSON can hold, got <object object"),
    "a tensor": ("scale", torch.ones(2), r"^scale: expected a value that JSON can hold, got tensor\(\[1., 1.\]\)"),
    "labels": ("label2id", 5, "^label2id: expected a number for each name of a label, or null, got 5$"),
    "letters for labels": (
        "id2label",
        {"x": "y"},
        "^id2label: expected a name for each number of a label, from 0, got",
    ),
    "another network within": ("text_config", {"a": 1}, "^text_config: expected none, as this network is not made of"),
    "keys": (
        "table",
        {(1, 2): 3},
        "^table: expected a value that JSON can hold, got .*; take it off the",
    ),
}


@pytest.mark.parametrize(("name", "value", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_could_not_be_read_again_is_refused_before_the_old_file_is_lost(
    name: str, value: Any, message: str, tmp_path: Path
) -> None:
    model = ArbProbForCausalLM(ArbProbConfig(**SIZES))
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    setattr(model.config, name, value)
    with pytest.raises((ValueError, TypeError), match=message):
        model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_options_of_a_call_are_checked_as_fields_are(tmp_path: Path) -> None:
    ArbProbConfig(**SIZES).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="^n_embd: expected a multiple of n_head=7, got 24$"):
        ArbProbConfig.from_pretrained(tmp_path, n_head=7)
    assert json.loads((tmp_path / "config.json").read_text())["n_head"] == SIZES["n_head"]
