"""Name what the clock assumes of a GPU, with where each number comes from."""

from __future__ import annotations

from dataclasses import dataclass

CLOCK_GHZ = 1.98
"""Highest clock of an H100 and an H200 (data sheets). A step of few agents does not come near the power limit."""

ACHIEVED_BANDWIDTH = 0.90
"""Part of the nominal bandwidth that long reads achieve (others' readings: 0.88 to 0.93)."""

L2_TERABYTES = 5.5
"""From the L2 cache to all multiprocessors together, per second (others' readings on an H100: 5.5 to 5.7)."""

KERNEL_RAMP_US = 1.24
"""From one kernel of a graph to the next (others' reading on an H100)."""
PDL_SAVES_US = 0.96
"""Of it, with a programmatic edge between them (others' readings: up to 0.96)."""
GRAPH_LAUNCH_US = 1.40
"""Relaunch of a graph until its first kernel begins (others' reading on an H100)."""
COPY_US = 1.5
"""A copy node between pinned memory and the device, of some kilobytes (assumed: a round trip over the bus)."""
BUS_GIGABYTES = 50.0
"""Copies of many bytes over PCIe 5.0 x16, per second."""
PACKET_US = 0.7
"""A packet from one block through L2 to all that poll for it (assumed: a barrier of all blocks, which is an addition in
L2 on the way there and the same way back, takes 0.95 us on an H200)."""
CLUSTER_BARRIER_US = 0.35
"""Stores to the shared memory of cluster peers until they have seen them (others' readings: 180 to 220 ns one way,
and what the slowest of eight adds)."""
PERSISTENT_LAUNCH_US = 2.5
"""From a launch to a block's first instruction, and from the last store to the host's read of it (assumed)."""

BAND = 0.30
"""Of a prediction, up and down, until a GPU's reading has validated the clock."""


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
