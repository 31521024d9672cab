"""`RemoteAgent`: an agent on a server, with the calls of one in this process."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

from websockets.sync.client import ClientConnection, connect

from ..serving.codec import MOST_BYTES
from .operations import Exchange, HangUp, Open, Operation, Pause, translate
from .remote import RemoteAgentBase


class RemoteAgent(RemoteAgentBase):
    """An agent on a server of `jat-engine serve`, in place of a `JatEngine` in this process.

    It has a session of its own on the server. When the connection is lost, or the server ends and another one goes on,
    the episode goes on where it was: each step acts once. With `serve --state_dir` the server that goes on may be
    another one of that folder; without, the client repeats the episode from its beginning. Use an agent from one thread
    at a time.

    Args:
        url: of the server, or several of servers with the same model and `--state_dir`.
        task: published task whose action space and window are used if calls give none.
        seed: of sampling discrete actions, in the first episode and those after it; None for another one in each
            episode.
        api_key: for the server.
        timeout_s: seconds after which an answer is given up and asked for again.
        patience_s: seconds of attempts after which a step fails: while the server is away, loads its model, or has no
            room.
        max_log_bytes: most bytes of steps that are kept to be repeated to another server.

    Raises:
        InputError: an argument is invalid, or the URL is not that of a policy server.
        AccessError: the server refuses the key.
        ServerLostError: there is no server, or it has not answered in time.
        OverloadError: it has had no room for too long.

    Example:
        >>> with RemoteAgent(url, seed=0) as agent:  # url: such as "ws://127.0.0.1:8000"
        ...     observation, _ = env.reset(seed=0)
        ...     reward, is_over = None, False
        ...     while not is_over:
        ...         action = agent.get_next_action(**observation, reward=reward, action_space=env.action_space)
        ...         observation, reward, terminated, truncated, _ = env.step(action)
        ...         is_over = terminated or truncated
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._websocket: ClientConnection | None = None
        self._run(self._conversation.connect())

    def get_next_action(
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
        """Take one step. See `JatEngine.get_next_action` for the arguments and the result.

        Two things differ from an agent in this process: a reward that comes with the first observation of an episode is
        not used, and in the course of an episode `context_window` is at most that of its first step.

        Raises:
            InputError, SessionError: as there; the message is the server's. Or the step before has got no answer, and
                this is another one in the same episode.
            ServerLostError, OverloadError: see the class. The same step can be asked for again.
            ServerError: the server has failed; `reset()` starts a new episode.
        """
        return self._run(
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

    def close(self) -> None:
        """End the session on the server. Closing twice does nothing."""
        if not self.closed:
            self.closed = True
            self._run(self._conversation.close())

    def __enter__(self) -> RemoteAgent:
        self._check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _run(self, steps: Generator[Operation, Any, Any]) -> Any:
        """Carry out a conversation's operations, and return its result."""
        error: Exception | None = None
        result: Any = None
        while True:
            try:
                operation = steps.send(result) if error is None else steps.throw(error)
            except StopIteration as stop:
                return stop.value
            error = result = None
            try:
                result = self._do(operation)
            except Exception as raised:
                error = translate(raised)

    def _do(self, operation: Operation) -> Any:
        if isinstance(operation, Exchange):
            websocket = self._websocket
            assert websocket is not None, "a conversation opens its connection first"
            if operation.frame is not None:
                websocket.send(operation.frame)
            return websocket.recv(operation.seconds)
        if isinstance(operation, Open):
            self._websocket = connect(
                operation.url,
                additional_headers=operation.headers,
                compression=None,
                max_size=MOST_BYTES,
                proxy=operation.proxy,
                open_timeout=operation.seconds,
                close_timeout=1,
                legacy=True,  # a connection, which outlives this call
            )
        elif isinstance(operation, Pause):
            time.sleep(operation.seconds)
        else:
            assert isinstance(operation, HangUp), "one of the operations"
            if self._websocket is not None:
                self._websocket.close()
            self._websocket = None  # not before: an interrupt must not leave it open
        return None
