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
PACKET_US = 1.45
"""From the packets of a block until it has those of all others through L2, with what it does meanwhile (traced on an
H100, less what a mark costs: 0.64 us for vectors and weights, then 0.85; a barrier of all blocks takes 1.0)."""
CLUSTER_BARRIER_US = 0.4
"""Stores to the shared memory of cluster peers until they have seen them (traced on an H100, less a mark: parts and
sums 0.4 us, q, k and v 0.6, partial softmaxes 0.3; by themselves 0.39)."""
PERSISTENT_LAUNCH_US = 2.5
"""From a launch to a block's first instruction, and from the last store to the host's read of it (assumed)."""

PHASE_FACTOR = 1.63
"""Of what a phase of the persistent kernel takes and what its cycles say (traced on an H100, 256 tokens, less 54 ns a
mark: all phases together; each of them 1.4 to 1.8). Instructions that are fetched once a layer are the likely reason: a
layer has 60 KB of them. It is not proven."""

BAND = 0.20
"""Of a prediction, up and down: what the readings on an H200 to which the constants were fitted differed by, 17 % below
to 21 % above what is computed. An H100, read since, took 10 % less to 22 % more, but for one image (46 % more). Then
PACKET_US, CLUSTER_BARRIER_US and PHASE_FACTOR were fitted to its trace."""


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
