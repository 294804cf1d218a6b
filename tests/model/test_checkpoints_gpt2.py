"""Official GPT-2 checkpoints load here with nothing missing, ours load in transformers' GPT-2, configs stay clean."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2LMHeadModel

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, ArbProbModel
from tests.model.twins import SIZES, tokens, twins
from tests.networks import far

# what openai-community/gpt2, gpt2-medium and distilgpt2 carry beside the sizes
OFFICIAL: dict[str, Any] = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 32,
    "n_special": 0,
    "output_past": True,
    "predict_special_tokens": True,
    "_num_labels": 1,
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "transformers_version": "4.11.0",
}
MEANINGLESS = {"n_ctx", "n_special", "output_past", "predict_special_tokens", "_num_labels", "task_specific_params"}


def weights_of(model: GPT2LMHeadModel, layout: str) -> dict[str, Tensor]:
    """The tensors of an official file: OpenAI's own names, or those that later versions of transformers wrote."""
    size = SIZES["n_positions"]
    weights = {name: w.clone() for name, w in model.transformer.state_dict().items()}
    for layer in range(SIZES["n_layer"]):
        weights[f"h.{layer}.attn.bias"] = torch.ones(size, size).tril()[None, None]
        if layout == "prefixed":
            weights[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    if layout == "prefixed":
        weights = {f"transformer.{name}": w for name, w in weights.items()}
        weights["lm_head.weight"] = model.lm_head.weight.detach().clone()
    return weights


def write_official(folder: Path, layout: str, **fields: Any) -> GPT2LMHeadModel:
    _, theirs = twins(dtype=torch.float32)
    folder.mkdir(exist_ok=True)
    save_file(weights_of(theirs, layout), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**SIZES, **OFFICIAL, **fields}))
    return theirs


layouts = pytest.mark.parametrize("layout", ["bare", "prefixed"])
backends = pytest.mark.parametrize("backend", ["eager", "sdpa"])


@layouts
@pytest.mark.parametrize("kind", [ArbProbForCausalLM, ArbProbModel])
def test_an_official_checkpoint_has_nothing_missing_or_unexpected(tmp_path: Path, kind: Any, layout: str) -> None:
    write_official(tmp_path, layout)
    _, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    wrong = {name: keys for name, keys in info.items() if keys}
    # the base model has no head; the head is the embedding
    if kind is ArbProbModel and layout == "prefixed":
        assert wrong.pop("unexpected_keys", {"lm_head.weight"}) == {"lm_head.weight"}
    assert wrong == {}


@layouts
@backends
def test_an_official_checkpoint_gives_gpt2s_very_bits(tmp_path: Path, layout: str, backend: str) -> None:
    theirs = write_official(tmp_path, layout)
    theirs.set_attn_implementation(backend)
    # the one function that is spelt differently: transformers writes tanh-gelu out, torch fuses it
    theirs.config.activation_function = "gelu_pytorch_tanh"
    reference = GPT2LMHeadModel(theirs.config).eval()
    reference.load_state_dict(theirs.state_dict())
    reference.set_attn_implementation(backend)
    ours = ArbProbForCausalLM.from_pretrained(tmp_path, attn_implementation=backend)
    ids = tokens()
    assert ours.config._attn_implementation == backend
    assert torch.equal(ours(ids).logits, reference(ids).logits)


@layouts
def test_an_official_checkpoint_is_tied(tmp_path: Path, layout: str) -> None:
    write_official(tmp_path, layout)
    ours = ArbProbForCausalLM.from_pretrained(tmp_path)
    assert ours.lm_head.weight is ours.transformer.wte.weight


def test_the_config_of_an_official_checkpoint_is_ours(tmp_path: Path) -> None:
    write_official(tmp_path, "bare")
    for config in (ArbProbConfig.from_pretrained(tmp_path), ArbProbForCausalLM.from_pretrained(tmp_path).config):
        assert config.model_type == "arbprob"
        assert config.mask == "causal"
        assert {name: getattr(config, name) for name in SIZES} == SIZES


