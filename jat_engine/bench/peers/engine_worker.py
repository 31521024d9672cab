"""Run an engine for `engine_process.py`, of this version of the package or of another one: JSON in, JSON out.

Times are taken here, so that pipes do not count. What it uses of `jat_engine` is what another version has, too.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import jat_engine
from jat_engine import JatEngine
from jat_engine.bench.pacing import Idle, take_block
from jat_engine.bench.workload import batch_arguments, step_arguments

KIND = "continuous"


class Worker:
    """Hold an engine, a session, and batches by their number of agents and window."""

    def __init__(self, folder: Path, dtype: str, options: dict[str, Any]) -> None:
        self.engine = JatEngine.from_pretrained(folder, device="cpu", dtype=dtype, **options)
        self.session: Any = None
        self.batches: dict[str, Any] = {}

    def follow(self, window: int, actions: list[Any]) -> list[Any]:
        """Open a session that follows `actions` of the reference, and return its predictions."""
        if self.session is not None:
            self.session.close()
        self.session = self.engine.open_session(window, seed=0)
        predictions = []
        for step, action in enumerate(actions):
            arguments = step_arguments(KIND, step)
            predictions.append(self.session.get_next_action(**arguments, return_prediction=True)[1].tolist())
            self.session.force_action(action)
        return predictions

    def block(self, hz: int, seconds: float) -> dict[str, Any]:
        """Call the session at a pace; return the seconds of each call, and how many missed the period."""
        block = take_block(lambda arguments: self.session.get_next_action(**arguments), Idle(), hz, seconds)
        return {"seconds": block.seconds, "missed": block.missed}

    def open_batch(self, num_agents: int, window: int, actions: list[Any]) -> list[Any]:
        """Open agents in lockstep that all follow `actions`; return the first's and the last's predictions, by step."""
        batch = self.engine.open_batch(num_agents, window, seed=0)
        self.batches[f"{num_agents}/{window}"] = batch
        predictions = []
        for step, action in enumerate(actions):
            found = np.array(batch.get_next_actions(**batch_arguments(num_agents, step)))
            batch.force_actions([action] * num_agents)
            predictions += found[[0, -1]].tolist()
        return predictions

    def batch(self, num_agents: int, window: int, calls: int) -> list[float]:
        """Return the seconds of each call of a batch, behind an untimed one."""
        batch = self.batches[f"{num_agents}/{window}"]
        seconds = []
        for call in range(calls + 1):
            arguments = batch_arguments(num_agents, call)
            begin = time.perf_counter()
            batch.get_next_actions(**arguments)
            seconds.append(time.perf_counter() - begin)
        return seconds[1:]

    def close_batches(self) -> None:
        """Give back the memory of all batches."""
        for batch in self.batches.values():
            batch.close()
        self.batches.clear()

    def own_cost(self, kind: str, deterministic: bool, window: int, calls: int) -> list[list[float]]:
        """Return, for each call of a session, its seconds and those in the native parts."""
        engine: Any = self.engine
        found = []
        with engine.open_session(window, seed=0) as session:
            for call in range(window // 2 + 2 + calls):
                arguments = {**step_arguments(kind, call), "deterministic": deterministic}
                native, begin = engine.native_seconds, time.perf_counter()
                session.get_next_action(**arguments)
                end = time.perf_counter()
                found.append([end - begin, engine.native_seconds - native])
        return found[-calls:]


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    folder, dtype, options = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    worker = Worker(folder, dtype, options)
    hello = {
        "package": str(Path(jat_engine.__file__).parent),
        "backend": worker.engine.choice.backend,
        "weights": worker.engine.memory["weights"],
    }
    print(json.dumps(hello), file=answers, flush=True)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(getattr(worker, name)(**arguments)), file=answers, flush=True)


if __name__ == "__main__":
    main()
