"""The execution of PTX by itself, on small kernels: what it computes, and which faults of a kernel it finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.ptx import arithmetic, movement, tensor_cores  # noqa: F401  they register their instructions
from helpers.ptx.machine import Machine, UnknownInstructionError, run
from helpers.ptx.memory import AccessError, GlobalMemory
from helpers.ptx.parser import parse
from helpers.ptx.values import BITS, from_float, to_float

HEAD = """
.visible .entry kernel(
    .param .u64 .ptr .global .align 1 kernel_param_0,
    .param .u32 kernel_param_1
)
.reqntid {threads}
{{
    .reg .b32 %r<9>;  // a comment
    ld.param.b64 %rd1, [kernel_param_0];
    ld.param.b32 %r1, [kernel_param_1];
    mov.u32 %r2, %tid.x;
    mad.wide.u32 %rd2, %r2, 4, %rd1;
{body}
    ret;
}}
"""


def execute(
    body: str, tensor: torch.Tensor, number: int = 0, *, threads: int = 32, blocks: int = 1, **options: Any
) -> int:
    """Run a kernel of one tensor and one number; %rd2 is the address of the thread's element."""
    memory = GlobalMemory([(tensor.data_ptr(), tensor.nbytes)], **options)
    places = np.array([[x, 0, 0] for x in range(blocks)])
    arguments = {"kernel_param_0": tensor.data_ptr(), "kernel_param_1": number}
    kernel = parse(HEAD.format(threads=threads, body=body))
    return run(Machine(kernel, (blocks, 1, 1), places, arguments, 1024, memory))


def test_blocks_take_their_own_branches() -> None:
    """Each block counts to its number in the grid."""
    tensor = torch.full((5, 32), -1, dtype=torch.int32)
    execute(
        """
        mov.u32 %r3, %ctaid.x;
        mul.lo.s32 %r5, %r3, 128;
        cvt.u64.u32 %rd3, %r5;
        add.s64 %rd2, %rd2, %rd3;
        mov.b32 %r4, 0;
    $again:
        setp.ge.s32 %p1, %r4, %r3;
        @%p1 bra $done;
        add.s32 %r4, %r4, 1;
        bra.uni $again;
    $done:
        st.global.b32 [%rd2], %r4;
        """,
        tensor,
        blocks=5,
    )
    assert (tensor == torch.arange(5)[:, None]).all()


def test_a_guard_keeps_the_others() -> None:
    tensor = torch.arange(32, dtype=torch.int32)
    execute("setp.lt.u32 %p1, %r2, %r1; @!%p1 st.global.b32 [%rd2], %r1;", tensor, 20)
    assert tensor.tolist() == [*range(20), *[20] * 12]


@pytest.mark.parametrize("access", ["ld.global.b32 %r3, [%rd2+4];", "st.global.b32 [%rd2+4], %r1;"])
def test_an_access_behind_a_tensor_is_an_error(access: str) -> None:
    """By one element of the last thread, even if another tensor begins there."""
    memory = torch.zeros(64, dtype=torch.int32)
    with pytest.raises(AccessError, match=r"1 of 32 addresses .* are in no tensor, 0 bytes behind the end"):
        execute(access, memory[:32])


def test_threads_that_part_are_refused() -> None:
    with pytest.raises(UnknownInstructionError, match="different branches"):
        execute("setp.lt.u32 %p1, %r2, 7; @%p1 bra $end; $end:", torch.zeros(32))


def test_an_unknown_instruction_is_named() -> None:
    with pytest.raises(UnknownInstructionError, match=r"kernel, frobnicate\.b32 %r3, %r1"):
        execute("frobnicate.b32 %r3, %r1;", torch.zeros(32))


REVERSE = """
    mov.b32 %r3, global_smem;
    mad.lo.s32 %r4, %r2, 4, %r3;
    ld.global.b32 %r6, [%rd2];
    st.shared.b32 [%r4], %r6;
    {barrier}
    xor.b32 %r5, %r2, 63;
    mad.lo.s32 %r5, %r5, 4, %r3;
    ld.shared.b32 %r6, [%r5];
    st.global.b32 [%rd2], %r6;
"""


