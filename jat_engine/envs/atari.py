"""Atari environments: raw frames are processed to the agent's observations, in the published order of operations.

Gymnasium's AtariPreprocessing converts to grey first, and by another formula, so its pixels differ.
"""

from __future__ import annotations

import os
from typing import Any

import gymnasium as gym
import numpy as np

from ..errors import RenderingError
from .gray_stack import GrayStack
from .task import Task

_MAX_NOOPS, _SKIP = 30, 4
_NOOP, _FIRE = 0, 1


def make(
    task: Task,
    *,
    render_mode: str | None = None,
    clip_reward: bool = True,
    episodic_life: bool = True,
    terminal_on_life_loss: bool = False,
    episode_statistics: bool = True,
    max_episode_steps: int | None = None,
    frameskip: int | tuple[int, int] = 1,
    repeat_action_probability: float = 0.0,
    full_action_space: bool = False,
    mode: int | None = None,
    difficulty: int | None = None,
) -> gym.Env[Any, Any]:
    """Build one of the 57 games: 4 raw frames per step, no sticky actions. An episode is a whole game.

    Args:
        task: an Atari task.
        render_mode: "human", "rgb_array" or None.
        clip_reward: replace rewards by their sign.
        episodic_life: play on after a lost life as the published evaluation does: within the step that loses it, a step
            of no action, FIRE where a game waits for it, and four frames in place of the older ones.
            `info["life_lost"]` tells. False: a lost life changes nothing.
        terminal_on_life_loss: report a lost life as the end of an episode, without `"episode"` in `info`, as published;
            the next `reset()` without a seed continues the game.
        episode_statistics: put the return and the number of raw frames of a game into `info["episode"]` at its end,
            as published. gymnasium's `RecordEpisodeStatistics` needs False, since it writes the same key.
        max_episode_steps: end a game after this number of emulator frames; None for the published limit, -1 for none.
        frameskip: frames of the emulator per raw frame; a pair (low, high) draws from [low, high).
        repeat_action_probability: probability of a sticky action.
        full_action_space: all 18 actions in every game.
        mode: game mode of the emulator; None for the game's own.
        difficulty: difficulty of the emulator; None for the game's own.

    Raises:
        RenderingError: no window can be opened.
        ValueError: `terminal_on_life_loss` without `episodic_life`, or an option that the emulator does not have.
    """
    if not 0 <= repeat_action_probability <= 1:
        raise ValueError(f"repeat_action_probability: expected 0 to 1, got {repeat_action_probability!r}")
    if terminal_on_life_loss and not episodic_life:
        raise ValueError("terminal_on_life_loss: expected False with episodic_life=False, which ignores lost lives")
    import ale_py
    import cv2  # noqa: F401 (to fail here if it is missing, not in the first step)

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner
    gym.register_envs(ale_py)
    if max_episode_steps is None and task.name == "atari-montezumarevenge":
        max_episode_steps = 18_000
    try:
        env: gym.Env[Any, Any] = gym.make(
            task.env_id,
            frameskip=frameskip,
            repeat_action_probability=repeat_action_probability,
            full_action_space=full_action_space,
            mode=mode,
            difficulty=difficulty,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
            disable_env_checker=True,  # it would check every raw frame
        )
    except (RuntimeError, gym.error.Error) as error:  # the emulator's message does not name the value
        if "SDL" in str(error):
            raise RenderingError(
                f"{task.name}: no window can be opened at DISPLAY={os.environ.get('DISPLAY')!r} ({error}); take frames "
                "with render_mode='rgb_array'"
            ) from error
        given = f"mode={mode}, difficulty={difficulty}, frameskip={frameskip}"
        raise ValueError(f"{task.name}: expected what the emulator has, got {given}: {error}") from error
    env = gym.wrappers.RecordEpisodeStatistics(env)
    env = MaxOfLastTwo(RandomNoops(env))
    lives = env = Lives(env, episodic_life)
    if "FIRE" in env.unwrapped.get_action_meanings():  # type: ignore[attr-defined]
        env = FireAtReset(env)
    if clip_reward:
        env = gym.wrappers.TransformReward(env, lambda reward: float(np.sign(float(reward))))
    env = GrayStack(env)
    if not terminal_on_life_loss:
        env = WholeGame(env, lives)
    if not episode_statistics:
        env = WithoutStatistics(env)
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
        is_lost = self._episodic and 0 < lives < self._lives
        info["life_lost"] = is_lost and not self._over
        terminated = terminated or is_lost
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

    def end_game(self) -> None:
        """Make the next reset start a new game."""
        self._over = True


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


class WholeGame(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that continues a game within the step that loses a life, as the published loop does by a reset.

    The step keeps its reward. Rewards of the frames that the reset plays are dropped, as published. A reset from
    outside starts a new game.
    """

    def __init__(self, env: gym.Env[Any, Any], lives: Lives) -> None:
        super().__init__(env)
        self._game = lives

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._game.end_game()
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if info["life_lost"]:
            observation, _ = self.env.reset()
            terminated = False
        return observation, reward, terminated, truncated, info


class WithoutStatistics(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that removes `"episode"` from `info`."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        info.pop("episode", None)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        info.pop("episode", None)
        return observation, reward, terminated, truncated, info
