"""Capturing a CUDA graph: what is left behind when a call fails, and when programmatic dependent launch is given up.

`CudaDriver` calls a library that stands in for the driver's and counts what is captured, made and freed.
"""

from __future__ import annotations

import ctypes
import gc
import shutil
import subprocess
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch

from jat_engine.backends.cuda.capture import capture, retry_without_pdl
from jat_engine.backends.cuda.driver import CudaDriver, CudaError, Graph, is_out_of_memory

SOURCE = Path(__file__).resolve().parents[1] / "helpers" / "cuda_driver_stub.c"
STREAM = 5


class Gpu:
    """A driver, and the stub below it."""

    def __init__(self, path: Path) -> None:
        self.driver = CudaDriver(str(path))
        self.stub = ctypes.CDLL(str(path))
        self.synchronized = 0

    def fail(self, function: str, code: int = 901) -> None:
        self.stub.stub_fail(function.encode(), code)

    def synchronize(self) -> None:
        self.synchronized += 1

    def capture(self, launch_all: Any) -> Graph:
        return capture(self.driver, STREAM, launch_all, self.synchronize)

    def check_clean(self) -> None:
        """Check that nothing is left of a capture that failed, and that the next one works."""
        assert not self.stub.stub_is_capturing()
        assert self.stub.stub_num_alive() == 0
        assert gc.isenabled()
        self.fail("")
        self.driver.destroy(self.capture(lambda: None))
        assert self.stub.stub_num_alive() == 0


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("driver") / "libcuda_stub.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(path), str(SOURCE)], check=True)
    return path


@pytest.fixture
def gpu(library: Path, tmp_path: Path) -> Gpu:
    return Gpu(Path(shutil.copy(library, tmp_path / "libcuda.so")))  # with a state of its own


def test_a_graph_is_captured_launched_and_freed(gpu: Gpu) -> None:
    calls = []
    assert gpu.driver.create_stream() == STREAM
    graph = gpu.capture(lambda: calls.append((gpu.stub.stub_is_capturing(), gc.isenabled())))
    assert calls == [(0, True), (1, False)], "runs first, is captured then, and garbage collection waits"
    assert gpu.synchronized == 1

    gpu.driver.launch(graph, 0x8000000000000008)
    assert gpu.stub.stub_num_launches() == 1
    gpu.fail("cuGraphLaunch", 700)
    with pytest.raises(CudaError, match=r"cuGraphLaunch: unknown error \(CUresult 700\)"):
        gpu.driver.launch(graph, 0x8000000000000008)

    assert gpu.stub.stub_num_alive() == 1
    gpu.driver.destroy(graph)
    gpu.check_clean()


@pytest.mark.parametrize("current", [None, 0x4], ids=["thread without a context", "another GPU's context"])
def test_a_graph_is_launched_and_freed_in_its_own_context(current: int | None, gpu: Gpu) -> None:
    graph = gpu.capture(lambda: None)
    gpu.stub.stub_set_context(ctypes.c_void_p(current))
    gpu.driver.launch(graph, 0x8000000000000008)
    gpu.fail("cuGraphLaunch", 700)
    with pytest.raises(CudaError):
        gpu.driver.launch(graph, 0x8000000000000008)
    assert gpu.stub.stub_context_depth() == 0, "the caller's is current again"
    gpu.driver.destroy(graph)
    assert gpu.stub.stub_num_alive() == 0


