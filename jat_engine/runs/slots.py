"""`Slots`: environments of one process, each of which plays one episode at a time, step by step."""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
import struct
import time
import traceback
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..envs import Task
from ..envs.actions import continuous_action, discrete_action
from ..errors import describe_error
from ..evaluation.environment import evaluation_env
from .plan import Item
from .records import Episode

if TYPE_CHECKING:
    from .recorders import Recorders
    from .recording import EpisodeRecorder

HANG_SECONDS = 600.0
"""Longest time of a step or a reset, before a worker's process prints its traceback and ends."""

CHAIN_BYTES = 4
"""Bytes of the hash chain that are kept for each step, to tell which step differs first."""

_MAX_IDLE = 16
"""Environments that are kept for later episodes, since making one takes up to a second."""


@dataclass(frozen=True)
class PlayOptions:
    """Options of all episodes of a run, on the environments' side.

    Attributes:
        max_steps: stop an episode after so many steps; None for no limit.
        use_action_mask: pass on `info["action_mask"]`.
        recording: what is recorded; None for nothing.
        hang_seconds: longest time of a step or a reset in a worker's process, which then ends.
    """

    max_steps: int | None = None
    use_action_mask: bool = False
    recording: Recorders | None = None
    hang_seconds: float = HANG_SECONDS


@dataclass(frozen=True)
class Begin:
    """Order to begin an episode in a slot."""

    slot: int
    item: Item


@dataclass(frozen=True)
class Act:
    """Order to take a step: the agent's action, a list of floats or an int."""

    slot: int
    action: Any


@dataclass(frozen=True)
class Fail:
    """Order to end an episode, because the agent has no action for its observation.

    Attributes:
        error: in one line.
        trace: the traceback.
    """

    slot: int
    error: str
    trace: str


Order = Begin | Act | Fail


@dataclass
class Observed:
    """Report that an episode waits for an action.

    Attributes:
        slot: of the episode.
        observation: keyword arguments of `get_next_action`.
        reward: of the previous action; None in the first step.
        action_mask: of the environment's info; None if it gives none, or none is asked for.
        action_space: in the first step of an episode; else None.
    """

    slot: int
    observation: dict[str, Any]
    reward: float | None
    action_mask: Any = None
    action_space: Any = None


@dataclass(frozen=True)
class Ended:
    """Report that an episode ended.

    Attributes:
        slot: of the episode, which is free again.
        episode: its result.
        chain: the first `CHAIN_BYTES` bytes of the hash chain after each step.
        seconds: that the environment took, with its reset.
        trace: the traceback if the episode failed.
        problems: of recorders, such as a video that could not be written; one line each.
    """

    slot: int
    episode: Episode
    chain: bytes = b""
    seconds: float = 0.0
    trace: str = ""
    problems: tuple[str, ...] = ()


Report = Observed | Ended


@dataclass
class _RunningEpisode:
    """Episode that is being played, in its environment."""

    item: Item
    task: Task
    frames: bool
    env: Any = None
    observation: dict[str, Any] = field(default_factory=dict)
    reward: float | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    hash: Any = field(default_factory=hashlib.sha256)
    chain: bytearray = field(default_factory=bytearray)
    total: float = 0.0
    length: int = 0
    solved: bool = False
    lives: int | None = None
    seconds: float = 0.0
    recorders: list[EpisodeRecorder] = field(default_factory=list)
    random_state: _GlobalRandomState | None = None


