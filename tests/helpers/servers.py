"""Policy servers for tests: one in a thread of this process, with real connections."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from helpers.engines import EPISODE
from jat_engine import JatEngine
from jat_engine.serving.description import describe
from jat_engine.serving.requests import Settings
from jat_engine.serving.server import PolicyServer, ServerOptions
from jat_engine.serving.service import PolicyService, ServiceOptions
from jat_engine.serving.snapshots import SnapshotStore
from jat_engine.serving.spaces import describe_space
from jat_engine.testing import golden

MODALITIES = ("continuous_cw9", "continuous_discrete_action", "image_greedy", "babyai_sampled")


class RunningServer:
    """A server whose event loop runs in a thread.

    Attributes:
        server: to look into, from its own thread only; see `call`.
        port: that it listens on.
    """

    def __init__(
        self,
        load: Callable[[], JatEngine],
        limits: ServiceOptions,
        options: ServerOptions,
        on_port: Callable[[int], None],
        store: SnapshotStore | None = None,
    ) -> None:
        self.service = PolicyService(load, limits, store=store)
        self.server = PolicyServer(
            self.service,
            options,
            lambda: describe(self.service.batcher.engine, "tiny", limits.max_sessions, limits.defaults),
        )
        self._started, self._on_port = threading.Event(), on_port
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._started.wait(120)
        if self._error is not None:
            raise self._error
        self.port = self.server.port
        self.url = f"ws://127.0.0.1:{self.port}"

    def _run(self) -> None:
        async def serve() -> None:
            self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
            try:
                starting = asyncio.create_task(self.server.start())
                while not (self.server.is_listening or starting.done()):
                    await asyncio.sleep(0.01)
                if not starting.done():
                    self._on_port(self.server.port)
                await starting
            except BaseException as error:
                self._error = error
                return
            finally:
                self._started.set()
            await self._end.wait()
            await self.server.stop()

        asyncio.run(serve())

    def call(self, function: Callable[[], Any]) -> Any:
        """Return the result of a function, or of the coroutine that it returns, in the server's thread."""

        async def run() -> Any:
            result = function()
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(120)

    def stop(self) -> None:
        """Stop the server, and wait for its thread."""
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(120)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def running_server(
    load: Callable[[], JatEngine],
    on_port: Callable[[int], None] = lambda port: None,
    store: SnapshotStore | None = None,
    **fields: Any,
) -> Iterator[RunningServer]:
    """Run a server with fields of `ServiceOptions` and `ServerOptions`; `on_port` is called when it listens."""
    names = set(ServiceOptions.__dataclass_fields__)
    limits = ServiceOptions(**{name: value for name, value in fields.items() if name in names})
    options = {"port": 0, "drain_timeout_s": 5.0} | {k: v for k, v in fields.items() if k not in names}
    server = RunningServer(load, limits, ServerOptions(**options), on_port, store)
    try:
        yield server
    finally:
        server.stop()


def request_of(episode: golden.Episode, t: int) -> dict[str, Any]:
    """Return the fields of a request for step t of a golden episode."""
    return {
        **episode.observation(t),
        "reward": episode.reward(t),
        "action_space": describe_space(episode.space),
        "deterministic": episode.deterministic,
        "context_window": episode.context_window,
        "seed": episode.seed,
    }


def lone_actions(engine: JatEngine, episode: golden.Episode, steps: int | None = None) -> list[Any]:
    """Return the actions of a golden episode that an agent alone takes."""
    with engine.open_session(episode.context_window, episode.seed) as session:
        return [
            session.get_next_action(
                **episode.observation(t),
                action_space=episode.space,
                reward=episode.reward(t),
                deterministic=episode.deterministic,
            )
            for t in range(episode.steps if steps is None else min(steps, episode.steps))
        ]


__all__ = ["EPISODE", "MODALITIES", "Settings", "lone_actions", "request_of", "running_server"]