@pytest.mark.parametrize("moment", ["behind cuStreamBeginCapture", "before cuStreamEndCapture"])
def test_an_interrupt_at_either_end_of_a_capture_leaves_nothing_behind(
    moment: str, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, end = gpu.driver.begin_capture, gpu.driver.end_capture
    ends = []

    def interrupted_begin(stream: int) -> None:
        begin(stream)
        raise KeyboardInterrupt

    def interrupted_end(stream: int) -> Graph:
        ends.append(stream)
        if len(ends) == 1:
            raise KeyboardInterrupt
        return end(stream)

    with monkeypatch.context() as patch:
        if moment.startswith("behind"):
            patch.setattr(gpu.driver, "begin_capture", interrupted_begin)
        else:
            patch.setattr(gpu.driver, "end_capture", interrupted_end)
        with pytest.raises(KeyboardInterrupt):
            gpu.capture(lambda: None)
    gpu.check_clean()


@pytest.mark.parametrize(
    "function", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuCtxGetCurrent", "cuGraphInstantiateWithFlags"]
)
def test_a_call_that_fails_leaves_nothing_behind(function: str, gpu: Gpu) -> None:
    gpu.fail(function)
    with pytest.raises(CudaError, match=f"{function.removesuffix('_v2').removesuffix('WithFlags')}: operation failed"):
        gpu.capture(lambda: None)
    gpu.check_clean()


@pytest.mark.parametrize("error", [RuntimeError("Triton Error [CUDA]: invalid argument"), KeyboardInterrupt()])
@pytest.mark.parametrize("is_invalid", [False, True], ids=["valid", "invalid"])
@pytest.mark.parametrize("failing_call", [0, 1])
def test_a_launch_that_fails_leaves_nothing_behind(
    failing_call: int, is_invalid: bool, error: BaseException, gpu: Gpu
) -> None:
    """It fails outside or within the capture, and makes the capture invalid or not."""
    calls = []

    def launch_all() -> None:
        calls.append(None)
        if len(calls) == failing_call + 1:
            if is_invalid:
                gpu.stub.stub_invalidate()
            raise error

    with pytest.raises(type(error)) as raised:
        gpu.capture(launch_all)
    assert raised.value is error
    gpu.check_clean()


# ---- programmatic dependent launch ---------------------------------------------------------------------------------


def test_dependent_launch_is_given_up_where_it_is_the_cause(gpu: Gpu) -> None:
    owner = SimpleNamespace(pdl=True)

    def launch_all() -> None:
        if owner.pdl and gpu.stub.stub_is_capturing():
            gpu.stub.stub_invalidate()
            raise RuntimeError("Triton Error [CUDA]: operation not supported")

    with pytest.warns(RuntimeWarning, match="programmatic dependent launch fails .*operation not supported"):
        graph = retry_without_pdl(owner, lambda: gpu.capture(launch_all))
    assert not owner.pdl
    gpu.driver.destroy(graph)
    gpu.check_clean()


@pytest.mark.parametrize("pdl", [True, False])
def test_a_capture_that_another_thread_ends_is_tried_again(pdl: bool, gpu: Gpu) -> None:
    owner, calls = SimpleNamespace(pdl=pdl), []

    def launch_all() -> None:
        calls.append(None)
        if len(calls) == 2:
            gpu.stub.stub_invalidate()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = retry_without_pdl(owner, lambda: gpu.capture(launch_all))
    assert owner.pdl == pdl
    gpu.driver.destroy(graph)
    gpu.check_clean()


class CompileError(Exception):
    """As Triton's own, no RuntimeError."""


@pytest.mark.parametrize(
    ("error", "num_calls"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), 1),
        (RuntimeError("Triton Error [CUDA]: out of memory"), 1),
        (CudaError("cuGraphInstantiate", 2, "out of memory"), 1),
        (CompileError("at 3:4"), 1),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_failures_are_not_taken_for_its_own(error: Exception, num_calls: int) -> None:
    """They are raised, dependent launch stays, and no warning blames it."""
    owner, calls = SimpleNamespace(pdl=True), []

    def make() -> NoReturn:
        calls.append(None)
        raise error

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(type(error)) as raised:
            retry_without_pdl(owner, make)
    assert raised.value is error
    assert (owner.pdl, len(calls)) == (True, num_calls)


def test_out_of_memory_is_told_from_other_errors() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not is_out_of_memory(RuntimeError("CUDA error: invalid argument"))
    assert not is_out_of_memory(ValueError("out of memory"))
