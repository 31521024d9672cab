"""Agents of a policy server in place of one that is loaded: `--server URL`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..config import JatConfig
from ..runs.agents import ActOptions, LoadedAgents
from ..serving.description import MODEL_SIZES
from .arguments import ModelArguments

if TYPE_CHECKING:  # it needs the extra `serve`
    from ..client import RemoteAgent


@dataclass
class AgentArguments(ModelArguments):
    """Arguments for an agent: a model to load, or a server that has one."""

    model_name_or_path: str = field(
        default="", metadata={"help": "folder of a checkpoint, its name on the hub, or jat-mini; or give --server"}
    )
    server: str | None = field(
        default=None, metadata={"help": "URL of a policy server with the agent, such as ws://127.0.0.1:8000"}
    )
    api_key_file: str | None = field(default=None, metadata={"help": "file whose first line is a key for --server"})

    def check(self) -> None:
        """Check that there is one agent.

        Raises:
            ValueError: neither a model nor a server is given, or both, or a key without a server.
        """
        if bool(self.model_name_or_path) == (self.server is not None):
            got = "both" if self.server else "neither"
            raise ValueError(f"--model_name_or_path, --server: expected one of them, got {got}")
        if self.api_key_file is not None and self.server is None:
            raise ValueError("--api_key_file: expected it with --server, got it without")

    def check_loaded(self, what: str) -> None:
        """Check that the model is loaded here, which something needs. Raises `ValueError`."""
        if self.server is not None:
            raise ValueError(f"--server: expected --model_name_or_path with {what}, got a server")
        self.check()


@dataclass(frozen=True)
class ServedAgent:
    """An agent of a policy server.

    Attributes:
        url: of the server.
        api_key: for it; None for none.
        description: of the server, see its `/config`.
    """

    url: str
    api_key: str | None
    description: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the checkpoint, for people."""
        return str(self.description["model"])

    @property
    def device(self) -> str:
        """Description of what computes the actions, for people."""
        about = self.description
        return f"{self.url}: {self.name}, backend {about['backend']}, {about['dtype']}, {about['device']}"

    @property
    def config(self) -> JatConfig:
        """Configuration with the model's sizes, and nothing else of the model's."""
        sizes = {name: self.description["sizes"][name] for name in MODEL_SIZES}
        return JatConfig(**sizes, bos_token_id=None, eos_token_id=None)  # published ones are beyond a small vocabulary

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights."""
        return str(self.description["weights_sha256"])

    @property
    def machine(self) -> dict[str, Any]:
        """Settings of a run that are the server's machine's; see `machine_settings`."""
        return {name: self.description[name] for name in ("instruction_set", "versions")}

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of a run that are the server's."""
        device = str(self.description["device"]).partition(":")[0]
        return self.machine | {
            "backend": self.description["backend"],
            "dtype": self.description["dtype"],
            "device": device,
        }

    def open(self, seed: int | None) -> RemoteAgent:
        """Return an agent on the server, which is then connected. Raises what `RemoteAgent` raises.

        Args:
            seed: of sampling; None for another one in each episode.
        """
        from ..client import RemoteAgent

        return RemoteAgent(self.url, seed=seed, api_key=self.api_key)

    @contextlib.contextmanager
    def open_agents(self, options: ActOptions) -> Iterator[LoadedAgents]:
        """Open the agent's side of a run, and end it with the `with` block.

        Args:
            options: of the choice of actions.
        """
        from ..client.run_agents import RemoteAgents

        with RemoteAgents(self.url, self.api_key, options, int(self.description["max_sessions"])) as agents:
            yield LoadedAgents(agents, self.settings, self.device)


class SeededAgent:
    """An agent of a server whose episode i is sampled with `seed + i`, as `run_episodes` seeds an agent in its process.

    Args:
        agent: on the server.
        seed: of the first episode.
    """

    def __init__(self, agent: RemoteAgent, seed: int) -> None:
        self._agent, self._seed = agent, seed
        self.get_next_action = agent.get_next_action

    def reset_rl(self) -> None:
        """Start the next episode."""
        self._agent.reset(self._seed)
        self._seed += 1


def find_served(arguments: AgentArguments) -> ServedAgent | None:
    """Return the agent of `--server`; None without that flag.

    Raises:
        ValueError: there is no server, or it refuses the key or has no room.
        ImportError: the extra `serve` is missing.
    """
    arguments.check()
    if arguments.server is None:
        return None
    from ..client import RemoteAgent
    from ..serving.auth import read_keys

    key = None if arguments.api_key_file is None else read_keys(arguments.api_key_file)[0]
    try:
        with RemoteAgent(arguments.server, api_key=key) as agent:
            return ServedAgent(arguments.server, key, agent.description)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"--server {arguments.server}: {error}") from error
