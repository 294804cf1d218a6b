"""GPT-2, written from scratch as a transformers decoder whose every attention takes any mask.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners". Parameters are named and shaped as in
transformers' GPT-2, so official weights load here and ours load there.
"""

import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.pytorch_utils import Conv1D
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention.backends import check_backend, prepare_attention
from .attention.plan import Plan
from .configuration_arbprob import ArbProbConfig, check_mask, is_copy
from .generation import ArbProbGenerationMixin, check_room
from .layers import ZeroEmbedding, embedding, projection, residual_projection
from .lm_head import ShiftedLabels, causal_loss, head_logits, logits_loss, scored_count
from .masks.arguments import MaskArguments, resolve_mask
from .masks.custom import Custom
from .masks.lookahead import check_cache_valid
from .masks.mask import Mask
from .masks.packed import read_packing
from .masks.precision import compute_dtype
from .masks.tiles import Sizes
from .questions.layouts import MASK_ID
from .questions.log_probs import is_plain
from .questions.mixin import QuestionMixin
from .saved_patterns import check_travels, read_saved
from .saved_weights import check_complete, check_sizes, warn_of_values
from .slot_passes import SlotPassMixin
from .validation import (
    check_bias,
    check_cache,
    check_cache_position,
    check_inputs,
    check_labels,
    check_length,
    check_options,
    check_positions,
)


class ArbProbAttention(nn.Module):
    """Multi-head self-attention; (B, T, D) -> (B, T, D) and the weights where the backend makes them."""

    def __init__(self, config: ArbProbConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.head_dim = config.n_embd // config.n_head
        self.scaling = self.head_dim**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scaling /= layer_idx + 1
        self.c_attn = projection(3 * config.n_embd, config.n_embd)
        self.c_proj = residual_projection(config.n_embd, config.n_embd, config.n_layer)
        self.attn_dropout = nn.Dropout(config.attn_pdrop)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self, hidden_states: Tensor, plan: Plan, past_key_values: Cache | None = None
    ) -> tuple[Tensor, Tensor | None]:
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        split = self.c_attn(hidden_states).chunk(3, dim=-1)
        query, key, value = (x.view(shape).transpose(1, 2) for x in split)  # (B, H, T, D_head)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)  # (B, H, T_kv, D_head)
        dropout = self.attn_dropout.p if self.training else 0.0
        out, weights = plan.attend(query, key, value, scaling=self.scaling, dropout=dropout)
        out = out.transpose(1, 2).reshape(hidden_states.shape)  # (B, T, D)
        return self.resid_dropout(self.c_proj(out)), weights


class ArbProbMLP(nn.Module):
    """The two-layer perceptron of a block; (B, T, D) -> (B, T, D)."""

    def __init__(self, config: ArbProbConfig) -> None:
        super().__init__()
        inner = config.n_inner or 4 * config.n_embd
        # transformers spells this function out in eight kernels; torch has it as one
        fused = "gelu_pytorch_tanh" if config.activation_function == "gelu_new" else config.activation_function
        self.c_fc = projection(inner, config.n_embd)
        self.c_proj = residual_projection(config.n_embd, inner, config.n_layer)
        self.act = ACT2FN[fused]
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.act(self.c_fc(hidden_states))))


class ArbProbBlock(GradientCheckpointingLayer):
    """One pre-norm transformer block; (B, T, D) -> (B, T, D)."""

    def __init__(self, config: ArbProbConfig, layer_idx: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = ArbProbAttention(config, layer_idx)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = ArbProbMLP(config)

    def forward(self, hidden_states: Tensor, plan: Plan, past_key_values: Cache | None = None) -> Tensor:
        attended, _ = self.attn(self.ln_1(hidden_states), plan, past_key_values)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.ln_2(hidden_states))


class ArbProbPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of the network."""

    config: ArbProbConfig
    config_class = ArbProbConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ArbProbBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = False
    _supports_flex_attn = True
    # a backend that transformers offers but that may drop the mask is refused
    _supports_attention_backend = False
    _supports_context_parallel = False
    # `set_attn_implementation` works; transformers would guess from the source that it does not
    _can_set_attn_implementation_cached_value = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": ArbProbBlock,
        "attentions": OutputRecorder(ArbProbAttention, index=1, layer_name="attn"),
    }
    # what steps of one token may write out, each class by itself
    _written_out = {kind: kind.forward for kind in (ArbProbBlock, ArbProbAttention, ArbProbMLP)}
    # the weight of a head that has a row for each label
    _label_weight: str | None = None
    # buffers of early GPT-2 checkpoints
    _keys_to_ignore_on_load_unexpected = [r"attn\.bias", r"attn\.masked_bias"]

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As transformers', but weights of the network that the checkpoint lacks are an error, not random numbers.

        With `output_loading_info=True` they are random numbers, which the returned `missing_keys` name; layers beyond
        those that are saved, and the names of a wrapped network, are refused all the same.

        Custom patterns that its masks use are read from the checkpoint's `custom_arbprob.py` where
        `trust_remote_code=True` says that its code may be run; that they are other functions here is an error.

        Sizes of the configuration that the weights do not have are refused before anything is built, and weights that
        are not finite are warned of.
        """
        source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        is_trusted = bool(kwargs.pop("trust_remote_code", None))
        if source is not None:
            read_saved(source, kwargs, is_trusted=is_trusted)
            check_sizes(source, kwargs, label_weight=cls._label_weight)
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, found = loaded
        if not output_loading_info:
            network = f"{cls.base_model_prefix}." if hasattr(model, cls.base_model_prefix) else ""
            check_complete(found["missing_keys"], network, kwargs)
        warn_of_values(model)
        return loaded if output_loading_info else model

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As transformers'; the code goes along with the configuration. Refused first where a custom pattern cannot."""
        if not getattr(self, "_hf_peft_config_loaded", False):
            check_travels(self.base_model._default_masks().values(), is_copied=is_copy())  # type: ignore[operator]
            super().save_pretrained(save_directory, *args, **kwargs)
            return
        # an adapter is saved by itself, without its network's code; releases of transformers ask one or the other
        self._auto_class, self.is_remote_code = None, lambda: False  # type: ignore[method-assign]
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            del self._auto_class, self.is_remote_code

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """As transformers', which then copies this file; nothing in the package, where every save writes the code."""
        if is_copy():
            super().register_for_auto_class(auto_class)

    def _check_and_adjust_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> str:
        if attn_implementation is not None:
            check_backend(attn_implementation)
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, Conv1D):
            init.normal_(module.weight, mean=0.0, std=std * getattr(module, "initial_scale", 1.0))
            init.zeros_(module.bias)
        if isinstance(module, ZeroEmbedding):
            init.zeros_(module.weight)


