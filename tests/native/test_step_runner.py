"""The host's side of the persistent kernel: geometry, refused launches, memory, interrupts."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers import cuda_emulator
from helpers.cuda_emulator import Driver, Model, Plan, Sizes

pytestmark = pytest.mark.skipif(bool(cuda_emulator.missing_tools()), reason=cuda_emulator.missing_tools())

THREADS = {"num_threads": 96}


@pytest.fixture(scope="module")
def module(cuda_emulator_module: ModuleType) -> ModuleType:
    return cuda_emulator_module


@pytest.fixture
def device(module: ModuleType) -> Iterator[Any]:
    """The emulated device; what a test changes of it is put back."""
    names = ("num_sms", "max_blocks", "memory_bytes", "refused_launches", "hangs", "allowed_shared_bytes")
    before = {name: getattr(module.device, name) for name in names}
    yield module.device
    for name, value in before.items():
        setattr(module.device, name, value)


@pytest.fixture
def model() -> Model:
    return Model(Sizes(), "float32", 0)


def plan_of(model: Model) -> Plan:
    random = np.random.default_rng(1)
    plan = cuda_emulator.random_plan(model, random, 20, 3, 3)
    cuda_emulator.fill_context(model, random, plan)
    return plan


def check(driver: Driver, plan: Plan) -> None:
    expected = cuda_emulator.reference(driver.model, plan, driver.model.cache.copy())
    np.testing.assert_allclose(driver.run(plan), expected, rtol=0, atol=1e-4)


def geometry(driver: Driver) -> tuple[int, int, bool]:
    step = driver.step
    return step.num_blocks // step.cluster_size, step.cluster_size, step.cooperative


@pytest.mark.parametrize(
    ("num_sms", "max_blocks", "expected"),
    [
        (132, 128, (16, 8, True)),
        (132, 127, (15, 8, True)),  # 31 clusters of 4 would gain less than an eighth
        (132, 11, (5, 2, True)),
        (20, 20, (5, 4, True)),  # 20 blocks instead of 16
        (3, 3, (3, 1, True)),
    ],
)
def test_the_geometry_is_that_with_the_most_blocks(
    module: ModuleType, device: Any, model: Model, num_sms: int, max_blocks: int, expected: tuple[int, int, bool]
) -> None:
    device.num_sms, device.max_blocks = num_sms, max_blocks
    assert geometry(Driver(module, model, **THREADS)) == expected


def test_a_refused_launch_leads_down_the_ladder(module: ModuleType, device: Any, model: Model) -> None:
    """Each rung computes the same; the one that worked is kept, and none is left out.

    A cluster of 8 blocks is too large for several heads of 16 numbers.
    """
    device.num_sms, device.max_blocks = 8, 8
    plan = plan_of(model)
    ladder = [(count, 4, cooperative) for count in (2, 1) for cooperative in (True, False)]
    ladder += [(count, 2, cooperative) for count in (4, 3, 2) for cooperative in (True, False)]
    ladder += [(count, 1, cooperative) for count in (8, 7, 4) for cooperative in (True, False)]
    driver = Driver(module, model, **THREADS)
    found = [geometry(driver)]
    for _ in ladder[1:]:
        device.refused_launches = 1
        check(driver, plan)
        found.append(geometry(driver))
    assert found == ladder
    check(driver, plan)
    assert geometry(driver) == ladder[-1]


def test_a_geometry_with_more_shared_memory_than_the_largest_can_be_launched(module: ModuleType, device: Any) -> None:
    """With 15 clusters of 8 instead of 16 a block has more neurons, and asks for more memory."""
    device.num_sms, device.max_blocks, device.allowed_shared_bytes = 132, 120, 0
    model = Model(Sizes(inner=1024), "float32", 0)
    driver = Driver(module, model, **THREADS)
    first = driver.step.shared_bytes
    assert geometry(driver) == (15, 8, True)
    check(driver, plan_of(model))
    assert geometry(driver) == (15, 8, True)
    device.max_blocks = 128
    assert Driver(module, model, **THREADS).step.shared_bytes < first


def test_a_size_of_clusters_that_does_not_fit_is_left_out(module: ModuleType, device: Any) -> None:
    """A block without peers has all columns of the sums, which need more shared memory than a block may have."""
    device.num_sms, device.max_blocks = 2, 2
    model = Model(Sizes(1024, 16, 1024, (12,)), "float32", 0)
    assert geometry(Driver(module, model)) == (1, 2, True)
    with pytest.raises(ValueError, match=r"shared memory: .* do not fit into 232448"):
        Driver(module, model, num_blocks=2, cluster_size=1)


def test_launches_that_are_all_refused_give_the_reason(module: ModuleType, device: Any, model: Model) -> None:
    driver, plan = Driver(module, model, num_blocks=4, cluster_size=2, **THREADS), plan_of(model)
    device.refused_launches = 2
    with pytest.raises(RuntimeError, match="the launch was refused"):
        driver.run(plan)
    assert device.refused_launches == 0
    check(driver, plan)
    assert geometry(driver) == (2, 2, True)


def test_the_geometry_can_be_set_by_the_environment(
    module: ModuleType, device: Any, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.num_sms, device.max_blocks = 132, 128
    monkeypatch.setenv("JAT_CUDA_GEOMETRY", "3x4")
    driver = Driver(module, model, **THREADS)
    assert geometry(driver) == (3, 4, True)
    check(driver, plan_of(model))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            "8",
            ValueError,
            "JAT_CUDA_GEOMETRY: expected CLUSTERSxSIZE with a size of 1 to 16, such as 15x8, got 8; unset",
        ),
        ("4x17", ValueError, "JAT_CUDA_GEOMETRY: expected .* got 4x17; unset it"),
        ("0x8", ValueError, "JAT_CUDA_GEOMETRY: expected .* got 0x8; unset it"),
        ("-1x8", ValueError, "JAT_CUDA_GEOMETRY: expected .* got -1x8; unset it"),
        ("4294967300x4", ValueError, "JAT_CUDA_GEOMETRY: expected .* got 4294967300x4; unset it"),  # 4x4, if cut off
        ("1000000000x8", ValueError, "JAT_CUDA_GEOMETRY: expected .* got 1000000000x8; unset it"),
        ("4x4x", ValueError, "JAT_CUDA_GEOMETRY: expected .* got 4x4x; unset it"),
        ("17x8", RuntimeError, "geometry 17x8: 16 clusters of 8 blocks are resident together, 17 are needed"),
    ],
)
def test_a_wrong_geometry_is_an_error(
    module: ModuleType,
    device: Any,
    model: Model,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    error: type[Exception],
    message: str,
) -> None:
    device.num_sms, device.max_blocks = 132, 128
    monkeypatch.setenv("JAT_CUDA_GEOMETRY", text)
    with pytest.raises(error, match=message):
        Driver(module, model, **THREADS)


def test_too_little_memory_is_an_error_with_a_reason(module: ModuleType, device: Any, model: Model) -> None:
    for limit in (1000, 1_000_000_000):  # of one allocation: neither, all
        device.memory_bytes = limit
        if limit == 1000:
            with pytest.raises(RuntimeError, match=r"no memory for .* bytes of scratch .*: out of memory"):
                Driver(module, model, **THREADS)
        else:
            check(Driver(module, model, **THREADS), plan_of(model))


def test_an_interrupt_ends_the_wait_for_a_device_that_hangs(module: ModuleType, device: Any, model: Model) -> None:
    """The wait's own bound is more than 5 seconds. The next step says why it cannot be started."""
    driver, plan = Driver(module, model, num_blocks=2, cluster_size=2, **THREADS), plan_of(model)
    device.hangs = True
    interrupt = threading.Timer(0.1, signal.raise_signal, [signal.SIGINT])
    interrupt.start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        driver.run(plan)
    assert time.monotonic() - begin < 4
    with pytest.raises(RuntimeError, match="the step before is still running"):
        driver.run(plan)
    device.hangs = False
    check(driver, plan)


def test_other_threads_run_while_a_step_is_waited_for(module: ModuleType, device: Any, model: Model) -> None:
    driver, plan = Driver(module, model, num_blocks=2, cluster_size=2, **THREADS), plan_of(model)
    device.hangs = True
    reasons: list[str] = []
    driver.prepare(plan)
    first = threading.Thread(target=lambda: reasons.append(driver.step.run(0)))
    first.start()
    time.sleep(0.05)
    while driver.step.run(0) != "another thread is running this step":
        assert first.is_alive()
    device.hangs = False
    first.join()
    assert reasons[0] in ("", "timed out: the launch ended and not all of its blocks were there")
