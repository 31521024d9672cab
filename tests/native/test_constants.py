"""Numbers that Python, C++ and Triton each state."""

from __future__ import annotations

import pytest

from jat_engine.backends.base import PAGE_SIZE, STEP_TOKENS


def test_sizes_of_the_cpu_backend() -> None:
    module = pytest.importorskip("jat_engine._cpu", reason="the native module is not built")
    assert (module.PAGE_SIZE, module.MAX_STEP_TOKENS) == (PAGE_SIZE, STEP_TOKENS)


def test_page_size_of_the_triton_kernels() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from jat_engine.kernels import launch

    assert launch.PAGE_SIZE == PAGE_SIZE
