"""`AsyncRemoteAgent`: an agent on a server, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from ..serving.codec import MOST_BYTES
from .operations import Exchange, HangUp, Open, Operation, Pause, translate
from .remote import RemoteAgentBase


class AsyncRemoteAgent(RemoteAgentBase):
    """An agent on a server, as `RemoteAgent`, whose calls are awaited. Many of them share an event loop.

    The first step connects, or `connect`. Steps of an agent are taken one after the other.

    Args:
        args: see `RemoteAgent`.
        options: see `RemoteAgent`.

    Example:
        >>> async def act(observation):  # url: such as "ws://127.0.0.1:8000"
        ...     async with AsyncRemoteAgent(url, seed=0) as agent:
        ...         return await agent.get_next_action(**observation, action_space=env.action_space)
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._websocket: ClientConnection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = asyncio.Lock()

    async def connect(self) -> None:
        """Connect, if that is not done. Raises what `RemoteAgent` raises when it is made."""
        self._check_open()
        await self._run(self._conversation.connect())

    async def get_next_action(
        self,
        processor: Any = None,
        continuous_observation: Any = None,
        discrete_observation: Any = None,
        text_observation: str | None = None,
        image_observation: Any = None,
        action_space: Any = None,
        reward: float | None = None,
        deterministic: bool = False,
        context_window: int | None = None,
        return_prediction: bool = False,
        *,
        action_mask: Any = None,
        temperature: float | None = None,
        top_k: int | None = None,
        action_clip: str | None = None,
    ) -> Any:
        """Take one step. See `RemoteAgent.get_next_action`; a call that is cancelled can be made again."""
        return await self._run(
            self._act(
                continuous_observation,
                discrete_observation,
                text_observation,
                image_observation,
                action_space,
                reward,
                deterministic,
                context_window,
                return_prediction,
                action_mask,
                temperature,
                top_k,
                action_clip,
            )
        )

    async def close(self) -> None:
        """End the session on the server. Closing twice does nothing."""
        if not self.closed:
            self.closed = True
            await self._run(self._conversation.close())

    async def __aenter__(self) -> AsyncRemoteAgent:
        await self.connect()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def _enter_loop(self) -> None:
        """Leave a connection that belongs to another event loop, as of an earlier `asyncio.run`."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._lock, self._websocket = loop, asyncio.Lock(), None
            self._conversation.lose_connection()

    async def _run(self, steps: Generator[Operation, Any, Any]) -> Any:
        """Carry out a conversation's operations, and return its result."""
        error: Exception | None = None
        result: Any = None
        self._enter_loop()
        async with self._lock:
            while True:
                try:
                    operation = steps.send(result) if error is None else steps.throw(error)
                except StopIteration as stop:
                    return stop.value
                error = result = None
                try:
                    result = await self._do(operation)
                except Exception as raised:
                    error = translate(raised)

    async def _do(self, operation: Operation) -> Any:
        if isinstance(operation, Exchange):
            websocket = self._websocket
            assert websocket is not None, "a conversation opens its connection first"
            async with asyncio.timeout(operation.seconds):
                if operation.frame is not None:
                    await websocket.send(operation.frame)
                return await websocket.recv()
        if isinstance(operation, Open):
            self._websocket = await connect(
                operation.url,
                additional_headers=operation.headers,
                compression=None,
                max_size=MOST_BYTES,
                proxy=operation.proxy,
                open_timeout=operation.seconds,
                close_timeout=1,
            )
        elif isinstance(operation, Pause):
            await asyncio.sleep(operation.seconds)
        else:
            assert isinstance(operation, HangUp), "one of the operations"
            if self._websocket is not None:
                await self._websocket.close()
            self._websocket = None
        return None
