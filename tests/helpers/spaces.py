"""Action spaces for tests: gymnasium's, or stand-ins with the same names if it is not installed."""

from __future__ import annotations

try:
    from gymnasium.spaces import Box, Discrete
except ImportError:

    class Box:  # type: ignore[no-redef]
        def __init__(self, low: float, high: float, shape: tuple[int, ...]) -> None:
            self.low, self.high, self.shape = low, high, shape

    class Discrete:  # type: ignore[no-redef]
        def __init__(self, n: int, start: int = 0) -> None:
            self.n, self.start = n, start


__all__ = ["Box", "Discrete"]
