"""Deploy the policy server with Ray Serve: replicas on the machines of a cluster, which keep their sessions.

    serve run jat_engine.ray_serve:build model_name_or_path=jat-mini num_replicas=2 state_dir=/shared/sessions

Each replica is a whole policy server with an engine of its own, behind the port of Ray Serve's proxies. The header
`X-Session-Id` of a connection chooses its replica, by Ray's `ConsistentHashRouter`; `jat_engine.client.RemoteAgent`
sends one. Connections without it are spread over the replicas. When a replica goes, the agents that it had connect to
another one, which restores them from their snapshots in `state_dir`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

try:
    import ray
    from ray import serve
except ImportError as error:
    raise ImportError(
        f"jat_engine.ray_serve needs {error.name}, not installed here; pip install 'jat-engine[ray,serve]'"
    ) from error

from .cli.arguments import ModelArguments, parse
from .cli.serve import SWITCH_SECONDS, ServeArguments, check, make_server
from .errors import InputError
from .serving.asgi import AsgiApp

DEPLOYMENT = "PolicyServer"
"""Name of the deployment, under which a configuration of Ray Serve sets its options."""

_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"

_NOT_HERE = ("host", "port", "demo_environments", "record", "record_max_gb")
"""Flags of `jat-engine serve` that need a server with a port of its own."""


@dataclass
class ReplicaArguments:
    """Arguments of `build` for the replicas."""

    num_replicas: int = field(default=1, metadata={"help": "number of replicas"})
    num_cpus: float = field(default=1.0, metadata={"help": "cores of each, and its engine's threads"})
    num_gpus: float = field(default=0.0, metadata={"help": "GPUs of each"})

    def check(self) -> None:
        """Check the values.

        Raises:
            InputError: a value is out of range.
        """
        if self.num_replicas < 1:
            raise InputError(f"num_replicas: expected at least 1, got {self.num_replicas}")
        for name in ("num_cpus", "num_gpus"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}: expected a number >= 0, got {getattr(self, name)}")


def build(args: Mapping[str, Any]) -> serve.Application:
    """Return the application, for `serve run`, the `import_path` of a configuration, or `serve.run`.

    Args:
        args: flags of `jat-engine serve` by name, except `host`, `port`, `record` and `demo_environments`, and those of
            `ReplicaArguments`. Ray Serve has the port, which may be public: `api_key_file` is needed, or
            `allow_public`. Files and folders are those of the replicas' machines.

    Raises:
        InputError: an argument is unknown or invalid.
    """
    model, arguments, replicas = _read(args)

    def build_app() -> AsgiApp:
        return make_app(model, arguments)

    deploy = serve.deployment(
        name=DEPLOYMENT,
        num_replicas=replicas.num_replicas,
        ray_actor_options={"num_cpus": replicas.num_cpus, "num_gpus": replicas.num_gpus},
        max_ongoing_requests=arguments.max_sessions,  # a connection is one; those beyond go to another replica
        graceful_shutdown_timeout_s=arguments.drain_timeout_s,
        request_router_config={"request_router_class": _ROUTER},
    )
    return deploy(serve.ingress(build_app)()).bind()


def make_app(model: ModelArguments, arguments: ServeArguments) -> AsgiApp:
    """Return a replica's server. It tells clients the replica's identifier, as `replica`."""
    if arguments.num_threads is None:
        cores = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        arguments = replace(arguments, num_threads=max(1, int(cores)))
    sys.setswitchinterval(SWITCH_SECONDS)
    about = {"replica": serve.get_replica_context().replica_tag}
    server, _ = make_server(model, arguments, about)
    return AsgiApp(server)


def _read(args: Mapping[str, Any]) -> tuple[ModelArguments, ServeArguments, ReplicaArguments]:
    types = (ModelArguments, ServeArguments, ReplicaArguments)
    known = [one.name for kind in types for one in fields(kind) if one.name not in _NOT_HERE]
    for name in args:
        if name not in known:
            raise InputError(f"args: expected names of {', '.join(known)}, got {name!r:.80}")
    if "model_name_or_path" not in args:
        raise InputError("model_name_or_path: expected a folder of a checkpoint, its name on the hub, or jat-mini")

    flags = []
    for name, value in args.items():
        if isinstance(value, list | tuple):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={value}")
    try:  # the proxies' address is not known here
        model, arguments, replicas = parse("serve", "", types, [*flags, "--host=0.0.0.0"])
    except SystemExit:  # the parser has written why
        raise InputError(f"args: expected values of `jat-engine serve`, got {dict(args)!r:.400}") from None
    check(model, arguments)
    replicas.check()
    if arguments.api_key_file is None and not arguments.allow_public:
        raise InputError(
            "api_key_file: expected a file with keys, since others may reach Ray Serve's port, got none; or give "
            "allow_public=true to let everyone in"
        )
    return model, arguments, replicas