class Slots:
    """Play episodes in numbered slots, by orders: begin, act, act, ... Each order is answered by one report.

    An episode depends on its seed and the actions alone, whatever the other slots play. An error of an environment
    ends its episode, which is reported as one that failed.

    Args:
        tasks: name -> task, of all items.
        options: of all episodes.
    """

    def __init__(self, tasks: Mapping[str, Task], options: PlayOptions) -> None:
        self._tasks, self._options = tasks, options
        self._playing: dict[int, _RunningEpisode] = {}
        self._idle: OrderedDict[tuple[str, bool, int], Any] = OrderedDict()

    def obey(self, order: Order) -> Report:
        """Carry out an order."""
        if isinstance(order, Begin):
            return self._begin(order)
        playing = self._playing[order.slot]
        if isinstance(order, Fail):
            return self._fail(order.slot, playing, order.error, order.trace)
        began = time.perf_counter()
        try:
            with playing.random_state or contextlib.nullcontext():
                ended = self._step(playing, order.action)
            playing.seconds += time.perf_counter() - began
            if ended is None:
                return self._observed(order.slot, playing)
        except Exception as error:  # of the environment: any class
            return self._fail(order.slot, playing, describe_error(error), traceback.format_exc())
        return self._ended(order.slot, playing, capped=not ended)

    def close(self) -> None:
        """Close all environments; what is being recorded is abandoned."""
        for playing in self._playing.values():
            for recorder in playing.recorders:
                recorder.abandon()
            self._discard(playing.env)
        for env in self._idle.values():
            self._discard(env)
        self._playing, self._idle = {}, OrderedDict()

    def _begin(self, order: Begin) -> Report:
        item = order.item
        recording, task = self._options.recording, self._tasks[item.task]
        frames = recording is not None and recording.needs_frames(item)
        playing = self._playing[order.slot] = _RunningEpisode(item, task, frames)
        if not task.is_published:
            playing.random_state = _GlobalRandomState(item.seed)

        began = time.perf_counter()
        try:
            # With numbers of its own, so that the episode's do not depend on whether its environment is a new one.
            with contextlib.nullcontext() if task.is_published else _GlobalRandomState(0):
                playing.env = self._take_env(task, frames)
            with playing.random_state or contextlib.nullcontext():
                playing.observation, playing.info = playing.env.reset(seed=item.seed)
            playing.seconds = time.perf_counter() - began
            if recording is not None:
                playing.recorders = recording.open(task, item)
                for recorder in playing.recorders:
                    recorder.begin(playing.env)
            self._note(playing)
            return self._observed(order.slot, playing)
        except Exception as error:  # of the environment: any class
            return self._fail(order.slot, playing, describe_error(error), traceback.format_exc())

    def _step(self, playing: _RunningEpisode, action: Any) -> bool | None:
        """Take a step.

        Returns:
            None if the episode goes on, True if the environment has ended it, False if `max_steps` has.

        Raises:
            ValueError: the reward is not a finite number.
        """
        space = playing.env.action_space
        is_discrete = hasattr(space, "n")
        executed: Any = (
            discrete_action(action, int(space.n))
            if is_discrete
            else continuous_action(action, space.shape).astype(np.float32)
        )
        observation = playing.observation
        hash_observation(playing.hash, observation)  # before the step, as an environment may reuse its arrays
        playing.hash.update(struct.pack("<q", executed) if is_discrete else executed.tobytes())
        if playing.recorders:
            observation = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in observation.items()}

        playing.observation, reward, terminated, truncated, playing.info = playing.env.step(executed)
        playing.reward = reward = float(reward)
        if not math.isfinite(reward):
            raise ValueError(f"reward: expected a finite number, got {reward}; mend the environment")
        playing.total += reward
        playing.length += 1
        playing.hash.update(struct.pack("<d", reward))
        playing.chain += playing.hash.digest()[:CHAIN_BYTES]
        self._note(playing)
        for recorder in playing.recorders:
            recorder.step(observation, executed, reward, playing.env)
        if terminated or truncated:
            return True
        return False if playing.length == self._options.max_steps else None

    def _note(self, playing: _RunningEpisode) -> None:
        """Note what the environment's info says about success and lives."""
        playing.solved = playing.solved or bool(playing.info.get("success", False))
        if playing.task.domain == "atari" and "lives" in playing.info:
            playing.lives = int(playing.info["lives"])

    def _observed(self, slot: int, playing: _RunningEpisode) -> Observed:
        mask = playing.info.get("action_mask") if self._options.use_action_mask else None
        space = playing.env.action_space if playing.length == 0 else None
        return Observed(slot, playing.observation, playing.reward, mask, space)

    def _ended(self, slot: int, playing: _RunningEpisode, capped: bool) -> Ended:
        task, item = playing.task, playing.item
        success = playing.solved if task.success == "info" else None
        if task.success == "positive_return":
            success = playing.total > 0
        digest = playing.hash.hexdigest()
        episode = Episode(
            item.task,
            item.index,
            item.seed,
            playing.total,
            playing.length,
            success=success,
            lives=playing.lives,
            capped=capped,
            digest=digest,
        )

        for recorder in playing.recorders:
            recorder.finish(episode)
        problems = tuple(recorder.error for recorder in playing.recorders if recorder.error)
        self._put_env(playing)
        del self._playing[slot]
        return Ended(slot, episode, bytes(playing.chain), playing.seconds, problems=problems)

    def _fail(self, slot: int, playing: _RunningEpisode, error: str, trace: str) -> Ended:
        item = playing.item
        for recorder in playing.recorders:
            recorder.abandon()
        self._discard(playing.env)
        del self._playing[slot]
        episode = Episode(item.task, item.index, item.seed, None, playing.length, error=error)
        return Ended(slot, episode, bytes(playing.chain), playing.seconds, trace)

    def _take_env(self, task: Task, frames: bool) -> Any:
        """Return an idle environment of the task, or make one."""
        for key in self._idle:
            if key[:2] == (task.name, frames):
                return self._idle.pop(key)
        return evaluation_env(task, "rgb_array" if frames else None)

    def _put_env(self, playing: _RunningEpisode) -> None:
        self._idle[playing.task.name, playing.frames, id(playing.env)] = playing.env
        if len(self._idle) > _MAX_IDLE:
            self._discard(self._idle.popitem(last=False)[1])

    def _discard(self, env: Any) -> None:
        if env is not None:
            with contextlib.suppress(Exception):  # of the environment: any class
                env.close()


class _GlobalRandomState:
    """Give an environment global random numbers of its own while it runs.

    Environments should draw from `self.np_random`; some of other packages use `random` or `np.random`. Their episodes
    then depend on the seed alone, too, whatever else is played in the process.

    Args:
        seed: of the episode.
    """

    def __init__(self, seed: int) -> None:
        self._own = random.Random(seed).getstate(), np.random.RandomState(seed % 2**32).get_state()
        self._before: tuple[Any, Any] | None = None

    def __enter__(self) -> None:
        self._before = random.getstate(), np.random.get_state()  # noqa: NPY002
        random.setstate(self._own[0])
        np.random.set_state(self._own[1])  # noqa: NPY002

    def __exit__(self, *exception: object) -> None:
        assert self._before is not None, "entered before"
        self._own = random.getstate(), np.random.get_state()  # noqa: NPY002
        random.setstate(self._before[0])
        np.random.set_state(self._before[1])  # noqa: NPY002


def hash_observation(chain: Any, observation: Mapping[str, Any]) -> None:
    """Add an observation to a hash chain: names, shapes, dtypes and values of its parts, in alphabetical order."""
    for name in sorted(observation):
        value = observation[name]
        if isinstance(value, str):
            encoded = value.encode()
            chain.update(f"{name}:{len(encoded)}:".encode())
            chain.update(encoded)
        else:
            array = np.ascontiguousarray(value)
            chain.update(f"{name}:{array.dtype.str}{array.shape}:".encode())
            chain.update(array.data)
