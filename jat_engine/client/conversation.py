"""A client's conversation with a server, in which each step acts once whatever happens to the connection.

Each request has a number. One whose answer does not come is sent again, over another connection, with the same number:
the server then gives the answer that was lost. A server that has ended is replaced by one that goes on from the last
stored snapshot, or from the beginning of the episode: the steps since then, which are kept, are repeated to it with the
actions that were taken.

The conversation is a generator of operations: `RemoteAgent` carries them out with blocking calls, and
`AsyncRemoteAgent` in an event loop.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError, SessionError
from ..serving import codec
from ..serving.errors import OverloadError, ServerError
from .errors import Busy, Lost, ServerLostError
from .operations import Exchange, HangUp, Open, Operation, Pause

Message = dict[str, Any]
Steps = Generator[Operation, Any, Any]

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0
"""Seconds before the second attempt to reach a server, and at most before later ones."""

_CLOSE_SECONDS = 2.0

SESSION_HEADER = "X-Session-Id"
"""Header by which proxies, such as Ray Serve's, route all connections of an agent to the same server. Its value is not
the session's token, since proxies log headers."""

_ERRORS: dict[str, type[Exception]] = {
    "wire": InputError,
    "input": InputError,
    "session": SessionError,
    "overload": OverloadError,
    "fault": ServerError,
}


