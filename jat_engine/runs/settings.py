"""Settings of a run: everything that its episodes depend on besides their seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from ..installation import cpu_features

MACHINE_FIELDS = ("instruction_set", "versions")
"""Settings by which machines differ."""


def machine_settings() -> dict[str, Any]:
    """Return the settings of this machine: "instruction_set", and "versions" of the packages that compute actions."""
    features = "+".join(sorted(cpu_features())) or "generic"
    return {
        "instruction_set": features,
        "versions": {"jat_engine": __version__, "numpy": metadata.version("numpy"), "torch": metadata.version("torch")},
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return descriptions of the settings that differ, such as "dtype bfloat16, now int8".

    Args:
        before: settings of a run, or versions of a task.
        now: the same of what is to be played; settings that it does not have are not compared.
    """
    found = []
    for key, value in now.items():
        there = before.get(key)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            names = dict.fromkeys((*there, *value))
            found += [
                f"{key}.{name} {there.get(name)}, now {value.get(name)}"
                for name in names
                if there.get(name) != value.get(name)
            ]
        elif there != value:
            found.append(f"{key} {there}, now {value}")
    return found


def is_of_machine(difference: str) -> bool:
    """Return True if a description of `differences` is of a setting by which machines differ."""
    return difference.split(".")[0].split(" ")[0] in MACHINE_FIELDS


def weights_sha256(files: Iterable[Path]) -> str:
    """Return the SHA-256 of a checkpoint's weights: of its file, or of the hashes of its shards."""
    hashes = []
    for path in files:
        with path.open("rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
