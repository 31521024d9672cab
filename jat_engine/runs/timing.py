"""`timing.json`: wall times, device, versions and arguments of a run, which its results do not depend on."""

from __future__ import annotations

from dataclasses import asdict

from ..atomic_io import write_json
from ..installation import versions
from .database import RunDatabase
from .play import PlayTiming
from .results import TIMING


def write_timing(database: RunDatabase, timing: PlayTiming | None, device: str) -> None:
    """Write the file into the run's folder.

    Args:
        database: of the run.
        timing: of the command that last played it; None if it was interrupted.
        device: description of the device.

    Raises:
        OSError: it cannot be written.
    """
    last = None
    if timing is not None:
        last = asdict(timing) | {
            "steps_per_second": timing.rate,
            "demand_steps_per_second": timing.demand,
            "supply_steps_per_second": timing.supply,
        }
    content = {
        "device": device,
        "arguments": database.arguments,
        "versions": versions(),
        "last": last,
        "tasks": {name: asdict(one) for name, one in database.timings().items()},
    }
    write_json(database.folder / TIMING, content, indent=2)
