"""Open what `jat-engine bench generate` compares: the engine, the reference, and runtimes with their own generation."""

from .base import Choose, Writer
from .registry import RUNTIMES, load, open_writer

__all__ = ["RUNTIMES", "Choose", "Writer", "load", "open_writer"]
