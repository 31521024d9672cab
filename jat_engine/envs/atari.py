"""Atari environments: raw frames are processed to the agent's observations, in the published order of operations.

Gymnasium's AtariPreprocessing converts to grey first, and by another formula, so its pixels differ.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np

from .tasks import Task

_MAX_NOOPS, _SKIP, _STACK, _SIZE = 30, 4, 4, 84
_NOOP, _FIRE = 0, 1


def make(
    task: Task, *, render_mode: str | None = None, clip_reward: bool = True, episodic_life: bool = True
) -> gym.Env[Any, Any]:
    """Build one of the 57 games: 4 raw frames per step, no sticky actions.

    `"episode"` in `info` marks the real end of a game.

    Args:
        task: an Atari task.
        render_mode: "human", "rgb_array" or None.
        clip_reward: replace rewards by their sign.
        episodic_life: end the episode when a life is lost, without `"episode"` in `info`. The next `reset()` without
            a seed then continues the game.
    """
    import ale_py
    import cv2  # noqa: F401 (to fail here if it is missing, not in the first step)

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner
    gym.register_envs(ale_py)
    limit = {"max_episode_steps": 18_000} if task.name == "atari-montezumarevenge" else {}  # raw frames
    env: gym.Env[Any, Any] = gym.make(
        task.env_id,
        frameskip=1,
        repeat_action_probability=0.0,
        render_mode=render_mode,
        disable_env_checker=True,  # it would check every raw frame
        **limit,
    )
    env = gym.wrappers.RecordEpisodeStatistics(env)
    env = MaxOfLastTwo(RandomNoops(env))
    env = Lives(env, episodic_life)
    if "FIRE" in env.unwrapped.get_action_meanings():  # type: ignore[attr-defined]
        env = FireAtReset(env)
    if clip_reward:
        env = gym.wrappers.TransformReward(env, lambda reward: float(np.sign(float(reward))))
    env = GrayStack(env)
    env.metadata = {**env.metadata, "render_fps": 30}
    return env


class RandomNoops(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that plays 1 to 30 raw frames without action after a reset."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        for _ in range(self.unwrapped.np_random.integers(1, _MAX_NOOPS + 1)):
            observation, _, terminated, truncated, info = self.env.step(_NOOP)
            if terminated or truncated:
                observation, info = self.env.reset()
        return observation, info


class MaxOfLastTwo(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that repeats an action for 4 raw frames and returns the pixel-wise maximum of the last two, in RGB.

    Rewards are summed. If the game ends before the fourth frame, the maximum contains a frame of the previous step; the
    agent does not act on that last observation.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        space: Any = env.observation_space
        self._last_two = np.zeros((2, *space.shape), space.dtype)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        total = 0.0
        for index in range(_SKIP):
            frame, reward, terminated, truncated, info = self.env.step(action)
            if index >= _SKIP - 2:
                self._last_two[index - _SKIP] = frame
            total += float(reward)
            if terminated or truncated:
                break
        return self._last_two.max(axis=0), total, terminated, truncated, info


class Lives(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that ends the episode when a life is lost. The next reset continues the game with a step of no action."""

    def __init__(self, env: gym.Env[Any, Any], episodic: bool) -> None:
        super().__init__(env)
        self._episodic = episodic
        self._lives = 0
        self._over = True

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._over = terminated or truncated
        lives = self.unwrapped.ale.lives()  # type: ignore[attr-defined]
        # At 0 lives some games continue for a few frames and then end by themselves.
        if self._episodic and 0 < lives < self._lives:
            terminated = True
        self._lives = lives
        return observation, reward, terminated, truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        # A seed starts a new game in any case, because the episode must depend on the seed alone.
        if self._over or seed is not None or not self._episodic:
            observation, info = self.env.reset(seed=seed, options=options)
            self._over = False
        else:
            # If this step ends the game (by its frame limit), the next step reports the end, with "episode" in info.
            # Starting a new game here would hide that end, and two games would count as one.
            observation, _, _, _, info = self.env.step(_NOOP)
        self._lives = self.unwrapped.ale.lives()  # type: ignore[attr-defined]
        return observation, info


class FireAtReset(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper for games that wait for FIRE: a reset takes one step of FIRE, then one of action 2."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        for action in (_FIRE, 2):
            observation, _, terminated, truncated, info = self.env.step(action)
            if "episode" in info:
                break  # the whole game is over: see Lives.reset
            if terminated or truncated:
                observation, info = self.env.reset()
        return observation, info


class GrayStack(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that returns `image_observation`, uint8 [84, 84, 4]: the last 4 frames, scaled in RGB, then made grey."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._frames: deque[np.ndarray] = deque(maxlen=_STACK)
        space = gym.spaces.Box(0, 255, (_SIZE, _SIZE, _STACK), np.uint8)
        self.observation_space = gym.spaces.Dict({"image_observation": space})

    def reset(self, **kwargs: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        frame, info = self.env.reset(**kwargs)
        self._frames.extend([_gray(frame)] * _STACK)
        return self._observation(), info

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], Any, bool, bool, dict[str, Any]]:
        frame, reward, terminated, truncated, info = self.env.step(action)
        self._frames.append(_gray(frame))
        return self._observation(), reward, terminated, truncated, info

    def _observation(self) -> dict[str, np.ndarray]:
        return {"image_observation": np.stack(self._frames, axis=-1)}


def _gray(frame: np.ndarray) -> np.ndarray:
    import cv2

    small = cv2.resize(frame, (_SIZE, _SIZE), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY))