def test_a_saved_official_checkpoint_has_a_clean_config(tmp_path: Path) -> None:
    write_official(tmp_path / "official", "bare")
    ArbProbForCausalLM.from_pretrained(tmp_path / "official").save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["model_type"] == "arbprob"
    assert saved["architectures"] == ["ArbProbForCausalLM"]
    leaked = {name for name in saved if name.startswith("summary_") or name in MEANINGLESS}
    assert leaked == set()


def test_a_config_saved_twice_is_the_same_file(tmp_path: Path) -> None:
    write_official(tmp_path / "official", "bare")
    config = ArbProbConfig.from_pretrained(tmp_path / "official")
    config.save_pretrained(tmp_path / "once")
    ArbProbConfig.from_pretrained(tmp_path / "once").save_pretrained(tmp_path / "twice")
    once, twice = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("once", "twice"))
    assert once == twice


def test_an_official_checkpoint_takes_another_mask(tmp_path: Path) -> None:
    write_official(tmp_path, "bare")
    ours = ArbProbForCausalLM.from_pretrained(tmp_path, mask="causal & window(2)")
    plain = ArbProbForCausalLM.from_pretrained(tmp_path)
    ids = tokens()
    assert ours.config.mask == "causal & window(2)"
    assert torch.equal(ours(ids).logits, plain(ids, mask="causal & window(2)").logits)


@backends
def test_our_checkpoint_loads_in_transformers_gpt2(tmp_path: Path, backend: str) -> None:
    ours, _ = twins(dtype=torch.float32, backend=backend, activation_function="gelu_pytorch_tanh")
    ours.save_pretrained(tmp_path)
    theirs, info = GPT2LMHeadModel.from_pretrained(tmp_path, attn_implementation=backend, output_loading_info=True)
    ids = tokens()
    assert {name: keys for name, keys in info.items() if keys} == {}
    assert torch.equal(theirs.eval()(ids).logits, ours(ids).logits)


def test_our_file_holds_gpt2s_names_and_shapes(tmp_path: Path) -> None:
    ours, theirs = twins(dtype=torch.float32)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    own, reference = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert {name: w.shape for name, w in own.items()} == {name: w.shape for name, w in reference.items()}


def test_saving_and_loading_keeps_every_bit(tmp_path: Path) -> None:
    ours, _ = twins(mask="causal & window(3)")
    ours.save_pretrained(tmp_path)
    again = ArbProbForCausalLM.from_pretrained(tmp_path)
    ids = tokens()
    assert again.dtype == torch.float64
    assert torch.equal(again(ids).logits, ours(ids).logits)


def test_base_and_head_models_read_each_others_checkpoints(tmp_path: Path) -> None:
    ours, _ = twins()
    ours.save_pretrained(tmp_path / "head")
    base = ArbProbModel.from_pretrained(tmp_path / "head")
    base.save_pretrained(tmp_path / "base")
    again = ArbProbForCausalLM.from_pretrained(tmp_path / "base")
    ids = tokens()
    assert far(base(ids).last_hidden_state, ours.transformer(ids).last_hidden_state) == 0
    assert torch.equal(again(ids).logits, ours(ids).logits)


def test_every_auto_class_is_named_in_the_saved_config(tmp_path: Path) -> None:
    ours, _ = twins()
    ours.save_pretrained(tmp_path)
    named = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert named == {
        "AutoConfig": "configuration_arbprob.ArbProbConfig",
        "AutoModel": "modeling_arbprob.ArbProbModel",
        "AutoModelForCausalLM": "modeling_arbprob.ArbProbForCausalLM",
        "AutoModelForQuestionAnswering": "modeling_arbprob.ArbProbForQuestionAnswering",
        "AutoModelForSequenceClassification": "modeling_arbprob.ArbProbForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_arbprob.ArbProbForTokenClassification",
    }
    files = {path.name for path in tmp_path.glob("*.py")}
    assert {f"{entry.split('.')[0]}.py" for entry in named.values()} <= files


def test_an_encoder_decoder_gpt2_is_refused(tmp_path: Path) -> None:
    write_official(tmp_path, "bare", add_cross_attention=True)
    with pytest.raises(ValueError, match="add_cross_attention: expected false, got true"):
        ArbProbForCausalLM.from_pretrained(tmp_path)
