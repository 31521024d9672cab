"""Dialects of clients. The path that a client connects to chooses one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from .base import Dialect, DialectMaker, Frame
from .openpi import RESET_REPLIES, OpenPi
from .vla_eval import VlaEval
from .vllm_omni import VllmOmni

_OF_VLLM_OMNI = "/v1/realtime/robot/openpi"

DIALECTS: Mapping[str, DialectMaker] = {
    "/": OpenPi,
    _OF_VLLM_OMNI: VllmOmni,
    "/vla-eval": VlaEval,
}
"""Dialects by path."""


def dialects_with(reset_reply: str) -> Mapping[str, DialectMaker]:
    """Return the dialects by path, with one way of `RESET_REPLIES` to answer resets on all of them."""
    chosen: dict[str, DialectMaker] = {
        path: partial(maker, reset_reply=reset_reply) for path, maker in (("/", OpenPi), (_OF_VLLM_OMNI, VllmOmni))
    }
    return {**DIALECTS, **chosen}


__all__ = [
    "DIALECTS",
    "RESET_REPLIES",
    "Dialect",
    "DialectMaker",
    "Frame",
    "OpenPi",
    "VlaEval",
    "VllmOmni",
    "dialects_with",
]
