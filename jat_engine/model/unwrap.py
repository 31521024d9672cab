"""Search for the `JatModel` in what trainings hand over: a model, or one that a training library has wrapped."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from ..errors import InputError
from .modeling import JatModel

_COMPUTATION = ("forward", "embed_text", "embed_rl")


def unwrap(model: Any) -> JatModel:
    """Return the `JatModel` of a model, which may be inside wrappers without parameters of their own.

    Such wrappers are torch.compile's, DataParallel, DistributedDataParallel, and PEFT's after merging.

    Raises:
        InputError: `model` is not a `JatModel` in floating point with its weights, or a subclass or wrapper of it
            computes something else.
    """
    if isinstance(model, str | os.PathLike):
        raise InputError(
            f"model: expected a JatModel, got the path {os.fspath(model)!r}; use JatEngine.from_pretrained"
        )
    if not isinstance(model, nn.Module):
        raise InputError(f"model: expected a JatModel, got {type(model).__name__}")

    found = next((module for module in model.modules() if isinstance(module, JatModel)), None)
    if found is None:
        raise InputError(f"model: expected a JatModel, got {type(model).__name__}")
    own = {id(parameter) for parameter in found.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in own:
            raise InputError(
                f"model: expected a JatModel or a wrapper without parameters, got {type(model).__name__} with {name}; "
                "pass the JatModel in it, after merging adapters into it (PEFT: merge_and_unload)"
            )

    changed = [name for name in _COMPUTATION if getattr(type(found), name) is not getattr(JatModel, name)]
    if changed:
        raise InputError(
            f"model: expected the computation of JatModel, got {type(found).__name__}, which has another "
            f"{changed[0]}; engines compute JatModel's"
        )
    _check_parameters(found)
    return found


def _check_parameters(model: JatModel) -> None:
    for name, module in model.named_modules():
        kind = type(module)
        if "quantized" in kind.__module__ or kind.__module__.startswith(("bitsandbytes", "torchao")):
            raise _quantised(f"{name} of class {kind.__module__}.{kind.__name__}")
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise InputError(
                f"model: {name}: expected weights, got a parameter on the meta device, without values; load the model "
                "without offloading (JatModel.from_pretrained without device_map)"
            )
        if not parameter.is_floating_point() or parameter.dtype.itemsize < 2:
            raise _quantised(f"{name} of {parameter.dtype}")


def _quantised(what: str) -> InputError:
    return InputError(
        f"model: expected weights in floating point, got a quantised model ({what}); make the engine of the "
        'model as it was before, with dtype="int8"'
    )
