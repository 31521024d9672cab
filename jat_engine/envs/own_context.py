"""`OwnContext`: MuJoCo environments of one process that render without disturbing each other."""

from __future__ import annotations

import atexit
import functools
import os
import weakref
from contextlib import suppress
from typing import Any

import gymnasium as gym

from ..errors import RenderingError

_process: int | None = None
"""Process that has rendered."""

_open: set[weakref.finalize[Any, Any]] = set()
"""Viewers that are not freed yet."""


class OwnContext(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that makes the environment's own OpenGL context current before it renders.

    Gymnasium's viewer makes its context current only when it is created, so frames of an older viewer would show the
    newest one's. It also frees textures and buffers in whatever context is current, which may be another viewer's.

    Args:
        env: environment whose `unwrapped.mujoco_renderer` is Gymnasium's `MujocoRenderer`.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._viewer: weakref.finalize[Any, Any] | None = None
        self._closed = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._enter(self.render_mode == "human")  # a window is drawn within a step
        result = self.env.reset(seed=seed, options=options)
        self._keep()
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._enter(self.render_mode == "human")
        return self.env.step(action)

    def render(self) -> Any:
        self._enter(True)
        frame = self.env.render()
        self._keep()
        return frame

    def close(self) -> None:
        # Not MujocoRenderer.close(), which ends GLFW for the whole process, with the windows of other environments.
        self._closed = True
        if self._viewer is not None:
            self._viewer()

    def _enter(self, renders: bool) -> None:
        if not renders:
            return
        if self._closed:
            raise gym.error.ClosedEnvironmentError("render(): the environment is closed; make another")
        global _process
        if _process not in (None, os.getpid()):  # it would wait for ever for the parent's locks
            raise RenderingError(
                "render(): this process is a fork of one that has rendered, and OpenGL does not survive a fork; start "
                "it with the method spawn (AsyncVectorEnv: context='spawn')"
            )
        _process = os.getpid()
        viewer = self._current()
        if viewer is not None:
            viewer.make_context_current()

    def _keep(self) -> None:
        viewer = self._current()
        if viewer is None or self._viewer is not None:
            return
        # Freed when the environment is closed or garbage, or at exit. atexit calls the last registered function first:
        # MuJoCo, which ends OpenGL, has registered its own with the viewer, and weakref its own with the finalizer.
        self._viewer = weakref.finalize(self.unwrapped, _free, viewer)
        self._viewer.atexit = False
        _open.add(self._viewer)
        _free_at_exit()

    def _current(self) -> Any:
        return self.unwrapped.mujoco_renderer.viewer  # type: ignore[attr-defined]


def _free(viewer: Any) -> None:
    for finalizer in [each for each in _open if not each.alive]:
        _open.discard(finalizer)
    with suppress(Exception):  # a display that is gone; nothing is left to free
        viewer.make_context_current()
        viewer.con.free()
    with suppress(Exception):
        viewer.free()


@functools.cache
def _free_at_exit() -> None:
    atexit.register(lambda: [finalizer() for finalizer in tuple(_open)])
