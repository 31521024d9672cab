"""The live view of a service: its sessions with their last observations, its latencies and batch sizes, as JSON."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError
from .errors import OverloadError
from .requests import Act, Reply
from .service import PolicyService
from .sessions import ServedSession

MOST_SHOWN = 48
"""Most sessions that a status describes one by one."""

_RECENT_STEPS, _RECENT_STEPS_OF_SESSION = 4096, 256
"""Steps that percentiles are of: of all sessions, and of one."""

_MOST_VALUES, _MOST_CHARACTERS, _MOST_ACTION_VALUES = 400, 160, 32
"""Numbers and characters of an observation, and numbers of an action, that are shown."""

_MOST_PIXELS = 512
"""Width and height of the largest picture that is shown."""

_LIFETIME_S = 0.25
"""Seconds for which a status is used again."""

_PERCENTILES = (50, 90, 99)


@dataclass(slots=True)
class _Seen:
    """Last step of a session, and the times of its recent ones.

    Attributes:
        is_demo: an environment of the server plays it.
        observation: by `OBSERVATION_KEYS`, with texts cut; empty before the first step.
        action: that was chosen; None before the first step.
        seconds: that recent steps took, with their wait.
        picture: data URI of the observation's picture, once it has been drawn.
    """

    is_demo: bool
    observation: Mapping[str, Any] = field(default_factory=dict)
    action: list[float] | int | None = None
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT_STEPS_OF_SESSION))
    picture: str | None = None


class Watch:
    """Observer of a service that describes what its sessions do.

    All methods belong to the event loop; pictures are encoded in another thread. However many viewers there are, a
    status is made at most four times a second.

    Attributes:
        extra: returns further fields of a status, as JSON values.
    """

    def __init__(self, service: PolicyService, describe: Callable[[], dict[str, Any]]) -> None:
        """Begin to watch.

        Args:
            service: to add this observer to.
            describe: returns the server's description, as JSON values.
        """
        self._service, self._describe = service, describe
        self._began = time.monotonic()
        self._seen: dict[ServedSession, _Seen] = {}
        self._recent: deque[tuple[float, float, int]] = deque(maxlen=_RECENT_STEPS)
        self._num_steps = self._num_episodes = 0
        self._made: tuple[float, bytes] | None = None
        self._making = asyncio.Lock()
        self.extra: Callable[[], dict[str, Any]] = dict
        service.observers.append(self)

    # ---- observer --------------------------------------------------------------------------------------------------

    def on_start(self, session: ServedSession) -> None:
        """Count an episode."""
        self._num_episodes += 1

    def on_restore(self, session: ServedSession, snapshot: bytes) -> None:
        """Do nothing: the episode has been counted where it began."""

    def on_step(self, session: ServedSession, request: Act, reply: Reply) -> None:
        """Keep the step as the session's last one."""
        seen = self._seen.get(session)
        if seen is None:
            seen = self._seen[session] = _Seen(getattr(session.owner, "is_demo", False))
        observation, text = request.observation, request.observation.get("text_observation")
        if text is not None and len(str(text)) > _MOST_CHARACTERS:
            observation = {**observation, "text_observation": str(text)[:_MOST_CHARACTERS]}
        seen.observation, seen.action, seen.picture = observation, reply.action, None
        seen.seconds.append(reply.queue_s + reply.step_s)
        self._recent.append((reply.queue_s, reply.step_s, reply.batch))
        self._num_steps += 1

    def on_close(self, session: ServedSession) -> None:
        """Forget a session."""
        self._seen.pop(session, None)

    # ---- status ----------------------------------------------------------------------------------------------------

    async def status(self) -> bytes:
        """Return the status as JSON, UTF-8; one that is not older than a quarter of a second."""
        async with self._making:
            now = time.monotonic()
            if self._made is None or now - self._made[0] > _LIFETIME_S:
                status = await self._status()
                body = await asyncio.get_running_loop().run_in_executor(None, _encode, status)
                self._made = now, body
            return self._made[1]

    async def _status(self) -> dict[str, Any]:
        service = self._service
        try:
            stats = await service.cache_stats()
            pages = {name: int(getattr(stats, name)) for name in ("total", "used", "free", "reserved")}
        except (OverloadError, InputError):  # still loading, or at the end
            pages = {}
        await self._draw()
        waits, steps, batches = zip(*self._recent, strict=True) if self._recent else ((), (), ())
        sizes: Counter[int] = Counter(batches)  # a batch of n sessions is counted n times
        return {
            "server": self._describe(),
            "uptime_s": round(time.monotonic() - self._began, 1),
            "not_ready": None if service.is_ready else service.why_not_ready,
            "num_sessions": len(service.sessions),
            "sessions": [self._session(s) for s in sorted(service.sessions, key=_number_of)[:MOST_SHOWN]],
            "steps": self._num_steps,
            "episodes": self._num_episodes,
            "latency_ms": _percentiles([wait + step for wait, step in zip(waits, steps, strict=True)]),
            "queue_ms": _percentiles(waits),
            "step_ms": _percentiles(steps),
            "batches": {str(size): round(count / size) or 1 for size, count in sorted(sizes.items())},
            "queue": service.batcher.queue_length,
            "pages": pages,
            "errors": _errors(service),
            **self.extra(),
        }

    def _session(self, session: ServedSession) -> dict[str, Any]:
        seen = self._seen.get(session) or _Seen(getattr(session.owner, "is_demo", False))
        text = seen.observation.get("text_observation")
        return {
            "number": session.number,
            "name": session.name,
            "task": session.settings.task,
            "is_demo": seen.is_demo,
            "episode": session.episodes,
            "step": session.steps,
            "return": _plain(session.return_),
            "idle_s": round(max(time.monotonic() - session.last_used, 0), 1),
            "latency_ms": _percentiles(seen.seconds),
            "text": None if text is None else str(text)[:_MOST_CHARACTERS],
            "picture": seen.picture,
            "values": _values(seen.observation),
            "action": _action(seen.action),
        }

    async def _draw(self) -> None:
        """Encode the pictures that sessions which are shown have got since the last status."""
        shown = sorted(self._service.sessions, key=_number_of)[:MOST_SHOWN]
        todo = [(seen, seen.observation) for session in shown if (seen := self._seen.get(session)) is not None]
        todo = [(seen, observation) for seen, observation in todo if seen.picture is None and _is_image(observation)]
        if not todo:
            return
        images = [observation["image_observation"] for _, observation in todo]
        uris = await asyncio.get_running_loop().run_in_executor(None, lambda: list(map(_picture, images)))
        for (seen, _), uri in zip(todo, uris, strict=True):
            seen.picture = uri


