"""The processor time that this process may use: cores by affinity, and the quota of its control groups."""

from __future__ import annotations

import os
from pathlib import Path


def available_cores() -> int:
    """Return how many threads this process can keep running: one per allowed core, as far as the CPU quota goes."""
    quota = cpu_quota()
    return allowed_cores() if quota is None else max(1, min(allowed_cores(), int(quota)))


def allowed_cores() -> int:
    """Return the number of cores that this thread, and those it starts, may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the CPU time per second of wall time that control groups grant this process, in cores.

    The smallest limit of the process's group and those above it, of versions 1 (`cpu.cfs_quota_us`) and 2 (`cpu.max`).

    Args:
        root: folder that stands for `/`.

    Returns:
        For instance 1.5; None where there is no limit, or the system has no control groups.
    """
    limits = [_limit(folder) for folder in _group_folders(root)]
    return min((limit for limit in limits if limit is not None), default=None)


def _group_folders(root: Path) -> list[Path]:
    """Folders of this process's CPU groups and of those above them, as far as they are mounted."""
    # Version 1: "4:cpu,cpuacct:/path", of the hierarchy that has the CPU controller. Version 2: "0::/path".
    paths: dict[str, str] = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            paths["cgroup2"] = path
        elif "cpu" in controllers.split(","):
            paths["cgroup"] = path

    folders = []
    for line in _lines(root / "proc/self/mountinfo"):
        # "36 25 0:31 <mounted part> <mount point> <options> ... - <type> <source> <controllers and options>"
        mount, _, filesystem = line.partition(" - ")
        _, _, _, part, point, *_ = mount.split()
        kind, _, options = filesystem.split(maxsplit=2)
        if kind not in paths or (kind == "cgroup" and "cpu" not in options.split(",")):
            continue
        # In a container the path may be the host's, of which only a part is mounted.
        path = paths[kind]
        below = path.removeprefix(part) if part != "/" and path.startswith(part) else path
        top = root / point.lstrip("/")
        folder = top / below.lstrip("/")
        folders += [above for above in (folder, *folder.parents) if above.is_relative_to(top)]
    return folders


def _limit(folder: Path) -> float | None:
    if version_2 := _lines(folder / "cpu.max"):
        quota, period = version_2[0].split()
    else:
        quota = "".join(_lines(folder / "cpu.cfs_quota_us"))
        period = "".join(_lines(folder / "cpu.cfs_period_us"))
    # "max" and -1 stand for no limit.
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
