"""Time what a call of the engine costs outside its native parts: checks, sessions, Python."""

from __future__ import annotations

import time

from ... import JatEngine
from ..peers import CPU_ONLY
from ..peers.jat import EnginePeer
from ..results import make_row
from ..runner import Context
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
    """Add a row for each kind of observation, from calls of one session."""
    options = context.options
    if engine.native_seconds is None:
        context.results.skipped["host overhead"] = f"backend {engine.choice.backend} does not tell its own time"
        return

    def native_seconds() -> float:
        seconds = engine.native_seconds
        assert seconds is not None, "asked for above"
        return seconds

    for kind in SPACES:
        with engine.open_session(_WINDOW, seed=0) as session:
            rounds: list[list[float]] = []
            for number in range(options.num_iters + 1):
                rounds.append([])
                for call in range(_CALLS):
                    arguments = {**step_arguments(kind, number * _CALLS + call), "deterministic": False}
                    before, begin = native_seconds(), time.perf_counter()
                    session.get_next_action(**arguments)
                    end = time.perf_counter()
                    rounds[-1].append(end - begin - (native_seconds() - before))
        case: dict[str, str | int] = {"model": options.models[0], "observation": kind}
        context.results.rows.append(make_row(SUITE, case, f"JatEngine {engine.choice.dtype}", rounds[1:]))
