"""Faults planted in the PTX are found: what executes it does not overlook them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.kernel_cases import Random, agrees, int32, poisoned
from helpers.ptx.launcher import PtxLauncher
from helpers.ptx.memory import AccessError

from jat_engine.kernels import attention, linear
from jat_engine.kernels.launch import PAGE_SIZE
from jat_engine.kernels.norm import layer_norm

Change = Callable[[str], str]


def swizzles_otherwise(ptx: str) -> str:
    """Leave out an exclusive or of a kernel with products: it places what they read in shared memory."""
    return (
        re.sub(r"xor\.b32\s+(%r\d+), (%r\d+), (\d+);", r"mov.b32 \1, \2;", ptx, count=1)
        if "ldmatrix" in ptx or "wgmma" in ptx
        else ptx
    )


def each_use(pattern: str, replacement: Any) -> Change:
    return lambda ptx: re.sub(pattern, replacement, ptx)


FAULTS: dict[str, Change] = {
    "waits for fewer copies": each_use(
        r"cp\.async\.wait_group\s+(\d+)", lambda found: f"cp.async.wait_group {int(found[1]) + 2}"
    ),
    "swizzles otherwise": swizzles_otherwise,
    "does not transpose": each_use(r"\.(x[124])\.trans\.shared", r".\1.shared"),
    "copies rows that do not exist": each_use(r"selp\.b32\s+(%r\d+), 16, 0, %p\d+;", r"mov.b32 \1, 16;"),
    "loads without a mask": each_use(r"@%p\d+ (ld\.global)", r"\1"),
    "stores without a mask": each_use(r"@%p\d+ (st\.global)", r"\1"),
    "leaves out the barriers": each_use(r"bar\.sync\s+0;", ""),
    "does not wait for products": each_use(r"(wgmma\.wait_group\.sync\.aligned) 0;", r"\1 3;"),
    "takes another operand of the product": each_use(r"(wgmma\.mma_async[^;]*), 1, 1, 0, [01];", r"\1, 1, 1, 1, 0;"),
}


def run_linear(rows: int) -> None:
    random, dtype = Random(), torch.bfloat16
    inputs, hidden = 520, 96
    a = random.normal(rows, inputs, dtype=dtype)
    weight, scale = random.weight(dtype, hidden, inputs)
    bias, x = random.normal(hidden), random.normal(rows, hidden)
    out = x.clone()
    linear.linear_residual(a, weight, scale, bias, out)
    agrees(out, linear.linear_residual_reference, a, weight, scale, bias, x, dtype=dtype)


def run_norm() -> None:
    random = Random()
    x, weight, bias = random.normal(5, 160), random.normal(160), random.normal(160)
    out = poisoned(5, 160)
    layer_norm(x, weight, bias, out)
    assert out.isfinite().all()


def run_attention(queries: int) -> None:
    """A session of 40 keys, whose last page holds NaN behind them, as do all other pages."""
    random, dtype = Random(), torch.bfloat16
    heads, head_dim, keys = 2, 64, 40
    pages = poisoned(4, 2, heads, PAGE_SIZE, head_dim, dtype=dtype)
    for slot in range(keys):
        pages[1 + slot // PAGE_SIZE, :, :, slot % PAGE_SIZE] = random.normal(2, heads, head_dim, scale=0.3).to(dtype)
    q, out = random.normal(queries, heads * head_dim), poisoned(queries, heads * head_dim, dtype=dtype)
    plan = int32(1, 2, 3).view(1, 3), int32(0, queries), int32(keys - queries), int32(0)
    attention.paged_attention(q, pages, *plan, 1024, out, max_queries=queries)
    agrees(out, attention.paged_attention_reference, q, pages, *plan, 1024, dtype=dtype)


CASES: dict[str, Callable[[], None]] = {
    "3 rows": lambda: run_linear(3),
    "70 rows": lambda: run_linear(70),
    "300 rows": lambda: run_linear(300),
    "attention": lambda: run_attention(3),
    "attention of a prompt": lambda: run_attention(20),
    "norm": run_norm,
}


class UnchangedError(Exception):
    """A kernel has nothing that a fault changes."""


def failure(case: Callable[[], None], arch: int, change: Change) -> str | None:
    """Return how a case of one kernel fails, "" if it does not, and None if its PTX is not changed."""

    def change_or_stop(ptx: str) -> str:
        changed = change(ptx)
        if changed == ptx:
            raise UnchangedError
        return changed

    with PtxLauncher(arch, change_or_stop).installed():
        try:
            case()
        except UnchangedError:
            return None
        except (AssertionError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.ptx_all
@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("ptx_launcher")
def test_without_a_fault_nothing_is_found(case: str) -> None:
    CASES[case]()


@pytest.mark.ptx_all
@pytest.mark.planted_fault
@pytest.mark.parametrize("name", FAULTS)
def test_fault(name: str, ptx_launcher: PtxLauncher) -> None:
    """In every case whose PTX it changes, and it changes that of at least one on sm_90.

    The exclusive or that is left out of the kernels of 3 rows is not one of those that matter.
    """
    arch = ptx_launcher.compute_capability
    found = {case: failure(run, arch, FAULTS[name]) for case, run in CASES.items()}
    hit = {case: message for case, message in found.items() if message is not None}
    if not hit and arch < 90:
        pytest.skip("no kernel has what is changed")
    found_in = any if name == "swizzles otherwise" else all
    assert hit
    assert found_in(hit.values()), hit


@pytest.mark.ptx_all
@pytest.mark.planted_fault
@pytest.mark.usefixtures("ptx_launcher")
@pytest.mark.parametrize(("rows", "other"), [(3, 2), (130, 98)])
def test_two_rows_of_one_slot_are_found(rows: int, other: int) -> None:
    """Whichever is written last is kept, of other blocks (3 rows: of the same) another one on each GPU."""
    random, dtype = Random(), torch.bfloat16
    hidden, heads = 128, 2
    x, weight = random.normal(rows, hidden), random.normal(3 * hidden, hidden, dtype=dtype)
    slots = random.permutation(9 * PAGE_SIZE)[:rows]
    slots[other] = slots[0]
    pages = poisoned(9, 2, heads, PAGE_SIZE, hidden // heads, dtype=dtype)
    q, normed = poisoned(rows, hidden), poisoned(rows, hidden, dtype=dtype)
    ones = torch.ones(hidden)
    with pytest.raises(AccessError, match="two threads write different numbers to one address"):
        linear.norm_qkv(x, ones, ones, weight, None, q, pages, slots, normed=normed)


@pytest.mark.ptx_all
@pytest.mark.planted_fault
@pytest.mark.usefixtures("ptx_launcher")
@pytest.mark.parametrize("rows", [3, 130])
def test_reading_what_other_blocks_write_is_found(rows: int) -> None:
    """A product in place: its inputs are the rows that it updates."""
    random = Random()
    x, weight = random.normal(rows, 256), random.normal(256, 256)
    with pytest.raises(AccessError, match="reads what another block writes"):
        linear.linear_residual(x, weight, None, random.normal(256), x)
