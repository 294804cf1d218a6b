"""Tensors that say who may attend: 0-1 of any dtype, or additive as transformers makes them, become bool."""

import torch
from torch import Tensor


def keep_mask(tensor: Tensor, name: str, *, dims: tuple[int, ...]) -> Tensor:
    """Turn a 0-1 tensor of any dtype into bool, True = may attend; shape unchanged.

    Who sees whom (not which tokens exist) may also come as transformers adds it to scores: 0 where a query may
    attend, float16's lowest number or less elsewhere.

    Raises:
        TypeError: not a real tensor. ValueError: wrong number of dimensions, empty, or other values.
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
    is_traced = torch.compiler.is_compiling()
    if tensor.dtype.is_floating_point and max(dims) > 2:
        # a lowest number of any dtype, and what is as good as one, leaves nothing of a softmax weight
        is_lowest = tensor <= torch.finfo(torch.float16).min
        if is_traced:
            return (tensor != 0) != is_lowest.any()
        if bool(is_lowest.any()) and bool((is_lowest | (tensor == 0)).all()):
            return tensor == 0
    if not is_traced:
        _check_zero_one(tensor, name)
    return tensor != 0


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
