"""The type that products are computed in, by the states' own and by autocast."""

import pytest
import torch

from arbprob_hf.model.masks.precision import compute_dtype

TYPES = torch.float32, torch.float16, torch.bfloat16, torch.float64


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_products_without_autocast_keep_the_type_of_the_states(device: str, dtype: torch.dtype) -> None:
    assert compute_dtype(dtype, device) == dtype


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_autocast_gives_its_type_to_all_but_float64_and_leaves_other_devices_alone(
    dtype: torch.dtype, cast: torch.dtype
) -> None:
    with torch.autocast("cpu", dtype=cast):
        assert compute_dtype(dtype, "cpu") == (dtype if dtype == torch.float64 else cast)
        assert compute_dtype(dtype, "meta") == dtype
