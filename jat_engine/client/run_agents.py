"""Run the agent's side of an evaluation on a server: a session there for each running episode."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Hashable, Iterable, Sequence
from typing import Any

from ..envs import Task
from ..runs.agents import ActOptions
from ..runs.slots import Observed
from .async_agent import AsyncRemoteAgent


class RemoteAgents:
    """Sessions of a server, which takes the steps of all together; see `jat_engine.runs.agents.Agents`.

    The connections belong to a thread of its own, which the end of a `with` block ends.

    Attributes:
        seconds: spent in `act`, with the way to the server and back.
        steps: actions that were asked for.

    Args:
        url: of the server.
        api_key: for it; None for none.
        options: of the choice of actions.
        max_sessions: of the server.
    """

    def __init__(self, url: str, api_key: str | None, options: ActOptions, max_sessions: int) -> None:
        self.seconds, self.steps = 0.0, 0
        self._url, self._api_key, self._options, self._max_sessions = url, api_key, options, max_sessions
        self._agents: dict[Hashable, tuple[AsyncRemoteAgent, Task]] = {}
        self._spaces: dict[Hashable, Any] = {}
        self._loop, self._ended = asyncio.new_event_loop(), asyncio.Event()
        self._thread = threading.Thread(target=self._run_loop, name="jat-engine connections", daemon=True)
        self._thread.start()

    def __enter__(self) -> RemoteAgents:
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the sessions that are open, and end the thread and its event loop."""
        agents = [agent for agent, _ in self._agents.values()]
        self._agents.clear()
        try:
            if agents:
                self._run(_close_all(agents))
        finally:
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join()

    def room(self, tasks: Iterable[Task]) -> int | None:
        """Return how many sessions the server opens at most."""
        return self._max_sessions

    def open(self, key: Hashable, task: Task, seed: int) -> None:
        """Begin an episode; the server opens its session with the first step."""
        self.close(key)
        self._agents[key] = AsyncRemoteAgent(self._url, seed=seed, api_key=self._api_key), task

    def close(self, key: Hashable) -> None:
        """Close the session of an episode."""
        agent, _ = self._agents.pop(key, (None, None))
        if agent is not None:
            self._run(agent.close())

    def act(self, keys: Sequence[Hashable], observed: Sequence[Observed]) -> list[Any]:
        """Return an action for each episode, or the exception for those that none can be chosen for."""
        began = time.perf_counter()
        for key, one in zip(keys, observed, strict=True):
            if one.action_space is not None:
                self._spaces[key] = one.action_space
        actions: list[Any] = self._run(self._act_all(keys, observed))
        self.seconds += time.perf_counter() - began
        self.steps += len(keys)
        return actions

    async def _act_all(self, keys: Sequence[Hashable], observed: Sequence[Observed]) -> list[Any]:
        steps = (self._act(key, one) for key, one in zip(keys, observed, strict=True))
        return await asyncio.gather(*steps, return_exceptions=True)

    async def _act(self, key: Hashable, one: Observed) -> Any:
        (agent, task), space, options = self._agents[key], self._spaces[key], self._options
        given: dict[str, Any] = (
            {"temperature": options.temperature, "top_k": options.top_k, "action_mask": one.action_mask}
            if hasattr(space, "n")
            else {"action_clip": options.action_clip}
        )
        return await agent.get_next_action(
            **one.observation,
            reward=one.reward,
            action_space=space,
            deterministic=options.deterministic,
            context_window=task.context_window,
            **given,
        )

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _run_loop(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # cancels what still runs, and closes the loop
            runner.run(self._ended.wait())


async def _close_all(agents: Iterable[AsyncRemoteAgent]) -> None:
    """Close agents, whatever becomes of the others."""
    await asyncio.gather(*(agent.close() for agent in agents), return_exceptions=True)
