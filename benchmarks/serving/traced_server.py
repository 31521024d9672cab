"""Serve an agent as `jat-engine serve` does, and take the times of each request at the dialect's calls.

`python -m benchmarks.serving.traced_server` takes the flags of `jat-engine serve`. It prints its address, and at a
session's end the times of its steps as a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any, NamedTuple

from jat_engine.cli.arguments import ModelArguments, parse
from jat_engine.cli.serve import SWITCH_SECONDS, ServeArguments, make_server
from jat_engine.serving.dialects import OpenPi
from jat_engine.serving.dialects.base import Frame
from jat_engine.serving.requests import Answer, Close, Reply, Request


class Times(NamedTuple):
    """Times of a step, in seconds; moments are of `time.perf_counter`, which all processes of a machine share.

    Attributes:
        received: moment at which the server had the message.
        parsed: moment.
        queue_s: until the engine's thread had the request.
        step_s: of the step.
        replied: moment at which the reply was there.
        packed: moment at which its message was.
    """

    received: float
    parsed: float
    queue_s: float
    step_s: float
    replied: float
    packed: float


class TracedOpenPi(OpenPi):
    """openpi's dialect, which notes when it is called."""

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__(description)
        self._parsed = 0.0
        self._times: list[Times] = []

    def parse(self, frame: Frame) -> Request | Frame | None:
        """See `OpenPi.parse`."""
        parsed = super().parse(frame)
        self._parsed = time.perf_counter()
        return parsed

    def reply(self, request: Request, reply: Answer, elapsed_s: float) -> Frame | None:
        """See `OpenPi.reply`."""
        replied = time.perf_counter()
        message = super().reply(request, reply, elapsed_s)
        if isinstance(reply, Reply):
            received, packed = replied - elapsed_s, time.perf_counter()
            self._times.append(Times(received, self._parsed, reply.queue_s, reply.step_s, replied, packed))
        elif isinstance(request, Close):
            print(json.dumps(self._times), flush=True)
        return message


async def main() -> None:
    """Serve until the process is killed."""
    model, arguments = parse("serve", "Serve and trace.", [ModelArguments, ServeArguments], sys.argv[1:])
    sys.setswitchinterval(SWITCH_SECONDS)
    server, _ = make_server(model, arguments)
    server.dialects = {"/": TracedOpenPi}
    await server.run(lambda: print(f"ws://127.0.0.1:{server.port}", flush=True))


if __name__ == "__main__":
    asyncio.run(main())
