"""Generation under masks: what `generate` needs to know beyond transformers' own."""

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation import StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging

from .lean_step import LeanStep, step_obstacle
from .masks.continuation import Continued, continue_mask, repeat_rows
from .masks.foreign import from_foreign
from .masks.keep import keep_mask
from .masks.lookahead import crosses, earliest_viewer, is_cache_safe, looks_ahead, refusal
from .masks.mask import Mask
from .masks.packed import PACKING, documents_of
from .masks.patterns import Causal
from .masks.tensors import Padding
from .masks.text import kind_of

logger = logging.get_logger(__name__)

# generate looks for tokens that see later ones in so many more at a time
_LENGTH_STEP = 256
# what drafts tokens for the model to check, each of them an argument or an option of generate
_DRAFTS = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
# positional arguments of transformers' generate, after `inputs`
_POSITIONAL = list(inspect.signature(GenerationMixin.generate).parameters)[2:]

_NO_CONTINUOUS = (
    "{}: continuous batching takes no masks, as it packs requests into pages that its own attention reads under the "
    "causal one; call generate with a left-padded batch"
)


@dataclass(frozen=True)
class Prompt:
    """What generation starts from.

    Attributes:
        length: number of columns, those of a given cache included.
        uncounted: columns that the ids which transformers grows do not show: embeddings, or cached ones left out.
        keep: bool (batch, length), which columns hold tokens, or None when all do.
    """

    batch: int
    length: int
    uncounted: int
    keep: Tensor | None
    device: torch.device


