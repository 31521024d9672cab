"""Name the phases of the persistent kernel."""

START = -1
"""What comes before the first mark."""

PHASES = {
    START: "start",
    0: "embedding",
    1: "wait for the parts of a slice",
    2: "norm: vectors, weights",
    3: "wait for packets",
    4: "wait for all sums",
    5: "LayerNorm",
    6: "q, k, v",
    7: "wait for the cluster",
    8: "scores, softmax, values",
    9: "send to the cluster",
    10: "wait for the partial sums",
    11: "combine, output projection",
    12: "mlp_in, gelu",
    13: "mlp_out",
    14: "head",
    15: "finish",
}
"""By the number that marks where a phase begins: `trace(number)` in csrc/cuda."""
