"""Play for viewers: a browser chooses a task, and watches the agent act in an environment of the server.

A viewer's websocket begins with a message `{"key": ...}`. Then `{"play": task, "seed": n}` plays episodes with the
seeds n, n + 1, ..., one after another, until the next message: `{"pause": true}`, `{"pause": false}`, `{"stop": true}`
or another `play`. The server sends a message about each state, and the frame after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
from collections.abc import Sequence
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from ..envs import Task
from ..errors import InputError
from .auth import is_allowed
from .close_codes import POLICY_VIOLATION, TRY_AGAIN_LATER
from .environments import Environment, EnvironmentFailedError, State
from .errors import kind_of, message_of
from .requests import Act, Close, Reply, Settings
from .service import PolicyService

logger = logging.getLogger(__name__)

_KEY_SECONDS = 10.0
"""Longest that a viewer's first message, with its key, may take."""

_END_SECONDS = 1.5
"""Seconds for which the end of an episode is shown before the next one begins."""

_MOST_VIEWERS = 64
_MOST_SEED = 2**53 - 1
"""The largest integer up to which a browser's numbers are exact."""


class DemoOwner:
    """Owner of a demonstration's session.

    Attributes:
        is_demo: by which a view of the sessions knows those of demonstrations.
    """

    is_demo = True


class Demo:
    """Play of tasks for viewers, each in an environment of its own.

    Attributes:
        tasks: name -> task that a viewer can choose.
        max_environments: most that are played at the same time.
        num_environments: that are played now.
    """

    def __init__(
        self, service: PolicyService, tasks: Sequence[Task], max_environments: int, keys: tuple[str, ...] = ()
    ) -> None:
        """Offer tasks.

        Args:
            service: whose agent plays; each environment takes one of its sessions.
            tasks: to choose from.
            max_environments: most at a time.
            keys: of viewers; none for everyone.
        """
        self.tasks, self.max_environments, self.num_environments = {t.name: t for t in tasks}, max_environments, 0
        self._service, self._keys, self._num_viewers = service, keys, 0

    def describe(self) -> dict[str, Any]:
        """Return what a page needs, as JSON values."""
        return {
            "demo": {
                "tasks": [{"name": task.name, "domain": task.domain} for task in self.tasks.values()],
                "most": self.max_environments,
                "playing": self.num_environments,
            }
        }

    async def serve(self, websocket: ServerConnection) -> None:
        """Serve a viewer until it leaves."""
        self._num_viewers += 1
        try:
            if self._num_viewers > _MOST_VIEWERS:
                await websocket.close(TRY_AGAIN_LATER, "too many viewers")
            elif await self._has_key(websocket):
                await _Viewer(self, self._service, websocket).serve()
        except ConnectionClosed:
            return
        except Exception:
            logger.exception("a viewer's connection failed")
        finally:
            self._num_viewers -= 1

    async def _has_key(self, websocket: ServerConnection) -> bool:
        """Receive the first message. Returns False if it has no valid key, and closes the connection."""
        try:
            key = _read(await asyncio.wait_for(websocket.recv(), _KEY_SECONDS)).get("key")
        except (TimeoutError, InputError):
            key = None
        if is_allowed(f"Bearer {key}" if isinstance(key, str) else None, self._keys):
            return True
        await websocket.close(POLICY_VIOLATION, "expected a valid key, got none")
        return False


