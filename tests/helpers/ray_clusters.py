"""Ray clusters on this machine, with several nodes, one of which has another version of a simulator."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ray.cluster_utils import Cluster

from . import ROOT

OTHER_VERSION = "0.0.1"
"""Version of ale-py on the node that differs."""


@contextlib.contextmanager
def ray_cluster(folder: Path, num_nodes: int = 2, with_other: bool = False) -> Iterator[str]:
    """Start a cluster whose nodes have one core each, and end it with the `with` block.

    Args:
        folder: for a package that is found first on a node that differs.
        num_nodes: equal nodes.
        with_other: add a node with another version of ale-py.

    Yields:
        Its address.
    """
    paths = [str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    cluster = Cluster()
    try:
        for _ in range(num_nodes):
            cluster.add_node(num_cpus=1, include_dashboard=False, env_vars={"PYTHONPATH": os.pathsep.join(paths)})
        if with_other:
            (info := folder / f"ale_py-{OTHER_VERSION}.dist-info").mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ale-py\nVersion: {OTHER_VERSION}\n")
            cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": os.pathsep.join([str(folder), *paths])})
        yield cluster.address
    finally:
        cluster.shutdown()


def actors(kind: str) -> list[int]:
    """Return the processes of actors of a class, of the clusters that this process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            title = (path / "cmdline").read_bytes().decode(errors="replace")
            if title.startswith(f"ray::{kind}") and _parent(_parent(int(path.name))) == os.getpid():
                found.append(int(path.name))
    return found


def _parent(process: int) -> int:
    return int((Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[1])
