"""Checks of those options of `JatModel.from_pretrained` that go on to transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import InputError

_PLACEMENTS = ("auto", "balanced", "balanced_low_0", "sequential", "disk")
"""Values of `device_map` that are no devices."""

_INSTEAD = {
    "device": "pass device_map, or call `.to(device)` afterwards",
    "from_flax": "only safetensors files are read",
    "from_tf": "only safetensors files are read",
    "gguf_file": "only safetensors files are read",
    "load_in_4bit": 'pass dtype="int4" to JatEngine.from_pretrained',
    "load_in_8bit": 'pass dtype="int8" to JatEngine.from_pretrained',
    "state_dict": "call `load_state_dict` afterwards",
    "use_auth_token": "pass token",
}
"""Options of transformers, or of its earlier releases, that have no effect here, and what to do instead."""


def check_options(given: dict[str, Any]) -> None:
    """Check options before the weights are read, and remove those that ask for nothing.

    Args:
        given: keyword arguments for transformers; changed in place.

    Raises:
        InputError: an option would have no effect, or names a device that is not here; the message says what to pass.
    """
    given.pop("resume_download", None)  # of earlier releases; downloads are resumed anyway
    for name in sorted(_INSTEAD.keys() & given.keys()):
        value = given.pop(name)
        if value is not None and value is not False:
            raise InputError(f"{name}: expected to be left out, got {value!s:.80}; {_INSTEAD[name]}")

    device_map = given.get("device_map")
    for place in device_map.values() if isinstance(device_map, Mapping) else [device_map]:
        if place is None or place in _PLACEMENTS:
            continue
        try:
            torch.empty(0, device=place)
        except (RuntimeError, AssertionError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"device_map: expected 'auto' or a device that torch has here, got {place!r} ({reason})"
            ) from None


def unknown_option(error: TypeError, given: Mapping[str, Any]) -> InputError | None:
    """Return the error to raise if transformers did not know an option; None if `error` says something else."""
    name = next((name for name in given if f"unexpected keyword argument '{name}'" in str(error)), None)
    if name is None:
        return None
    return InputError(f"{name}: expected an option of from_pretrained or a field of JatConfig, got an unknown one")
