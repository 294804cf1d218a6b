"""The configuration saved beside the weights: GPT-2's fields plus the default attention mask."""

import difflib
import functools
import importlib.util
import inspect
import json
import math
import os
import re
from dataclasses import fields as dataclass_fields
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

# the sizes of DESIGN.md; every other field keeps its default
PRESETS: dict[str, dict[str, Any]] = {
    "nano": dict(n_layer=1, n_head=2, n_embd=64, n_positions=128, dropout=0.0),
    "tiny": dict(n_layer=2, n_head=4, n_embd=128, n_positions=256, dropout=0.1),
    "distilgpt2": dict(n_layer=6, n_head=12, n_embd=768, n_positions=1024, dropout=0.1),
    "gpt2": dict(n_layer=12, n_head=12, n_embd=768, n_positions=1024, dropout=0.1),
}

# inclusive bounds; a value outside is a typing error or an attempt to exhaust the machine
_INTEGER_BOUNDS = {
    "vocab_size": (1, 10_000_000),
    "n_positions": (1, 10_000_000),
    "n_embd": (1, 65_536),
    "n_layer": (1, 1_000),
    "n_head": (1, 1_024),
}
# each gets a name, which transformers copies and prints many times
_MOST_LABELS = 100_000
_PROBABILITIES = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
_POSITIVE = ("layer_norm_epsilon", "initializer_range")
_BOOLEANS = (
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "use_cache",
    "tie_word_embeddings",
    "mask_token",
    "target_positions",
)
# how questions are put to the network; what each does is in the file of layouts
_LAYOUTS = ("two_stream", "prefix", "sigma", "masked", "causal")
_GIVEN_SEES = ("all", "earlier")
_OF_COMPOSITES = ("text_config", "decoder", "generator", "text_encoder", "per_layer_config")
_PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")
# what transformers takes for granted of names that are no fields
_FORMS = {"attribute_map": dict, "base_model_tp_plan": dict, "layer_types": list}
_ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh", "gelu", "relu", "silu")
# standard names of transformers, today's or earlier ones, near our fields in spelling and no mistake
_OF_TRANSFORMERS = ("sep_token_id", "cls_token_id", "mask_token_id", "decoder_start_token_id", "tie_encoder_decoder")


