"""The type that attention and the head compute in; here, as all rooms of a checkpoint but the configuration need it."""

import torch


def compute_dtype(dtype: torch.dtype, device: str) -> torch.dtype:
    """In which dtype products of `dtype` are computed on a kind of device: that of autocast, where it is on."""
    # autocast leaves float64 alone, and torch's device "meta" does not know it
    is_cast = device != "meta" and dtype != torch.float64 and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_cast else dtype
