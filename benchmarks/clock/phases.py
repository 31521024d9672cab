"""Name the phases of the persistent kernel."""

START = -1
"""What comes before the first mark."""

PHASES = {
    START: "start",
    0: "embedding",
    1: "norm: vectors",
    2: "wait for the grid",
    3: "LayerNorm",
    4: "q, k, v",
    5: "wait for the cluster",
    6: "scores, softmax, values",
    7: "send to the cluster",
    8: "wait for the partial sums",
    9: "combine, output projection",
    10: "mlp_in, gelu",
    11: "mlp_out",
    12: "arrive",
    13: "head",
    14: "finish",
}
"""By the number that marks where a phase begins: `trace(number)` in csrc/cuda."""
