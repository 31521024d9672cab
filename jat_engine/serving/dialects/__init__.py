"""Dialects of clients. The path that a client connects to chooses one."""

from __future__ import annotations

from collections.abc import Mapping

from .base import Dialect, DialectMaker, Frame
from .openpi import OpenPi
from .vla_eval import VlaEval
from .vllm_omni import VllmOmni

DIALECTS: Mapping[str, DialectMaker] = {
    "/": OpenPi,
    "/v1/realtime/robot/openpi": VllmOmni,
    "/vla-eval": VlaEval,
}
"""Dialects by path."""

__all__ = ["DIALECTS", "Dialect", "DialectMaker", "Frame", "OpenPi", "VlaEval", "VllmOmni"]
