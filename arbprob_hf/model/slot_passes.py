"""A pass of the network over slots with a cache, without the checks of arguments that the code itself makes."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from .attention.lean_layers import is_own, is_watched
from .attention.plan import AdditivePlan, EagerPlan, Plan
from .masks.precision import compute_dtype


class SlotPassMixin:
    """Passes over the slots of questions; mixed into the network without a head."""

    config: Any
    wpe: Any
    wtpe: Any
    drop: Any
    h: Any
    ln_f: Any
    attention_paths: list[str]
    _embed: Any

    def run_slots(
        self, input_ids: Tensor, position_ids: Tensor, targets: Tensor | None, allowed: Tensor, cache: Cache
    ) -> Tensor:
        """What `forward` makes of slots, (B, W, D), in half its time where they are few.

        Where the network as a whole is hooked, wrapped or compiled, it is `forward` that makes it.

        Args:
            input_ids, position_ids: long (B, W), -1 for a slot whose token is not known. targets: long (B, W), what
                each slot predicts, -1 for none; for networks with `target_positions`.
            allowed: bool (B, W, S), which slots of the cache and of this pass each one sees, itself always.
            cache: keys and values (B, H, S - W, D_head) of earlier slots; those of this pass are added.
        """
        if not self._is_direct():
            return self._forwarded(input_ids, position_ids, targets, allowed, cache)
        embeds = self._embed(input_ids, position_ids) + self.wpe(position_ids)
        if targets is not None:
            embeds = embeds + self.wtpe(targets.clamp(min=0)) * (targets >= 0)[..., None]
        states = self.drop(embeds)  # (B, W, D)
        plan = self._slot_plan(allowed, states)
        self.attention_paths = [plan.path] * self.config.n_layer
        # as in `forward`: drafting with the first layers alone lowers config.n_layer for a while
        for block in self.h[: self.config.n_layer]:
            states = block(states, plan, cache)
        found: Tensor = self.ln_f(states)
        return found

    def _forwarded(
        self, input_ids: Tensor, position_ids: Tensor, targets: Tensor | None, allowed: Tensor, cache: Cache
    ) -> Tensor:
        # with ranks -1 is [MASK]; these let the new slots see everything
        held = allowed.shape[2] - allowed.shape[1]
        ranks = (torch.arange(allowed.shape[2], device=allowed.device) >= held).long().expand(len(allowed), -1)
        options = {"mask": allowed[:, None], "ranks": ranks, "limits": ranks, "past_key_values": cache}
        if targets is not None:
            options["target_position_ids"] = targets
        states: Tensor = self(  # type: ignore[operator]
            input_ids=input_ids, position_ids=position_ids, use_cache=True, **options
        ).last_hidden_state
        return states

    def _slot_plan(self, allowed: Tensor, states: Tensor) -> Plan:
        device = allowed.device
        dtype = compute_dtype(states.dtype, device.type)
        if self.config._attn_implementation == "eager":
            return EagerPlan(allowed[:, None])
        # every slot sees itself: no row is empty
        scores = torch.zeros((), dtype=dtype, device=device).where(allowed[:, None], float("-inf"))
        return AdditivePlan(scores)

    def _is_direct(self) -> bool:
        # whether the layers may be run one by one: nobody has derived, wrapped, compiled or hooked the whole network
        network: Any = self
        return is_own(network) and not is_watched(network)
