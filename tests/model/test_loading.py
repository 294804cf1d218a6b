"""Loading is bounded and watched: what does not fit is refused before it is built, what is amiss is said."""

import ast
import json
import logging
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, ArbProbForSequenceClassification, ArbProbModel
from arbprob_hf.model.saved_weights import warn_of_values
from arbprob_hf.model_folder import load_network
from tests.model.twins import SIZES, tokens

FORMS = ["whole", "shards", "pickle", "base"]


def saved(folder: Path, form: str) -> Path:
    """A checkpoint whose weights lie in one of the forms that load."""
    model = ArbProbForCausalLM(ArbProbConfig(**SIZES))
    (model.transformer if form == "base" else model).save_pretrained(
        folder, **({"max_shard_size": "20KB"} if form == "shards" else {})
    )
    if form == "shards":
        assert len(list(folder.glob("model-*.safetensors"))) > 2
    if form == "pickle":
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture(scope="module", params=FORMS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp(request.param), request.param)


def changed(folder: Path, target: Path, **fields: Any) -> Path:
    """A copy of a checkpoint whose config.json says something else."""
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **fields}))
    return target


MISFITS = {
    "more layers": (
        dict(n_layer=1000),
        "n_layer: expected at most 3, the layers that the saved weights have, got 1000",
    ),
    "vocabulary": (
        dict(vocab_size=10_000_000),
        "vocab_size: expected 101 as in the saved weights, where wte.weight is .*, got 10000000 in the configuration",
    ),
    "positions": (dict(n_positions=9_999_999), "n_positions: expected 32 as in the saved weights, .*, got 9999999 in"),
    "width": (dict(n_embd=65_536, n_head=1), "n_embd: expected 24 as in the saved weights, .*, got 65536 in"),
    "inner width": (dict(n_inner=999_999), "n_inner: expected 96 as in the saved weights, .*, got 999999 in"),
}


@contextmanager
def no_network_is_made() -> Iterator[None]:
    """Whatever makes a layer fails: what is refused is refused before anything is built."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArbProbModel, "__init__", lambda *_: pytest.fail("a network is made first"))
        yield


def test_a_checkpoint_of_every_form_loads(folder: Path) -> None:
    assert ArbProbForCausalLM.from_pretrained(folder)(tokens()).logits.shape == (2, 12, 101)


@pytest.mark.parametrize(("fields", "message"), MISFITS.values(), ids=MISFITS)
def test_a_size_that_the_weights_do_not_have_is_refused_at_once(
    folder: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    wrong = changed(folder, tmp_path, **fields)
    with no_network_is_made(), pytest.raises(ValueError, match=f"^{message}") as raised:
        ArbProbForCausalLM.from_pretrained(wrong)
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=message):
        load_network(wrong)
    # as an option of the call
    with pytest.raises(ValueError, match=f"^{message}"):
        ArbProbModel.from_pretrained(folder, **fields)


def test_downloaded_code_refuses_it_too(tmp_path: Path) -> None:
    (tmp_path / "wrong").mkdir()
    wrong = changed(saved(tmp_path / "right", "whole"), tmp_path / "wrong", n_layer=1000)
    with pytest.raises(ValueError, match="^n_layer: expected at most 3, the layers that the saved weights have"):
        AutoModelForCausalLM.from_pretrained(wrong, trust_remote_code=True)


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")
def test_an_adapter_is_put_on_the_network_that_it_names(tmp_path: Path) -> None:
    adapted = get_peft_model(
        ArbProbForCausalLM.from_pretrained(saved(tmp_path / "base", "whole")),
        LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM"),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    assert ArbProbForCausalLM.from_pretrained(tmp_path / "adapter").active_adapters() == ["default"]


def test_fewer_layers_and_new_sizes_on_purpose_load(tmp_path: Path) -> None:
    folder = saved(tmp_path, "whole")
    assert len(ArbProbForCausalLM.from_pretrained(folder, n_layer=2).transformer.h) == 2
    wider = ArbProbForCausalLM.from_pretrained(folder, vocab_size=103, ignore_mismatched_sizes=True)
    assert wider.lm_head.out_features == 103


def edited(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """The checkpoint with other weights."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


LACKING = {
    "a norm of the second layer": (
        r"h\.1\.ln_1",
        "lacks 2 of the network's weights, such as transformer.h.1.ln_1.bias",
    ),
    "the second layer": (r"h\.1\.", "lacks 12 of the network's weights, such as transformer.h.1.attn.c_attn.bias"),
    "a norm of every layer": (r"ln_1", "lacks 6 of the network's weights, such as transformer.h.0.ln_1.bias"),
    "nearly all": (r"h\.|wte|wpe", "lacks 38 of the network's weights, such as transformer.h.0.attn.c_attn.bias"),
}


