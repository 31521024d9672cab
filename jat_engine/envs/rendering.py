"""Checks that frames and windows can be rendered here, and the choice of OpenGL for MuJoCo."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from numbers import Integral
from typing import Any

from ..errors import MissingSimulatorError, RenderingError
from .domains import get_domain
from .registry import get_task
from .task import Task

RENDER_MODES = ("human", "rgb_array")
BACKENDS = ("glfw", "egl", "osmesa")
"""Values of `MUJOCO_GL` that render MuJoCo's frames: in a window system, and without a display on a GPU or CPU."""

_PROBE_SECONDS = 60

# An offscreen context and MuJoCo's own resources in it.
_OFFSCREEN = """
import importlib, mujoco
context = importlib.import_module("mujoco." + {backend!r}).GLContext(64, 64)
context.make_current()
model = mujoco.MjModel.from_xml_string("<mujoco/>")
mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value).free()
context.free()
"""

# Gymnasium's viewer takes the size of the monitor; without one GLFW aborts the process.
_WINDOW = """
import glfw
assert glfw.init(), "GLFW cannot connect to the display"
assert glfw.get_primary_monitor(), "the display has no monitor"
glfw.window_hint(glfw.VISIBLE, 0)
assert glfw.create_window(64, 64, "", None, None), "the display has no OpenGL"
"""


def check_rendering(task: str | Task, render_mode: str | None) -> None:
    """Check that a task's frames can be rendered here, and select OpenGL for MuJoCo's frames by setting `MUJOCO_GL`.

    `make` calls this. A value of `MUJOCO_GL` that the user has set is kept; otherwise the first that works is taken. A
    process of its own tries it, since a broken OpenGL may abort; results are kept for later calls.

    Args:
        task: a task or its name.
        render_mode: "human" (a window), "rgb_array" (frames), or None, which needs nothing.

    Raises:
        RenderingError: there is no display for a window, or no OpenGL for frames.
        MissingSimulatorError: MuJoCo is not installed.
        UnknownTaskError: there is no such task.
        ValueError: the render mode is unknown.

    Example:
        >>> check_rendering("atari-pong", "rgb_array")  # needs no display
    """
    row = get_task(task)
    if render_mode not in (None, *RENDER_MODES):
        raise ValueError(f"render_mode: expected None, 'human' or 'rgb_array', got {render_mode!r}")
    if render_mode is None:
        return

    is_mujoco = needs_opengl(row)
    if render_mode == "human":
        _check_window(row, is_mujoco)
    elif is_mujoco:
        _check_installed(row)
        _select_opengl(row.name)


def needs_opengl(task: Task) -> bool:
    """Return True if a task's frames need OpenGL: those of MuJoCo, also of Gymnasium's own environments of it."""
    if task.is_published or not task.env_id:
        return get_domain(task.domain).needs_opengl
    import gymnasium

    try:
        entry_point = gymnasium.spec(task.env_id.rpartition(":")[2]).entry_point  # "module:id" imports a module first
    except gymnasium.error.Error:
        return False
    return isinstance(entry_point, str) and entry_point.startswith("gymnasium.envs.mujoco")


def has_display() -> bool:
    """Return True if windows can be opened: on Linux, if the X server or Wayland compositor answers."""
    if not sys.platform.startswith("linux"):
        return True
    if os.environ.get("DISPLAY") and _connects("libX11.so.6", "XOpenDisplay", "XCloseDisplay"):
        return True
    in_wayland = bool(os.environ.get("WAYLAND_DISPLAY"))
    return in_wayland and _connects("libwayland-client.so.0", "wl_display_connect", "wl_display_disconnect")


