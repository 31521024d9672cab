"""Define a peer: anything that runs one agent's steps from a checkpoint."""

from __future__ import annotations

from typing import Any, Protocol


class Unavailable(Exception):  # noqa: N818 -- a state, not a mistake
    """A peer cannot run here; the message says why, and what to install."""


class Agent(Protocol):
    """One agent in one episode."""

    def get_next_action(self, **arguments: Any) -> Any:
        """Take a step, as a user would; this call is timed.

        Args:
            arguments: what `workload.step_arguments` gives, and `return_prediction`.

        Returns:
            The action: an int, or a list of floats [A]. With `return_prediction=True` a pair of it and the prediction:
            float32 [A], or the logits [n].
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

    def get_next_actions(self, arguments: dict[str, Any]) -> Any:
        """Return the actions of all agents, [B] or [B, A].

        Args:
            arguments: those of `AgentBatch.get_next_actions`, arrays with a row for each agent.
        """

    def close(self) -> None:
        """Give back the agents' memory."""