@pytest.mark.parametrize(("lost", "message"), LACKING.values(), ids=LACKING)
def test_weights_that_lack_are_named_rather_than_a_size(lost: str, message: str, tmp_path: Path) -> None:
    folder = edited(
        saved(tmp_path, "whole"), lambda held: {name: one for name, one in held.items() if not re.search(lost, name)}
    )
    with pytest.raises(ValueError, match=f"^checkpoint: {message}; is it whole, and GPT-2's"):
        ArbProbForCausalLM.from_pretrained(folder)


def test_who_asks_what_lacks_gets_random_numbers_for_it_and_no_further_layers(tmp_path: Path) -> None:
    folder = saved(tmp_path, "whole")
    edited(folder, lambda held: {name: one for name, one in held.items() if ".h.1." not in name})
    model, found = ArbProbForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert (len(model.transformer.h), len(found["missing_keys"])) == (3, 12)
    edited(folder, lambda held: {name: one for name, one in held.items() if ".h.2." not in name})
    for options in ({}, {"output_loading_info": True}):
        with pytest.raises(ValueError, match="^n_layer: expected at most 1, the layers that the saved weights have"):
            ArbProbForCausalLM.from_pretrained(folder, **options)


@pytest.mark.parametrize("form", ["whole", "base"])
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.module.", "network."])
def test_names_of_a_wrapped_network_are_told_of_and_can_be_mapped(prefix: str, form: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, form)
    wanted = ArbProbForCausalLM.from_pretrained(folder).eval()(tokens()).logits
    edited(folder, lambda held: {f"{prefix}{name}": one for name, one in held.items()})
    with pytest.raises(
        ValueError, match=rf"^checkpoint: the names of its weights begin with '{prefix}', .* key_mapping={{(.*)}}$"
    ) as raised:
        ArbProbForCausalLM.from_pretrained(folder)
    # as the message says
    mapping = ast.literal_eval(str(raised.value).partition("key_mapping=")[2])
    again = ArbProbForCausalLM.from_pretrained(folder, key_mapping=mapping).eval()
    assert torch.equal(again(tokens()).logits, wanted)


def test_labels_that_the_head_does_not_have_are_refused(tmp_path: Path) -> None:
    ArbProbForSequenceClassification(ArbProbConfig(**SIZES, num_labels=3)).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"^num_labels: expected 3 as in the saved weights, where score.weight is .* got 5"
    ):
        ArbProbForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    assert ArbProbForCausalLM.from_pretrained(tmp_path, num_labels=5).config.num_labels == 5


