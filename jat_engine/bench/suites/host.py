"""What a call of the engine costs beside its native parts: checks, sessions, Python."""

from __future__ import annotations

import time
from typing import Any

from ... import JatEngine
from ..context import Context
from ..peers import CPU_ONLY
from ..peers.jat import EnginePeer
from ..results import make_row
from ..workload import SPACES, open_checkpoint, step_arguments

SUITE = "host"

_WINDOW, _CALLS = 64, 20


def run(context: Context) -> None:
    options = context.options
    if options.device != "cpu":
        context.results.skipped["host overhead"] = CPU_ONLY
        return
    context.note("host overhead ...")
    with open_checkpoint(options.models[0]) as folder:
        engine = EnginePeer.load(folder, options.dtypes[-1], "cpu").engine
        measure(context, engine)


def measure(context: Context, engine: JatEngine) -> None:
    options = context.options
    native: Any = getattr(engine._backend, "_model", None)
    if not hasattr(native, "seconds"):
        context.results.skipped["host overhead"] = f"backend {engine.choice.backend} does not tell its own time"
        return
    for kind in SPACES:
        with engine.open_session(_WINDOW, seed=0) as session:
            rounds: list[list[float]] = []
            for number in range(options.num_iters + 1):
                rounds.append([])
                for call in range(_CALLS):
                    arguments = {**step_arguments(kind, number * _CALLS + call), "deterministic": False}
                    before, begin = native.seconds, time.perf_counter()
                    session.get_next_action(**arguments)
                    rounds[-1].append(time.perf_counter() - begin - (native.seconds - before))
        case: dict[str, str | int] = {"model": options.models[0], "observation": kind}
        context.results.rows.append(make_row(SUITE, case, f"JatEngine {engine.choice.dtype}", rounds[1:]))
