"""Task "catch": a game of pictures with its own maker, and its expert.

Balls fall from the top of a 12 x 12 board and bounce off its sides; a paddle at the bottom catches them. Each of an
episode's 10 balls that is caught is worth 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from jat_engine.envs import register_task

SIZE, CELL = 12, 7
"""Cells of a side of the board, and pixels of a side of a cell."""

BALLS, PADDLE = 10, 2
"""Balls of an episode, and the paddle's width in cells."""


class Catch(gymnasium.Env[np.ndarray, np.int64]):
    """Game whose observations are pictures, uint8 [84, 84, 3]; actions: 0 left, 1 stay, 2 right."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's declaration)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (SIZE * CELL, SIZE * CELL, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode with the paddle in the middle."""
        super().reset(seed=seed)
        self.paddle = (SIZE - PADDLE) // 2
        self.balls = BALLS
        self._drop()
        return self._picture(), {}

    def _drop(self) -> None:
        self.row, self.column = 0, int(self.np_random.integers(SIZE))
        self.drift = int(self.np_random.integers(-1, 2))

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Move the paddle and the ball by a cell."""
        self.paddle = min(max(self.paddle + int(action) - 1, 0), SIZE - PADDLE)
        self.row, self.column, self.drift = moved(self.row, self.column, self.drift)

        reward = 0.0
        if self.row == SIZE - 1:
            reward = float(self.paddle <= self.column < self.paddle + PADDLE)
            self.balls -= 1
            self._drop()
        return self._picture(), reward, self.balls == 0, False, {}

    def _picture(self) -> np.ndarray:
        board = np.zeros((SIZE, SIZE, 3), np.uint8)
        board[-1, self.paddle : self.paddle + PADDLE] = (90, 160, 255)
        board[self.row, self.column] = (255, 200, 80)
        return board.repeat(CELL, axis=0).repeat(CELL, axis=1)

    def render(self) -> np.ndarray:
        """Return the current picture."""
        return self._picture()


def moved(row: int, column: int, drift: int) -> tuple[int, int, int]:
    """Return a ball's row, column and drift after a step."""
    if not 0 <= column + drift < SIZE:
        drift = -drift
    return row + 1, column + drift, drift


def catcher(env: gymnasium.Env[Any, Any]) -> Callable[[dict[str, Any]], int]:
    """Player that reads the game's state, and goes to where the ball will land."""
    game: Any = env.unwrapped

    def policy(observation: dict[str, Any]) -> int:
        row, column, drift = game.row, game.column, game.drift
        while row < SIZE - 1:
            row, column, drift = moved(row, column, drift)
        if game.paddle > column:
            return 0
        return 2 if game.paddle + PADDLE <= column else 1

    return policy


register_task("catch", Catch, domain="examples")
