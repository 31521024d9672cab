"""Compile what a wrapper launches, and execute its PTX on the wrapper's tensors, which are on the CPU."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from triton.runtime.jit import JITFunction

from benchmarks.triton_launches import Launch, compile_launch, launch_of

from . import arithmetic, movement, tensor_cores  # noqa: F401  they register their instructions
from .machine import Machine, run
from .memory import AccessError, GlobalMemory
from .parser import Kernel, parse
from .values import Array

_THREADS_AT_ONCE = 1 << 14
"""Threads of one machine: as many as keep its registers within the processor's caches."""


_REMEMBERED = 256
"""Tensors that tables of addresses pointed to, which are searched first."""


class Variant(NamedTuple):
    """What is counted: a kernel, its dtypes, and what multiplies in it."""

    kernel: str
    dtypes: str
    products: str


class PtxLauncher:
    """Runs Triton kernels from their PTX.

    Args:
        compute_capability: 80, 87, 90, ...
        change: of the PTX before it is executed, to plant faults.

    Attributes:
        launches: how often each variant was launched.
        executed: PTX instructions of all blocks, by variant.
    """

    def __init__(self, compute_capability: int, change: Callable[[str], str] | None = None) -> None:
        self.compute_capability = compute_capability
        self._change = change
        self._compiled: dict[Any, tuple[Kernel, int]] = {}
        self.launches: Counter[Variant] = Counter()
        self.executed: Counter[Variant] = Counter()
        self._written: list[Array] | None = None
        self._pointed_to: list[weakref.ref[torch.Tensor]] = []

    def begin_step(self) -> None:
        """Forget what kernels wrote so far, and check from here on what is read before griddepcontrol.wait."""
        self._written = []

    @contextlib.contextmanager
    def installed(self) -> Iterator[PtxLauncher]:
        """Run all kernels that are launched within the block from PTX."""
        before = JITFunction.run

        def launch(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
            self.launch(launch_of(kernel, args, grid, options))

        JITFunction.run = launch
        try:
            yield self
        finally:
            JITFunction.run = before

    def launch(self, launch: Launch) -> None:
        """Execute a launch.

        Raises:
            AccessError: it accesses memory outside of its tensors, or in an order that nothing guarantees.
        """
        kernel, shared_bytes = self._compile(launch)
        if launch.options.get("launch_pdl") and self.compute_capability >= 90 and not kernel.waits_for_grids:
            raise AccessError(f"{kernel.name}: it is launched before earlier kernels end, and does not wait for them")
        values = [value for name, value in launch.arguments.items() if not _is_constant(launch, name)]
        arguments = [value.data_ptr() if isinstance(value, torch.Tensor) else int(value) for value in values]
        arguments += [0] * (len(kernel.parameters) - len(arguments))  # Triton's own scratch memory: none
        named = dict(zip((name for name, _ in kernel.parameters), arguments, strict=True))

        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        memory = GlobalMemory(
            [(t.data_ptr(), t.nbytes) for t in tensors] + self._targets(tensors),
            self._written or () if kernel.waits_for_grids else (),
            is_ordered=bool(kernel.count("atom") or kernel.count("red")),
        )
        grid = (*launch.grid, 1, 1)[:3]
        blocks = np.stack(np.unravel_index(np.arange(int(np.prod(grid))), grid[::-1]), 1)[:, ::-1]
        at_once = max(1, _THREADS_AT_ONCE // kernel.num_threads)
        executed = 0
        for first in range(0, len(blocks), at_once):
            machine = Machine(kernel, grid, blocks[first : first + at_once], named, shared_bytes, memory)
            executed += run(machine)
        try:
            memory.check_order()
        except AccessError as error:
            raise AccessError(f"{kernel.name}: {error}") from None

        if self._written is not None:
            self._written.append(memory.stored_words())
        variant = _variant(launch, kernel)
        self.launches[variant] += 1
        self.executed[variant] += executed

    def _compile(self, launch: Launch) -> tuple[Kernel, int]:
        key = _key(launch)
        if key not in self._compiled:
            with only_ptx():
                compiled = compile_launch(launch, self.compute_capability)
            text = compiled.asm["ptx"]
            text = self._change(text) if self._change else text
            self._compiled[key] = parse(text), compiled.metadata.shared
        return self._compiled[key]

    def _targets(self, tensors: list[torch.Tensor]) -> list[tuple[int, int]]:
        """Return the memory that addresses in int64 tensors point to: all of the storage they lie in.

        Raises:
            AccessError: an address is in no tensor.
        """
        addresses = {int(a) for t in tensors if t.dtype == torch.int64 for a in t.flatten().tolist()} - {0}
        found: list[tuple[int, int]] = []

        def search(candidates: Iterable[Any]) -> None:
            for tensor in candidates:
                if not addresses:
                    return
                if type(tensor) is not torch.Tensor or tensor.layout != torch.strided or tensor.device.type != "cpu":
                    continue
                storage = tensor.untyped_storage()
                begin, size = storage.data_ptr(), storage.nbytes()
                inside = {address for address in addresses if begin <= address < begin + size}
                if inside:
                    addresses.difference_update(inside)
                    found.append((begin, size))
                    holders.append(weakref.ref(tensor))

        holders: list[weakref.ref[torch.Tensor]] = []
        search([known() for known in self._pointed_to])
        if addresses:
            search(gc.get_objects())
        self._pointed_to = (holders + self._pointed_to)[:_REMEMBERED]
        if addresses:
            raise AccessError(f"a table of addresses has {addresses.pop():#x}, which is in no tensor")
        return found

    def counts(self) -> list[dict[str, Any]]:
        """Return a row for each variant, for a file."""
        return [
            {**variant._asdict(), "launches": self.launches[variant], "instructions": self.executed[variant]}
            for variant in sorted(self.launches)
        ]

    def table(self) -> str:
        """Return the variants with their launches and instructions, as lines of text."""
        rows = [f"{'kernel':<22}{'dtypes':<30}{'products':<10}{'launches':>9}{'PTX instructions':>18}"]
        for variant in sorted(self.launches):
            executed = self.executed[variant]
            rows.append(
                f"{variant.kernel:<22}{variant.dtypes:<30}{variant.products:<10}{self.launches[variant]:>9}{executed:>18,}"
            )
        title = f"Triton {triton.__version__}, sm_{self.compute_capability}: executed from PTX"
        return "\n".join(
            [title, *rows, f"all: {self.launches.total():,} launches, {self.executed.total():,} instructions"]
        )


@contextlib.contextmanager
def only_ptx() -> Iterator[None]:
    """Compile as far as PTX: ptxas would take as long as all before it."""

    def without_assembler(*arguments: Any) -> Any:
        if not arguments:
            return "ptx only", "ptx only"
        arguments[1]["cubin"] = lambda ptx, metadata: b"none"
        return None

    before = triton.knobs.runtime.add_stages_inspection_hook
    triton.knobs.runtime.add_stages_inspection_hook = without_assembler
    try:
        yield
    finally:
        triton.knobs.runtime.add_stages_inspection_hook = before


def _is_constant(launch: Launch, name: str) -> bool:
    parameter = next(p for p in launch.kernel.params if p.name == name)
    return bool(parameter.is_constexpr) or launch.arguments[name] is None


def _key(launch: Launch) -> Any:
    """Return what a launch is specialised for."""
    arguments = tuple(
        (value.dtype, value.data_ptr() % 16 == 0)
        if isinstance(value, torch.Tensor)
        else (value if _is_constant(launch, name) else int)
        for name, value in launch.arguments.items()
    )
    return launch.kernel, arguments, tuple(sorted(launch.options.items()))


def _variant(launch: Launch, kernel: Kernel) -> Variant:
    dtypes = sorted(
        {
            str(value.dtype).removeprefix("torch.")
            for value in launch.arguments.values()
            if isinstance(value, torch.Tensor)
        }
        - {"int32", "int64"}
    )
    products = "wgmma" if kernel.count("wgmma", "mma_async") else "mma.sync" if kernel.count("mma") else "fma"
    return Variant(launch.name, " ".join(dtypes), products)
