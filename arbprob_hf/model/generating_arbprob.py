"""Generation under masks: what `generate` needs to know beyond transformers' own."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation import StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging

from .masking_arbprob import Mask, TensorMask, count_heads, keep_mask
from .patterns_arbprob import Causal

logger = logging.get_logger(__name__)


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
        if isinstance(mask, Mask) and _holds_tensors(mask):
            mask = mask.dense(prompt.shape[1], batch=prompt.shape[0], heads=count_heads(mask), device=prompt.device)
        if isinstance(mask, Tensor):
            kwargs["mask"] = _prompt_mask(mask, prompt, self.config.n_head)
            self._refuse_parts(kwargs, bool(kwargs["mask"].triu(1).any()))
            return
        if mask is not None:
            kwargs["mask"] = mask
        patterns = [mask] if mask is not None else [Mask.parse(t) for t in _texts(self.config.mask)]
        length, heads = self.config.n_positions, self.config.n_head
        self._refuse_parts(kwargs, any(looks_ahead(pattern, 1, length, heads) for pattern in patterns))
        shortest = self._shortest(prompt, kwargs)
        if any(looks_ahead(pattern, shortest, length, heads) for pattern in patterns):
            logger.warning_once(
                f"mask {' / '.join(map(str, patterns))} lets earlier tokens see later ones: generating without a cache"
            )
            kwargs["use_cache"] = False

    def _refuse_parts(self, kwargs: dict[str, Any], is_ahead: bool) -> None:
        options = kwargs.get("generation_config") or self.generation_config
        size = kwargs.get("prefill_chunk_size", options.prefill_chunk_size)
        if is_ahead and size is not None:
            raise ValueError(
                f"prefill_chunk_size: expected None under a mask that lets prompt tokens see later ones, got {size}; "
                "such a prompt is read at once"
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


def looks_ahead(mask: Mask, prompt: int, length: int, heads: int) -> bool:
    """Whether a row, once cached, would have had to see a token that came later.

    The prompt's `prompt` rows are computed together, later ones one at a time, up to `length` tokens.
    """
    if isinstance(mask, Causal) or length <= prompt:
        return False
    allowed = mask.dense(length, heads=min(heads, count_heads(mask)))[0]  # (H, T, T)
    row = torch.arange(length)[:, None]
    later = torch.arange(length)[None, :] >= (row + 1).clamp(min=prompt)
    return bool((allowed & later).any())


def _texts(mask: str | list[str]) -> list[str]:
    return [mask] if isinstance(mask, str) else list(mask)


def _holds_tensors(mask: Mask) -> bool:
    return isinstance(mask, TensorMask) or any(_holds_tensors(operand) for operand in mask.operands())


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
