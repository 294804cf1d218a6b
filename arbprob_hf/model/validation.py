"""One-line errors for inputs that the network cannot take.

Shapes, dtypes and devices are always checked. Values of ids and positions are looked at on the CPU only: an
accelerator would have to finish everything before it first.
"""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from .configuration_arbprob import ArbProbConfig
from .masks.packed import PACKING
from .masks.tiles import Sizes

# what transformers, TRL, PEFT and captum pass along without the network using it, or used by a caller of this check
_OUTPUTS = ("output_hidden_states", "output_attentions", "output_router_logits", "return_dict")
_OF_CALLERS = ("return_loss", "skip_logits", "num_items_in_batch", "shift_labels", "cache_position")
_PASSED_ALONG = (*_OUTPUTS, *_OF_CALLERS, *PACKING)
# columns that tokenizers and data sets leave beside the ids; they say nothing about who sees whom
_COLUMNS = ("special_tokens_mask", "offset_mapping", "overflow_to_sample_mapping", "length", "index")
# what changes the answer of other models of transformers, or says it of packed rows, with what says it here
_ELSEWHERE = {
    "is_causal": "say mask='full' or mask='causal'",
    "seq_lengths": "pass document_ids= for packed documents",
    **dict.fromkeys(("head_mask", "token_type_ids", "sliding_window", "block_mask"), ""),
}


def check_options(options: dict[str, Any], forward: Callable[..., Any]) -> None:
    """Raise for a keyword that could have changed the answer, and would be ignored: any of an unknown name."""
    for name, value in options.items():
        if value is not None and name not in _PASSED_ALONG and name not in _COLUMNS:
            raise TypeError(f"{name}: not an argument of forward{_what_to_do(name, forward)}")


def _what_to_do(name: str, forward: Callable[..., Any]) -> str:
    known = _ELSEWHERE.get(name)
    if known:
        return f"; {known}"
    if known is None and not torch.compiler.is_compiling():
        near = difflib.get_close_matches(
            name, [*inspect.signature(forward).parameters, *_PASSED_ALONG], n=1, cutoff=0.82
        )
        if near:
            return f"; did you mean {near[0]}?"
    return ", and would be ignored; leave it out"


def check_cache_position(value: Any, sizes: Sizes) -> None:
    """Raise unless `cache_position` (T,), which callers of older releases pass, counts on from the cached tokens."""
    if value is None:
        return
    if not isinstance(value, Tensor) or value.dtype not in (torch.long, torch.int):
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"cache_position: expected an integer tensor (tokens,), got {got}")
    if tuple(value.shape) != (sizes.q_len,):
        raise ValueError(f"cache_position: expected shape (tokens,) = ({sizes.q_len},), got {tuple(value.shape)}")
    if torch.compiler.is_compiling() or value.device.type != "cpu" or not isinstance(sizes.offset, int):
        return
    if not torch.equal(value.long(), torch.arange(sizes.offset, sizes.offset + sizes.q_len)):
        raise ValueError(
            f"cache_position: expected {sizes.offset} to {sizes.offset + sizes.q_len - 1}, as {sizes.offset} tokens "
            f"are cached, got {value.tolist()!s:.60}; leave it out"
        )


