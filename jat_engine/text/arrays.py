"""`to_numpy`: take tensors for arrays."""

from __future__ import annotations

from typing import Any

import torch


def to_numpy(values: Any) -> Any:
    """Return a tensor as an array, one of floats as float32; anything else as it is."""
    if not isinstance(values, torch.Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.is_floating_point() else values).numpy()  # NumPy has no bfloat16