def test_warps_meet_at_a_barrier() -> None:
    tensor = torch.arange(64, dtype=torch.int32)
    execute(REVERSE.format(barrier="bar.sync 0;"), tensor, threads=64)
    assert tensor.tolist() == list(range(63, -1, -1))


def test_a_missing_barrier_is_found() -> None:
    with pytest.raises(AccessError, match="another warp wrote, with no barrier between"):
        execute(REVERSE.format(barrier=""), torch.arange(64, dtype=torch.int32), threads=64)


COPY = """
    mad.lo.s32 %r4, %r2, 4, 0;
    cp.async.ca.shared.global [%r4], [%rd2], 0x4;
    cp.async.commit_group;
    {wait}
    ld.shared.b32 %r5, [%r4];
    st.global.b32 [%rd2], %r5;
"""


@pytest.mark.parametrize(("wait", "expected"), [("cp.async.wait_group 0;", 7), ("cp.async.wait_group 1;", -1)])
def test_a_copy_comes_as_late_as_it_may(wait: str, expected: int) -> None:
    tensor = torch.full((32,), 7, dtype=torch.int32)
    execute(COPY.format(wait=wait), tensor)
    assert (tensor == expected).all()


def test_what_earlier_kernels_wrote_is_read_after_the_wait() -> None:
    tensor = torch.zeros(32, dtype=torch.int32)
    written = [np.array([tensor.data_ptr() // 4 + 31])]
    execute("griddepcontrol.wait; ld.global.b32 %r3, [%rd2];", tensor, written=written)
    with pytest.raises(AccessError, match=r"reads before griddepcontrol\.wait what an earlier kernel"):
        execute("ld.global.b32 %r3, [%rd2]; griddepcontrol.wait;", tensor, written=written)
    execute("ld.global.b32 %r3, [%rd2]; griddepcontrol.wait;", tensor, written=[written[0] + 1])
    with pytest.raises(AccessError, match=r"ends before griddepcontrol\.wait"):
        execute("setp.lt.u32 %p1, %r1, 1; @%p1 ret; griddepcontrol.wait;", tensor)
    with pytest.raises(AccessError, match=r"writes before griddepcontrol\.wait"):
        execute("st.global.b32 [%rd2], %r1; griddepcontrol.wait;", tensor)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("prmt.b32 %r3, 0x44332211, 0x88776655, 0x7350;", 0x88446611),
        ("prmt.b32 %r3, 0x00008000, 0, 0x99;", 0x0000FFFF),
        ("bfe.s32 %r3, 0xf0, 4, 4;", 0xFFFFFFFF),
        ("bfe.u32 %r3, 0xf0, 4, 4;", 0xF),
        ("shr.s32 %r3, -8, 40;", 0xFFFFFFFF),
        ("shr.u32 %r3, -8, 40;", 0),
        ("mul.hi.u32 %r3, 0xffffffff, 3;", 2),
        ("lop3.b32 %r3, 0xc, 0xa, 0x6, 0xe8;", 0xE),  # the majority
        ("cvt.rzi.s32.f32 %r3, 0fC0600000;", 0xFFFFFFFD),
        ("cvt.rn.bf16x2.f32 %r3, 0f3F800000, 0f3F818000;", 0x3F803F82),  # a tie goes to even
        ("{ .reg .b16 h; cvt.rn.satfinite.e4m3x2.f32 h, 0f44000000, 0f3F900000; cvt.u32.u16 %r3, h; }", 0x7E39),
        ("min.s16x2 %r3, 0x0005ffff, 0xfffe0003;", 0xFFFEFFFF),
        ("redux.sync.add.s32 %r3, %r2, -1;", 496),
    ],
)
def test_instructions(code: str, expected: int) -> None:
    tensor = torch.zeros(32, dtype=torch.int32)
    execute(f"{code} st.global.b32 [%rd2], %r3;", tensor)
    assert (tensor.numpy().view(np.uint32) == expected).all(), hex(tensor.numpy().view(np.uint32)[0])


@pytest.mark.parametrize("kind", ["bf16", "f16", "e4m3", "e5m2"])
def test_formats_keep_every_number(kind: str) -> None:
    codes = np.arange(1 << BITS[kind]).astype(np.uint16)
    values = to_float(codes, kind)
    numbers = np.isfinite(values)
    assert (from_float(values, kind)[numbers] == codes[numbers]).all()