def _number_of(session: ServedSession) -> int:
    return session.number


def _encode(status: dict[str, Any]) -> bytes:
    return json.dumps(status, allow_nan=False, separators=(",", ":")).encode()


def _percentiles(seconds: Sequence[float] | deque[float]) -> dict[str, float] | None:
    """Return percentiles of some times in milliseconds, by "p50" and so on; None without a time."""
    if not seconds:
        return None
    found = np.percentile(np.array(seconds), _PERCENTILES) * 1000
    return {f"p{q}": round(float(value), 3) for q, value in zip(_PERCENTILES, found, strict=True)}


def _errors(service: PolicyService) -> dict[str, int]:
    """Return how many requests were refused or failed, by kind."""
    (family,) = service.metrics.errors.collect()
    samples = [sample for sample in family.samples if sample.name.endswith("_total") and sample.value]
    return {sample.labels["kind"]: int(sample.value) for sample in samples}


def _is_image(observation: Mapping[str, Any]) -> bool:
    return observation.get("image_observation") is not None


def _picture(image: Any) -> str | None:
    """Return the newest of a stack of grey frames as a data URI of a PNG.

    Args:
        image: uint8 [height, width, frames], the newest frame last.

    Returns:
        The URI; None if the image is another array, or large.
    """
    frames = np.asarray(image)
    if frames.ndim != 3 or frames.dtype != np.uint8 or max(frames.shape) > _MOST_PIXELS:
        return None
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frames[:, :, -1])).save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _values(observation: Mapping[str, Any]) -> list[float | None] | None:
    """Return the numbers of an observation, as many as a plot shows; None of an image."""
    for key in ("continuous_observation", "discrete_observation"):
        if observation.get(key) is not None:
            return [_plain(value) for value in np.asarray(observation[key]).reshape(-1)[:_MOST_VALUES].tolist()]
    return None


def _action(action: list[float] | int | None) -> list[float | None] | int | None:
    return [_plain(value) for value in action[:_MOST_ACTION_VALUES]] if isinstance(action, list) else action


def _plain(value: Any) -> float | None:
    """Return a number with four significant digits; None if it is not finite, which JSON has no word for."""
    return float(f"{float(value):.4g}") if math.isfinite(value) else None
