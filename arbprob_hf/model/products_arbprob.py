"""The head's product at a decoding step: a few rows with the whole vocabulary."""

import functools

import torch
from torch import Tensor, nn

from .attention.plan import may_look

# what one or several sequences need at a step, not whole texts
_FEW_ROWS = 128
# below this the call itself takes longer than the product
_LARGE_TABLE = 2**20


def head_logits(head: nn.Module, hidden: Tensor) -> Tensor:
    """What `head(hidden)` returns, float (B, T, V) for (B, T, D); faster for a few rows in float32 on a CPU.

    There torch multiplies by way of BLAS, which some processors run at a third of their memory's speed; oneDNN, which
    comes with torch, does not. Gradients, compilers, autocast, hooks, offloaded weights and other heads go the
    usual way.
    """
    is_quick = type(head) is nn.Linear and _is_plain(head, hidden)
    logits: Tensor = _onednn(hidden, head) if is_quick else head(hidden)  # type: ignore[arg-type]
    return logits


def _onednn(hidden: Tensor, head: nn.Linear) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, head.weight, head.bias, "none", [], "")
    return product


def _is_plain(head: nn.Linear, hidden: Tensor) -> bool:
    # the cheapest questions first; nothing here may be asked of a compiler
    if torch.is_grad_enabled() or not may_look(hidden.device):
        return False
    weight, rows = head.weight, hidden.shape[:-1].numel()
    # a weight that lies elsewhere is brought by a forward that someone has put in place of the module's own
    if weight.device != hidden.device or type(weight) is not nn.Parameter or type(hidden) is not Tensor:
        return False
    is_float = hidden.dtype == torch.float32 == weight.dtype and not torch.is_autocast_enabled("cpu")
    is_few = 0 < rows <= _FEW_ROWS and weight.numel() >= _LARGE_TABLE
    is_hooked = head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head) or _watches_every_module()
    return is_float and is_few and weight.is_contiguous() and not is_hooked and _has_onednn()


def _watches_every_module() -> bool:
    of_all = torch.nn.modules.module
    return bool(of_all._global_forward_hooks or of_all._global_forward_pre_hooks)


@functools.cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
