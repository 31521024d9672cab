"""Command `jat-engine serve`: serve an agent to robots and evaluators."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..checkpoint.trained_tasks import TrainedTask, as_trained, read_trained_tasks, to_json
from ..dtypes import KV_DTYPES
from ..envs import TASKS, MissingSimulatorError, Task, TaskError, UnknownTaskError, get_task
from ..errors import InputError
from ..runs.settings import machine_settings
from .agent import (
    check_source,
    describe,
    load_agent,
    settings_of,
    weights_of,
    with_absolute_paths,
)
from .arguments import ModelArguments, note, parse
from .served_tasks import TASKS_PATH
from .streams import say

if TYPE_CHECKING:
    from ..engine.engine import JatEngine
    from ..serving.http import Page
    from ..serving.server import PolicyServer, ServerOptions
    from ..serving.service import PolicyService, ServiceOptions
    from ..serving.snapshots import SnapshotStore

SWITCH_SECONDS = 5e-4
"""Interpreter's switch interval, for which the event loop may delay the engine's thread; Python's default is 5 ms."""

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
    reset_reply: str | None = field(
        default=None,
        metadata={
            "help": "answer to a reset (default: text on /, as RoboArena has it, and msgpack on vllm-omni's path)",
            "choices": ["text", "msgpack"],
        },
    )
    allowed_origins: list[str] = field(
        default_factory=list,
        metadata={"help": "web pages that browsers may connect for, besides the server's own; * for all"},
    )
    state_dir: str | None = field(
        default=None,
        metadata={"help": "folder for snapshots of sessions, from which a server goes on after another's end"},
    )
    snapshot_every: int = field(default=64, metadata={"help": "steps of a session between two snapshots"})
    snapshot_max_age_s: float = field(
        default=86400.0, metadata={"help": "remove snapshots that are older, of clients that did not come back"}
    )
    state_max_gb: float = field(
        default=10.0, metadata={"help": "most gigabytes of --state_dir; the oldest snapshots make room for new ones"}
    )
    resume_grace_s: float = field(
        default=30.0,
        metadata={"help": "time that a session waits for another connection of a client that asks for it"},
    )
    demo_environments: int = field(
        default=0,
        metadata={
            "help": "let viewers of the page watch the agent play in environments of this machine, so many at a time "
            "(4 without a number)",
            "nargs": "?",
            "const": 4,
        },
    )
    record: str | None = field(
        default=None, metadata={"help": "folder to write the steps of all sessions to, for jat-engine replay"}
    )
    record_max_gb: float = field(default=10.0, metadata={"help": "most gigabytes that --record writes"})

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
        for name in ("record_max_gb", "state_max_gb", "idle_timeout_s", "snapshot_max_age_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name}: expected a finite number above 0, got {getattr(self, name)}")
        if self.demo_environments < 0:
            raise ValueError(f"--demo_environments: expected at least 0, got {self.demo_environments}")
        if not 0 <= self.max_wait_ms <= 1:
            raise ValueError(f"--max_wait_ms: expected 0 to 1, got {self.max_wait_ms}")
        for name in ("drain_timeout_s", "resume_grace_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"--{name}: expected a number >= 0, got {getattr(self, name)}")


def run(argv: Sequence[str]) -> int:
    """Run `jat-engine serve`, until SIGTERM or Ctrl-C.

    Returns:
        The exit code.
    """
    model, arguments = parse("serve", "Serve an agent over websockets.", [ModelArguments, ServeArguments], argv)
    check(model, arguments)
    sys.setswitchinterval(SWITCH_SECONDS)
    asyncio.run(_serve(model, arguments))
    return 0


def check(model: ModelArguments, arguments: ServeArguments) -> None:
    """Check a command line, without loading anything.

    Raises:
        ValueError: a value is out of range, or there is no such checkpoint.
        ImportError: the extra `serve` is not installed.
    """
    arguments.check()
    require_serve_extra()
    check_source("--model_name_or_path", model.model_name_or_path)
    if model.backend == "reference":
        raise ValueError("--backend: expected an engine's, got reference; leave it out")


def make_server(
    model: ModelArguments, arguments: ServeArguments, about: Mapping[str, Any] = MappingProxyType({})
) -> tuple[PolicyServer, Callable[[], dict[str, Any]]]:
    """Return a server that has not been started, and the function that describes it.

    Args:
        model: that it loads when it is started.
        arguments: address and limits.
        about: further fields of the description.

    Raises:
        ValueError: the address needs a key, or a file or folder cannot be used.
    """
    from ..engine.engine import JatEngine
    from ..serving.description import describe as describe_server
    from ..serving.dialects import DIALECTS, dialects_with
    from ..serving.http import json_page
    from ..serving.server import PolicyServer
    from ..serving.service import PolicyService

    limits = _service_options(arguments)
    weights: str | None = None
    trained: list[TrainedTask] = []

    def load() -> JatEngine:
        nonlocal weights
        engine_options = {"num_threads": arguments.num_threads, "kv_dtype": arguments.kv_dtype}
        agent, _ = load_agent(model, arguments.max_sessions, **engine_options)
        assert isinstance(agent, JatEngine), "the reference was refused"
        note(describe(agent))
        weights = weights_of(model)
        trained.extend(read_trained_tasks(model.model_name_or_path, {"cache_dir": model.cache_dir}))
        _freeze_loaded_objects()
        return agent

    def describe_now() -> dict[str, Any]:
        source, most = model.model_name_or_path, arguments.max_sessions
        description = describe_server(service.batcher.engine, source, most, limits.defaults, weights)
        return {**description, **about}

    service = PolicyService(load, limits, store=_snapshot_store(arguments))
    dialects = DIALECTS if arguments.reset_reply is None else dialects_with(arguments.reset_reply)
    server = PolicyServer(service, _server_options(arguments), describe_now, dialects)

    async def show_tasks() -> Page:
        return json_page({"tasks": to_json(trained)})

    server.pages.routes[TASKS_PATH] = show_tasks
    return server, describe_now


def _server_options(arguments: ServeArguments) -> ServerOptions:
    from ..serving.auth import read_keys
    from ..serving.origins import parse_origins
    from ..serving.server import ServerOptions

    return ServerOptions(
        host=arguments.host,
        port=arguments.port,
        keys=() if arguments.api_key_file is None else read_keys(arguments.api_key_file),
        allow_public=arguments.allow_public,
        allowed_origins=parse_origins(arguments.allowed_origins),
        drain_timeout_s=arguments.drain_timeout_s,
    )


def _service_options(arguments: ServeArguments) -> ServiceOptions:
    from ..serving.requests import Settings, parse_settings
    from ..serving.service import ServiceOptions

    try:
        defaults = Settings() if arguments.task is None else parse_settings({"task": arguments.task})
    except InputError as error:
        message = str(error).removesuffix("; give action_space")  # which is for requests
        raise ValueError(f"--{message}") from None
    return ServiceOptions(
        max_sessions=arguments.max_sessions,
        max_queue=arguments.max_queue,
        max_wait_ms=arguments.max_wait_ms,
        idle_timeout_s=arguments.idle_timeout_s,
        defaults=defaults,
        snapshot_every=arguments.snapshot_every,
        resume_grace_s=arguments.resume_grace_s,
    )


def _snapshot_store(arguments: ServeArguments) -> SnapshotStore | None:
    from ..serving.snapshots import SnapshotStore

    if arguments.state_dir is None:
        return None
    folder = Path(arguments.state_dir).expanduser()
    return SnapshotStore(folder, arguments.snapshot_max_age_s, int(arguments.state_max_gb * 1e9))


async def _serve(model: ModelArguments, arguments: ServeArguments) -> None:
    from ..serving.demo import Demo
    from ..serving.page import add_page
    from ..serving.record import Recorder

    server, describe_now = make_server(model, arguments)
    service, options = server.service, server.options
    demo = None
    if arguments.demo_environments:
        demo = Demo(service, offered_tasks(model), arguments.demo_environments, options.keys)
    add_page(server, describe_now, demo)
    recorder = None
    if arguments.record is not None:
        about = recorded_settings(model) | {"kv_dtype": arguments.kv_dtype}
        limit = int(arguments.record_max_gb * 1e9)
        recorder = Recorder(Path(arguments.record), limit, lambda: about | settings_of(_engine(service)))
        service.observers.append(recorder)

    host = f"[{options.host}]" if ":" in options.host else options.host
    try:
        await server.run(
            lambda: say(f"serving on ws://{host}:{server.port}"),
            lambda count: note(
                f"ending: {count} sessions may go on for up to {options.drain_timeout_s:g} s (--drain_timeout_s); a "
                "second signal ends them now"
            ),
        )
    finally:
        if recorder is not None:
            await asyncio.to_thread(recorder.close)


def _freeze_loaded_objects() -> None:
    """Exclude the objects of the modules and the engine from garbage collections.

    Connections end as reference cycles, some with megabytes of an unfinished message. Python starts the full collection
    that frees them only when the number of objects has grown by a quarter. Without the 300,000 permanent ones it starts
    after tens of connections, and takes milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.collect()


def offered_tasks(model: ModelArguments) -> list[Task]:
    """Return the tasks that viewers can watch: those that the checkpoint was trained on; all published ones otherwise.

    Tasks that are not known here are left out.
    """
    trained, tasks = read_trained_tasks(model.model_name_or_path, {"cache_dir": model.cache_dir}), []
    for name in [one.name for one in trained] or TASKS:
        with contextlib.suppress(MissingSimulatorError, TaskError, UnknownTaskError):
            tasks.append(as_trained(get_task(name), trained))
    return tasks


def recorded_settings(model: ModelArguments) -> dict[str, Any]:
    """Return the settings of a server on which its agents' actions depend, and where its checkpoint is."""
    return {
        "model": with_absolute_paths(model).model_name_or_path,
        "weights_sha256": weights_of(model),
        **machine_settings(),
    }


def _engine(service: PolicyService) -> JatEngine:
    engine = service.batcher.engine
    assert engine is not None, "it takes a step"
    return engine


def require_serve_extra() -> None:
    """Check that the packages of the extra `serve` are installed, without importing them.

    Raises:
        ImportError: names the missing packages and the command that installs them.
    """
    missing = [name for name in _MODULES if util.find_spec(name) is None]
    if missing:
        raise ImportError(f"serving needs {', '.join(missing)}, not installed here; pip install 'jat-engine[serve]'")
