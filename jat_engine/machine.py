"""Processor time that this process may use: CPU affinity, and the CPU quota of its control groups (cgroups)."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath


def available_cores() -> int:
    """Return the number of threads that this process can keep busy: its allowed cores, or its CPU quota if smaller."""
    quota = cpu_quota()
    return allowed_cores() if quota is None else max(1, min(allowed_cores(), int(quota)))


def allowed_cores() -> int:
    """Return the number of cores that the calling thread, and threads it starts, may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the CPU quota of this process, in cores (seconds of CPU time per second of wall time).

    This is the smallest limit among the process's control group and the groups above it, in version 1
    (`cpu.cfs_quota_us`) and version 2 (`cpu.max`).

    Args:
        root: folder to read instead of `/`.

    Returns:
        For instance 1.5. None if there is no limit, or the system has no control groups.
    """
    limits = [_limit(folder) for folder in _group_folders(root)]
    return min((limit for limit in limits if limit is not None), default=None)


def _group_folders(root: Path) -> list[Path]:
    """Return the mounted folders of this process's CPU control groups and of the groups above them."""
    # Version 1: "4:cpu,cpuacct:/path", from the hierarchy with the CPU controller. Version 2: "0::/path".
    paths: dict[str, str] = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            paths["cgroup2"] = path
        elif "cpu" in controllers.split(","):
            paths["cgroup"] = path

    folders = []
    for line in _lines(root / "proc/self/mountinfo"):
        # "36 25 0:31 <mounted part> <mount point> <options> ... - <type> <source> <controllers and options>"
        mount, _, filesystem = line.partition(" - ")
        kind, _, rest = filesystem.partition(" ")
        fields = mount.split(" ")
        if kind not in paths or len(fields) < 5 or (kind == "cgroup" and "cpu" not in rest.split(" ")[-1].split(",")):
            continue
        part, point = map(_unescaped, fields[3:5])
        # In a container the path may be the host's, and only a part of it is mounted.
        group = PurePosixPath("/", paths[kind])
        top = root / point.lstrip("/")
        folder = top / group.relative_to(part if group.is_relative_to(part) else "/")
        folders += [above for above in (folder, *folder.parents) if above.is_relative_to(top)]
    return folders


def _limit(folder: Path) -> float | None:
    words = " ".join(_lines(folder / "cpu.max")).split()
    if not words:
        words = [word for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us") for word in _lines(folder / name)]
    # "max" and -1 stand for no limit.
    if len(words) != 2 or not all(word.isdecimal() and int(word) for word in words):
        return None
    return int(words[0]) / int(words[1])


def _unescaped(field: str) -> str:
    """Return a field of mountinfo, which has spaces and backslashes as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