class ArbProbConfig(PreTrainedConfig):
    r"""Sizes and options of a GPT-2 network whose default attention mask is part of its definition.

    Args:
        vocab_size (`int`): number of token ids.
        n_positions (`int`): longest sequence, in tokens.
        n_embd (`int`): width of the residual stream; a multiple of `n_head`.
        n_layer (`int`): number of blocks.
        n_head (`int`): attention heads of a block.
        n_inner (`int`, *optional*): width of the MLP; `4 * n_embd` when `None`.
        activation_function (`str`): `gelu_new`, `gelu_pytorch_tanh`, `gelu`, `relu` or `silu`.
        resid_pdrop, embd_pdrop, attn_pdrop (`float`): dropout probabilities.
        layer_norm_epsilon (`float`): added to the variance in every layer norm.
        initializer_range (`float`): standard deviation of the initial weights.
        scale_attn_weights (`bool`): divide scores by the square root of the head size.
        scale_attn_by_inverse_layer_idx (`bool`): divide scores by the layer's number, from 1, as well.
        use_cache (`bool`): return keys and values by default.
        tie_word_embeddings (`bool`): the output head shares the token embedding.
        mask (`str` or `list[str]`): text of the default attention mask, or one text per layer; the text is read, and
            refused where it cannot be, when the network is built.
        layout (`str`): how questions are put to the network: `two_stream`, `prefix`, `sigma`, `masked` or `causal`.
        given_sees (`str`): `earlier`: given tokens of a question see the given ones before them, as in GPT-2's prompts;
            `all`: they see one another, as in networks trained on subsets.
        mask_token (`bool`): a learned vector for slots whose token is not known; without it they get a zero vector.
        target_positions (`bool`): a second position embedding tells slots which position they predict; the layout
            `sigma` needs it.

    Raises:
        ValueError, TypeError: a field outside its bounds, named with its value.
    """

    model_type = "arbprob"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float | int = 0.1
    embd_pdrop: float | int = 0.1
    attn_pdrop: float | int = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    use_cache: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256
    pad_token_id: int | None = None
    tie_word_embeddings: bool = True
    mask: str | list[str] = "causal"
    layout: str = "two_stream"
    given_sees: str = "earlier"
    mask_token: bool = False
    target_positions: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        # what names its model_type was written by a program: a file, or `to_dict` of another configuration
        _report_misspelt(kwargs, is_typed="model_type" not in kwargs)
        _check_foreign(kwargs)
        _check_labels(self.id2label, self.label2id, kwargs.get("num_labels"))
        _check_dtype(self.dtype, kwargs.get("torch_dtype"))
        _check_tokens(self)
        super().__post_init__(**kwargs)
        # `register_for_auto_class` keeps one entry; every Auto class must find its own
        self.auto_map = {
            "AutoConfig": "configuration_arbprob.ArbProbConfig",
            "AutoModel": "modeling_arbprob.ArbProbModel",
            "AutoModelForCausalLM": "modeling_arbprob.ArbProbForCausalLM",
            "AutoModelForQuestionAnswering": "modeling_arbprob.ArbProbForQuestionAnswering",
            "AutoModelForSequenceClassification": "modeling_arbprob.ArbProbForSequenceClassification",
            "AutoModelForTokenClassification": "modeling_arbprob.ArbProbForTokenClassification",
        }
        _check(self)

    def __setattr__(self, key: str, value: Any) -> None:
        try:
            super().__setattr__(key, value)
        except Exception as error:
            # transformers 5.17 checks the type of its own fields here, and says so over several lines
            if error.__cause__ is None:
                raise
            raise ValueError(f"{key}: {' '.join(str(error.__cause__).split()):.160}, got {_shown(value)}") from error

    @property
    def mask_texts(self) -> list[str]:
        """The texts of `mask`: one for all layers, or one per layer."""
        return [self.mask] if isinstance(self.mask, str) else list(self.mask)

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """As transformers', and the code of the network, which loads by it where this package is not installed.

        Raises ValueError or TypeError, before anything is written, where the file could not be loaded again.
        """
        _check_json(self)
        # whatever reading the file refuses
        self.from_dict(json.loads(self.to_json_string()))
        if is_copy():
            super().save_pretrained(save_directory, push_to_hub, **kwargs)
            return
        super().save_pretrained(save_directory)
        importlib.import_module(_WRITER).write_code(self, save_directory)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(os.path.normpath(save_directory))), **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """As transformers', which then copies this file; nothing in the package, where every save writes the code."""
        if is_copy():
            super().register_for_auto_class(auto_class)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "ArbProbConfig":
        """Configuration of a named size: `nano`, `tiny`, `distilgpt2` or `gpt2`.

        `overrides` are fields of the configuration; `dropout` sets the three dropout probabilities at once.
        """
        if name not in PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
        fields = {**PRESETS[name], **overrides}
        dropout = fields.pop("dropout")
        return cls(**{**dict.fromkeys(_PROBABILITIES, dropout), **fields})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers'. What a file holds beside the fields is kept; a name near that of a field is warned of.

        Raises ValueError for such a name among the options of the call.
        """
        _report_misspelt(kwargs, is_typed=True)
        made = super().from_dict({"model_type": cls.model_type, **config_dict}, **kwargs)
        # the options of a call were set after the configuration was checked
        _check(made[0] if isinstance(made, tuple) else made)
        return made

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Any:
        """As `from_dict` of what the file holds."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a config.json; an official GPT-2 one is turned into ours, without the fields that mean nothing here."""
        try:
            fields, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        except (RecursionError, AttributeError, TypeError) as error:
            raise ValueError(
                f"config.json: expected an object with the fields of a configuration, in "
                f"{str(pretrained_model_name_or_path)!r:.100} ({type(error).__name__})"
            ) from error
        if not isinstance(fields, dict):
            raise ValueError(
                f"config.json: expected an object with the fields of a configuration, got {_shown(fields)}"
            )
        kind = fields.get("model_type", cls.model_type)
        if kind not in ("gpt2", cls.model_type):
            raise ValueError(f"model_type: expected gpt2 or {cls.model_type} in config.json, got {kind!r:.60}")
        if kind == "gpt2":
            fields = _from_gpt2(fields)
        return fields, rest


# writes the code of a checkpoint; it stays at home, where this file goes with every checkpoint
_WRITER = f"{__package__}.checkpoint_code"


