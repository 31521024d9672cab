"""Play Pong from the game's memory: predict the ball, model the coasting paddle, and choose the shots that win.

RAM (Atari Annotated RAM Interface, arXiv 1906.08226): 49 ball x, 54 ball y, 51 the right paddle's y. The rest was
measured in the emulator:

- The paddle moves every second frame. Its speed halves each time and grows by 2.83 for each frame of input since then,
  so an action of 4 frames moves it by 21.8 pixels in total, over two to four steps.
- The ball meets it at x = 188 if `y_ball - y_paddle` is within [-2, 16]. The return is steeper closer to an end of the
  paddle: 2 pixels per frame upwards within [-2, 0], downwards within [13, 16].
- These two shots win: downwards from the upper part of the field, upwards from elsewhere.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import gymnasium

_BALL_X, _BALL_Y, _PADDLE_Y = 49, 54, 51
_TOP, _BOTTOM = 45, 206  # of the ball
_HIGHEST, _LOWEST = 38, 203  # of the paddle
_CONTACT_X = 188
_FRAMES = 4  # of a step
_NOOP, _UP, _DOWN = 0, 2, 3

_SAFE = (-1.0, 15.5)  # of y_ball - y_paddle at contact
_SHOT_UP, _SHOT_DOWN = (-1.0, 0.6), (12.8, 15.5)
_SHOOT_DOWN_ABOVE = 118  # ball y at contact

# Phase of a step -> pixels that one step of input moves the paddle, [half of a step, steps ago]. The paddle moves in
# even frames of the game; a step begins in an even frame (0) or in an odd one (1).
_PUSH = {
    0: np.array([[2.83, 6.45, 1.62, 0.39], [7.21, 3.22, 0.85, 0.20]]),
    1: np.array([[0.0, 8.54, 2.14, 0.51], [5.66, 4.27, 1.07, 0.26]]),
}
_MAX_PLANNED = 5
_PLANS = [np.array(list(itertools.product((0, -1, 1), repeat=n)), np.float64) for n in range(_MAX_PLANNED + 1)]
_REACH = 11.0  # pixels; half of the movement by one step of input


class PongExpert:
    """A planner that reads Pong's memory: it predicts where the ball will arrive and tries all paddle moves.

    Args:
        env: Pong's environment, 4 frames per step.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self._ale: Any = env.unwrapped.ale  # type: ignore[attr-defined]
        self._ball: tuple[int, int] | None = None
        self._inputs = [0.0, 0.0, 0.0]  # -1 up, 1 down; the last three steps', the newest first

    def reset(self) -> None:
        """Forget the ball and the inputs of the last game."""
        self._ball = None
        self._inputs = [0.0, 0.0, 0.0]

    def act(self, observation: dict[str, Any]) -> int:
        """Return no-op, up or down. See `Expert.act`."""
        ram = self._ale.getRAM()
        x, y, paddle = int(ram[_BALL_X]), int(ram[_BALL_Y]), int(ram[_PADDLE_Y])
        before, self._ball = self._ball, (x, y)
        if before is None or 0 in (y, before[1]):  # no ball in the field
            return _NOOP
        speed_x, speed_y = (x - before[0]) / _FRAMES, (y - before[1]) / _FRAMES
        if not 0 < speed_x <= _FRAMES or x >= _CONTACT_X:  # not coming, or past the paddle
            return _NOOP
        frames = int(np.ceil((_CONTACT_X - x) / speed_x))
        move = self._plan(paddle, _reflect(y + speed_y * frames), frames)
        return {0: _NOOP, -1: _UP, 1: _DOWN}[move]

    def executed(self, action: Any) -> None:
        """Note the executed action, which moves the coasting paddle for three more steps."""
        moved = {2: -1.0, 4: -1.0, 3: 1.0, 5: 1.0}.get(int(action), 0.0)  # 4 and 5 press fire too
        self._inputs = [moved, *self._inputs[:2]]

    def _plan(self, paddle: int, arrival: float, frames: int) -> int:
        """Return the first move (-1 up, 0 none, 1 down) of the cheapest plan.

        Args:
            paddle: y of the paddle, in pixels.
            arrival: y of the ball at contact, in pixels.
            frames: frames until contact.
        """
        shot = _SHOT_DOWN if arrival < _SHOOT_DOWN_ABOVE else _SHOT_UP
        steps = -(-frames // _FRAMES)
        plans = _PLANS[min(steps, _MAX_PLANNED)]  # [N, h]
        num_plans, planned = plans.shape

        # Simulate the paddle under each plan, the inputs of the last steps included.
        phase = self._ale.getEpisodeFrameNumber() % 2
        push = _PUSH[phase]
        inputs = np.concatenate([np.tile(self._inputs[::-1], (num_plans, 1)), plans], axis=1)
        recent = np.stack([inputs[:, 3 - ago : 3 - ago + planned] for ago in range(4)], axis=-1)  # [N, h, 4]
        path = paddle + np.cumsum((recent @ push.T).reshape(num_plans, -1), axis=1)  # [N, 2 h], half steps
        path = path.clip(_HIGHEST, _LOWEST)

        if steps > _MAX_PLANNED:  # far away: come to rest within reach of the place
            left = sum(recent[:, -1, ago] * push[:, ago + 1 :].sum() for ago in range(3))
            rest = (path[:, -1] + left).clip(_HIGHEST, _LOWEST)
            place = np.clip(arrival - np.mean(shot), _HIGHEST, _LOWEST)
            cost = np.maximum(np.abs(rest - place) - _REACH, 0)
        else:
            moved = (frames + phase) // 2
            relative = arrival - (path[:, moved - 1] if moved else np.full(num_plans, float(paddle)))
            cost = 0.3 * _outside(relative, shot) + 8 * (_outside(relative, shot) > 0)
            cost += _outside(relative, _SAFE) + 50 * (_outside(relative, _SAFE) > 0)

        cost = cost + 0.2 * np.abs(plans).sum(1) + 0.02 * np.abs(np.diff(plans, axis=1)).sum(1)
        return int(plans[np.argmin(cost), 0])


def _outside(value: np.ndarray, interval: tuple[float, float]) -> np.ndarray:
    """Return the distance of each value from an interval, 0 within it."""
    low, high = interval
    outside: np.ndarray = np.maximum(np.maximum(low - value, value - high), 0)
    return outside


def _reflect(y: float) -> float:
    """Return the ball's y after bouncing off the top and the bottom of the field."""
    span = _BOTTOM - _TOP
    phase = (y - _TOP) % (2 * span)
    return _TOP + (phase if phase <= span else 2 * span - phase)