# what config.json holds, and the error's beginning
UNCLEAR: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": (
        dict(dtype="float3"),
        "dtype: expected the name of a number type of torch, such as float32, got 'float3'",
    ),
    "old dtype": (
        dict(dtype=None, torch_dtype="nothing"),
        "dtype: expected the name of a number type .* got 'nothing'",
    ),
    "dtype of another kind": (dict(dtype=[1]), r"dtype: expected the name of a number type .* got \[1\]"),
    "dtype of whole numbers": (dict(dtype="qint8"), "dtype: expected the name of a number type .* got 'qint8'"),
    "dtype of bytes": (dict(dtype="float8_e5m2"), "dtype: expected the name of a number type .* got 'float8_e5m2'"),
    "old dtype of bits": (dict(torch_dtype="bool", dtype=None), "dtype: expected the name of .* got 'bool'"),
    "labels": (dict(num_labels=10**10), "num_labels: expected 0 to 100000, got 10000000000"),
    "another network": (
        dict(text_config={"a": 1}),
        "text_config: expected none, as this network is not made of others",
    ),
    "layers of many sizes": (dict(per_layer_config={"0": {"n_embd": 8}}), "per_layer_config: expected none, as this"),
    "quantisation": (dict(quantization_config=3), "quantization_config: expected an object, or null, got 3"),
    "a list for quantisation": (
        dict(quantization_config=[1]),
        r"quantization_config: expected an object, or null, got \[1\]",
    ),
    "no method": (
        dict(quantization_config={"a": 1}),
        "quantization_config: expected an object with a quant_method, got {'a': 1}",
    ),
    "a number for a file": (
        dict(transformers_weights=5),
        "transformers_weights: expected the name of a safetensors file, got 5",
    ),
    "a pickle for a file": (
        dict(transformers_weights="pytorch_model.bin"),
        "transformers_weights: expected the name of a safetensors file, got 'pytorch_model.bin'",
    ),
    "other names": (dict(attribute_map=5), "attribute_map: expected an object, got 5"),
    "a plan": (dict(base_model_tp_plan="x"), "base_model_tp_plan: expected an object, got 'x'"),
    "kinds of layers": (dict(layer_types=5), "layer_types: .*expected a list.* got 5"),
    "padding": (dict(pad_token_id=[1]), r"pad_token_id: .* got \[1\]"),
    "parts": (dict(sub_configs=[1]), "sub_configs: cannot be set, as it follows from other fields"),
    "letters for a size of a layer": (dict(per_layer_config={"a": 1}), "per_layer_config: expected none, as this"),
    "labels' names": (dict(label2id={"a": "b"}), "label2id: .*expected .* got {'a': 'b'}"),
    "what follows": (dict(mask_texts=["causal"]), "mask_texts: cannot be set, as it follows from other fields"),
    "numbers of labels": (dict(label2id=3), "label2id: .*expected .* got 3"),
    "labels as text": (dict(num_labels="many"), r"num_labels: expected an integer, got 'many' \(str\)"),
    "letters": (
        dict(id2label={"a": "x"}),
        "id2label: expected a name for each number of a label, from 0, got {'a': 'x'}",
    ),
    "a list of labels": (dict(id2label=["x"]), r"id2label: .*expected .* got \['x'\]"),
    "problem": (dict(problem_type="poetry"), "problem_type: .* got 'poetry'"),
    "a list for a size": (dict(n_layer=[3]), r"n_layer: expected an integer, got \[3\] \(list\)"),
    "an object for a size": (dict(vocab_size={"a": 1}), r"vocab_size: expected an integer, got {'a': 1} \(dict\)"),
    "a list for a name": (dict(activation_function=["gelu"]), "activation_function: expected one of "),
    "a list for a layout": (dict(layout=["sigma"]), "layout: expected one of "),
    "nested masks": (dict(mask=[[["causal"]]]), "mask: expected the text of a mask or a list of texts"),
    "architectures": (dict(architectures=3), "architectures: .*expected a list.* got 3"),
    "heads": (dict(n_head=7), "n_embd: expected a multiple of n_head=7, got 24"),
    "backend": (
        dict(attn_implementation="paged|eager"),
        r'Specified `attn_implementation="paged\|eager"` is not supported; expected eager or sdpa or flex_attention$',
    ),
}


@pytest.mark.parametrize(("fields", "message"), UNCLEAR.values(), ids=UNCLEAR)
def test_an_unclear_value_is_one_line_that_names_the_field(
    fields: dict[str, Any], message: str, tmp_path: Path, whole: Path
) -> None:
    wrong = changed(whole, tmp_path, **fields)
    with no_network_is_made(), pytest.raises((ValueError, TypeError), match=f"^{message}") as raised:
        ArbProbForCausalLM.from_pretrained(wrong)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("whole"), "whole")


@pytest.mark.parametrize(
    "text", ["[1, 2]", "[" * 100_000, '{"a": ' * 100_000, "3"], ids=["list", "deep", "deeper", "3"]
)
def test_a_config_that_is_no_object_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises((ValueError, OSError), match=r"config.json") as raised:
        ArbProbConfig.from_pretrained(tmp_path)
    assert "\n" not in str(raised.value)


class Other:
    """What a pickle may hold."""


