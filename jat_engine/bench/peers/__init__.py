"""Open the agents that `jat-engine bench` compares: the engine, the reference, and what a user would run instead."""

from .base import Agent, Batch, BatchPeer, Peer, Unavailable
from .registry import CPU_ONLY, DTYPES, ENGINE, MODEL, NAMES, REFERENCE, Peers, load, open_peer

__all__ = [
    "CPU_ONLY",
    "DTYPES",
    "ENGINE",
    "MODEL",
    "NAMES",
    "REFERENCE",
    "Agent",
    "Batch",
    "BatchPeer",
    "Peer",
    "Peers",
    "Unavailable",
    "load",
    "open_peer",
]
