"""Generation under masks: what `generate` needs to know beyond transformers' own."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation import StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging

from .masking_arbprob import Mask, TensorMask, keep_mask
from .patterns_arbprob import Causal
from .tiling_arbprob import Grid

logger = logging.get_logger(__name__)

_ROWS_AT_ONCE = 128


class ArbProbGenerationMixin(GenerationMixin):
    """transformers' generation with `mask=`: a pattern, its text, or a tensor for the prompt.

    A tensor (P, P), (B or 1, P, P) or (B or 1, H or 1, P, P) says who sees whom in the prompt of P tokens; a new
    token sees what the last prompt row sees, and every token generated since.
    """

    config: Any

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers' `generate`; also takes `mask=`, and a 3-D or 4-D `attention_mask` for the prompt.

        Stops at `n_positions` tokens. A mask whose earlier rows look at tokens still to come cannot be cached: it is
        recomputed at every step, with one warning.
        """
        for name in ("ranks", "limits", "document_ids", "attention_bias"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name}: not taken by generate, where the sequence grows; pass a mask= instead")
        _reroute(kwargs)
        given = (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        # without a prompt transformers starts from one token, <bos>
        bos = torch.zeros(1, 1, dtype=torch.long, device=self.device)  # type: ignore[attr-defined]
        self._prepare_mask(next((x for x in given if x is not None), bos), kwargs)
        self._stop_at_the_last_position(kwargs)
        return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As transformers', with the prompt's mask tensor extended to the rows of this step."""
        prepared: dict[str, Any] = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,  # type: ignore[arg-type]
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        mask = prepared.get("mask")
        if isinstance(mask, Tensor):
            step = prepared["inputs_embeds"] if prepared.get("input_ids") is None else prepared["input_ids"]
            cache = prepared.get("past_key_values")
            offset = 0 if cache is None else int(cache.get_seq_length())
            prepared["mask"] = extend_prompt_mask(mask, offset, step.shape[1])
        return prepared

    def create_masks_for_generate(self, *, attention_mask: Tensor | None, **kwargs: Any) -> Tensor | None:
        """Leave the mask as it is: transformers would replace it by a causal one for static caches."""
        return attention_mask

    def _prepare_mask(self, prompt: Tensor, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("mask")
        if mask is not None:
            _check_kind("mask", mask)
        mask = Mask.parse(mask) if isinstance(mask, str) else mask
        if isinstance(mask, Mask) and _holds(mask, tensors=True):
            mask = _written_for_prompt(mask, prompt)
        if isinstance(mask, Tensor):
            kwargs["mask"] = _prompt_mask(mask, prompt, self.config.n_head)
            self._refuse_parts(kwargs, lambda read: bool(kwargs["mask"][:, :, :read, read:].any()))
            return
        if mask is not None:
            kwargs["mask"] = mask
        patterns = [mask] if mask is not None else [Mask.parse(t) for t in self.config.mask_texts]
        sizes = dict(length=self.config.n_positions, heads=self.config.n_head)
        self._refuse_parts(kwargs, lambda read: any(looks_past(pattern, read, **sizes) for pattern in patterns))
        shortest = self._shortest(prompt, kwargs)
        if any(looks_ahead(pattern, shortest, **sizes) for pattern in patterns):
            logger.warning_once(
                f"mask {' / '.join(map(str, patterns))} lets earlier tokens see later ones: generating without a cache"
            )
            kwargs["use_cache"] = False

    def _refuse_parts(self, kwargs: dict[str, Any], is_past: Callable[[int], bool]) -> None:
        # a prompt read in parts must not let a part see past its end; `is_past` tells that of the first tokens
        options = kwargs.get("generation_config") or self.generation_config
        size = kwargs.get("prefill_chunk_size", options.prefill_chunk_size)
        if size is not None and any(is_past(read) for read in range(size, self.config.n_positions, size)):
            raise ValueError(
                f"prefill_chunk_size: expected None under a mask that lets prompt tokens see later ones, got {size}; "
                "such a prompt is read at once"
            )
        cache = kwargs.get("past_key_values")
        read = 0 if cache is None else int(cache.get_seq_length())
        if read and is_past(read):
            raise ValueError(
                f"past_key_values: holds {read} tokens that, under this mask, see later ones they have not been shown; "
                "start without it"
            )

    def _shortest(self, prompt: Tensor, kwargs: dict[str, Any]) -> int:
        # patterns count real tokens: the row with most padding meets a later one first
        keep = kwargs.get("attention_mask")
        options = kwargs.get("generation_config") or self.generation_config
        padding = kwargs.get("pad_token_id", options.pad_token_id)
        if keep is None and padding is not None and prompt.dim() == 2:
            keep = prompt != padding  # as transformers will infer
        return prompt.shape[1] if keep is None else max(1, int(keep.sum(1).min()))

    def _stop_at_the_last_position(self, kwargs: dict[str, Any]) -> None:
        given = list(kwargs.get("stopping_criteria") or [])
        kwargs["stopping_criteria"] = StoppingCriteriaList([LastPosition(self.config.n_positions), *given])


class LastPosition(StoppingCriteria):
    """Stop where the next token would have no position embedding."""

    def __init__(self, n_positions: int) -> None:
        self.n_positions = n_positions

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        is_full = input_ids.shape[1] >= self.n_positions
        return torch.full((input_ids.shape[0],), is_full, dtype=torch.bool, device=input_ids.device)


def extend_prompt_mask(mask: Tensor, offset: int, q_len: int) -> Tensor:
    """Rows `offset` to `offset + q_len - 1` of a prompt's mask continued over generated tokens.

    Args:
        mask: bool (B, H or 1, P, P), the prompt's.

    Returns:
        bool (B, H or 1, q_len, offset + q_len): a token after the prompt sees what the last prompt row sees, and
        every token generated since, itself included; a prompt token sees no generated one.
    """
    length = mask.shape[-1]
    rows = torch.arange(offset, offset + q_len, device=mask.device)
    columns = torch.arange(offset + q_len, device=mask.device)
    known = mask[:, :, rows.clamp(max=length - 1)][..., : offset + q_len]  # (B, H or 1, q_len, <= P)
    known = torch.nn.functional.pad(known, (0, offset + q_len - known.shape[-1]))
    grown = (columns >= length) & (columns <= rows[:, None]) & (rows[:, None] >= length)  # (q_len, T_kv)
    return known | grown


@functools.lru_cache(maxsize=256)
def looks_ahead(mask: Mask, prompt: int, *, length: int, heads: int) -> bool:
    """Whether a row of a pattern, once cached, would have had to see a token that came later.

    The prompt's `prompt` rows are computed together, later ones one at a time, up to `length` tokens.
    """
    if isinstance(mask, Causal):
        return False
    together = _sees_beyond(mask, 0, prompt, at_least=prompt, length=length, heads=heads)
    return together or _sees_beyond(mask, prompt, length, at_least=0, length=length, heads=heads)


@functools.lru_cache(maxsize=256)
def looks_past(mask: Mask, read: int, *, length: int, heads: int) -> bool:
    """Whether one of the first `read` rows of a pattern sees one of the tokens after them, up to `length`."""
    if isinstance(mask, Causal):
        return False
    return _sees_beyond(mask, 0, read, at_least=read, length=length, heads=heads)


def _sees_beyond(mask: Mask, first: int, last: int, *, at_least: int, length: int, heads: int) -> bool:
    # whether a row r of first <= r < last sees a column c > r with c >= at_least; a few rows at a time, as a whole
    # (length, length) mask may not fit
    for start in range(first, min(last, length), _ROWS_AT_ONCE):
        rows = min(_ROWS_AT_ONCE, min(last, length) - start)
        grid = Grid(range(1), range(min(heads, mask.count_heads())), range(start, start + rows), range(length))
        b, h, q, k = grid.indices()
        if bool((mask.allowed(b, h, q, k) & (k > q) & (k >= at_least)).any()):
            return True
    return False


def _holds(mask: Mask, *, tensors: bool) -> bool:
    # whether a leaf holds tensors, or, with tensors=False, whether one does not
    if mask.operands():
        return any(_holds(operand, tensors=tensors) for operand in mask.operands())
    return isinstance(mask, TensorMask) == tensors


def _written_for_prompt(mask: Mask, prompt: Tensor) -> Tensor:
    if _holds(mask, tensors=False):
        raise ValueError(
            f"mask: {str(mask)[:60]} mixes patterns, which go on after the prompt, with tensors, which end with it; "
            "pass a pattern alone, or the prompt's mask as one tensor: mask.dense(prompt_length, batch=...)"
        )
    batch, length = prompt.shape[:2]
    heads = mask.count_heads()
    mask.check_fits(batch=batch, heads=heads, q_len=length, kv_len=length, exact=True)
    return mask.dense(length, batch=batch, heads=heads, device=prompt.device)


def _reroute(kwargs: dict[str, Any]) -> None:
    # transformers insists on a 2-D attention_mask in generate; a mask of the prompt goes by its own name
    value = kwargs.get("attention_mask")
    if value is None or (isinstance(value, Tensor) and value.dim() == 2):
        return
    if isinstance(value, Tensor) and value.dim() not in (3, 4):
        raise ValueError(f"attention_mask: expected 2, 3 or 4 dimensions, got shape {tuple(value.shape)}")
    _check_kind("attention_mask", value)
    if kwargs.get("mask") is not None:
        raise ValueError("mask: given together with an attention_mask that is a mask itself; combine them and pass one")
    kwargs["mask"] = kwargs.pop("attention_mask")


def _check_kind(name: str, value: object) -> None:
    if not isinstance(value, Tensor | Mask | str):
        raise TypeError(f"{name}: expected a tensor, a Mask, its text or None, got {type(value).__name__}")


def _prompt_mask(mask: Tensor, prompt: Tensor, heads: int) -> Tensor:
    keep = keep_mask(mask, "mask", dims=(2, 3, 4))
    keep = keep[None, None] if keep.dim() == 2 else keep[:, None] if keep.dim() == 3 else keep
    batch, length = prompt.shape[:2]
    fits = keep.shape[0] in (1, batch) and keep.shape[1] in (1, heads) and tuple(keep.shape[2:]) == (length, length)
    if not fits:
        raise ValueError(
            f"mask: expected ({length}, {length}), ({batch} or 1, {length}, {length}) or ({batch} or 1, {heads} or 1, "
            f"{length}, {length}) for this prompt, got shape {tuple(mask.shape)}"
        )
    # beams repeat rows of the batch, so every row needs its own
    return keep.expand(batch, -1, -1, -1)
