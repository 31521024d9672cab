"""Call the parts of the CUDA driver API that capture and replay graphs.

torch's own graphs are not used: after a capture that failed, torch's allocator stays in the state of a capture, and no
documented call ends it. Here a failed capture leaves nothing behind. The price is that memory must not be allocated
within a capture; kernels and copies of a step work on memory that exists.

Unlike the runtime API that torch calls, the driver API takes the context that is current in the calling thread: a
thread that has not used the GPU yet has none, and stream 0, torch's default stream, is the current context's. So a
graph is launched and freed in the context that it was captured in.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int, c_uint, c_ulonglong, c_void_p
from typing import Any, NamedTuple

import torch

_LIBRARY = "libcuda.so.1"

_NON_BLOCKING_STREAM = 1  # CU_STREAM_NON_BLOCKING
_CAPTURE_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on using the GPU
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


class CudaError(RuntimeError):
    """A call of the CUDA driver failed.

    Attributes:
        code: the `CUresult`.
    """

    def __init__(self, function: str, code: int, description: str) -> None:
        super().__init__(f"{function}: {description} (CUresult {code})")
        self.code = code


class Graph(NamedTuple):
    """Handles of a captured graph that can be launched, and of the context it was captured in."""

    executable: int
    context: int


class CudaDriver:
    """The CUDA driver. Calls raise `CudaError`."""

    def __init__(self, path: str = _LIBRARY) -> None:
        """Load the library. Raises OSError if there is none, AttributeError if it lacks a function."""
        library = ctypes.CDLL(path)
        pointer = ctypes.POINTER(c_void_p)
        self._describe = _function(library, "cuGetErrorString", c_int, ctypes.POINTER(c_char_p))
        self._current = _function(library, "cuCtxGetCurrent", pointer)
        self._push = _function(library, "cuCtxPushCurrent_v2", c_void_p)
        self._pop = _function(library, "cuCtxPopCurrent_v2", pointer)
        self._stream_create = _function(library, "cuStreamCreate", pointer, c_uint)
        self._begin = _function(library, "cuStreamBeginCapture_v2", c_void_p, c_int)
        self._end = _function(library, "cuStreamEndCapture", c_void_p, pointer)
        self._instantiate = _function(library, "cuGraphInstantiateWithFlags", pointer, c_void_p, c_ulonglong)
        self._destroy_graph = _function(library, "cuGraphDestroy", c_void_p)
        self._launch = _function(library, "cuGraphLaunch", c_void_p, c_void_p)
        self._destroy = _function(library, "cuGraphExecDestroy", c_void_p)

    def create_stream(self) -> int:
        """Return a new stream of the current device that waits for no other. It lives as long as the process."""
        stream = c_void_p()
        self._check("cuStreamCreate", self._stream_create(ctypes.byref(stream), _NON_BLOCKING_STREAM))
        return stream.value or 0

    def begin_capture(self, stream: int) -> None:
        """Record what is launched on the stream from here on instead of running it."""
        self._check("cuStreamBeginCapture", self._begin(stream, _CAPTURE_THREAD_LOCAL))

    def end_capture(self, stream: int) -> Graph:
        """End a capture, also one that a failed call has made invalid, and return its graph, ready for `launch`."""
        graph, executable, context = c_void_p(), c_void_p(), c_void_p()
        self._check("cuStreamEndCapture", self._end(stream, ctypes.byref(graph)))
        try:
            self._check("cuCtxGetCurrent", self._current(ctypes.byref(context)))
            self._check("cuGraphInstantiate", self._instantiate(ctypes.byref(executable), graph, 0))
        finally:
            self._destroy_graph(graph)
        return Graph(executable.value or 0, context.value or 0)

    def launch(self, graph: Graph, stream: int) -> None:
        """Run a graph behind what is on a stream of its context; 0 is the context's default stream."""
        current = c_void_p()
        if self._current(ctypes.byref(current)) == 0 and current.value == graph.context:  # the usual case
            self._check("cuGraphLaunch", self._launch(graph.executable, stream))
            return
        self._check("cuCtxPushCurrent", self._push(graph.context))
        try:
            self._check("cuGraphLaunch", self._launch(graph.executable, stream))
        finally:
            self._pop(ctypes.byref(current))

    def destroy(self, graph: Graph) -> None:
        """Free a graph; one that still runs ends first. Errors are ignored: the context may be gone."""
        if not self._push(graph.context):
            self._destroy(graph.executable)
            self._pop(ctypes.byref(c_void_p()))

    def _check(self, function: str, code: int) -> None:
        if code:
            text = c_char_p()
            self._describe(code, ctypes.byref(text))
            raise CudaError(function, code, (text.value or b"unknown error").decode(errors="replace"))


def _function(library: ctypes.CDLL, name: str, *arguments: Any) -> Any:
    function = library[name]
    function.argtypes = arguments
    function.restype = c_int
    return function


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that the GPU's memory, or pinned memory of the host, is used up."""
    if isinstance(error, torch.OutOfMemoryError) or getattr(error, "code", None) == _OUT_OF_MEMORY:
        return True
    # Triton and torch's allocator of pinned memory raise a RuntimeError with the driver's words.
    return isinstance(error, RuntimeError) and "out of memory" in str(error)
