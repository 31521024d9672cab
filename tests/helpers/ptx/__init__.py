"""Execute the PTX that Triton emits on a CPU, to test compiled kernels without a GPU.

    parser.py        PTX text -> `Kernel`, a list of instructions
    machine.py       `Machine`: registers, memories and control flow of a set of blocks
    memory.py        global memory with the bounds of every allocation; shared memory with a search for races
    values.py        number formats: bfloat16, float16, fp8
    arithmetic.py    arithmetic, logic, comparisons, conversions
    movement.py      loads, stores, asynchronous copies, atomics, exchanges within a warp
    tensor_cores.py  ldmatrix, stmatrix, mma.sync, wgmma
    launcher.py      Triton's launch, replaced by compiling and executing
    plugin.py        pytest: the tests of the kernels, run from PTX

All threads of a block run in lockstep, and the blocks of a grid at once as long as they take the same branches. So time
is not modelled. Asynchronous copies and wgmma happen as late as the PTX allows, shared memory begins as NaN, an access
of global memory outside of the tensors a kernel was given is an error, and so is a read of shared memory that another
warp wrote without a barrier between.
"""
