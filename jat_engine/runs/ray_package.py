"""Checks of `--ray` that need no cluster yet: the package Ray, and the address."""

from __future__ import annotations

import importlib.util
import socket

LOCAL = "local"
"""Address for processes of this machine, in place of a cluster's."""

_CONNECT_SECONDS = 5.0


class MissingRayError(ImportError):
    """Package Ray that is not installed; the message says how to install it."""


class ClusterError(ValueError):
    """Cluster that cannot be used, or has no machine that can play; the message has the remedy."""


def check_ray(address: str) -> None:
    """Check that Ray is installed and that something answers at an address; Ray itself would try for minutes.

    Args:
        address: `LOCAL`; "auto" for the cluster that this machine is a part of; or the head's "HOST:PORT".

    Raises:
        MissingRayError: Ray is not installed.
        ClusterError: the address is malformed, or nothing answers there.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingRayError("--ray needs Ray; install it with: pip install 'jat-engine[ray]'")
    if address in (LOCAL, "auto"):
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise ClusterError(
            f"--ray: expected no address, auto, or HOST:PORT of a cluster's head, got {address}; start the command on "
            "a machine of the cluster"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            f"--ray: expected the address of a cluster's head, got {address}, where nothing answers ({error}); "
            "`ray start --head` starts one"
        ) from None
