"""Name what the clock assumes of a GPU, with where each number comes from."""

from __future__ import annotations

from dataclasses import dataclass

CLOCK_GHZ = 1.98
"""Highest clock of an H100 and an H200 (data sheets). A step of few agents does not come near the power limit."""

ACHIEVED_BANDWIDTH = 0.90
"""Part of the nominal bandwidth that long reads achieve (read on an H200: copies 0.89, the attention of 1024 agents
0.91)."""

L2_TERABYTES = 5.5
"""From the L2 cache to all multiprocessors together, per second (read on an H200: 5.6 in the MLP of 1024 agents)."""

KERNEL_RAMP_US = 1.24
"""From one kernel of a graph to the next (others' reading on an H100). A programmatic edge hides what comes before the
wait, and none of this: with 0.96 us less, steps of 1 to 64 agents were computed 0.5 to 2 us a kernel below what an H200
took. Empty kernels follow each other within 0.7 us, with such an edge 0.6 (read)."""
GRAPH_LAUNCH_US = 1.40
"""Relaunch of a graph until its first kernel begins (others' reading on an H100)."""
COPY_US = 2.1
"""A copy node between pinned memory and the device, of some kilobytes (read on an H200: 2.6 us in, 1.6 us out)."""
PACKET_US = 0.7
"""A packet from one block through L2 to all that poll for it (assumed: a barrier of all blocks, which is an addition in
L2 on the way there and the same way back, takes 0.95 us on an H200)."""
CLUSTER_BARRIER_US = 0.35
"""Stores to the shared memory of cluster peers until they have seen them (others' readings: 180 to 220 ns one way,
and what the slowest of eight adds)."""
PERSISTENT_LAUNCH_US = 2.5
"""From a launch to a block's first instruction, and from the last store to the host's read of it (assumed)."""

PHASE_FACTOR = 1.75
"""Of what a phase of the persistent kernel takes and what its cycles say. A trace on an H200 (e9c719a, 256 tokens, 139
us where the untraced kernel took 119) gave 1.5 to 2.3, but 0.9 for the scores; 113 us of the kernel since would need
2.1. Instructions that are fetched once a layer are the likely reason; it is not proven."""

BAND = 0.20
"""Of a prediction, up and down: what the readings to which the constants were fitted differed by, 17 % below to 21 %
above what is computed. No reading since has tested it."""


@dataclass(frozen=True)
class Gpu:
    """A GPU that a step is predicted for.

    Attributes:
        name: as in the tables.
        terabytes: nominal bandwidth of device memory, 10^12 bytes per second.
        multiprocessors: number of them.
    """

    name: str
    terabytes: float
    multiprocessors: int = 132

    def memory_us(self, num_bytes: float) -> float:
        """Return the microseconds that so many bytes of device memory take at least."""
        return num_bytes / (self.terabytes * ACHIEVED_BANDWIDTH * 1e6)


GPUS = (Gpu("H100", 3.35), Gpu("H200", 4.8))


def cycles_us(cycles: float) -> float:
    """Return microseconds at the highest clock."""
    return cycles / (CLOCK_GHZ * 1e3)


def l2_us(num_bytes: float) -> float:
    """Return the microseconds that so many bytes take at least from the L2 cache."""
    return num_bytes / (L2_TERABYTES * 1e6)