class ArbProbModel(SlotPassMixin, ArbProbPreTrainedModel):
    """The GPT-2 network without a head.

    `attention_paths` lists, layer by layer, how attention was computed in the last forward pass.
    """

    def __init__(self, config: ArbProbConfig) -> None:
        super().__init__(config)
        self.wte = embedding(config.vocab_size, config.n_embd)
        self.wpe = embedding(config.n_positions, config.n_embd)
        # what GPT-2 does not have: only where the configuration asks for it
        self.wme = ZeroEmbedding(1, config.n_embd) if config.mask_token else None
        self.wtpe = ZeroEmbedding(config.n_positions, config.n_embd) if config.target_positions else None
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(ArbProbBlock(config, layer_idx) for layer_idx in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.attention_paths: list[str] = []
        self._parsed: tuple[str | list[str], int, dict[str, Mask]] | None = None
        self._default_masks()  # a mask that cannot be read is refused here, not at the first batch
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.wte = value  # type: ignore[assignment]

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | Mask | str | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        mask: Tensor | Mask | str | None = None,
        ranks: Tensor | None = None,
        limits: Tensor | None = None,
        document_ids: Tensor | None = None,
        attention_bias: Tensor | None = None,
        target_position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        r"""Run the network.

        Args:
            input_ids: long (B, T), or `inputs_embeds`: float (B, T, D).
            attention_mask: `None` for `config.mask`; (B, T_kv) for which tokens exist; (B or 1, T, T_kv) or
                (B or 1, H or 1, T, T_kv) for the whole truth; or a `Mask` or its text. Tensors are bool or 0-1.
            position_ids: long (B or 1, T); counted from the cached length when `None`. Where they start again, and no
                mask, order, documents or cache are given, documents are packed.
            past_key_values: keys and values of earlier tokens, which must not have been meant to see those of this
                pass: patterns are checked, tensors on the CPU; what a mask tensor said for earlier rows is not known.
                All of them are seen, also those of a pass of packed documents.
            mask: a `Mask`, its text, or a tensor (T, T_kv) or as above; replaces `config.mask`, ANDed with a 2-D
                `attention_mask`.
            ranks, limits: long (B, T_kv): query q sees key k when k == q or ranks[k] <= limits[q]; `limits` is
                `ranks` when `None`. They are the whole truth, ANDed with a 2-D `attention_mask` and with `mask`. With
                them, an id of -1 is a slot whose token is not known ([MASK]).
            document_ids: integer (B, T); a document is a run of equal ids, seen only from within, and patterns count
                tokens from its start. ANDed with whatever mask holds. With `ranks`, slots of equal ids, in any order.
                Flash attention's `cu_seq_lens_q` and `cu_seq_lens_k` (documents + 1,) say the same of a single row.
            attention_bias: float (B or 1, H or 1, T, T_kv), added to the attention scores.
            target_position_ids: long (B or 1, T), the position that each slot predicts, -1 for none; for networks whose
                configuration has `target_positions`.
            output_hidden_states, output_attentions, return_dict: as everywhere in transformers. Weights are made by
                the eager backend, whatever the model runs on.

        Returns:
            `last_hidden_state` (B, T, D), `past_key_values`, and what else was asked for.
        """
        if kwargs:
            check_options(kwargs, type(self).forward)
        # of the layer norm: other weights may be quantised, and then have no such number type, or none at all
        check_inputs(self.config, input_ids, inputs_embeds, dtype=self.ln_f.weight.dtype, has_ranks=ranks is not None)
        check_cache(past_key_values, is_recomputed=self.gradient_checkpointing and self.training)
        embeds = self._embed(input_ids, ranks) if inputs_embeds is None else inputs_embeds  # (B, T, D)
        is_cached = past_key_values is not None
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        sizes = self._sizes(embeds, past_key_values)
        check_cache_position(kwargs.get("cache_position"), sizes)
        if position_ids is not None:
            check_positions(self.config, position_ids, sizes)
        arguments = MaskArguments(attention_mask, mask, ranks, limits, document_ids)
        arguments = read_packing(arguments, kwargs, position_ids, sizes, is_cached=is_cached)
        if position_ids is None:
            check_length(self.config, sizes)
            position_ids = (torch.arange(sizes.q_len, device=embeds.device) + sizes.offset)[None]  # (1, T)
        embeds = embeds + self.wpe(position_ids)
        if target_position_ids is not None:
            embeds = embeds + self._embed_targets(target_position_ids, sizes)
        hidden_states = self.drop(embeds)

        backend = "eager" if kwargs.get("output_attentions") else self.config._attn_implementation
        plans = self._layer_plans(arguments, sizes, backend, hidden_states.dtype, attention_bias)
        self.attention_paths = [plan.path for plan in plans]
        # drafting with the first layers alone lowers config.n_layer for a while
        for block, plan in zip(self.h, plans, strict=False):
            hidden_states = block(hidden_states, plan, past_key_values)
        return BaseModelOutputWithPast(
            last_hidden_state=self.ln_f(hidden_states), past_key_values=past_key_values if use_cache else None
        )

    def _embed(self, input_ids: Tensor | None, ranks: Tensor | None) -> Tensor:
        assert input_ids is not None
        if ranks is None:
            return self.wte(input_ids)
        is_masked = input_ids == MASK_ID
        embeds = self.wte(input_ids.masked_fill(is_masked, 0))
        # every pass with ranks uses the vector, so that each process of a distributed run has its gradient
        unknown = embeds.new_zeros(()) if self.wme is None else self.wme.weight[0].to(embeds.dtype)
        return torch.where(is_masked[..., None], unknown, embeds)

    def _embed_targets(self, target_position_ids: Tensor, sizes: Sizes) -> Tensor:
        if self.wtpe is None:
            raise ValueError(
                "target_position_ids: this network has no embedding of target positions; leave them out, or build it "
                "with target_positions=True"
            )
        check_positions(self.config, target_position_ids, sizes, name="target_position_ids", least=-1)
        return self.wtpe(target_position_ids.clamp(min=0)) * (target_position_ids >= 0)[..., None]

    def _default_masks(self) -> dict[str, Mask]:
        # parsed once, and again where the config holds another text or a name in it may mean another rule
        parsed = self._parsed
        if parsed is None or parsed[0] != self.config.mask or parsed[1] != Custom.registrations:
            check_mask(self.config)
            texts = self.config.mask_texts
            # a copy: an entry of the config's own list may be replaced in place
            kept = self.config.mask if isinstance(self.config.mask, str) else texts
            masks = {text: Mask.parse(text) for text in texts}
            for mask in masks.values():
                mask.check_fits(batch=1, heads=self.config.n_head, q_len=1, kv_len=1)
            self._parsed = parsed = (kept, Custom.registrations, masks)
        return parsed[2]

    def _sizes(self, embeds: Tensor, past_key_values: Cache | None) -> Sizes:
        batch, q_len = embeds.shape[:2]
        offset = 0 if past_key_values is None else past_key_values.get_seq_length()
        kv_len = q_len if past_key_values is None else past_key_values.get_mask_sizes(q_len, 0)[0]
        if not torch.compiler.is_compiling() and not (isinstance(offset, Tensor) and offset.device.type != "cpu"):
            offset = int(offset)
            check_room(offset + q_len, kv_len)
        return Sizes(batch, self.config.n_head, q_len, kv_len, offset, embeds.device)

    def _layer_plans(
        self, arguments: MaskArguments, sizes: Sizes, backend: str, dtype: torch.dtype, bias: Tensor | None
    ) -> list[Plan]:
        # one mask per distinct text, made once and shared by the layers that use it
        if bias is not None:
            check_bias(bias, sizes)
        compute = compute_dtype(dtype, sizes.device.type)
        plans = {}
        for text, default in self._default_masks().items():
            mask = resolve_mask(default, arguments, sizes)
            # a static cache inside a compiled network is not looked at
            if isinstance(sizes.offset, int) and sizes.offset > 0:
                check_cache_valid(mask, sizes, self.config.n_positions)
            plans[text] = prepare_attention(mask, sizes, backend=backend, dtype=compute, bias=bias)
        texts = [self.config.mask] if isinstance(self.config.mask, str) else self.config.mask
        return [plans[texts[layer % len(texts)]] for layer in range(self.config.n_layer)]

    # what passes over slots and steps of one token do in another way, where nothing else has been put in its place
    _passed_over = (forward, _embed, _embed_targets, _layer_plans, _default_masks, _sizes)


class ArbProbForCausalLM(QuestionMixin, ShiftedLabels, ArbProbPreTrainedModel, ArbProbGenerationMixin):
    """The GPT-2 network with its language-modelling head; it generates, and answers questions."""

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}

    def __init__(self, config: ArbProbConfig) -> None:
        super().__init__(config)
        # transformers reads it off the name of the class, which a derived one may not have
        self.loss_type = "ForCausalLM"
        self.transformer = ArbProbModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | Mask | str | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        mask: Tensor | Mask | str | None = None,
        ranks: Tensor | None = None,
        limits: Tensor | None = None,
        document_ids: Tensor | None = None,
        attention_bias: Tensor | None = None,
        target_position_ids: Tensor | None = None,
        return_logits: bool | None = True,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        r"""Predict each next token; every argument of `ArbProbModel.forward`, and:

        Args:
            labels: long (B, T), usually the input ids: slot t is scored on the label of slot t + 1; -100 is not
                scored.
            logits_to_keep: the last so many positions, or their indices, get logits; 0 for all.
            return_logits: False to return none: the loss is then computed in chunks, without the (B, T, V) logits and
                their gradient, in less time and memory. `None` means True.
            shift_labels: long (B, T), labels that are shifted already, in place of `labels`.
            num_items_in_batch: what the summed loss is divided by, in place of the number of scored labels.

        Returns:
            `loss` (scalar, nats per scored token), `logits` (B, T or fewer, V), `past_key_values`, and what else was
            asked for.
        """
        if kwargs.get("lean_step") is not None:
            return kwargs["lean_step"](input_ids, position_ids)
        options = {name: kwargs.pop(name, None) for name in ("shift_labels", "num_items_in_batch")}
        is_scored = labels is not None or options["shift_labels"] is not None
        makes_logits = return_logits or return_logits is None
        count = None if makes_logits or not is_plain(self.lm_head) else scored_count(labels, options["shift_labels"])
        # a loss needs no keys and values afterwards: they are kept only when asked for
        use_cache = False if is_scored and use_cache is None and past_key_values is None else use_cache
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            mask=mask,
            ranks=ranks,
            limits=limits,
            document_ids=document_ids,
            attention_bias=attention_bias,
            target_position_ids=target_position_ids,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        loss, logits = None, None
        if makes_logits:
            logits = head_logits(self.lm_head, hidden_states, logits_to_keep)  # (B, T or fewer, V)
        if is_scored:
            whole = logits if type(logits_to_keep) is int and logits_to_keep == 0 else None
            loss = self._loss(hidden_states, whole, labels, count, **options)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def head_logits(self, hidden_states: Tensor) -> Tensor:
        """The logits (..., V) of final states (..., D), few rows by the fastest way there is here."""
        return head_logits(self.lm_head, hidden_states)

    def _loss(
        self, hidden_states: Tensor, logits: Tensor | None, labels: Tensor | None, count: Any, **options: Any
    ) -> Tensor:
        for name, given in (("labels", labels), ("shift_labels", options["shift_labels"])):
            if given is not None:
                check_labels(name, given, hidden_states)
        if logits is None:
            # a head that is wrapped or quantised, or a compiler that cannot select rows, takes the usual way
            if is_plain(self.lm_head) and not torch.compiler.is_compiling():
                return causal_loss(hidden_states, self.lm_head.weight, labels, count=count, **options)
            logits = self.lm_head(hidden_states)
        return logits_loss(logits, labels, **options)

    # what steps of one token pass over
    _passed_over = (forward, _loss)
