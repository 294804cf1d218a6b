"""Saved weights: their header, held against a configuration before anything is built, and what is amiss in them."""

import json
import os
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils import logging

from .configuration_arbprob import ArbProbConfig
from .saved_patterns import PLACES, base_of_adapter, find_file

load_logger = logging.get_logger(__name__)
# in the order in which transformers looks for them
_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# options under which the weights are not those of such a file, or have other shapes on purpose
_OTHERWISE = ("state_dict", "gguf_file", "variant", "quantization_config", "ignore_mismatched_sizes", "key_mapping")
# field of the configuration, weight, and which of its sizes the field is
_SIZES = (
    ("vocab_size", "wte.weight", 0),
    ("n_embd", "wte.weight", 1),
    ("n_positions", "wpe.weight", 0),
    ("n_inner", "h.0.mlp.c_fc.weight", 1),
)
# a weight of a layer: what stands before the network's own name, and the number of the layer
_OF_LAYER = re.compile(r"((?:[^.]+\.)*?)(?:transformer\.)?h\.(\d{1,9})\.")
# what early checkpoints hold beside the weights
_BUFFER = re.compile(r"\battn\.(masked_)?bias$")
# safetensors' own bound of a header, in bytes
_LONGEST_HEADER = 100_000_000

Shapes = dict[str, tuple[int, ...]]


class SizeError(ValueError, RuntimeError):
    """Sizes of a configuration that its weights do not have; transformers' callers expect a RuntimeError of them."""


def check_sizes(source: Any, options: dict[str, Any], *, label_weight: str | None = None) -> None:
    """Raise ValueError where a configuration has other sizes than the weights beside it; one line naming the field.

    Args:
        source: the folder or name on the Hub that is loaded. options: those of from_pretrained, such as `config`.
        label_weight: the weight of the head that has a row for each label.
    """
    if options.get("weights_only") is False:
        raise ValueError("weights_only: expected true, got false; weights are read as tensors alone, never as a pickle")
    if any(options.get(name) for name in _OTHERWISE):
        return
    source = base_of_adapter(source)
    config = _configuration(source, options)
    is_ours = getattr(config, "quantization_config", None) is None and not getattr(config, "transformers_weights", None)
    shapes = _saved_shapes(source, options) if is_ours else {}
    if not shapes:
        return
    sizes = [*_SIZES, *([("num_labels", label_weight, 0)] if label_weight else [])]
    for field, name, which in sizes:
        shape = shapes.get(name) or shapes.get(f"transformer.{name}")
        wanted = 4 * config.n_embd if field == "n_inner" and config.n_inner is None else getattr(config, field)
        if shape is not None and len(shape) > which and shape[which] != wanted:
            raise SizeError(
                f"{field}: expected {shape[which]} as in the saved weights, where {name} is {shape}, got {wanted} in "
                "the configuration"
            )
    _check_layers(shapes, config.n_layer)


def _check_layers(shapes: Shapes, wanted: int) -> None:
    # a file without a single layer is another's, and one between others that lacks is told of when it is loaded
    found = [match.groups() for match in map(_OF_LAYER.match, shapes) if match]
    own = [int(layer) for prefix, layer in found if not prefix]
    if found and not own:
        prefix = found[0][0]
        raise ValueError(
            f"checkpoint: the names of its weights begin with {prefix!r:.60}, as those of a wrapped network do; save "
            f"the network inside it, or load with key_mapping={{r'^{re.escape(prefix):.60}': ''}}"
        )
    if own and max(own) + 1 < wanted:
        raise SizeError(
            f"n_layer: expected at most {max(own) + 1}, the layers that the saved weights have, got {wanted} in "
            "the configuration"
        )


def check_complete(missing: Iterable[str], network: str, options: dict[str, Any]) -> None:
    """Raise ValueError where weights of the network are among the missing ones.

    Args:
        missing: names of weights that no file held. network: what the names of the network's own begin with.
        options: those of from_pretrained; what they add to a network, it may never have had.
    """
    added = {"wme.": options.get("mask_token"), "wtpe.": options.get("target_positions")}
    new = tuple(name for name, is_asked in added.items() if is_asked)
    lacking = sorted(name for name in missing if name.startswith(network) and not name.startswith(new, len(network)))
    if lacking:
        raise ValueError(
            f"checkpoint: lacks {len(lacking)} of the network's weights, such as {lacking[0]}; "
            "is it whole, and GPT-2's?"
        )


