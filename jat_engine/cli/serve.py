"""Command `jat-engine serve`: serve an agent to robots and evaluators."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path

from ..dtypes import KV_DTYPES
from .agent import check_source, describe, load_agent, weights_of
from .arguments import ModelArguments, note, parse
from .streams import say

_SWITCH_SECONDS = 5e-4
"""Longest time for which the event loop keeps the engine's thread from beginning a step; Python's is 5 ms."""

_MODULES = ("msgpack", "prometheus_client", "websockets")


@dataclass
class ServeArguments:
    """Arguments of `jat-engine serve`."""

    host: str = field(default="127.0.0.1", metadata={"help": "address to listen on; a public one needs --api_key_file"})
    port: int = field(default=8000, metadata={"help": "port to listen on; 0 for any that is free"})
    max_sessions: int = field(default=64, metadata={"help": "most agents at a time; the cache has room for all"})
    max_queue: int | None = field(
        default=None, metadata={"help": "most requests that wait for a step (default: --max_sessions)"}
    )
    max_wait_ms: float = field(
        default=0.0, metadata={"help": "time, up to 1, that a request waits for others to share its step"}
    )
    idle_timeout_s: float = field(
        default=300.0, metadata={"help": "close sessions and connections without a request for this long"}
    )
    drain_timeout_s: float = field(default=10.0, metadata={"help": "time that sessions may go on after SIGTERM"})
    num_threads: int | None = field(
        default=None, metadata={"help": "threads of the native CPU backend (default: the cores of this process)"}
    )
    kv_dtype: str = field(
        default="auto",
        metadata={
            "help": "type of cached keys and values: bfloat16 or int8 on the CPU, float8_e4m3 on a GPU",
            "choices": sorted({name for names in KV_DTYPES.values() for name in names}),
        },
    )
    task: str | None = field(
        default=None, metadata={"help": "published task of clients that name neither a task nor an action space"}
    )
    api_key_file: str | None = field(default=None, metadata={"help": "file with a key in each line; clients need one"})
    allow_public: bool = field(default=False, metadata={"help": "listen on a public address without --api_key_file"})
    state_dir: str | None = field(
        default=None,
        metadata={"help": "folder for snapshots of sessions, from which a server goes on after another's end"},
    )
    snapshot_every: int = field(default=64, metadata={"help": "steps of a session between two snapshots"})
    snapshot_max_age_s: float = field(
        default=86400.0, metadata={"help": "remove snapshots that are older, of clients that did not come back"}
    )
    resume_grace_s: float = field(
        default=30.0,
        metadata={"help": "time that a session waits for another connection of a client that asks for it"},
    )

    def check(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is out of range.
        """
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"--port: expected 0 to 65535, got {self.port}")
        for name in ("max_sessions", "max_queue", "num_threads", "snapshot_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name}: expected at least 1, got {value}")
        if not 0 <= self.max_wait_ms <= 1:
            raise ValueError(f"--max_wait_ms: expected 0 to 1, got {self.max_wait_ms}")
        if not self.idle_timeout_s > 0:
            raise ValueError(f"--idle_timeout_s: expected a number above 0, got {self.idle_timeout_s}")
        for name in ("drain_timeout_s", "resume_grace_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"--{name}: expected a number >= 0, got {getattr(self, name)}")
        if not self.snapshot_max_age_s > 0:
            raise ValueError(f"--snapshot_max_age_s: expected a number above 0, got {self.snapshot_max_age_s}")


def run(argv: Sequence[str]) -> int:
    """Run `jat-engine serve`, until SIGTERM or Ctrl-C.

    Returns:
        The exit code.
    """
    model, arguments = parse("serve", "Serve an agent over websockets.", [ModelArguments, ServeArguments], argv)
    arguments.check()
    require_serve_extra()
    check_source("--model_name_or_path", model.model_name_or_path)
    if model.backend == "reference":
        raise ValueError("--backend: expected an engine's, got reference; leave it out")
    sys.setswitchinterval(_SWITCH_SECONDS)
    asyncio.run(_serve(model, arguments))
    return 0


async def _serve(model: ModelArguments, arguments: ServeArguments) -> None:
    from ..engine.engine import JatEngine
    from ..serving.auth import read_keys
    from ..serving.description import describe as describe_server
    from ..serving.requests import Settings, parse_settings
    from ..serving.server import PolicyServer, ServerOptions
    from ..serving.service import PolicyService, ServiceOptions
    from ..serving.snapshots import SnapshotStore

    defaults = Settings() if arguments.task is None else parse_settings({"task": arguments.task})
    options = ServerOptions(
        host=arguments.host,
        port=arguments.port,
        keys=() if arguments.api_key_file is None else read_keys(arguments.api_key_file),
        allow_public=arguments.allow_public,
        drain_timeout_s=arguments.drain_timeout_s,
    )
    limits = ServiceOptions(
        max_sessions=arguments.max_sessions,
        max_queue=arguments.max_queue,
        max_wait_ms=arguments.max_wait_ms,
        idle_timeout_s=arguments.idle_timeout_s,
        defaults=defaults,
        snapshot_every=arguments.snapshot_every,
        resume_grace_s=arguments.resume_grace_s,
    )
    store = None
    if arguments.state_dir is not None:
        store = SnapshotStore(Path(arguments.state_dir).expanduser(), arguments.snapshot_max_age_s)

    hashes: list[str] = []

    def load() -> JatEngine:
        engine_options = {"num_threads": arguments.num_threads, "kv_dtype": arguments.kv_dtype}
        agent, _ = load_agent(model, arguments.max_sessions, **engine_options)
        assert isinstance(agent, JatEngine), "the reference was refused"
        note(describe(agent))
        hashes.append(weights_of(model))
        return agent

    service = PolicyService(load, limits, store=store)
    server = PolicyServer(
        service,
        options,
        lambda: describe_server(
            service.batcher.engine,
            model.model_name_or_path,
            arguments.max_sessions,
            defaults,
            hashes[0] if hashes else None,
        ),
    )
    host = f"[{options.host}]" if ":" in options.host else options.host
    await server.run(lambda: say(f"serving on ws://{host}:{server.port}"))


def require_serve_extra() -> None:
    """Check that the packages of the extra `serve` are installed, without importing them.

    Raises:
        ImportError: names the missing packages and the command that installs them.
    """
    missing = [name for name in _MODULES if util.find_spec(name) is None]
    if missing:
        raise ImportError(f"serving needs {', '.join(missing)}, not installed here; pip install 'jat-engine[serve]'")
