"""Command `jat-engine info`: versions, device, compiled extensions, simulators."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..backends.report import collect
from .arguments import ModelArguments, parse


@dataclass
class InfoArguments:
    """Arguments of `jat-engine info`."""

    json: bool = field(default=False, metadata={"help": "print JSON"})
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "load this checkpoint as well (folder, name on the hub, or jat-mini) and describe its engine"
        },
    )


def run(argv: Sequence[str]) -> int:
    """Run `jat-engine info` and return its exit code."""
    (arguments,) = parse("info", "What this installation is made of.", [InfoArguments], argv)
    found = collect()
    if arguments.model_name_or_path is not None:
        found["engine"] = _describe_engine(arguments.model_name_or_path)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 0

    lines = {name: version or "not installed" for name, version in found["versions"].items()}
    lines |= {"platform": found["platform"], "device": _words(found["device"]), "cpu": _words(found["cpu"])}
    lines["backend"] = "{name}: {reason}".format(**found["backend"])
    for name, text in found["dtypes"].items():
        lines[f"dtype {name}"] = text
    for way, state in found["gpu"].items():
        lines[f"gpu, {way}"] = state
    for name, text in found.get("engine", {}).items():
        lines[f"engine, {name}"] = text
    for name, extension in found["extensions"].items():
        lines[f"extension {name}"] = extension["path"] if extension["built"] else extension["reason"]
    for domain, simulator in found["simulators"].items():
        missing = ", ".join(simulator.get("missing", []))
        state = f"missing {missing}; {simulator['install']}" if missing else "installed"
        lines[f"simulator {domain}"] = state

    width = max(map(len, lines))
    for name, text in lines.items():
        print(f"{name:<{width}}  {text}")
    return 0


def _describe_engine(source: str) -> dict[str, str]:
    """Load a checkpoint, and return what its engine has chosen and why; on a GPU that is timed."""
    from ..engine.engine import JatEngine  # slow to import, and not needed otherwise
    from .agent import load_agent

    engine, _ = load_agent(ModelArguments(source))
    assert isinstance(engine, JatEngine), "the backend is not the reference"
    with engine:
        choice = engine.choice
        return {
            "backend": f"{choice.backend}, {choice.dtype}, on {choice.device}: {choice.reason}",
            "persistent kernel": engine.persistent_reason or "used for a single agent",
            "memory": ", ".join(f"{name} {num_bytes / 1e6:.1f} MB" for name, num_bytes in engine.memory.items()),
        }


def _words(values: dict[str, Any]) -> str:
    """Format a description from `jat_engine.installation` as one line: kind and name first, then the other fields."""
    name = f"{values['kind']}: {values['name']}" if "kind" in values else values["name"]
    rest = [
        f"{key.replace('_', ' ')} {' '.join(value) if isinstance(value, list) else value}"
        for key, value in values.items()
        if key not in ("name", "kind") and value is not None
    ]
    return ", ".join([name, *rest])