def warn_of_values(model: nn.Module) -> None:
    """Log a warning that names the weights which hold nan or infinity, with their count."""
    counted = {name: _not_finite(weight) for name, weight in model.named_parameters()}
    found = {name: count for name, count in counted.items() if count}
    if found:
        listed = ", ".join(f"{count} in {name}" for name, count in list(found.items())[:5])
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        load_logger.warning("weights: nan or infinity in %d tensors of this checkpoint: %s%s", len(found), listed, more)


def _not_finite(weight: nn.Parameter) -> int:
    if not weight.is_floating_point() or weight.device.type == "meta" or type(weight) is not nn.Parameter:
        return 0
    values = weight.detach()
    if values.itemsize == 1:
        # torch adds up no numbers of eight bits; those of four are all finite
        if "float4" in str(values.dtype):
            return 0
        values = values.float()
    # one number tells: a sum is finite unless a term is not, or it overflows
    is_finite = bool(values.sum(dtype=torch.promote_types(values.dtype, torch.float32)).isfinite())
    return 0 if is_finite else int((~values.isfinite()).sum())


def _configuration(source: Any, options: dict[str, Any]) -> Any:
    config = options.get("config")
    if isinstance(config, PreTrainedConfig):
        return config
    where = {name: options[name] for name in PLACES if options.get(name) is not None}
    fields = ArbProbConfig.get_config_dict(source if config is None else config, **where)[0]
    left = {name: value for name, value in options.items() if name not in (*PLACES, "config")}
    return ArbProbConfig.from_dict(fields, return_unused_kwargs=True, **left)[0]


def _saved_shapes(source: Any, options: dict[str, Any]) -> Shapes:
    shapes: Shapes = {}
    for path in _weight_files(source, options):
        shapes.update(_safetensors_shapes(path) if path.suffix == ".safetensors" else _pickled_shapes(path))
    return shapes


def _weight_files(source: Any, options: dict[str, Any]) -> list[Path]:
    names = _FILES[2:] if options.get("use_safetensors") is False else _FILES
    for name in names:
        found = find_file(source, name, options)
        if found is None:
            continue
        if not name.endswith(".json"):
            return [Path(found)]
        try:
            listed = json.loads(Path(found).read_text(encoding="utf-8"))["weight_map"].values()
            shards = [find_file(source, _beside(shard), options) for shard in sorted(set(listed))]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{name}: {found!r:.100} is no index of weights; the file is damaged") from error
        # transformers names those that are not there
        return [Path(shard) for shard in shards if shard is not None]
    return []


def _beside(shard: str) -> str:
    if os.path.basename(shard) != shard:
        raise ValueError(f"{shard!r} is in another folder")
    return shard


def _safetensors_shapes(path: Path) -> Shapes:
    size = os.path.getsize(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(_LONGEST_HEADER, size):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        whole = [name for name, entry in entries.items() if entry["dtype"][0] in "IU" and _is_weight(name)]
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path.name}: its header cannot be read; the file is damaged, fetch or save it anew"
        ) from error
    if end != size:
        raise ValueError(f"{path.name}: expected {end} bytes, got {size}; the file is cut off, fetch or save it anew")
    if whole:
        raise ValueError(
            f"{whole[0]}: expected floats, got {entries[whole[0]]['dtype']} in {path.name}; weights that are quantised "
            "need the quantization_config of what made them"
        )
    return shapes


def _is_weight(name: str) -> bool:
    # other tensors are left unread, and told of by transformers
    return name.endswith((".weight", ".bias")) and not _BUFFER.search(name)


def _pickled_shapes(path: Path) -> Shapes:
    try:
        # mapped, so that no weight is read
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        shapes = {name: tuple(value.shape) for name, value in held.items() if isinstance(value, Tensor)}
    except Exception as error:
        # torch's own message advises to execute what the file holds
        raise ValueError(
            f"{path.name}: holds something else than tensors, or is damaged ({type(error).__name__}); it is not read. "
            "Take weights in safetensors' form"
        ) from error
    if not shapes:
        raise ValueError(f"{path.name}: holds no tensors; take weights in safetensors' form")
    return shapes
