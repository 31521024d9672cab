"""Report the machine, this installation and what engines take here, as one dictionary."""

from __future__ import annotations

import platform
from typing import Any

import torch

from .. import installation
from .select import choose_backend, why_not_cuda


def collect() -> dict[str, Any]:
    """Return everything there is to say, as one JSON-able dictionary."""
    return {
        "versions": installation.versions(),
        "platform": platform.platform(),
        "device": installation.device(),
        "cpu": installation.cpu(),
        "backend": describe_backend(),
        "gpu": describe_gpu(),
        "extensions": {name: installation.extension(name) for name in installation.EXTENSIONS},
        "simulators": {domain: installation.simulator(domain) for domain in installation.SIMULATORS},
    }


def describe_backend() -> dict[str, str]:
    """Return what "auto" takes here for backend, dtype and device, and why; for reports."""
    choice = choose_backend()
    return {
        "name": f"{choice.backend}, {choice.dtype}, on {choice.device}",
        "backend": choice.backend,
        "dtype": choice.dtype,
        "device": str(choice.device),
        "reason": choice.reason,
    }


def describe_gpu() -> dict[str, str]:
    """Return which ways of the cuda backend are open here: "yes", or why not."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {"graphs": why_not_cuda(device) or "yes", "one launch": _why_not_one_launch() or "yes"}


def _why_not_one_launch() -> str:
    try:
        from .. import _cuda
    except ImportError as error:
        return str(error)
    return str(_cuda.device_facts().get("reason", ""))