def import_mujoco() -> Any:
    """Import MuJoCo, also if `MUJOCO_GL` names an OpenGL that does not exist here, and return the module.

    MuJoCo refuses to be imported then, even where nothing is rendered. `check_rendering` refuses before frames.

    Raises:
        ImportError: MuJoCo is not installed.
    """
    if importlib.util.find_spec("mujoco") is None:
        raise ImportError("No module named 'mujoco'")
    with _restored("PYOPENGL_PLATFORM"), suppress(Exception):  # any class: PyOpenGL raises AttributeError
        import mujoco

        return mujoco
    with _restored("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = "disable"
        import mujoco

        return mujoco


def check_view(width: Any, height: Any, camera_name: Any, camera_id: Any) -> None:
    """Check the size of frames, and that a camera is given by its name or by its number.

    Raises:
        ValueError: a size is not an integer of at least 1, or both a name and a number are given.
    """
    if camera_name is not None and camera_id is not None:
        raise ValueError(f"camera_id: expected None with camera_name={camera_name!r}, got {camera_id!r}")
    for name, value in (("width", width), ("height", height)):
        if not isinstance(value, Integral) or int(value) < 1:
            raise ValueError(f"{name}: expected at least 1 pixel, got {value!r}")


def check_camera(model: Any, camera_name: Any, camera_id: Any) -> None:
    """Check that a MuJoCo model has a camera; MuJoCo takes the free camera for an unknown name.

    Raises:
        ValueError: it has no such camera.
    """
    names = [model.camera(index).name for index in range(model.ncam)]
    if camera_name is not None and camera_name not in names:
        known = f"one of {', '.join(names)}" if names else "None, since this model has no camera"
        raise ValueError(f"camera_name: expected {known}, got {camera_name!r}")
    if camera_id is not None and not (isinstance(camera_id, Integral) and -1 <= int(camera_id) < len(names)):
        raise ValueError(f"camera_id: expected -1 to {len(names) - 1}, got {camera_id!r}")


def _check_window(task: Task, is_mujoco: bool) -> None:
    # SDL, which opens the other domains' windows, can be told to do without.
    if not is_mujoco and os.environ.get("SDL_VIDEODRIVER"):
        return
    if not has_display():
        shown = {name: os.environ[name] for name in ("DISPLAY", "WAYLAND_DISPLAY") if os.environ.get(name)}
        found = " ".join(f"{name}={value}" for name, value in shown.items())
        state = f"nothing answers at {found}" if found else "DISPLAY is not set"
        raise RenderingError(
            f"{task.name}: render_mode='human' needs a display, and {state}; set DISPLAY to a running X server (such "
            "as Xvfb), or take frames with render_mode='rgb_array' (`jat-engine`: --save_video)"
        )
    if is_mujoco:
        _check_installed(task)
        problem = _problem(_WINDOW, None)
        if problem:
            raise RenderingError(
                f"{task.name}: no window can be opened at DISPLAY={os.environ.get('DISPLAY')!r} ({problem}); set "
                "DISPLAY to an X server with OpenGL (GLX), or take frames with render_mode='rgb_array'"
            )


def _check_installed(task: Task) -> None:
    if importlib.util.find_spec("mujoco") is None:
        extra = get_domain(task.domain).extra or "mujoco"
        raise MissingSimulatorError(
            f"{task.name}: the {extra} simulator is not installed (No module named 'mujoco'); "
            f"pip install 'jat-engine[{extra}]'"
        )


def _select_opengl(task: str) -> None:
    chosen = os.environ.get("MUJOCO_GL")
    if chosen:
        if chosen not in BACKENDS:
            raise RenderingError(
                f"{task}: MUJOCO_GL: expected one of {', '.join(BACKENDS)} for frames, got {chosen!r}; unset it, and "
                "one that works is taken"
            )
        problem = _problem(_OFFSCREEN, chosen)
        if problem:
            raise RenderingError(
                f"{task}: frames cannot be rendered with MUJOCO_GL={chosen} ({problem}); unset MUJOCO_GL, and one that "
                f"works is taken{_REMEDY}"
            )
        return

    candidates = [name for name in BACKENDS if name != "glfw" or has_display()]
    if not sys.platform.startswith("linux"):
        candidates = ["glfw"]
    problems = {}
    for name in candidates:
        problem = _problem(_OFFSCREEN, name)
        if problem is None:
            os.environ["MUJOCO_GL"] = name
            return
        problems[name] = problem
    tried = "; ".join(f"MUJOCO_GL={name}: {problem}" for name, problem in problems.items())
    raise RenderingError(f"{task}: frames cannot be rendered here ({tried}){_REMEDY}")


_REMEDY = "; without a display MuJoCo needs EGL or OSMesa (Debian: libegl1 libgl1-mesa-dri, or libosmesa6)"


def _problem(program: str, backend: str | None) -> str | None:
    """Run a program that opens a context, in a process of its own, and return its error; None if it succeeds."""
    names = ("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID")
    return _tried(program, backend, tuple(os.environ.get(name) for name in names))


@functools.lru_cache(maxsize=64)
def _tried(program: str, backend: str | None, _display: tuple[str | None, ...]) -> str | None:
    if not sys.executable:  # an embedded interpreter cannot start another
        return None
    environ = {**os.environ, "MUJOCO_GL": backend or "disable"}
    command = [sys.executable, "-c", program.format(backend=backend)]
    try:
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, errors="replace", timeout=_PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {_PROBE_SECONDS} s"
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"exit code {done.returncode}"


def _connects(library: str, connect: str, disconnect: str) -> bool:
    try:
        functions = ctypes.CDLL(library)
    except OSError:
        return False
    open_display, close_display = getattr(functions, connect), getattr(functions, disconnect)
    open_display.restype, open_display.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    close_display.restype, close_display.argtypes = None, [ctypes.c_void_p]
    display = open_display(None)
    if display:
        close_display(display)
    return bool(display)


@contextmanager
def _restored(name: str) -> Iterator[None]:
    value = os.environ.get(name)
    try:
        yield
    finally:
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
