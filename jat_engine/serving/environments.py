"""Run the environments that a server plays for viewers, each in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ..envs import Task, get_domain, make
from ..errors import describe_error
from ..evaluation.environment import render_frame
from ..evaluation.video import video_rate
from ..worker_process import describe_end, end_workers, prepare_worker, start_worker
from .spaces import Box, Discrete, Space

_SIDE = 360
"""Width and height in pixels of frames from simulators with OpenGL, which render slowly without a GPU."""

_MOST_PNG_PIXELS = 300 * 300
"""Larger frames are sent as JPEG."""

T = TypeVar("T")
_starting = threading.Lock()
"""Held while a process is started."""


class EnvironmentFailedError(RuntimeError):
    """Raised for an environment that cannot be made, or fails; its message is one line for the viewer."""


@dataclass(frozen=True, slots=True)
class State:
    """State of an environment.

    Attributes:
        observation: by `OBSERVATION_KEYS`.
        frame: picture of it, as the bytes of a PNG or JPEG file.
        reward: of the step before; None for an episode's first state.
        is_end: the episode has ended.
        space: of actions, with bounds.
        steps_per_second: rate at which a viewer is shown the episode.
    """

    observation: dict[str, Any]
    frame: bytes
    reward: float | None
    is_end: bool
    space: Space
    steps_per_second: float


class Environment:
    """A task's environment in a process of its own, for an event loop."""

    def __init__(self, task: Task) -> None:
        """Describe it; the first `reset` starts the process."""
        self._task = task
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jat-engine environment")
        self._connection: Connection | None = None
        self._process: BaseProcess | None = None
        self._is_closed = False
        self._guard = threading.Lock()

    async def reset(self, seed: int) -> State:
        """Return the first state of the episode with a seed. Raises `EnvironmentFailedError`."""
        return await self._call(lambda: self._ask(("reset", seed)))

    async def step(self, action: Any) -> State:
        """Return the state after an action, as an engine returns it. Raises `EnvironmentFailedError`."""
        return await self._call(lambda: self._ask(("step", action)))

    def close(self) -> None:
        """End the process, whatever it is doing, without waiting for that. Nothing else may be called afterwards."""
        with self._guard:
            self._is_closed = True
            if self._process is not None:
                self._process.terminate()
        self._thread.submit(self._end)
        self._thread.shutdown(wait=False)

    async def _call(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    # ---- the environment's thread ----------------------------------------------------------------------------------

    def _ask(self, message: tuple[str, Any]) -> State:
        connection = self._start() if self._connection is None else self._connection
        try:
            connection.send(message)
            answer = connection.recv()
        except (EOFError, OSError):
            process = self._process
            how = "has not been started" if process is None else describe_end(process)
            raise EnvironmentFailedError(f"{self._task.name}: the process of its environment {how}") from None
        if isinstance(answer, str):
            raise EnvironmentFailedError(f"{self._task.name}: {answer}")
        assert isinstance(answer, State), "the process sends nothing else"
        return answer

    def _start(self) -> Connection:
        with _starting:  # it sets variables of this process for a moment
            connection, process = start_worker(run_environment, self._task)
        with self._guard:
            self._connection, self._process = connection, process
            if self._is_closed:
                process.terminate()
        return connection

    def _end(self) -> None:
        if self._connection is not None and self._process is not None:
            end_workers({self._connection: self._process})


def run_environment(connection: Connection, task: Task) -> None:
    """Play a task as its environment's process is told, until the connection or the parent process ends.

    Args:
        connection: receives `("reset", seed)` and `("step", action)`; sends a `State` for each, or an error's line.
        task: to play.
    """
    prepare_worker()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        simulator: _Simulator | None = None
        while True:
            name, value = connection.recv()
            try:
                simulator = simulator or _Simulator(task)
                connection.send(simulator.reset(value) if name == "reset" else simulator.step(value))
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:  # of the simulator: any class
                connection.send(describe_error(error))


class _Simulator:
    """A task's environment in this process."""

    def __init__(self, task: Task) -> None:
        domain = get_domain(task.domain)
        size = {"width": _SIDE, "height": _SIDE} if task.is_published and domain.needs_opengl else {}
        self._env = make(task, render_mode="rgb_array", **domain.evaluation_options, **size)
        self._rate = video_rate(task, self._env)
        space: Any = self._env.action_space
        self._space = Discrete(int(space.n)) if hasattr(space, "n") else Box(space.low, space.high, space.shape)

    def reset(self, seed: int) -> State:
        observation, _ = self._env.reset(seed=seed)
        return self._state(observation, None, False)

    def step(self, action: Any) -> State:
        taken = np.asarray(action, np.float32).reshape(self._space.shape) if isinstance(self._space, Box) else action
        observation, reward, terminated, truncated, _ = self._env.step(taken)
        return self._state(observation, float(reward), bool(terminated or truncated))

    def _state(self, observation: dict[str, Any], reward: float | None, is_end: bool) -> State:
        frame = encode_frame(render_frame(self._env))
        return State(dict(observation), frame, reward, is_end, self._space, self._rate)


def encode_frame(frame: np.ndarray) -> bytes:
    """Return a frame as a PNG file, a large one as JPEG.

    Args:
        frame: uint8 [height, width, 3].
    """
    buffer = io.BytesIO()
    if frame.shape[0] * frame.shape[1] <= _MOST_PNG_PIXELS:
        Image.fromarray(frame).save(buffer, "PNG", compress_level=1)
    else:
        Image.fromarray(frame).save(buffer, "JPEG", quality=88, subsampling=0)
    return buffer.getvalue()
