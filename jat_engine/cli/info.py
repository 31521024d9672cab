"""`jat-engine info`"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..info import collect
from .arguments import parse
from .report import console, table


@dataclass
class InfoArguments:
    json: bool = field(default=False, metadata={"help": "print JSON"})


def run(argv: Sequence[str]) -> int:
    (arguments,) = parse("info", "What this installation is made of.", [InfoArguments], argv)
    found = collect()
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 0
    rows = table("jat-engine", ["what", "found"], [])
    for key, value in found["versions"].items():
        rows.add_row(key, value or "[dim]not installed[/]")
    rows.add_section()
    rows.add_row("platform", found["platform"])
    rows.add_row("device", _words(found["device"]))
    rows.add_row("cpu", _words(found["cpu"]))
    rows.add_section()
    for name, extension in found["extensions"].items():
        rows.add_row(f"extension {name}", extension["path"] if extension["built"] else extension["reason"])
    for domain, simulator in found["simulators"].items():
        state = "installed" if simulator["installed"] else f"missing {', '.join(simulator['missing'])}"
        hint = "" if simulator["installed"] else f"; {simulator['install']}".replace("[", r"\[")
        rows.add_row(f"simulator {domain}", state + hint)
    console().print(rows)
    return 0


def _words(values: dict[str, Any]) -> str:
    """`name`, then what else is known."""
    rest = [
        f"{key.replace('_', ' ')} {' '.join(value) if isinstance(value, list) else value}"
        for key, value in values.items()
        if key != "name"
    ]
    return ", ".join([str(values["name"]), *rest])
