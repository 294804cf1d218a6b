"""Tensors that say who may attend: 0-1 of any dtype, or additive as transformers makes them, become bool."""

import torch
from torch import Tensor

from .deferred import check_when_run


def keep_mask(tensor: Tensor, name: str, *, dims: tuple[int, ...]) -> Tensor:
    """Turn a 0-1 tensor of any dtype into bool, True = may attend; shape unchanged.

    Who sees whom (not which tokens exist) may also come as transformers adds it to scores: 0 where a query may
    attend, float16's lowest number or less elsewhere.

    Raises:
        TypeError: not a real tensor. ValueError: wrong number of dimensions, empty, or other values. RuntimeError:
            other values in a compiled graph.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"{name}: expected a tensor of bool or 0-1, got {type(tensor).__name__}; wrap it in torch.tensor(...)"
        )
    if tensor.dim() not in dims:
        expected = " or ".join(f"{d}" for d in dims).replace(" or ", ", ", len(dims) - 2)
        raise ValueError(f"{name}: expected {expected} dimensions, got shape {tuple(tensor.shape)}")
    if tensor.numel() == 0:
        raise ValueError(f"{name}: expected at least one element, got shape {tuple(tensor.shape)}")
    if tensor.dtype == torch.bool:
        return tensor
    if tensor.is_complex() or tensor.layout != torch.strided:
        got = tensor.dtype if tensor.is_complex() else tensor.layout
        raise TypeError(f"{name}: expected a dense tensor of bool or 0-1, got {got}; convert it first")
    may_be_added = tensor.dtype.is_floating_point and max(dims) > 2
    if torch.compiler.is_compiling():
        return _traced(tensor, name, may_be_added=may_be_added)
    if may_be_added:
        is_lowest = _is_lowest(tensor)
        if bool(is_lowest.any()) and bool((is_lowest | (tensor == 0)).all()):
            return tensor == 0
    _check_zero_one(tensor, name)
    return tensor != 0


def _is_lowest(tensor: Tensor) -> Tensor:
    # a lowest number of any dtype, and what is as good as one, leaves nothing of a softmax weight
    return tensor <= torch.finfo(torch.float16).min


def _traced(tensor: Tensor, name: str, *, may_be_added: bool) -> Tensor:
    # the same answers and refusals, without a look
    is_sound, keep = ((tensor == 0) | (tensor == 1)).all(), tensor != 0
    if tensor.dtype.is_floating_point:
        is_sound = is_sound & keep.any()
    if may_be_added:
        is_lowest = _is_lowest(tensor)
        is_added = is_lowest.any()
        is_sound = is_sound | (is_added & (is_lowest | (tensor == 0)).all())
        keep = keep != is_added
    check_when_run(
        is_sound,
        f"{name}: expected only 0 and 1 (1 = may attend), and some 1 in floats, or what transformers adds to scores: 0 "
        "and the lowest number; a score bias goes in as attention_bias=",
    )
    return keep


def _check_zero_one(tensor: Tensor, name: str) -> None:
    if not bool(((tensor == 0) | (tensor == 1)).all()):
        found = tensor[(tensor != 0) & (tensor != 1)].flatten()[0].item()
        raise ValueError(
            f"{name}: expected only 0 and 1 (1 = may attend), got {found}; an additive mask becomes a keep-mask by "
            "`mask == 0`, a score bias goes in as attention_bias="
        )
    if tensor.dtype.is_floating_point and not bool(tensor.any()):
        raise ValueError(
            f"{name}: all zeros in {tensor.dtype}: nothing allowed, or nothing added? Pass bool: "
            "torch.ones_like(mask, dtype=torch.bool) allows all, torch.zeros_like allows nothing"
        )
