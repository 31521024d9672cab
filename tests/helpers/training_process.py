"""Run trainings in two processes as `torchrun` starts them, importing once for both."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback

import accelerate  # noqa: F401 (imported before the fork)
import datasets  # noqa: F401
import torch

import jat_engine.training.trainer  # noqa: F401
from jat_engine.cli import main

NUM_PROCESSES = 2


def run(rank: int, runs: list[list[str]]) -> int:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(NUM_PROCESSES),
        LOCAL_WORLD_SIZE=str(NUM_PROCESSES),
    )
    return max(main(flags) for flags in runs)


if __name__ == "__main__":
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    server = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.environ.update(MASTER_PORT=str(server.port), TORCHELASTIC_USE_AGENT_STORE="True")  # as torchrun's agent does
    children = set()
    for rank in range(NUM_PROCESSES):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = run(rank, json.loads(sys.argv[1]))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.add(pid)
    while children:
        pid, status = os.wait()
        children.remove(pid)
        if status:  # the other would wait for it
            for other in children:
                os.kill(other, signal.SIGKILL)
            sys.exit(1)
