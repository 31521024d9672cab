"""The persistent kernel's own source, executed on the CPU, against the step in float64."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers import cuda_emulator, program, thread_sanitizer
from helpers.cuda_emulator import Driver, Model, Plan, Sizes

from benchmarks.cuda_resources import cuda_resources
from jat_engine.backends.base import PAGE_SIZE, STEP_TOKENS
from jat_engine.testing.golden import relative_error

pytestmark = pytest.mark.skipif(bool(cuda_emulator.missing_tools()), reason=cuda_emulator.missing_tools())

SMALL = {"num_blocks": 4, "cluster_size": 2, "num_threads": 96, "max_slots": 4}


@pytest.fixture(scope="module")
def module(cuda_emulator_module: ModuleType) -> ModuleType:
    return cuda_emulator_module


def poison(model: Model) -> None:
    model.cache[:] = cuda_emulator.to_bits(np.full(model.cache.shape, np.nan, np.float32), model.dtype)


def check(driver: Driver, plan: Plan, dtype: str = "float32") -> None:
    """Assert that a step agrees with the reference: prediction, new keys and values, and nothing else written."""
    cache = driver.model.cache.copy()
    expected = cuda_emulator.reference(driver.model, plan, cache, dtype)
    actual = driver.run(plan)
    written, wanted = cuda_emulator.from_bits(driver.model.cache), cuda_emulator.from_bits(cache)
    np.testing.assert_array_equal(np.isnan(written), np.isnan(wanted))
    if dtype == "float32":
        assert relative_error(actual, expected) <= 1e-5
        assert relative_error(np.nan_to_num(written), np.nan_to_num(wanted)) <= 1e-5


def test_constants_are_those_of_python(module: ModuleType) -> None:
    assert (module.PAGE_SIZE, module.MAX_STEP_TOKENS) == (PAGE_SIZE, STEP_TOKENS)


# Context, rows, start offset: empty; one key; around a page's edge; around the window of 12; full.
PLANS = [
    (0, 1, 0),
    (0, 2, 15),
    (0, 3, 0),
    (1, 3, 0),
    (9, 3, 0),
    (10, 3, 7),
    (12, 1, 3),
    (15, 1, 0),
    (15, 3, 0),
    (16, 2, 0),
    (17, 3, 15),
    (40, 3, 9),
    (61, 3, 0),
    (61, 3, 15),
]


def test_a_step_agrees_with_float64(module: ModuleType) -> None:
    """Use one Step for all inputs, so that its packets are overwritten."""
    random = np.random.default_rng(1)
    model = Model(Sizes(), "float32", 0)
    driver = Driver(module, model, **SMALL)
    for seed, (context, count, offset) in enumerate(PLANS):
        poison(model)
        plan = cuda_emulator.random_plan(model, random, context, count, offset)
        cuda_emulator.fill_context(model, random, plan)
        driver.step.seed = seed  # each seed is another order of threads; 0 is round robin
        check(driver, plan)


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        (Sizes(), {"num_blocks": 1, "cluster_size": 1, "num_threads": 96, "max_slots": 2}),
        (Sizes(), {"num_blocks": 6, "cluster_size": 3, "num_threads": 96}),
        (Sizes(), {"num_blocks": 6, "cluster_size": 2, "num_threads": 96, "max_slots": 3}),  # a cluster with two heads
        (Sizes(), {"num_blocks": 10, "cluster_size": 2, "num_threads": 96}),  # a cluster without a head
        (Sizes(96, 2), {"num_blocks": 16, "cluster_size": 16, "num_threads": 96}),  # more blocks than pages
        # More blocks than groups of neurons, heads and columns; blocks without a share of anything.
        (Sizes(32, 2, 64), {"num_blocks": 120, "cluster_size": 8, "num_threads": 96}),
        (Sizes(32, 2, 64), {"num_blocks": 120, "cluster_size": 4, "num_threads": 96}),
        (Sizes(), {"num_blocks": 18, "cluster_size": 1, "num_threads": 96}),  # more clusters than are read at once
        (Sizes(hidden=160, num_heads=2, inner=330), {"num_blocks": 4, "cluster_size": 2}),
        (Sizes(hidden=256, num_heads=2, inner=512), {"num_blocks": 2, "cluster_size": 2}),
        (Sizes(hidden=192, num_heads=3, inner=100), {"num_blocks": 4, "cluster_size": 4, "num_threads": 96}),
        (Sizes(hidden=768, num_heads=12, inner=200, windows=(20,)), {"num_blocks": 4, "cluster_size": 2}),
        (Sizes(hidden=768, num_heads=12, inner=200, windows=(20,)), {"num_blocks": 8, "cluster_size": 8}),
    ],
    ids=lambda value: f"hidden {value.hidden}" if isinstance(value, Sizes) else "-".join(map(str, value.values())),
)
def test_sizes_and_geometries(module: ModuleType, sizes: Sizes, options: dict[str, Any]) -> None:
    random = np.random.default_rng(2)
    model = Model(sizes, "float32", 1)
    driver = Driver(module, model, **options)
    for context, count, offset in ((0, 1, 0), (30, 3, 5), (61, 3, 15)):
        poison(model)
        plan = cuda_emulator.random_plan(model, random, context, count, offset)
        cuda_emulator.fill_context(model, random, plan)
        check(driver, plan)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        (Sizes(), SMALL),
        (Sizes(768, 12, 192, (20,)), {"num_blocks": 2, "cluster_size": 2}),
        # The kernel of the published size. Blocks with 3 groups of neurons and with 4, whose weights wait in registers.
        (Sizes(768, 12, 224, (20,)), {"num_blocks": 8, "cluster_size": 8}),
        (Sizes(768, 12, 192, (20,)), {"num_blocks": 16, "cluster_size": 8, "max_slots": 2}),
    ],
    ids=lambda value: f"hidden {value.hidden}, inner {value.inner}" if isinstance(value, Sizes) else "",
)
def test_low_precision_is_as_good_as_its_reference(
    module: ModuleType, dtype: str, sizes: Sizes, options: dict[str, Any]
) -> None:
    """Compare the error with that of a float64 step that rounds activations to the same dtype.

    The margin is for values that fall on the other side of a rounding.
    """
    random = np.random.default_rng(3)
    model = Model(sizes, dtype, 2)
    driver = Driver(module, model, **options)
    errors, reference_errors = [], []
    for context, count, offset in ((0, 1, 0), (0, 3, 0), (17, 3, 15), (40, 2, 3), (61, 3, 15)):
        poison(model)
        plan = cuda_emulator.random_plan(model, random, context, count, offset)
        cuda_emulator.fill_context(model, random, plan)
        exact = cuda_emulator.reference(model, plan, model.cache.copy())
        alike = cuda_emulator.reference(model, plan, model.cache.copy(), dtype)
        check(driver, plan, dtype)
        errors.append(relative_error(driver.output[: len(plan.head)], exact))
        reference_errors.append(relative_error(alike, exact))
    assert np.mean(errors) <= 1.25 * np.mean(reference_errors) + 1e-5


def test_a_session_plays_on_its_own_keys(module: ModuleType) -> None:
    """Take 24 steps, each over keys that earlier ones appended; then the window is full and slides."""
    random = np.random.default_rng(4)
    model = Model(Sizes(), "float32", 3)
    poison(model)
    driver = Driver(module, model, **SMALL)
    pages = random.permutation(model.sizes.num_pages)[:6].tolist()
    context, offset = 0, 0
    for step in range(24):
        count = 1 if step == 0 else 3
        if context > 40:  # drop the four oldest
            context, offset = context - 4, offset + 4
            if offset >= PAGE_SIZE:
                pages, offset = pages[1:] + pages[:1], offset - PAGE_SIZE
        plan = cuda_emulator.random_plan(model, random, context, count, offset)
        plan.pages = pages
        driver.step.seed = step
        check(driver, plan)
        context += count - 1  # the newest token comes again


def test_rows_without_a_source_or_a_slot(module: ModuleType) -> None:
    """A row without a slot writes no key, but is attended to in its own step."""
    random = np.random.default_rng(5)
    model = Model(Sizes(), "float32", 4)
    poison(model)
    driver = Driver(module, model, **SMALL)
    plan = cuda_emulator.random_plan(model, random, 20, 3, 3)
    plan.kept = [True, False, False]
    cuda_emulator.fill_context(model, random, plan)
    check(driver, plan)


@pytest.mark.parametrize("sizes", [Sizes(), Sizes(32, 2, 64)])
def test_a_step_repeats_bitwise(module: ModuleType, sizes: Sizes) -> None:
    """The order of threads has no influence, nor has what earlier steps left in memory."""
    random = np.random.default_rng(6)
    model = Model(sizes, "float32", 5)
    poison(model)
    plan, other = (cuda_emulator.random_plan(model, random, context, 3, 3) for context in (30, 12))
    cuda_emulator.fill_context(model, random, plan)
    driver = Driver(module, model, num_blocks=30, cluster_size=2, num_threads=96)
    results = set()
    for seed in range(6):
        driver.step.seed = seed
        results.add(driver.run(plan).tobytes())
        model_cache = model.cache.copy()
        driver.run(other)
        model.cache[:] = model_cache
    assert len(results) == 1


def test_missing_blocks_end_the_step_with_a_reason(module: ModuleType) -> None:
    """The step does not hang, and the next one is right again."""
    random = np.random.default_rng(7)
    model = Model(Sizes(), "float32", 6)
    driver = Driver(module, model, timeout_us=20_000, **SMALL)
    plan = cuda_emulator.random_plan(model, random, 20, 3, 3)
    cuda_emulator.fill_context(model, random, plan)
    context = model.cache.copy()
    for cluster in (1, 0):
        driver.step.missing_cluster = cluster
        with pytest.raises(RuntimeError, match="timed out: the launch ended and not all of its blocks were there"):
            driver.run(plan)
        driver.step.missing_cluster = -1
        model.cache[:] = context
        driver.step.timeout_us = 30_000_000
        check(driver, plan)
        driver.step.timeout_us = 20_000


def test_a_wait_that_is_too_long_ends_the_step_with_a_reason(module: ModuleType) -> None:
    """A timeout of 1 us is too short for the cluster that waits for another with two heads.

    All blocks still end and reset the counters.
    """
    random = np.random.default_rng(8)
    model = Model(Sizes(hidden=192, num_heads=3, inner=100), "float32", 7)
    driver = Driver(module, model, **SMALL)
    plan = cuda_emulator.random_plan(model, random, 20, 3, 3)
    cuda_emulator.fill_context(model, random, plan)
    context = model.cache.copy()
    driver.step.timeout_us = 1
    with pytest.raises(RuntimeError, match="timed out: blocks waited for others for more than 1 us"):
        driver.run(plan)
    driver.step.timeout_us = 30_000_000
    model.cache[:] = context
    check(driver, plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 72}, "hidden: expected a multiple of 16, got 72"),
        ({"head_dim": 12}, "head_dim: expected a multiple of 8 up to 128, got 12"),
        ({"num_heads": 3}, "num_heads: expected num_heads \\* head_dim = hidden, got 3 \\* 16 and 64"),
        ({"num_blocks": 3, "cluster_size": 2}, "num_blocks: expected a multiple of cluster_size 2, got 3"),
        ({"cluster_size": 17}, "cluster_size: expected 1 to 16, got 17"),
        ({"num_blocks": 8, "cluster_size": 8}, "cluster_size: expected at most 3 head_dim / 8 = 6 where"),
        ({"num_threads": 48}, "num_threads: expected a multiple of 32, got 48"),
        ({"num_threads": 64}, "num_threads: expected a multiple of 96 up to 384"),
        ({"weight_dtype": "int8"}, "weight_dtype: expected float32, bfloat16 or float16, got int8"),
        ({"layers": []}, "layers: expected 2, got 0"),
        ({"layers": [{}, {}]}, "layers\\[0\\].norm1_weight: missing"),
        ({"position_table": 0}, "position_table: expected an address"),
        ({"max_positions": 5000}, "max_positions: expected 1 to"),
        ({"timeout_us": 0}, "timeout_us: expected 1 to 3600000000, got 0"),
        ({"timeout_us": 1 << 62}, "timeout_us: expected 1 to 3600000000, got 4611686018427387904"),
    ],
)
def test_wrong_arguments_are_named(module: ModuleType, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Driver(module, Model(Sizes(), "float32", 0), **change)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("query_start", [0, 4], "query_start: expected 0 and 1 to 3, got 4"),
        ("context_lens", [62], "context_lens: expected 0 to 61, got 62"),
        ("start_offsets", [16], "start_offsets: expected 0 to 15, got 16"),
        ("page_table", [24], "page_table: expected 0 to 23, got 24"),
        ("positions", [64], "positions: expected 0 to 63, got 64"),
        ("slot_mapping", [384], "slot_mapping: expected -1 to 383, got 384"),
        ("source_sizes", [2000], "source_sizes: expected at most 1152 together, got 2000"),
        ("head_sizes", [25], "head_sizes: expected 1 to 24, got 25"),
        ("source_ptrs", [4], "source_ptrs: expected 0 or an address that is a multiple of 16, got 4"),
        ("head_ptrs", [24], "head_ptrs: expected an address that is a multiple of 16, got 24"),
        ("head_bias_ptrs", [6], "head_bias_ptrs: expected 0 or an address that is a multiple of 4, got 6"),
    ],
)
def test_a_wrong_plan_is_refused(module: ModuleType, field: str, value: list[int], message: str) -> None:
    """Invalid inputs are refused before a launch."""
    random = np.random.default_rng(9)
    model = Model(Sizes(), "float32", 0)
    driver = Driver(module, model, **SMALL)
    plan = cuda_emulator.random_plan(model, random, 20, 3, 3)
    cuda_emulator.fill_context(model, random, plan)
    driver.run(plan)
    driver.input[field][: len(value)] = value
    assert driver.step.run(0) == message


def test_what_a_step_says_of_itself(module: ModuleType) -> None:
    sizes = Sizes(768, 12, 3072, (512, 256) * 6, max_positions=512, num_pages=1)
    model = Model.__new__(Model)
    Model.__init__(model, Sizes(768, 12, 64, (64,), max_positions=64, num_pages=1), "bfloat16", 0)
    model.sizes, model.layers = sizes, [replace(model.layers[0], window=window) for window in sizes.windows]
    options = {"num_blocks": 128, "cluster_size": 8}
    step = Driver(module, model, **options).step
    assert step.num_grid_barriers == module.REDUCTIONS_PER_LAYER * 12 == 24
    weights = 12 * (12 * 768 * 768) * 2
    assert 0 < step.bytes_per_step(0) - weights < 12 * 11 * 768 * 4
    # Six layers see all 500 cached tokens, six see 255 of them.
    assert step.bytes_per_step(500) - step.bytes_per_step(0) == 6 * (500 + 255) * 2 * 768 * 2
    assert step.shared_bytes <= 227 * 1024
    assert step.num_slots * step.slot_bytes > 140 * 1024
    assert (step.num_blocks, step.cluster_size, step.num_threads) == (128, 8, 384)


# ---- ThreadSanitizer -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sanitized(cuda_emulator_folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a helper program with one of the sanitized modules."""
    if not cuda_emulator.sanitizer_library():
        pytest.skip("needs gcc with libtsan")
    names = ["cuda_emulator_tsan", "cuda_emulator_missing_barrier", "cuda_emulator_unchecked_ticket"]
    folders = dict(zip(names, cuda_emulator.build(cuda_emulator_folder, *names), strict=True))

    def run(name: str, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return thread_sanitizer.run(program(script, str(folders[name]), *arguments), preload=True)

    return run


def test_thread_sanitizer(sanitized: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """There is no race."""
    done = sanitized("cuda_emulator_tsan", "cuda_step_sequence")
    assert (done.returncode, "data race" in done.stderr) == (0, False), done.stderr[:4000]
    assert done.stdout.split() == ["played"]


def test_thread_sanitizer_over_golden_episodes(sanitized: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    pytest.importorskip("triton", reason="the engine's CUDA backend needs it")
    episodes = ["continuous_cw9", "continuous_cw2"]
    done = sanitized("cuda_emulator_tsan", "cuda_golden_run", *episodes)
    assert (done.returncode, "data race" in done.stderr) == (0, False), done.stderr[:4000]
    assert done.stdout.split() == ["played", episodes[0], "played", episodes[1]]


@pytest.mark.parametrize("planted", ["missing_barrier", "unchecked_ticket"])
def test_thread_sanitizer_finds(planted: str, sanitized: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """A planted race in the kernel is found."""
    done = sanitized(f"cuda_emulator_{planted}", "cuda_step_sequence")
    assert (done.returncode, "data race" in done.stderr) == (66, True), done.stderr[:4000]


# ---- the compiler --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_no_kernel_spills() -> None:
    """With 13 warps, 128 registers per thread is the limit."""
    rows = cuda_resources("sm_90a")
    assert len(rows) == 6
    for row in rows:
        assert row["spill_bytes"] == 0, row
        assert 0 < row["registers"] <= 128, row


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("arch", ["sm_80", "sm_87"])
def test_older_gpus_compile_to_nothing(arch: str) -> None:
    """They lack clusters: the kernel has no body there, and `device_facts` gives the reason."""
    assert all(row["registers"] < 16 for row in cuda_resources(arch))
