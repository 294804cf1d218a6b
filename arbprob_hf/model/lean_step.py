"""Steps of one token in `generate`: nothing is checked, planned or copied a second time that cannot have changed."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from .attention.decode import StepPlans
from .attention.lean_layers import LeanLayers, cache_obstacle, is_own, is_patched, is_watched, obstacle
from .lm_head import FewRowsHead
from .masks.arguments import MaskArguments, resolve_mask
from .masks.lookahead import holds_rules
from .masks.mask import Mask
from .masks.precision import compute_dtype
from .masks.tiles import Sizes
from .validation import check_inputs, check_positions

# what a step may be given by `generate`; anything else goes the usual way
_ARGUMENTS = ("past_key_values", "attention_mask", "position_ids", "mask", "use_cache", "logits_to_keep")


class LeanStep:
    """The forward pass of each new token of one `generate`: the logits of the usual one, bit for bit."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.layers: LeanLayers | None = None
        self.is_over = False

    def inputs(self, input_ids: Tensor, options: Mapping[str, Any]) -> dict[str, Any] | None:
        """The arguments of `forward` for the last of `input_ids`, or None where the usual step is to be taken."""
        cache = options["past_key_values"]
        if self.is_over or (self.layers is None and not self._begin(input_ids, options)):
            return None
        if self._has_changed():
            # what a criterion or a processor did to the network between two steps
            self.settle()
            self.is_over = True
            return None
        positions = options.get("position_ids")
        return {
            "input_ids": input_ids[:, -1:],
            "position_ids": None if positions is None else positions[:, -1:],
            "past_key_values": cache,
            "lean_step": self,
        }

    def __call__(self, input_ids: Tensor, position_ids: Tensor | None) -> CausalLMOutputWithPast:
        """Logits (B, 1, V) after one token a row, long (B, 1)."""
        network, layers = self.model.transformer, self.layers
        assert layers is not None
        offset = layers.length
        if position_ids is None:
            position_ids = torch.full((1, 1), offset, device=input_ids.device)
        try:
            embeds = network.wte(input_ids) + network.wpe(position_ids)
        except IndexError:
            # said in our words
            check_inputs(network.config, input_ids, None, dtype=network.ln_f.weight.dtype)
            check_positions(network.config, position_ids, self.sizes)
            raise
        plans = {text: plans.at(offset) for text, plans in self.plans.items()}
        by_layer = [plans[text] for text in self.texts]
        network.attention_paths = [plan.path for plan in by_layer]
        hidden = network.ln_f(layers.run(network.drop(embeds), by_layer))
        return CausalLMOutputWithPast(logits=self.head(hidden), past_key_values=layers.cache)

    def settle(self) -> None:
        """Leave the cache as any other."""
        if self.layers is not None:
            self.layers.settle()

    def _has_changed(self) -> bool:
        network = self.model.transformer
        if network.config.mask != self.mask or network.config._attn_implementation == "eager":
            return True
        if network.training != self.was_training or self.model.lm_head is not self.head.head or is_patched(network):
            return True
        is_alike = all(tuple(module._modules.values()) == children for module, children in self.modules)
        return not is_alike or is_watched(*self.called)

    def _begin(self, input_ids: Tensor, options: Mapping[str, Any]) -> bool:
        # after the prompt, whose pass has filled the cache
        network, cache = self.model.transformer, options["past_key_values"]
        if cache_obstacle(cache) is not None or not all(layer.is_initialized for layer in cache.layers):
            return False
        batch, offset, keep = input_ids.shape[0], cache.get_seq_length(), options.get("attention_mask")
        config = network.config
        self.sizes = Sizes(batch, config.n_head, 1, offset + 1, offset, input_ids.device)
        if len(cache.layers) != config.n_layer or cache.layers[0].keys.shape[0] != batch:
            return False
        # a mask of other columns than those that are cached is someone's who knows what it means
        if keep is not None and tuple(keep.shape) != (batch, offset + 1):
            return False
        if input_ids.device != network.ln_f.weight.device:
            return False
        defaults = network._default_masks()
        self.plans = {text: self._plans(default, options.get("mask"), keep) for text, default in defaults.items()}
        texts = [config.mask] if isinstance(config.mask, str) else config.mask
        self.texts = [texts[layer % len(texts)] for layer in range(config.n_layer)]
        self.head = FewRowsHead(self.model.lm_head)
        self.modules = [(module, tuple(module._modules.values())) for module in network.modules()]
        self.called = [self.model, network, *(part for block in network.h for part in block.modules())]
        self.mask, self.was_training = copy.copy(config.mask), network.training
        self.layers = LeanLayers(network, cache)
        return True

    def _plans(self, default: Mask, mask: Mask | None, keep: Tensor | None) -> StepPlans:
        def resolve(sizes: Sizes) -> Mask:
            # new tokens exist
            more = None if keep is None else torch.nn.functional.pad(keep, (0, sizes.filled - keep.shape[1]), value=1)
            return resolve_mask(default, MaskArguments(more, mask), sizes)

        dtype, device = self.model.transformer.ln_f.weight.dtype, self.sizes.device.type
        compute = compute_dtype(dtype, device)
        return StepPlans(resolve, self.sizes, limit=self.model.config.n_positions, dtype=compute)


def step_obstacle(model: Any, options: Mapping[str, Any]) -> str | None:
    """Why the steps of a `generate` cannot be lean, from what its loop is given; None where they can."""
    generation, cache = options.get("generation_config"), options.get("past_key_values")
    if generation is None or options.get("synced_gpus") or getattr(generation, "is_assistant", False):
        return "processes, or models, step together"
    of_loop = ("logits_processor", "stopping_criteria", "generation_config", "synced_gpus", "streamer")
    more = [name for name, value in options.items() if value is not None and name not in (*of_loop, *_ARGUMENTS)]
    if more or not isinstance(options.get("logits_to_keep", 0), int):
        return f"further arguments: {', '.join(more) or 'logits_to_keep'}"
    if cache is None or not options.get("use_cache"):
        return "there is no cache"
    asked = ("output_attentions", "output_hidden_states")
    if any(getattr(given, name, False) for given in (generation, model.config) for name in asked):
        return "attentions or hidden states are asked for"
    mask = options.get("mask")
    masks = model.transformer._default_masks().values() if mask is None else [mask]
    if any(map(holds_rules, masks)):
        return "a custom pattern is asked anew at every step"
    if not _is_usual(model) or is_watched(model):
        return "the model is another, or is watched"
    return cache_obstacle(cache) or obstacle(model.transformer)


def _is_usual(model: Any) -> bool:
    # whether all that is passed over is ours, and what changes the arguments between steps transformers'
    if any(name in vars(model) for name in ("prepare_inputs_for_generation", "_update_model_kwargs_for_generation")):
        return False
    preparing = next(kind for kind in type(model).__mro__ if "prepare_inputs_for_generation" in vars(kind))
    updating = GenerationMixin._update_model_kwargs_for_generation
    is_updated = type(model)._update_model_kwargs_for_generation is updating
    return is_own(model) and "_refuse_arguments" in vars(preparing) and is_updated
