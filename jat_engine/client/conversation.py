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
import logging
import random
import secrets
import time
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError, SessionError
from ..serving import codec
from ..serving.errors import OverloadError, ServerError
from .errors import Busy, Lost, ServerLostError
from .operations import Exchange, HangUp, Open, Operation, Pause
from .options import ConversationOptions

logger = logging.getLogger(__name__)

Message = dict[str, Any]
Steps = Generator[Operation, Any, Any]

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0
"""Seconds before the second attempt to reach a server, and at most before later ones."""

_CLOSE_SECONDS = 2.0

_QUIET_SECONDS = 1.0
"""Seconds of attempts after which a warning is logged."""

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
        seconds: from when the loss was noticed, `timeout_s` after the request if no answer comes, to the step's answer.
    """

    status: str
    replayed: int
    seconds: float


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
        recoveries: the newest 1,000.
        num_repeated: requests that were sent again over another connection.
    """

    def __init__(self, options: ConversationOptions) -> None:
        self.description: Message = {}
        self.recoveries: deque[Recovery] = deque(maxlen=1000)
        self.num_repeated = 0
        self._options = options
        self._token = secrets.token_urlsafe(24)
        self._affinity = secrets.token_hex(8)
        self._url_index = 0  # of the server to try next, modulo their number
        self._is_idle = False  # connected, and no answer is outstanding
        self._last_answered = -1  # number of a step
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
        if not self._is_idle:
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
            seq = self._last_answered + 1 if step is None else step.seq + 1
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
        self._pending, self._last_answered = None, step.seq
        self._keep(step, _number(message.get("snapshot_seq")))
        return message

    def close(self) -> Steps:
        """End the session, if the server can be told, and the connection."""
        if self._is_idle:
            self._is_idle = False
            with contextlib.suppress(Lost):
                yield Exchange(codec.pack({"endpoint": "close"}), _CLOSE_SECONDS)
        yield HangUp()

    def lose_connection(self) -> None:
        """Let the next request go over another connection."""
        self._is_idle = False

    # ---- attempts --------------------------------------------------------------------------------------------------

    def _repeatedly(self, attempt: Any) -> Steps:
        """Return what an attempt returns, in as many attempts as there is time for."""
        began = time.monotonic()
        end, has_warned = began + self._options.patience_s, False
        lost_since: float | None = None
        pause, self._status, self._replayed = _SHORTEST_PAUSE, "", 0
        while True:
            try:
                result = yield from attempt()
            except Lost as lost:
                now = time.monotonic()
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
                lost_since = now if lost_since is None else lost_since
                if now - began > _QUIET_SECONDS and not has_warned:
                    has_warned = True
                    what = "has no room" if isinstance(lost, Busy) else "was lost"
                    logger.warning("the server %s; trying for %g s: %s", what, self._options.patience_s, lost)
                pause = min(2 * pause, _LONGEST_PAUSE)
                yield Pause(seconds)
            else:
                if lost_since is not None and self._status:
                    recovery = Recovery(self._status, self._replayed, time.monotonic() - lost_since)
                    self.recoveries.append(recovery)
                    if has_warned:
                        logger.warning(
                            "the server is there again after %.1f s: the session is %s, %d steps were repeated",
                            recovery.seconds,
                            recovery.status,
                            recovery.replayed,
                        )
                return result

    def _ask(self, step: _Step) -> Steps:
        """Send a request and return its answer; connect first if the answer to an earlier one may still come."""
        if not self._is_idle:
            yield from self._connect()
            self.num_repeated += 1
        message = yield from self._exchange(step.frame)
        if "error" in message:
            raise _error(message)
        if not _answers(message, step.seq):
            self._is_idle = False
            raise Lost("the server answered another request")
        return message

    def _exchange(self, frame: bytes) -> Steps:
        """Send a message and return the answer. Until it has come the connection is not used for another one."""
        self._is_idle = False
        answer = yield Exchange(frame, self._options.timeout_s)
        message = _parse(answer)
        self._is_idle = True
        return message

    # ---- connections -----------------------------------------------------------------------------------------------

    def _connect(self) -> Steps:
        """Connect to one of the servers, and let it go on where the last answered step has ended."""
        urls, last = self._options.urls, Lost("")
        for _ in urls:
            yield HangUp()
            try:
                yield from self._connect_to(urls[self._url_index % len(urls)])
            except Lost as lost:
                last = lost
                self._url_index += 1
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
            raise Lost(f"{url} sends no greeting; is its path / ? ({lost})") from None
        try:
            description = _parse(greeting)
        except Lost:
            description = {}
        if description.get("server") != "jat-engine":
            raise InputError(f"url: expected the policy server of jat-engine, got another one at {url}")
        self._check_weights(description)
        self.description = description

        steps = self._steps
        since = None if not steps or steps[0].is_fresh else steps[0].seq - 1
        message = yield from self._exchange(codec.pack({"endpoint": "resume", "token": self._token, "seq": since}))
        self._is_idle = False
        if "error" in message:
            raise _error(message)
        status, seq = message.get("status"), _number(message.get("seq"))
        if not isinstance(status, str) or status not in ("resumed", "restored", "new"):
            raise InputError(f"url: expected the path of openpi's protocol, /, got {url}, which speaks another one")
        if status == "restored" and seq is not None:
            self._drop(seq)
        yield from self._catch_up(-1 if seq is None else seq, message.get("reason", ""))
        self._status = str(status)
        self._is_idle = True

    def _check_weights(self, description: Message) -> None:
        """Raise `SessionError` if an episode would go on with other weights than it was begun with."""
        before, is_fresh = self.description, self._pending is not None and self._pending.is_fresh
        same = all(before.get(name) == description.get(name) for name in ("weights_sha256", "dtype"))
        if self._log and not is_fresh and not same:
            raise SessionError(
                f"session: expected a server with the model of this episode, {before.get('model')!s:.80} in "
                f"{before.get('dtype')!s:.20}, got one with other weights, {description.get('model')!s:.80} in "
                f"{description.get('dtype')!s:.20}; reset(seed) starts a new episode"
            )

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
            self._is_idle = False
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
        frame = codec.pack({**fields, "seq": seq})
        if len(frame) > codec.MOST_BYTES:
            raise InputError(f"request: expected at most {codec.MOST_BYTES} bytes with all arrays, got {len(frame)}")
        return frame
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


def _answers(message: Message, seq: int) -> bool:
    """Return True if a message has the action of the step with a number."""
    actions = message.get("actions")
    is_action = isinstance(actions, np.ndarray) and actions.ndim > 0 and len(actions) == 1
    return is_action and _number(message.get("seq")) == seq


def _number(value: Any) -> int | None:
    """Return a number of a step in a server's message; None for none, and for anything else."""
    return value if type(value) is int else None


def _error(message: Message) -> Exception:
    """Return the exception that a message stands for."""
    kind, line = message.get("kind"), str(message["error"])
    if kind == "overload":
        after = message.get("retry_after_s")
        return Busy(line, after if isinstance(after, int | float) else None)
    return _ERRORS.get(str(kind), ServerError)(line)
