"""Capture a step's kernels in a CUDA graph, without programmatic dependent launch (PDL) where that fails."""

from __future__ import annotations

import contextlib
import gc
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from typing import Protocol, TypeVar

import torch

from .driver import CudaDriver, Graph, is_out_of_memory

Made = TypeVar("Made")

_CAPTURE_LOCK = threading.Lock()
"""One capture at a time in the process: all captures on a device use one stream."""


class HasPdl(Protocol):
    """Something that says whether kernels are launched while the one before still runs."""

    pdl: bool


class CapturedGraph:
    """CUDA graph of all that a function launches. The memory it works on must exist already, and outlive the graph."""

    def __init__(self, device: torch.device, launch_all: Callable[[], None]) -> None:
        """Call `launch_all` twice: to run it, which compiles and loads kernels, and to capture it.

        Raises:
            RuntimeError, and what `launch_all` raises: nothing has been captured, and the device can be used as before.
        """
        self._index = device.index  # torch takes it more quickly than a device
        driver = self._driver = _load_driver()
        with _CAPTURE_LOCK, torch.cuda.device(device):
            stream = _capture_stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                self._graph = capture(driver, stream.cuda_stream, launch_all, stream.synchronize)
        weakref.finalize(self, driver.destroy, self._graph).atexit = False  # the context frees it at the end

    def launch(self) -> torch.cuda.Stream:
        """Run the graph behind what is on the current stream, which is returned."""
        stream = torch.cuda.current_stream(self._index)
        self._driver.launch(self._graph, stream.cuda_stream)
        return stream


def capture(driver: CudaDriver, stream: int, launch_all: Callable[[], None], synchronize: Callable[[], None]) -> Graph:
    """Return a graph of what `launch_all` launches on a stream, which is the current one.

    Args:
        driver: that captures.
        stream: its handle.
        launch_all: launches the step; called twice.
        synchronize: waits for the stream.

    Raises:
        RuntimeError, and what `launch_all` raises: the stream captures no longer.
    """
    launch_all()
    synchronize()

    with _without_garbage_collection():  # it may free another graph, which a capture does not allow
        try:  # around the first and the last call as well: Ctrl-C may come behind or before either
            driver.begin_capture(stream)
            launch_all()
            return driver.end_capture(stream)
        except BaseException:
            with contextlib.suppress(RuntimeError):  # there is no capture any more, or an invalid one
                driver.destroy(driver.end_capture(stream))
            raise


def retry_without_pdl(owner: HasPdl, make: Callable[[], Made]) -> Made:
    """Return `make()`. Where it fails with PDL and works without, warn and leave PDL switched off.

    A failure is tried again first: another thread that waits for the whole device in this moment ends a capture.

    Args:
        owner: its `pdl` decides how `make` launches kernels.
        make: runs and captures kernels.

    Raises:
        torch.OutOfMemoryError, a Triton compile error: at once, since PDL is not their cause.
        RuntimeError: a launch fails without PDL as well.
    """
    try:
        return make()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise

    try:
        return make()
    except RuntimeError as error:
        if not owner.pdl or is_out_of_memory(error):
            raise
        failure = error

    owner.pdl = False
    try:
        made = make()
    except BaseException:
        owner.pdl = True
        raise
    warnings.warn(
        f"kernels are launched one after the other: programmatic dependent launch fails ({failure})",
        RuntimeWarning,
        stacklevel=2,
    )
    return made


def synchronize(device: torch.device) -> None:
    """Wait for all work on a device, behind a capture of another thread: to wait within it would end it."""
    with _CAPTURE_LOCK:
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@cache
def _load_driver() -> CudaDriver:
    return CudaDriver()


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the process's stream for captures on a device, which is the current one.

    torch's own streams come from a pool of 32 that users share, so a capture on one could record another's kernels. It
    is never destroyed: torch's allocator of pinned memory remembers the streams that have read a buffer.
    """
    return torch.cuda.ExternalStream(_load_driver().create_stream(), device=device)