@functools.cache
def is_copy() -> bool:
    """Whether this code was loaded with a checkpoint: its files are saved again as they are."""
    try:
        return importlib.util.find_spec(_WRITER) is None
    except ModuleNotFoundError:
        # a folder of downloaded code that was made a moment ago may not be seen by imports yet
        return True


def _from_gpt2(fields: dict[str, Any]) -> dict[str, Any]:
    if fields.get("add_cross_attention"):
        raise ValueError(
            "add_cross_attention: expected false, got true; a decoder without an encoder has nothing to cross to"
        )
    known = {field.name for field in dataclass_fields(ArbProbConfig)} | {"torch_dtype", "transformers_version"}
    kept = {name: value for name, value in fields.items() if name in known}
    return {**kept, "model_type": ArbProbConfig.model_type, "architectures": ["ArbProbForCausalLM"]}


def _report_misspelt(unknown: dict[str, Any], *, is_typed: bool) -> None:
    # transformers stores whatever it is given; a field one letter off would be silently without effect
    known = [field.name for field in dataclass_fields(ArbProbConfig)]
    if is_typed and "dropout" in unknown:
        raise ValueError(
            f"dropout: not a field of ArbProbConfig; set {', '.join(_PROBABILITIES)}, or a preset's dropout"
        )
    for key in sorted(set(unknown).difference(_OF_TRANSFORMERS)):
        near = difflib.get_close_matches(key, [*known, "dropout"] if is_typed else known, n=1, cutoff=0.82)
        if near and not hasattr(ArbProbConfig, key):
            said = f"{key}: not a field of ArbProbConfig"
            if is_typed:
                raise ValueError(f"{said}; did you mean {near[0]}?")
            logger.warning_once("%s, kept without effect; the field is called %s", said, near[0])


def _check_json(config: ArbProbConfig) -> None:
    for name, value in config.to_dict().items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{name}: expected a value that JSON can hold, got {_shown(value)} ({type(value).__name__}); "
                "take it off the configuration before saving"
            ) from error


def _check(config: ArbProbConfig) -> None:
    for name, (low, high) in _INTEGER_BOUNDS.items():
        _check_integer(name, getattr(config, name), low, high)
    if config.n_inner is not None:
        _check_integer("n_inner", config.n_inner, 1, 1_000_000)
    for name in _PROBABILITIES:
        _check_number(name, getattr(config, name), "a probability in [0, 1)", lambda x: 0 <= x < 1)
    for name in _POSITIVE:
        _check_number(name, getattr(config, name), "a finite number above 0", lambda x: x > 0)
    for name in _BOOLEANS:
        if not isinstance(getattr(config, name), bool):
            raise TypeError(f"{name}: expected true or false, got {_shown(getattr(config, name))}")
    _check_tokens(config)
    if config.n_embd % config.n_head:
        raise ValueError(f"n_embd: expected a multiple of n_head={config.n_head}, got {config.n_embd}")
    if config.activation_function not in _ACTIVATIONS:
        raise ValueError(
            f"activation_function: expected one of {', '.join(_ACTIVATIONS)}, got {_shown(config.activation_function)}"
        )
    if config.problem_type is not None and config.problem_type not in _PROBLEMS:
        raise ValueError(
            f"problem_type: expected null or one of {', '.join(_PROBLEMS)}, got {_shown(config.problem_type)}"
        )
    named = config.architectures
    if named is not None and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        raise ValueError(f"architectures: expected a list of names, or null, got {_shown(named)}")
    for name, choices in (("layout", _LAYOUTS), ("given_sees", _GIVEN_SEES)):
        if getattr(config, name) not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {_shown(getattr(config, name))}")
    if config.layout == "sigma" and not config.target_positions:
        raise ValueError("target_positions: expected true with the layout sigma, got false; set it, or another layout")
    check_mask(config)