@dataclass(frozen=True, slots=True)
class Recovery:
    """A step whose answer did not come at once.

    Attributes:
        status: of the session that the server had: "resumed", "restored" from a snapshot, or "new".
        replayed: steps that were repeated to the server.
        seconds: from the loss to the step's answer.
    """

    status: str
    replayed: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ConversationOptions:
    """Addresses and limits of a conversation.

    Attributes:
        urls: of servers with the same model; the next one is tried when one is lost.
        api_key: for all of them; None for none.
        timeout_s: seconds after which an answer is given up and asked for again.
        patience_s: seconds of attempts after which a step fails.
        max_log_bytes: most bytes of steps that are kept.
    """

    urls: tuple[str, ...]
    api_key: str | None
    timeout_s: float
    patience_s: float
    max_log_bytes: int

    def __post_init__(self) -> None:
        for name in ("timeout_s", "patience_s"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise InputError(f"{name}: expected a number of seconds above 0, got {value!r}")
        if not self.urls or not all(isinstance(url, str) for url in self.urls):
            raise InputError(f"url: expected one or several such as ws://127.0.0.1:8000, got {self.urls!r:.200}")

    @staticmethod
    def urls_of(url: str | Sequence[str]) -> tuple[str, ...]:
        """Return one URL, or several, as a tuple. Raises `InputError` if it is neither."""
        if isinstance(url, str):
            return (url,)
        if not isinstance(url, list | tuple):
            raise InputError(f"url: expected one or several such as ws://127.0.0.1:8000, got {url!r:.200}")
        return tuple(url)


@dataclass(slots=True)
class _Step:
    """A step that was asked for.

    Attributes:
        seq: its number.
        frame: the message.
        is_fresh: it begins an episode that needs nothing from before.
        action: that was taken; None until the answer has come.
    """

    seq: int
    frame: bytes
    is_fresh: bool
    action: Any = None


class Conversation:
    """One agent's session, over as many connections as it takes.

    Attributes:
        description: of the server, from its greeting; empty before the first connection.
        recoveries: the newest ones.
        num_repeated: requests that were sent again over another connection.
    """

    def __init__(self, options: ConversationOptions) -> None:
        self.description: Message = {}
        self.recoveries: deque[Recovery] = deque(maxlen=1000)
        self.num_repeated = 0
        self._options = options
        self._token = secrets.token_urlsafe(24)
        self._affinity = secrets.token_hex(8)
        self._url = 0
        self._is_connected = False
        self._done = -1
        self._pending: _Step | None = None
        self._log: deque[_Step] = deque()
        self._log_bytes = 0
        self._status, self._replayed = "", 0

    @property
    def is_unanswered(self) -> bool:
        """True if the last step has got no answer, so that it can be asked for again."""
        return self._pending is not None

    @property
    def num_kept(self) -> int:
        """Steps that are kept, to be repeated to another server."""
        return len(self._log)

    # ---- what an agent does ----------------------------------------------------------------------------------------

    def connect(self) -> Steps:
        """Connect, if that is not done.

        Raises:
            AccessError, InputError: the server refuses the key or the URL.
            ServerLostError: there is no server.
            OverloadError: it has had no room for too long.
        """
        if not self._is_connected:
            yield from self._repeatedly(self._connect)

    def step(self, fields: Message, is_fresh: bool) -> Steps:
        """Ask for a step, and return the server's message.

        Args:
            fields: of the request, without its number.
            is_fresh: it begins an episode, with a seed.

        Raises:
            InputError, SessionError: see `JatEngine.get_next_action`; or the step before has got no answer, and this is
                neither that one again nor a start.
            ServerError: the server has failed; the episode is over.
            AccessError, ServerLostError, OverloadError: see `connect`. The same step can be asked for again.
        """
        step = self._pending
        if step is None or step.frame != _pack(fields, step.seq):
            if step is not None and not is_fresh:
                raise SessionError(
                    "session: expected the step again that has got no answer, or a new episode, got another step; "
                    "reset_rl() starts one"
                )
            seq = self._done + 1 if step is None else step.seq + 1
            step = _Step(seq, _pack(fields, seq), is_fresh)
        if is_fresh:
            self._log.clear()
            self._log_bytes = 0
        self._pending = step

        try:
            message = yield from self._repeatedly(lambda: self._ask(step))
        except (InputError, SessionError, ServerError):
            self._pending = None
            raise
        actions = message["actions"]
        step.action = int(actions[0]) if actions.dtype.kind == "i" else actions[0]
        self._pending, self._done = None, step.seq
        self._keep(step, message.get("snapshot_seq"))
        return message

    def close(self) -> Steps:
        """End the session, if the server can be told, and the connection."""
        if self._is_connected:
            self._is_connected = False
            with contextlib.suppress(Lost):
                yield Exchange(codec.pack({"endpoint": "close"}), _CLOSE_SECONDS)
        yield HangUp()

    # ---- attempts --------------------------------------------------------------------------------------------------

    def _repeatedly(self, attempt: Any) -> Steps:
        """Return what an attempt returns, in as many attempts as there is time for."""
        end = time.monotonic() + self._options.patience_s
        lost_since, pause, self._status, self._replayed = 0.0, _SHORTEST_PAUSE, "", 0
        while True:
            try:
                result = yield from attempt()
            except Lost as lost:
                now = time.monotonic()
                lost_since = lost_since or now
                if lost.is_absent and not self.description:
                    raise ServerLostError(
                        f"url: expected a server at {', '.join(self._options.urls)}, got none ({lost}); start one with "
                        "`jat-engine serve`"
                    ) from None
                seconds = lost.seconds if isinstance(lost, Busy) else None
                seconds = pause * random.uniform(0.5, 1.0) if seconds is None else seconds
                if now + seconds > end:
                    if isinstance(lost, Busy):
                        raise OverloadError(f"server: no room for {self._options.patience_s:g} s; {lost}") from None
                    raise ServerLostError(
                        f"server: expected an answer within {self._options.patience_s:g} s (patience_s), got none; "
                        f"{lost}"
                    ) from None
                pause = min(2 * pause, _LONGEST_PAUSE)
                yield Pause(seconds)
            else:
                if lost_since and self._status:
                    seconds = time.monotonic() - lost_since
                    self.recoveries.append(Recovery(self._status, self._replayed, seconds))
                return result

    def _ask(self, step: _Step) -> Steps:
        """Send a request over a connection that nothing is left to come from, and return the answer."""
        if not self._is_connected:
            yield from self._connect()
            self.num_repeated += 1
        message = yield from self._exchange(step.frame)
        if "error" in message:
            raise _error(message)
        if message.get("seq") != step.seq or not isinstance(message.get("actions"), np.ndarray):
            self._is_connected = False
            raise Lost("the server answered another request")
        return message

    def _exchange(self, frame: bytes) -> Steps:
        """Send a message and return the answer. Until it has come the connection is not used for another one."""
        self._is_connected = False
        answer = yield Exchange(frame, self._options.timeout_s)
        message = _parse(answer)
        self._is_connected = True
        return message

    # ---- connections -----------------------------------------------------------------------------------------------

    def _connect(self) -> Steps:
        """Connect to one of the servers, and let it go on where the last answered step has ended."""
        urls, last = self._options.urls, Lost("")
        for _ in urls:
            yield HangUp()
            try:
                yield from self._connect_to(urls[self._url % len(urls)])
            except Lost as lost:
                last = lost
                self._url += 1
            else:
                return
        raise last

    def _connect_to(self, url: str) -> Steps:
        options = self._options
        headers = {SESSION_HEADER: self._affinity}
        if options.api_key is not None:
            headers["Authorization"] = f"Api-Key {options.api_key}"
        yield Open(url, headers, options.timeout_s)
        try:
            greeting = yield Exchange(None, options.timeout_s)
        except Busy:
            raise
        except Lost as lost:
            raise Lost(f"{url} has not greeted, as the path of another protocol does not ({lost})") from None
        try:
            description = _parse(greeting)
        except Lost:
            description = {}
        if description.get("server") != "jat-engine":
            raise InputError(f"url: expected the policy server of jat-engine, got another one at {url}")
        self.description = description

        steps = self._steps
        since = None if not steps or steps[0].is_fresh else steps[0].seq - 1
        message = yield from self._exchange(codec.pack({"endpoint": "resume", "token": self._token, "seq": since}))
        self._is_connected = False
        if "error" in message:
            raise _error(message)
        status, seq = message.get("status"), message.get("seq")
        if status == "restored":
            self._drop(seq)
        yield from self._catch_up(-1 if seq is None else seq, message.get("reason", ""))
        self._status = str(status)
        self._is_connected = True

    @property
    def _steps(self) -> list[_Step]:
        """Steps that a server may have to take: those that are kept, and the one that is asked for."""
        return [*self._log, *([] if self._pending is None else [self._pending])]

    def _catch_up(self, seq: int, reason: str) -> Steps:
        """Repeat the steps that the server does not have, with the actions that were taken.

        Args:
            seq: number of the last request that the server has carried out.
            reason: why it has no more, if it says so.
        """
        steps = self._steps
        if steps and not steps[0].is_fresh and seq < steps[0].seq - 1:
            raise SessionError(
                "session: expected a server with this episode or a snapshot of it, got one without"
                f"{f' ({reason})' if reason else ''}; reset_rl() starts a new episode"
            )
        for step in self._log:
            if step.seq <= seq:
                continue
            fields = codec.unpack(step.frame)
            fields.pop("return_prediction", None)
            message = yield from self._exchange(codec.pack({**fields, "force_action": step.action}))
            self._is_connected = False
            if "error" in message:
                error = _error(message)
                if isinstance(error, Lost):
                    raise error
                raise SessionError(f"session: expected to repeat this episode to another server, which says: {error}")
            self._replayed += 1

    # ---- steps that are kept ---------------------------------------------------------------------------------------

    def _keep(self, step: _Step, saved_seq: int | None) -> None:
        """Keep a step that was taken, and drop those that a stored snapshot has, or that are too many."""
        self._log.append(step)
        self._log_bytes += len(step.frame)
        if saved_seq is not None:
            self._drop(saved_seq)
        while self._log_bytes > self._options.max_log_bytes:
            self._log_bytes -= len(self._log.popleft().frame)

    def _drop(self, saved_seq: int) -> None:
        while self._log and self._log[0].seq <= saved_seq:
            self._log_bytes -= len(self._log.popleft().frame)


def _pack(fields: Message, seq: int) -> bytes:
    """Return the message of a request. Raises `InputError` if a value cannot be written."""
    try:
        return codec.pack({**fields, "seq": seq})
    except InputError:
        raise
    except (TypeError, ValueError, OverflowError) as error:  # msgpack's, of integers beyond 64 bits
        raise InputError(f"request: expected arrays, numbers and text, got others ({error})") from None


def _parse(frame: Any) -> Message:
    """Return a server's message. Raises `Lost` if it is none."""
    try:
        message = codec.unpack(frame) if isinstance(frame, bytes) else None
    except InputError as error:
        raise Lost(f"the server's answer could not be read: {error}") from None
    if not isinstance(message, dict):
        raise Lost(f"the server's answer could not be read: {frame!r:.80}")
    return message


def _error(message: Message) -> Exception:
    """Return the exception that a message stands for."""
    kind, line = message.get("kind"), str(message["error"])
    if kind == "overload":
        return Busy(line, message.get("retry_after_s"))
    return _ERRORS.get(str(kind), ServerError)(line)
