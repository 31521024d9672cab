"""Report on the machine, the installation and the engine's default backend."""

from __future__ import annotations

import platform
from typing import Any

import torch

from .. import installation
from ..dtypes import NOTES
from .select import choose_backend, why_not_cuda


def collect() -> dict[str, Any]:
    """Return the whole report as a dictionary that JSON can hold."""
    return {
        "versions": installation.versions(),
        "platform": platform.platform(),
        "device": installation.device(),
        "cpu": installation.cpu(),
        "backend": describe_backend(),
        "dtypes": NOTES,
        "gpu": describe_gpu(),
        "extensions": {name: installation.extension(name) for name in installation.EXTENSIONS},
        "simulators": {domain: installation.simulator(domain) for domain in installation.SIMULATORS},
    }


def describe_backend() -> dict[str, str]:
    """Return the backend, dtype and device that "auto" selects on this machine, and the reason."""
    choice = choose_backend()
    return {
        "name": f"{choice.backend}, {choice.dtype}, on {choice.device}",
        "backend": choice.backend,
        "dtype": choice.dtype,
        "device": str(choice.device),
        "reason": choice.reason,
    }


def describe_gpu() -> dict[str, str]:
    """Return for CUDA graphs and for the persistent kernel "yes", or the reason why they cannot run here."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {"graphs": why_not_cuda(device) or "yes", "persistent kernel": _why_not_persistent() or "yes"}


def _why_not_persistent() -> str:
    """Return the reason why the persistent kernel cannot run here; "" if it can."""
    try:
        from .. import _cuda
    except ImportError as error:
        return str(error)
    return str(_cuda.device_facts().get("reason", ""))