def _check_foreign(unknown: dict[str, Any]) -> None:
    # names that mean something to transformers, which fails over what they hold
    for name in _OF_COMPOSITES:
        if unknown.get(name) is not None:
            raise ValueError(
                f"{name}: expected none, as this network is not made of others, nor its layers of many sizes"
            )
    quantised = unknown.get("quantization_config")
    if not (quantised is None or isinstance(quantised, dict) or hasattr(quantised, "to_dict")):
        raise TypeError(f"quantization_config: expected an object, or null, got {_shown(quantised)}")
    if isinstance(quantised, dict) and not {"quant_method", "load_in_8bit", "load_in_4bit"} & quantised.keys():
        raise ValueError(f"quantization_config: expected an object with a quant_method, got {_shown(quantised)}")
    for name, kind in _FORMS.items():
        if not isinstance(unknown.get(name), kind | None):
            raise TypeError(
                f"{name}: expected {'a list' if kind is list else 'an object'}, got {_shown(unknown[name])}"
            )
    weights = unknown.get("transformers_weights")
    if weights is not None and not str(weights).endswith((".safetensors", ".safetensors.index.json")):
        raise ValueError(f"transformers_weights: expected the name of a safetensors file, got {_shown(weights)}")
    for name in unknown:
        of_class = inspect.getattr_static(ArbProbConfig, name, None)
        # a property of its base class, or an attribute, as the release goes
        if name == "sub_configs" or (isinstance(of_class, property) and of_class.fset is None):
            raise ValueError(f"{name}: cannot be set, as it follows from other fields")


def _check_labels(id2label: Any, label2id: Any, num_labels: Any) -> None:
    # before transformers makes a name for each
    if num_labels is not None:
        _check_integer("num_labels", num_labels, 0, _MOST_LABELS)
    if label2id is not None and not (isinstance(label2id, dict) and all(map(_is_number, label2id.values()))):
        raise TypeError(f"label2id: expected a number for each name of a label, or null, got {_shown(label2id)}")
    if id2label is None:
        return
    if not isinstance(id2label, dict) or not all(map(_is_number, id2label)):
        raise ValueError(f"id2label: expected a name for each number of a label, from 0, got {_shown(id2label)}")


def _is_number(value: object) -> bool:
    return re.fullmatch(r"-?\d{1,9}", str(value)) is not None


def _check_dtype(*dtypes: Any) -> None:
    for dtype in dtypes:
        named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        # torch makes no network in numbers of one byte
        is_usable = isinstance(named, torch.dtype) and named.is_floating_point and named.itemsize > 1
        if not (dtype is None or is_usable):
            raise ValueError(
                f"dtype: expected the name of a number type of torch, such as float32, got {_shown(dtype)}"
            )


def _check_integer(name: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {_shown(value)} ({type(value).__name__})")
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low} to {high}, got {value!s:.60}")


def _check_tokens(config: ArbProbConfig) -> None:
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        _check_token(name, getattr(config, name))


def _check_token(name: str, value: Any) -> None:
    # a text may end with one of several
    ids = value if name == "eos_token_id" and isinstance(value, (list, tuple)) else [value]
    if value is not None and not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in ids):
        raise ValueError(f"{name}: expected a token id from 0, or null, got {_shown(value)}")


def _check_number(name: str, value: Any, expected: str, is_legal: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name}: expected {expected}, got {_shown(value)} ({type(value).__name__})")
    if not (math.isfinite(value) and is_legal(value)):
        raise ValueError(f"{name}: expected {expected}, got {_shown(value)}")


def check_mask(config: ArbProbConfig) -> None:
    """Raise unless `mask` is one text or one per layer; the texts themselves are read by `Mask.parse`."""
    texts = check_mask_texts(config.mask)
    if not isinstance(config.mask, str) and len(texts) != config.n_layer:
        raise ValueError(f"mask: expected one text or one per layer (n_layer={config.n_layer}), got {len(texts)}")


def check_mask_texts(mask: Any) -> list[str]:
    """The texts of a configuration's `mask`. Raises TypeError where it is neither a text nor a list of texts."""
    texts = [mask] if isinstance(mask, str) else mask
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise TypeError(
            f"mask: expected the text of a mask or a list of texts, one per layer, got {_shown(mask)}"
            f"{_mask_advice(mask)}"
        )
    return list(texts)


def _mask_advice(mask: Any) -> str:
    # a Mask is known by what it can do: this file imports none of them
    given = mask if isinstance(mask, list | tuple) else [mask]
    if any(isinstance(one, Tensor) or (hasattr(one, "shifted") and "<tensor" in str(one)) for one in given):
        return "; masks made of tensors are passed to forward, not kept in a config"
    return "; write str(mask)" if any(hasattr(one, "shifted") and not isinstance(one, type) for one in given) else ""


def _shown(value: object) -> str:
    # arrays print over many lines
    return " ".join(repr(value).split())[:60]
