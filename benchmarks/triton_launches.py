"""Record what the wrappers launch instead of running it, and compile it for any architecture without a GPU.

`recorded()` replaces Triton's launch by a note of the kernel, its arguments and options, so that a wrapper called with
CPU tensors of the real shapes tells exactly which variant it would run. `compile_launch` compiles such a note.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
_OPTIONS = ("num_warps", "num_stages", "launch_pdl")


@dataclass(frozen=True)
class Launch:
    kernel: Any  # triton.JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__).strip("_").removesuffix("_kernel")


def launch_of(kernel: Any, args: tuple[Any, ...], grid: tuple[int, ...], kwargs: dict[str, Any]) -> Launch:
    """Return what `kernel[grid](*args, **kwargs)` launches."""
    options = {name: kwargs[name] for name in _OPTIONS if name in kwargs}
    bound = kernel.signature.bind(*args, **{name: kwargs[name] for name in kwargs if name not in _OPTIONS})
    bound.apply_defaults()
    return Launch(kernel, tuple(grid), dict(bound.arguments), options)


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Note the kernels that are launched within the block, in order, instead of running them."""
    launches: list[Launch] = []

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append(launch_of(kernel, args, grid, kwargs))

    run = JITFunction.run
    JITFunction.run = note
    try:
        yield launches
    finally:
        JITFunction.run = run


def compile_launch(launch: Launch, compute_capability: int) -> Any:
    """Return the compiled kernel (its `asm["cubin"]`, its `metadata`), specialised as Triton's launch would.

    Pointers are declared multiples of 16 bytes where they are, as those from the allocator.
    """
    parameters = {parameter.name: parameter for parameter in launch.kernel.params}
    names = list(parameters)
    signature, constants, attributes = {}, {}, {}
    for name, value in launch.arguments.items():
        if parameters[name].is_constexpr or value is None:
            signature[name] = "constexpr"
            constants[name] = value
        elif isinstance(value, torch.Tensor):
            signature[name] = _POINTERS[value.dtype]
            if value.data_ptr() % 16 == 0:
                attributes[(names.index(name),)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = dict(launch.options)
    if compute_capability < 90:
        options["launch_pdl"] = False
    return triton.compile(source, target=GPUTarget("cuda", compute_capability, 32), options=options)