class ArbProbGenerationMixin(GenerationMixin):
    """transformers' generation with `mask=`: a pattern, its text, a tensor for the prompt, or a mix of them.

    A tensor (P, P), (B or 1, P, P) or (B or 1, H or 1, P, P) says who sees whom in the prompt of P tokens; a new
    token sees what the last prompt row sees, and every token generated since. In a `Mask` every largest part made of
    tensors alone goes on like this, and patterns go on by themselves.
    """

    config: Any
    device: Any
    base_model: Any

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers' `generate`; also takes `mask=`, and a 3-D or 4-D `attention_mask` for the prompt.

        Stops at `n_positions` tokens. A mask whose earlier rows look at tokens still to come cannot be cached: it is
        recomputed at every step, with one warning.
        """
        kwargs.update(zip(_POSITIONAL, args, strict=False))
        self._refuse_arguments(kwargs)
        _reroute(kwargs)
        prompt = self._prompt(inputs, kwargs)
        _refuse_documents(prompt, kwargs)
        self._prepare_mask(prompt, kwargs)
        given = list(kwargs.get("stopping_criteria") or [])
        last = LastPosition(self.config.n_positions - prompt.uncounted)
        kwargs["stopping_criteria"] = StoppingCriteriaList([last, *given])
        return super().generate(inputs, **kwargs)  # type: ignore[misc]

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As transformers'; a cached step of one token needs none of what it looks into.

        Callers of older releases, such as captum, pass all ids beside a cache and a `cache_position` that nobody counts
        on: what is cached is left out, and so is that.
        """
        cache: Any = kwargs.get("past_key_values")
        kwargs.pop("cache_position", None)
        lean = kwargs.pop("lean_step", None)
        if cache is not None and cache.is_compileable:
            check_room(input_ids.shape[1], cache.get_mask_sizes(1, 0)[0])
        if next_sequence_length is None and _holds_cached(input_ids, kwargs):
            next_sequence_length = input_ids.shape[1] - _cached(kwargs)
        is_step = next_sequence_length == 1 and cache is not None and not kwargs.get("is_first_iteration")
        if is_step and lean is not None and (inputs := lean.inputs(input_ids, kwargs)) is not None:
            return inputs
        if not is_step or input_ids.device != self.device:
            given = {"next_sequence_length": next_sequence_length, "inputs_embeds": inputs_embeds, **kwargs}
            return super().prepare_inputs_for_generation(input_ids, **given)  # type: ignore
        left_out = ("is_first_iteration", "labels")
        step = {name: value for name, value in kwargs.items() if value is not None and name not in left_out}
        # copied, so that a compiled step always meets the same strides
        step["input_ids"] = input_ids[:, -1:].clone(memory_format=torch.contiguous_format)
        if "position_ids" in step:
            step["position_ids"] = step["position_ids"][:, -1:].clone(memory_format=torch.contiguous_format)
        if cache.is_compileable and "attention_mask" in step:
            step["attention_mask"] = _widened(step["attention_mask"], cache)
        return step

    def create_masks_for_generate(
        self, *, attention_mask: Tensor | None, past_key_values: Any, **kwargs: Any
    ) -> Tensor | None:
        """Say which columns of a static cache hold tokens; transformers would say that in a causal mask."""
        return None if attention_mask is None else _widened(attention_mask, past_key_values)

    def _sample(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        # transformers' loop, whose steps are lean where nothing speaks against it
        reason = "arguments by position" if args else step_obstacle(self, kwargs)
        logger.debug(f"generate takes {'lean steps' if reason is None else f'usual steps: {reason}'}")
        if reason is not None:
            return super()._sample(input_ids, *args, **kwargs)  # type: ignore
        step = LeanStep(self)
        try:
            return super()._sample(input_ids, lean_step=step, **kwargs)  # type: ignore
        finally:
            step.settle()

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, *args: Any, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        # transformers repeats tensors for beams; ours are inside the mask
        ids, expanded = super()._expand_inputs_for_generation(expand_size, *args, **kwargs)  # type: ignore[misc]
        if isinstance(expanded.get("mask"), Mask):
            expanded["mask"] = repeat_rows(expanded["mask"], expand_size)
        return ids, expanded

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> Any:
        # a draft is only ever a proposal, so an assistant may draft under another mask than the model's
        assistant = self if kwargs.get("assistant_model") is None else kwargs["assistant_model"]
        is_alike = kwargs.get("assistant_tokenizer") is None
        mask = kwargs["model_kwargs"].get("mask") if is_alike else None
        drafting = _drafting_mask(assistant, mask, kwargs["input_ids"].shape[1])
        rest = {name: value for name, value in kwargs["model_kwargs"].items() if name != "mask"}
        kwargs["model_kwargs"] = rest if drafting is None else {**rest, "mask": drafting}
        return super()._get_candidate_generator(*args, **kwargs)  # type: ignore[misc]

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse continuous batching, which begins here whatever asks for it: it knows the causal mask alone."""
        raise TypeError(_NO_CONTINUOUS.format("init_continuous_batching"))

    def continuous_batching_context_manager(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse it before a context is entered."""
        raise TypeError(_NO_CONTINUOUS.format("continuous_batching_context_manager"))

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse it by the name of this entry."""
        raise TypeError(_NO_CONTINUOUS.format("generate_batch"))

    def _refuse_arguments(self, kwargs: dict[str, Any]) -> None:
        for name in ("ranks", "limits", "document_ids", "attention_bias", *PACKING):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name}: not taken by generate, where the sequence grows; pass a mask= instead")
        if self._option("cache_implementation", kwargs) == "paged":
            raise ValueError(
                "cache_implementation: expected dynamic or static, got 'paged'; continuous batching takes no masks"
            )
        scale = self._option("guidance_scale", kwargs)
        if scale not in (None, 1) and (kwargs.get("mask") is not None or _is_whole(kwargs.get("attention_mask"))):
            raise ValueError(
                "guidance_scale: cannot be used with mask=, as the unguided pass would not be under it; set "
                "config.mask instead"
            )

    def _option(self, name: str, kwargs: dict[str, Any]) -> Any:
        # in transformers' order: an argument, the given configuration, the model's
        found = (kwargs.get(name), getattr(kwargs.get("generation_config"), name, None))
        return next((value for value in found if value is not None), getattr(self.generation_config, name, None))

    def _prompt(self, inputs: Tensor | None, kwargs: dict[str, Any]) -> Prompt:
        ids = inputs if inputs is not None else kwargs.get("input_ids")
        embeds, keep, read = kwargs.get("inputs_embeds"), kwargs.get("attention_mask"), _cached(kwargs)
        # without a prompt transformers starts from one token, <bos>
        bos = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        shown = embeds if embeds is not None else ids if ids is not None else bos
        batch, length = shown.shape[:2]
        if keep is not None and not read and (ids is None) != (embeds is None):
            _check_columns(keep, batch, length)
        if keep is None and embeds is None and ids is not None:
            keep = self._real_tokens(ids, kwargs)
        if keep is not None and read:
            # with a cache the ids may be those not cached yet, and the 2-D mask tells
            length = max(length, keep.shape[1])
        counted = shown.shape[1] if embeds is None else 0 if ids is None else ids.shape[1]
        keep = None if keep is None or keep.shape[1] != length or bool(keep.all()) else keep.bool()
        return Prompt(batch, length, length - counted, keep, shown.device)

    def _real_tokens(self, ids: Tensor, kwargs: dict[str, Any]) -> Tensor | None:
        # as transformers will infer it
        padding, ends = self._option("pad_token_id", kwargs), self._option("eos_token_id", kwargs)
        ends = ends if isinstance(ends, list | tuple) else [ends]
        return None if padding is None or padding in ends else ids != padding

    def _prepare_mask(self, prompt: Prompt, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("mask")
        if mask is None:
            masks = list(self.base_model._default_masks().values())
        else:
            mask = _as_mask_argument("mask", mask)
            if isinstance(mask, Tensor):
                mask = Continued(_prompt_table(mask, prompt, self.config.n_head))
            mask = Mask.parse(mask) if isinstance(mask, str) else mask
            mask = continue_mask(mask, batch=prompt.batch, length=prompt.length, device=prompt.device)
            mask.check_fits(batch=prompt.batch, heads=self.config.n_head, q_len=prompt.length, kv_len=prompt.length)
            kwargs["mask"], masks = mask, [mask]
        self._prepare_caching(masks, prompt, kwargs)

    def _prepare_caching(self, masks: list[Mask], prompt: Prompt, kwargs: dict[str, Any]) -> None:
        size = self._option("prefill_chunk_size", kwargs)
        read, length = _cached(kwargs), self._longest(prompt, kwargs)
        parts = [] if size is None else list(range(read + size, prompt.length, size))
        earliest = min([prompt.length, *parts, *([read] if read else [])])
        unsafe = [mask for mask in masks if not is_cache_safe(mask, earliest)]
        found = [_earliest_viewer(mask, prompt, length) for mask in unsafe]
        if read and any(crosses(first, read, length) for first in found):
            raise ValueError(refusal(read))
        if any(crosses(first, part, length) for first in found for part in parts):
            raise ValueError(
                f"prefill_chunk_size: expected None under a mask that lets prompt tokens see later ones, got {size}; "
                "such a prompt is read at once"
            )
        if any(looks_ahead(first, prompt.length) for first in found):
            self._leave_cache_out(masks, kwargs)
        elif read and self._option("use_cache", kwargs) is False:
            raise ValueError(f"past_key_values: holds {read} tokens, but use_cache is False; leave one of them out")

    def _longest(self, prompt: Prompt, kwargs: dict[str, Any]) -> int:
        # what lies beyond is not looked at; in large steps, as what is found is remembered by length
        limit: int = self.config.n_positions
        new = self._option("max_new_tokens", kwargs)
        return limit if new is None else min(limit, -(-(prompt.length + new) // _LENGTH_STEP) * _LENGTH_STEP)

    def _leave_cache_out(self, masks: list[Mask], kwargs: dict[str, Any]) -> None:
        for name in ("past_key_values", "inputs_embeds", "prefill_chunk_size", *_DRAFTS):
            value = self._option(name, kwargs)
            if value is not None and value is not False:
                raise ValueError(
                    f"{name}: needs a cache, which a mask that lets earlier tokens see later ones rules out; "
                    "leave it out"
                )
        if self._option("use_cache", kwargs) is not False:
            logger.warning_once(
                f"mask {' / '.join(map(str, masks))} lets earlier tokens see later ones: generating without a cache"
            )
        kwargs["use_cache"] = False
        # transformers would warn that options of a cache are not used, and of arguments beside a configuration
        for name in ("cache_implementation", "cache_config"):
            kwargs.pop(name, None)
        if kwargs.get("generation_config") is not None:
            own = kwargs["generation_config"] = copy.copy(kwargs["generation_config"])
            own.use_cache, own.cache_implementation = kwargs.pop("use_cache"), None


class LastPosition(StoppingCriteria):
    """Stop where the next token would have no position embedding."""

    def __init__(self, n_positions: int) -> None:
        self.n_positions = n_positions

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        is_full = input_ids.shape[1] >= self.n_positions
        return torch.full((input_ids.shape[0],), is_full, dtype=torch.bool, device=input_ids.device)


def check_room(length: int, columns: int) -> None:
    """Raise ValueError where a cache has fewer columns than the tokens it is to hold."""
    if length > columns:
        raise ValueError(
            f"past_key_values: the cache has room for {columns} tokens, got {length}; make it larger (max_cache_len), "
            "or take a DynamicCache"
        )


def _widened(keep: Tensor, cache: Any) -> Tensor:
    # (B, T) -> (B, columns of the static cache): of one shape at every step, so that a compiled step is compiled once
    columns = cache.get_mask_sizes(1, 0)[0]
    # padding would cut off what is too much
    check_room(keep.shape[1], columns)
    return torch.nn.functional.pad(keep, (0, columns - keep.shape[1]))


def _cached(kwargs: dict[str, Any]) -> int:
    cache = kwargs.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())


def _holds_cached(input_ids: Tensor, kwargs: dict[str, Any]) -> bool:
    # the 2-D mask covers the cached tokens and those of this pass
    keep, read = kwargs.get("attention_mask"), _cached(kwargs)
    return bool(read) and keep is not None and keep.shape[1] == input_ids.shape[1] > read


def _earliest_viewer(mask: Mask, prompt: Prompt, length: int) -> Tensor:
    if prompt.keep is None:
        return earliest_viewer(mask, length=length).to(prompt.device)
    # patterns count real tokens, in each row from another column
    keep = torch.nn.functional.pad(prompt.keep, (0, length - prompt.length), value=True)
    starts = torch.arange(length, device=keep.device) - (keep.cumsum(1) - 1)  # (B, length)
    return earliest_viewer(mask.shifted(starts) & Padding(keep), length=length, keep=keep)


def _drafting_mask(assistant: Any, mask: Mask | None, prompt: int) -> Mask | None:
    # None: the assistant drafts under its own mask
    if "mask" not in inspect.signature(assistant.forward).parameters:
        return None
    config = assistant.config
    given = [Mask.parse(text) for text in config.mask_texts] if mask is None else [mask]
    fits = all(one.count_heads() in (1, config.n_head) for one in given)
    # an assistant's cache may be cut by the last token of the prompt
    is_cuttable = all(_never_crosses(one, prompt - 1, config.n_positions) for one in given)
    return mask if fits and is_cuttable else Causal()


def _never_crosses(mask: Mask, cut: int, length: int) -> bool:
    # whether no token sees a later one from `cut` on
    return is_cache_safe(mask, cut) or not looks_ahead(earliest_viewer(mask, length=length), cut)


def _refuse_documents(prompt: Prompt, kwargs: dict[str, Any]) -> None:
    # all positions at once: read in chunks, each chunk might look like one document
    positions = kwargs.get("position_ids")
    if not isinstance(positions, Tensor) or positions.dim() != 2 or kwargs.get("mask") is not None:
        return
    if positions.shape[0] in (1, prompt.batch) and positions.shape[1] == prompt.length:
        documents_of(positions.expand(prompt.batch, -1), prompt.keep, is_cached=True)


def _is_whole(value: object) -> bool:
    # whether an attention_mask is a mask itself, rather than which tokens exist
    return value is not None and not (isinstance(value, Tensor) and value.dim() == 2)


def _reroute(kwargs: dict[str, Any]) -> None:
    # transformers insists on a 2-D attention_mask in generate; a mask of the prompt goes by its own name
    value = kwargs.get("attention_mask")
    if not _is_whole(value):
        return
    if isinstance(value, Tensor) and value.dim() not in (3, 4):
        raise ValueError(f"attention_mask: expected 2, 3 or 4 dimensions, got shape {tuple(value.shape)}")
    value = _as_mask_argument("attention_mask", value)
    if kwargs.get("mask") is not None:
        raise ValueError("mask: given together with an attention_mask that is a mask itself; combine them and pass one")
    del kwargs["attention_mask"]
    kwargs["mask"] = value


def _as_mask_argument(name: str, value: object) -> Any:
    value = from_foreign(value)
    if not isinstance(value, Tensor | Mask | str):
        raise TypeError(f"{name}: expected a tensor, a Mask, its text or None, got {kind_of(value)}")
    return value


def _check_columns(keep: Tensor, batch: int, length: int) -> None:
    # transformers would derive positions from it, and blame those
    if tuple(keep.shape) != (batch, length):
        hint = "; is it a mask of queries and keys? pass it as mask=" if keep.shape[0] == keep.shape[1] else ""
        raise ValueError(
            f"attention_mask: expected shape (batch, keys) = {batch, length}, got {tuple(keep.shape)}{hint}"
        )


def _prompt_table(mask: Tensor, prompt: Prompt, heads: int) -> Tensor:
    keep = keep_mask(mask, "mask", dims=(2, 3, 4))
    keep = keep[None, None] if keep.dim() == 2 else keep[:, None] if keep.dim() == 3 else keep
    batch, length = prompt.batch, prompt.length
    fits = keep.shape[0] in (1, batch) and keep.shape[1] in (1, heads) and tuple(keep.shape[2:]) == (length, length)
    if not fits:
        raise ValueError(
            f"mask: expected ({length}, {length}), ({batch} or 1, {length}, {length}) or ({batch} or 1, {heads} or 1, "
            f"{length}, {length}) for this prompt, got shape {tuple(mask.shape)}"
        )
    return keep
