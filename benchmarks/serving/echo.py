"""Serve websockets without a policy: the floor of a server's added latency.

For each message it reads as many bytes as a step reads weights, which evicts the code of both sides from the caches, as
a step does. It answers with the seconds that this has taken.

`python -m benchmarks.serving.echo BYTES` prints its URL.
"""

from __future__ import annotations

import asyncio
import struct
import sys
import time

import numpy as np
from websockets.asyncio.server import ServerConnection, serve

SECONDS = struct.Struct("d")
"""Beginning of an answer: seconds of the reading."""

_PADDING = bytes(192)
"""Rest of an answer, which makes it about as long as a policy server's."""


async def main(num_bytes: int) -> None:
    """Serve until the process is killed."""
    memory = np.ones(num_bytes // 4, np.float32)

    async def answer(websocket: ServerConnection) -> None:
        async for _ in websocket:
            began = time.perf_counter()
            memory.max()
            await websocket.send(SECONDS.pack(time.perf_counter() - began) + _PADDING)

    async with serve(answer, "127.0.0.1", 0, compression=None) as server:
        print(f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}", flush=True)
        await asyncio.Future()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