def check_inputs(
    config: ArbProbConfig,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    *,
    dtype: torch.dtype,
    has_ranks: bool = False,
) -> None:
    """Raise unless exactly one input is given, of the right shape, with ids inside the vocabulary.

    `dtype` is that of the weights; embeddings of a wider one do not go through them. With ranks, -1 stands for a token
    that is not known.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError(
            f"input_ids, inputs_embeds: expected exactly one of them, got {'none' if input_ids is None else 'both'}"
        )
    if inputs_embeds is not None:
        _check_embeds(config, inputs_embeds, dtype)
        return
    if not isinstance(input_ids, Tensor):
        raise TypeError(f"input_ids: expected an integer tensor (batch, tokens), got {type(input_ids).__name__}")
    if input_ids.dtype not in (torch.long, torch.int):
        raise TypeError(
            f"input_ids: expected dtype torch.int64 or torch.int32, got {input_ids.dtype}; convert with .long()"
        )
    if input_ids.dim() != 2 or input_ids.numel() == 0:
        raise ValueError(f"input_ids: expected shape (batch, tokens), not empty, got {tuple(input_ids.shape)}")
    least = -1 if has_ranks else 0
    _check_range("input_ids", input_ids, config.vocab_size, "the vocabulary (vocab_size)", least=least)


def check_length(config: ArbProbConfig, sizes: Sizes) -> None:
    """Raise where tokens, cached ones included, outnumber the position embeddings."""
    if isinstance(sizes.offset, int) and sizes.filled > config.n_positions:
        cached = f", {sizes.offset} of them cached" if sizes.offset else ""
        raise ValueError(
            f"input_ids: expected at most n_positions={config.n_positions} tokens, got {sizes.filled}{cached}; "
            "shorten the input"
        )


def check_positions(
    config: ArbProbConfig, position_ids: Tensor, sizes: Sizes, *, name: str = "position_ids", least: int = 0
) -> None:
    """Raise unless positions have one row per sequence (or one for all) and lie from `least` to below `n_positions`."""
    if not isinstance(position_ids, Tensor) or position_ids.dtype not in (torch.long, torch.int):
        got = position_ids.dtype if isinstance(position_ids, Tensor) else type(position_ids).__name__
        raise TypeError(f"{name}: expected an integer tensor (batch or 1, tokens), got {got}")
    if position_ids.dim() != 2 or position_ids.shape[0] not in (1, sizes.batch) or position_ids.shape[1] != sizes.q_len:
        raise ValueError(
            f"{name}: expected shape (batch or 1, tokens) = ({sizes.batch}, {sizes.q_len}), "
            f"got {tuple(position_ids.shape)}"
        )
    if position_ids.device != sizes.device:
        raise ValueError(f"{name}: expected device {sizes.device}, got {position_ids.device}; move it with .to()")
    _check_range(
        name,
        position_ids,
        config.n_positions,
        "n_positions, the longest sequence; shorten the input",
        least=least,
    )


def check_labels(name: str, labels: Tensor, hidden: Tensor) -> None:
    """Raise unless labels are integers, one per slot of `hidden` (B, T, D); their values are checked by the loss."""
    expected = tuple(hidden.shape[:-1])
    if not isinstance(labels, Tensor) or labels.dtype not in (torch.long, torch.int):
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"{name}: expected a tensor of torch.int64 (batch, tokens) = {expected}, got {got}")
    if tuple(labels.shape) != expected:
        raise ValueError(f"{name}: expected shape (batch, tokens) = {expected}, got {tuple(labels.shape)}")


def check_cache(past_key_values: object, *, is_recomputed: bool) -> None:
    """Raise unless earlier keys and values come as a transformers `Cache`, and not while layers are recomputed."""
    if past_key_values is not None and is_recomputed:
        raise ValueError(
            "past_key_values: cannot be used while gradient checkpointing recomputes the layers; leave it out, or "
            "call model.eval()"
        )
    if past_key_values is not None and not isinstance(past_key_values, Cache):
        raise TypeError(
            f"past_key_values: expected a transformers Cache such as DynamicCache, got {type(past_key_values).__name__}"
        )


def check_bias(bias: Tensor, sizes: Sizes) -> None:
    """Raise unless the attention bias is a finite float tensor that broadcasts to (B, H, T_q, T_kv)."""
    if not isinstance(bias, Tensor) or not bias.dtype.is_floating_point:
        got = bias.dtype if isinstance(bias, Tensor) else type(bias).__name__
        raise TypeError(
            f"attention_bias: expected a float tensor, got {got}; a keep-mask goes in as attention_mask or mask="
        )
    expected = (sizes.batch, sizes.heads, sizes.q_len, sizes.kv_len)
    fits = bias.dim() == 4 and all(got in (1, want) for got, want in zip(bias.shape, expected, strict=True))
    if not fits:
        raise ValueError(
            f"attention_bias: expected shape (batch, heads, queries, keys) = {expected} or 1, got {tuple(bias.shape)}"
        )
    if bias.device != sizes.device:
        raise ValueError(f"attention_bias: expected device {sizes.device}, got {bias.device}; move it with .to()")
    if not torch.compiler.is_compiling() and not bool(bias.isfinite().all()):
        raise ValueError(
            "attention_bias: expected finite values, got inf or nan; forbid keys with a mask, not with a bias"
        )


def _check_embeds(config: ArbProbConfig, embeds: Tensor, dtype: torch.dtype) -> None:
    if not isinstance(embeds, Tensor) or not embeds.dtype.is_floating_point:
        got = embeds.dtype if isinstance(embeds, Tensor) else type(embeds).__name__
        raise TypeError(f"inputs_embeds: expected a float tensor (batch, tokens, {config.n_embd}), got {got}")
    if embeds.dim() != 3 or embeds.shape[-1] != config.n_embd or embeds.numel() == 0:
        raise ValueError(
            f"inputs_embeds: expected shape (batch, tokens, n_embd={config.n_embd}), not empty, "
            f"got {tuple(embeds.shape)}"
        )
    if torch.promote_types(embeds.dtype, dtype) != dtype:
        raise TypeError(
            f"inputs_embeds: expected the dtype of the weights, {dtype}, got {embeds.dtype}; convert with .to()"
        )


def _check_range(name: str, values: Tensor, size: int, what: str, *, least: int = 0) -> None:
    # asking an accelerator would wait for everything before it; there the embedding's own check fires
    if torch.compiler.is_compiling() or values.device.type != "cpu":
        return
    low, high = torch.aminmax(values)
    if low < least or high >= size:
        bad = int(low) if low < least else int(high)
        raise ValueError(f"{name}: expected {least} to {size - 1}, got {bad}; the bound is {what}")
