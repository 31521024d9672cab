"""Serve an engine with openpi's own server, from a checkout of it, as the baseline of `benchmarks.serving`.

`python -m benchmarks.serving.openpi_server --openpi PATH --model FOLDER --port N`. openpi's file is run as it is. Its
server calls a policy for one request after the other and has no sessions, so requests name theirs in `client`.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

from jat_engine import AgentSession, JatEngine
from jat_engine.serving.requests import Act, parse_act

SERVER_FILE, CLIENT_FOLDER = "src/openpi/serving/websocket_policy_server.py", "packages/openpi-client/src"


class EnginePolicy:
    """A policy as openpi's server calls it: the sessions of an engine."""

    def __init__(self, engine: JatEngine) -> None:
        self._engine = engine
        self._sessions: dict[int, AgentSession] = {}

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        """Return the actions for an observation with the fields of a request; the first has those of an episode."""
        client = obs.pop("client")
        request: Act = parse_act(obs)
        session = self._sessions.get(client)
        if request.begins:
            if session is not None:
                session.close()
            session = self._sessions[client] = self._engine.open_session(request.settings.window, request.settings.seed)
        assert session is not None, "the client's first request begins an episode"
        settings = request.settings
        action = session.get_next_action(
            **request.observation,
            reward=request.reward,
            action_space=settings.space,
            deterministic=bool(settings.deterministic),
        )
        return {"actions": [action]}

    def reset(self) -> None:
        """Do nothing; openpi's server does not call it."""


def why_not(checkout: Path | None) -> str | None:
    """Return the reason why openpi's server cannot be run; None if it can."""
    if checkout is None:
        return "no checkout of openpi was given (--openpi PATH)"
    missing = [name for name in (SERVER_FILE, CLIENT_FOLDER) if not (checkout / name).exists()]
    return f"{checkout} has no {' and no '.join(missing)}" if missing else None


def main() -> None:
    """Run the server until it is killed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--openpi", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--num_threads", type=int)
    parser.add_argument("--max_cached_tokens", type=int)
    arguments = parser.parse_args()

    sys.path.insert(0, str(arguments.openpi / CLIENT_FOLDER))
    spec = importlib.util.spec_from_file_location("websocket_policy_server", arguments.openpi / SERVER_FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    options = {name: getattr(arguments, name) for name in ("dtype", "num_threads", "max_cached_tokens")}
    engine = JatEngine.from_pretrained(arguments.model, device="cpu", **options)
    module.WebsocketPolicyServer(EnginePolicy(engine), "127.0.0.1", arguments.port).serve_forever()


if __name__ == "__main__":
    main()
