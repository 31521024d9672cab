"""Dialects of clients. The path that a client connects to chooses one."""

from __future__ import annotations

from collections.abc import Mapping

from .base import Dialect, DialectMaker, Frame
from .openpi import OpenPi

DIALECTS: Mapping[str, DialectMaker] = {"/": OpenPi}
"""Dialects by path."""

__all__ = ["DIALECTS", "Dialect", "DialectMaker", "Frame", "OpenPi"]