class _Viewer:
    """A viewer, and the task that it watches."""

    def __init__(self, demo: Demo, service: PolicyService, websocket: ServerConnection) -> None:
        self._demo, self._service, self._websocket = demo, service, websocket
        self._going = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """Do what the viewer's messages say, until it leaves."""
        try:
            async for frame in self._websocket:
                try:
                    await self._follow(_read(frame))
                except InputError as error:
                    await self._say({"error": message_of(error)})
        finally:
            await self._stop()

    async def _follow(self, message: dict[str, Any]) -> None:
        """Do what a message says. Raises `InputError`."""
        if "play" in message:
            name, seed = message["play"], message.get("seed")
            task = self._demo.tasks.get(name) if isinstance(name, str) else None
            if task is None:
                raise InputError(f"play: expected one of the offered tasks, got {name!r:.80}")
            if seed is None:
                seed = secrets.randbelow(10**6)
            if type(seed) is not int or not 0 <= seed <= _MOST_SEED:
                raise InputError(f"seed: expected an integer in [0, 2^53), got {seed!r:.80}")
            await self._stop()
            self._going.set()
            self._running = asyncio.create_task(self._run(task, seed))
        elif "pause" in message:
            self._going.clear() if message["pause"] else self._going.set()
        elif "stop" in message:
            await self._stop()
            await self._say({"state": "stopped"})
        else:
            raise InputError(f"message: expected play, pause or stop, got {', '.join(map(str, message))!r:.80}")

    async def _stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
            self._running = None

    async def _run(self, task: Task, seed: int) -> None:
        """Play a task until this is cancelled, or something fails."""
        demo, owner = self._demo, DemoOwner()
        if demo.num_environments >= demo.max_environments:
            most = demo.max_environments
            await self._say({"error": f"the server plays {most} environments already, its most; try it later"})
            return
        demo.num_environments += 1
        environment = Environment(task)
        try:
            await self._say({"state": "loading", "task": task.name})
            while True:
                await self._play(environment, owner, task, seed)
                seed += 1
                await asyncio.sleep(_END_SECONDS)
        except ConnectionClosed:
            return
        except EnvironmentFailedError as error:
            await self._say({"error": str(error)})
        except Exception as error:
            if kind_of(error) == "fault":
                logger.error("a demonstration failed", exc_info=error)
            await self._say({"error": message_of(error)})
        finally:
            demo.num_environments -= 1
            environment.close()
            await self._service.drop(owner)

    async def _play(self, environment: Environment, owner: DemoOwner, task: Task, seed: int) -> None:
        """Play an episode, as slowly as an eye can follow. It is that of `jat-engine play` with the same seed."""
        state, step, return_ = await environment.reset(seed), 0, 0.0
        settings = Settings(task.name, state.space, task.context_window, seed, deterministic=False)
        loop, session_id = asyncio.get_running_loop(), f"watch {task.name}"[:128]
        due = loop.time()
        about = {"task": task.name, "seed": seed, "steps_per_second": state.steps_per_second}
        await self._show(state, about | {"step": 0, "return": 0.0})

        while not state.is_end:
            await self._going.wait()
            act = Act(state.observation, state.reward, settings, begins=step == 0, session_id=session_id)
            reply = await self._service.answer(owner, act)
            assert isinstance(reply, Reply), "an Act has a reply"
            state = await environment.step(reply.action)
            step, return_ = step + 1, return_ + (state.reward or 0.0)
            due = max(due + 1 / state.steps_per_second, loop.time())
            await asyncio.sleep(due - loop.time())
            latency_ms = (reply.queue_s + reply.step_s) * 1000
            found = {"step": step, "return": return_, "action": reply.action, "latency_ms": round(latency_ms, 3)}
            await self._show(state, about | found)
        await self._service.answer(owner, Close(session_id))

    async def _show(self, state: State, about: dict[str, Any]) -> None:
        text = state.observation.get("text_observation")
        about |= {"state": "ended" if state.is_end else "playing", "text": None if text is None else str(text)}
        await self._say(about)
        await self._websocket.send(state.frame)

    async def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self._websocket.send(json.dumps(message))


def _read(frame: str | bytes) -> dict[str, Any]:
    """Return a viewer's message. Raises `InputError`."""
    try:
        message = json.loads(frame) if isinstance(frame, str) and len(frame) <= 4096 else None
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise InputError("message: expected a JSON object, got something else")
    return message
