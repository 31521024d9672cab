"""Define a peer: anything that runs one agent's steps from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Unavailable(Exception):  # noqa: N818 -- a state, not a mistake
    """A peer cannot run here; the message says why, and what to install."""


class Agent(Protocol):
    """One agent in one episode."""

    @property
    def get_next_action(self) -> Callable[..., Any]:
        """Take a step, as a user would; this call is timed.

        Its keyword arguments are those that `workload.step_arguments` gives, and `return_prediction`. It returns the
        action: an int, or a list of floats [A]; with `return_prediction=True` a pair of it and the prediction: float32
        [A], or the logits [n].
        """

    def force_action(self, action: Any) -> None:
        """Let the next step follow on `action` instead of the one that was chosen, so that runs stay comparable."""


class Peer(Protocol):
    """A way to run a checkpoint.

    Attributes:
        name: as tables show it, without the dtype.
        dtype: "float32", "bfloat16" or "int8".
    """

    name: str
    dtype: str

    def open(self, window: int) -> Agent:
        """Open an agent, in a new episode, that looks back on `window` tokens (even)."""

    def close(self) -> None:
        """Give back memory, threads and processes."""


class BatchPeer(Peer, Protocol):
    """A peer that can also step many agents at once."""

    def open_batch(self, num_agents: int, window: int, kind: str) -> Batch:
        """Open agents of one modality (`kind`, a key of `workload.SPACES`) that step together."""


class Batch(Protocol):
    """Agents in lockstep."""

    @property
    def get_next_actions(self) -> Callable[..., Any]:
        """Take a step with all agents; returns their actions, [B] or [B, A].

        Its keyword arguments are those of `AgentBatch.get_next_actions`: arrays with a row for each agent.
        """

    def close(self) -> None:
        """Give back the agents' memory."""