@pytest.mark.parametrize(
    "held", [{"wte.weight": Other()}, [1, 2], {}, b"nonsense"], ids=["an object", "a list", "nothing", "no pickle"]
)
def test_a_pickle_of_something_else_is_one_line_that_gives_no_bad_advice(held: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path, "pickle")
    if isinstance(held, bytes):
        (folder / "pytorch_model.bin").write_bytes(held)
    else:
        torch.save(held, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"^pytorch_model.bin: holds .*safetensors' form$") as raised:
        ArbProbForCausalLM.from_pretrained(folder)
    assert "weights_only" not in str(raised.value)


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "harmed").touch, ())

    folder = saved(tmp_path / "m", "pickle")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"wte.weight": Harm()}))
    with pytest.raises(ValueError, match=r"^pytorch_model.bin: holds something else than tensors"):
        ArbProbForCausalLM.from_pretrained(folder)
    with pytest.raises(ValueError, match="^weights_only: expected true, got false; weights are read as tensors alone"):
        ArbProbForCausalLM.from_pretrained(folder, weights_only=False)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 40, b"\x10" + b"\0" * 7 + b"{" * 16], ids=["empty", "long", "no JSON"]
)
def test_a_damaged_header_is_one_line(content: bytes, tmp_path: Path) -> None:
    folder = saved(tmp_path, "whole")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="^model.safetensors: its header cannot be read; the file is damaged"):
        ArbProbForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named_with_their_count(
    value: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = ArbProbForCausalLM(ArbProbConfig(**SIZES))
    with torch.no_grad():
        model.transformer.wpe.weight[3:5, 0] = value
        model.transformer.ln_f.bias[0] = value
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        ArbProbForCausalLM.from_pretrained(tmp_path)
    said = [record.getMessage() for record in caplog.records if "infinity" in record.getMessage()]
    wanted = "2 in transformer.wpe.weight, 1 in transformer.ln_f.bias"
    assert said == [f"weights: nan or infinity in 2 tensors of this checkpoint: {wanted}"]


def test_large_finite_weights_are_not_warned_of(whole: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    model = ArbProbForCausalLM.from_pretrained(whole)
    torch.nn.init.constant_(model.transformer.wpe.weight, torch.finfo(torch.float32).max)
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        ArbProbForCausalLM.from_pretrained(tmp_path)
    assert [record for record in caplog.records if "infinity" in record.getMessage()] == []


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_of_one_byte_are_looked_at(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    layer = torch.nn.Linear(2, 2).to(dtype)
    torch.nn.init.ones_(layer.weight)
    layer.weight.data[0] = float("nan")
    with caplog.at_level(logging.WARNING):
        warn_of_values(layer)
    assert caplog.messages == ["weights: nan or infinity in 1 tensors of this checkpoint: 2 in weight"]


def test_weights_of_four_bits_are_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    layer = torch.nn.Linear(2, 2)
    packed = torch.zeros(2, 2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    layer.weight = torch.nn.Parameter(packed, requires_grad=False)
    warn_of_values(layer)
    assert caplog.messages == []


@pytest.mark.parametrize("backend", ["flash_attention_2", "paged|eager", "paged|sdpa", "nonsense", "someone/kernel"])
def test_a_backend_that_may_drop_the_mask_is_refused_where_it_is_chosen(backend: str, whole: Path) -> None:
    message = (
        f'^Specified `attn_implementation="{re.escape(backend)}"` is not supported; expected eager or sdpa or flex'
    )
    with pytest.raises(ValueError, match=message):
        ArbProbForCausalLM.from_pretrained(whole, attn_implementation=backend)
    with pytest.raises(ValueError, match=message):
        ArbProbForCausalLM._from_config(ArbProbConfig(**SIZES), attn_implementation=backend)
    model = ArbProbForCausalLM.from_pretrained(whole)
    with pytest.raises(ValueError, match=message):
        model.set_attn_implementation(backend)
    assert model.config._attn_implementation == "sdpa"


def test_weights_that_are_cut_off_are_one_line_that_names_the_file(tmp_path: Path) -> None:
    weights = saved(tmp_path, "whole") / "model.safetensors"
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-100])
    with (
        no_network_is_made(),
        pytest.raises(
            ValueError, match=f"^model.safetensors: expected {size} bytes, got {size - 100}; the file is cut off"
        ),
    ):
        ArbProbForCausalLM.from_pretrained(weights.parent)


def test_an_index_names_no_file_of_another_folder(tmp_path: Path) -> None:
    folder = saved(tmp_path, "whole")
    (folder / "model.safetensors").rename(tmp_path.parent / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        ValueError, match=r"^model.safetensors.index.json: .* is no index of weights; the file is damaged"
    ):
        ArbProbForCausalLM.from_pretrained(folder)


def test_weights_in_whole_numbers_need_what_made_them(tmp_path: Path) -> None:
    weights = saved(tmp_path, "whole") / "model.safetensors"
    held = load_file(weights)
    save_file({name: value.to(torch.int8) for name, value in held.items()}, weights, metadata={"format": "pt"})
    with (
        no_network_is_made(),
        pytest.raises(ValueError, match=r"^transformer\.\S+: expected floats, got I8 in model.saf"),
    ):
        ArbProbForCausalLM.from_pretrained(weights.parent)
    # what early GPT-2 checkpoints hold beside the weights is not looked at
    held["transformer.h.0.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.uint8)
    save_file(held, weights, metadata={"format": "pt"})
    assert ArbProbForCausalLM.from_pretrained(weights.parent)(tokens()).logits.shape == (2, 12, 101)
