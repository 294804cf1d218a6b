"""The layers of a network for a few new tokens a row, written out in torch's functions over a cache that has room.

The same operations in the same order as the modules, so that no bit differs; what is saved is Python. Where somebody
watches the modules or has put others in their place, `obstacle` says so, and the modules are called as ever.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.pytorch_utils import Conv1D

from .plan import Plan

# a cache is given so much more room, or as much again as it holds
_LEAST_ROOM = 64
# the modules of a block by their places, and what each has to be
_PARTS: dict[str, type] = {
    "ln_1": nn.LayerNorm,
    "attn.c_attn": Conv1D,
    "attn.attn_dropout": nn.Dropout,
    "attn.c_proj": Conv1D,
    "attn.resid_dropout": nn.Dropout,
    "ln_2": nn.LayerNorm,
    "mlp.c_fc": Conv1D,
    "mlp.c_proj": Conv1D,
    "mlp.dropout": nn.Dropout,
}
# written out as they are now: who puts something in their place later has the modules called
_CALL = nn.Module.__call__
_FORWARDS: dict[Any, Any] = {kind: vars(kind)["forward"] for kind in _PARTS.values()}


class LeanLayers:
    """All blocks of a network, and the keys and values of one cache in buffers that grow by doubling.

    The layers of the cache always hold what they would hold, as views of the buffers.
    """

    def __init__(self, network: Any, cache: Any) -> None:
        self.network, self.cache = network, cache
        self.blocks = [_Block.of(block) for block in network.h]
        self.buffers: list[tuple[Tensor, Tensor]] = []
        self.shown: Tensor | None = None

    @property
    def length(self) -> int:
        """How many tokens are cached."""
        return int(self.cache.get_seq_length())

    def run(self, hidden: Tensor, plans: Sequence[Plan]) -> Tensor:
        """What the blocks make of new tokens, whose keys and values are cached: float (B, T, D) -> (B, T, D).

        Args:
            hidden: the sum of the embeddings. plans: one a layer, over the cached tokens and the new ones.
        """
        batch, count, width = hidden.shape
        start = self.length
        stop = start + count
        if self.shown is None or self.cache.layers[0].keys is not self.shown or stop > self.buffers[0][0].shape[2]:
            self._make_room(stop)
        parts = zip(self.blocks, plans, self.cache.layers, self.buffers, strict=True)
        for block, plan, layer, (keys, values) in parts:
            normed = torch.layer_norm(hidden, (width,), block.ln_1.weight, block.ln_1.bias, block.ln_1.eps)
            split = _linear(normed, block.c_attn).view(batch, count, 3, -1, block.head_dim)
            query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, T, D_head)
            keys.narrow(2, start, count).copy_(key)
            values.narrow(2, start, count).copy_(value)
            layer.keys, layer.values = keys.narrow(2, 0, stop), values.narrow(2, 0, stop)
            out, _ = plan.attend(query, layer.keys, layer.values, scaling=block.scaling, dropout=0.0)
            hidden = hidden + _linear(out.transpose(1, 2).reshape(hidden.shape), block.attn_proj)
            normed = torch.layer_norm(hidden, (width,), block.ln_2.weight, block.ln_2.bias, block.ln_2.eps)
            hidden = hidden + _linear(block.act(_linear(normed, block.c_fc)), block.mlp_proj)
        self.shown = self.cache.layers[0].keys
        return hidden

    def crop(self, count: int) -> None:
        """Forget the last `count` tokens, which their buffers then have room for."""
        stop, is_ours = self.length - count, self.cache.layers[0].keys is self.shown
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys.narrow(2, 0, stop), layer.values.narrow(2, 0, stop)
        self.shown = self.cache.layers[0].keys if is_ours else None

    def settle(self) -> None:
        """Give the cache tensors of its own, as large as what they hold."""
        for layer in self.cache.layers:
            # cloned: what one head and row hold is contiguous within the buffer, too
            layer.keys, layer.values = (
                states.clone(memory_format=torch.contiguous_format) for states in (layer.keys, layer.values)
            )
        self.buffers, self.shown = [], None

    def _make_room(self, needed: int) -> None:
        # also where something else has changed the cache, such as `crop`
        room = max(2 * needed, needed + _LEAST_ROOM)
        self.buffers = []
        for layer in self.cache.layers:
            held = layer.keys.shape[2]
            pair = []
            for states in (layer.keys, layer.values):
                buffer = states.new_empty(*states.shape[:2], room, states.shape[3])
                buffer.narrow(2, 0, held).copy_(states)
                pair.append(buffer)
            self.buffers.append((pair[0], pair[1]))
            # the tensors they were are free
            layer.keys, layer.values = (buffer.narrow(2, 0, held) for buffer in pair)


class _Block(NamedTuple):
    ln_1: nn.LayerNorm
    c_attn: Conv1D
    attn_proj: Conv1D
    ln_2: nn.LayerNorm
    c_fc: Conv1D
    act: nn.Module
    mlp_proj: Conv1D
    head_dim: int
    scaling: float

    @classmethod
    def of(cls, block: Any) -> "_Block":
        attn, mlp = block.attn, block.mlp
        modules = (block.ln_1, attn.c_attn, attn.c_proj, block.ln_2, mlp.c_fc, mlp.act, mlp.c_proj)
        return cls(*modules, attn.head_dim, attn.scaling)


def _linear(states: Tensor, layer: Conv1D) -> Tensor:
    # as transformers' Conv1D: (B, T, in) -> (B, T, out)
    product = torch.addmm(layer.bias, states.view(-1, states.shape[-1]), layer.weight)
    return product.view(*states.shape[:-1], layer.nf)


def obstacle(network: Any) -> str | None:
    """Why the layers of `network` have to be called as modules; None where they may be written out.

    Nobody else must have a part in them: no other kinds of modules or weights, no hooks, no compiler, no gradients.
    """
    if torch.is_grad_enabled():
        return "gradients are recorded"
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return "a compiler or a function transform is at work"
    if network.config._attn_implementation == "eager":
        return "the eager backend makes weights"
    if len(network.h) != network.config.n_layer:
        return "not all layers are asked"
    if not is_own(network) or is_watched(network):
        return "the network is another, or is watched"
    if is_patched(network):
        return "a class has been patched"
    device = network.ln_f.weight.device
    if device.type not in ("cpu", "cuda"):
        return f"the device is {device}"
    blocks: list[Any] = list(network.h)
    found = (_obstacle_in(block, device, tuple(network._written_out)) for block in blocks)
    return next((one for one in found if one is not None), None)


def is_patched(network: Any) -> bool:
    """Whether somebody has put another function in the place of what every module, or every one of a kind, does."""
    forwards = {**_FORWARDS, **network._written_out}
    return nn.Module.__call__ is not _CALL or any(kind.forward is not one for kind, one in forwards.items())


def cache_obstacle(cache: Any) -> str | None:
    """Why keys and values in `cache` cannot lie in buffers with room; None where they can."""
    if type(cache) is not DynamicCache or cache.offloading:
        return "the cache is no plain DynamicCache"
    return None if all(type(layer) is DynamicLayer for layer in cache.layers) else "its layers are no plain ones"


def is_watched(*modules: nn.Module) -> bool:
    """Whether calling a module does more than its class's `forward`: hooks, a forward put in its place, a compiler."""
    of_all = torch.nn.modules.module
    if of_all._global_forward_hooks or of_all._global_forward_pre_hooks:
        return True
    for one in modules:
        if one._forward_hooks or one._forward_pre_hooks or "forward" in one.__dict__ or one._compiled_call_impl:
            return True
    return False


def is_own(network: Any) -> bool:
    """Whether all that is passed over is what the network's class wrote, not that of a derived class or of a patch."""
    return all(getattr(getattr(network, one.__name__), "__func__", None) is one for one in network._passed_over)


def _obstacle_in(block: Any, device: torch.device, kinds: tuple[type, ...]) -> str | None:
    if (type(block), type(block.attn), type(block.mlp)) != kinds:
        return "a block is of another class"
    for name, kind in _PARTS.items():
        part = block.get_submodule(name)
        if type(part) is not kind:
            return f"{name} is {type(part).__name__}"
        if isinstance(part, nn.Dropout) and part.training and part.p > 0:
            return "dropout is at work"
    if is_watched(*block.modules()):
        return "a part of a block is watched"
    weights = list(block.named_parameters())
    if len(weights) != 12 or any(type(weight) is not nn.Parameter for _, weight in weights):
        return "weights are other than torch's own"
    return None if all(weight.device == device for _, weight in weights) else "weights lie on several devices"
