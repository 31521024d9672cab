"""The engine on this CPU: how exact it is, how a step grows with its cache, and whether it lasts.

    python -m benchmarks.cpu_engine --out benchmarks/results

Prints one table a section and writes cpu_engine.json, cpu_engine.md and cpu_engine_growth.png. About 7 minutes on two
cores, which should have nothing else to do. --sections runs some of it. Times beside other agents' are `jat-engine
bench`'s.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jat_engine.backends.report import collect

from . import growth, parity, soak

SECTIONS: dict[str, Any] = {
    "parity": parity.run,
    "growth": growth.run,
    "soak": soak.run,
}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, columns in the order they first come in."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    lines += [" | ".join(_cell(row.get(name, "")) for name in names) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2e}" if 0 < abs(value) < 0.01 else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def report(results: dict[str, Any]) -> str:
    parts = [f"{results['cpu']['name']}, {results['cpu']['cores']} cores; {results['commit']}"]
    for section in SECTIONS:
        found = results.get(section)
        if found is None:
            continue
        parts.append(f"## {section}")
        if section == "growth":
            parts.append(table([row for row in found if row["cached tokens"] % 64 == 0 or row["cached tokens"] == 508]))
        else:
            parts.append(table(found if isinstance(found, list) else [found]))
    return "\n\n".join(parts) + "\n"


def plot_growth(rows: list[dict[str, Any]], path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5))
    for axis, preset in zip(axes, ("small", "medium"), strict=True):
        for dtype in ("bfloat16", "int8"):
            chosen = [row for row in rows if row["model"] == preset and row["dtype"] == dtype]
            axis.plot([r["cached tokens"] for r in chosen], [r["step ms"] for r in chosen], label=dtype)
        axis.set(title=preset, xlabel="cached tokens", ylabel="ms per step", ylim=(0, None))
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    found = collect()
    path = arguments.out / "cpu_engine.json"
    results: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        **{key: found[key] for key in ("cpu", "platform", "versions", "backend")},
    }
    for section in arguments.sections:
        print(f"{section} ...", flush=True)
        results[section] = SECTIONS[section]()
        path.write_text(json.dumps(results, indent=1) + "\n")
    text = report(results)
    (arguments.out / "cpu_engine.md").write_text(text)
    if "growth" in results:
        plot_growth(results["growth"], arguments.out / "cpu_engine_growth.png")
    print(text)


if __name__ == "__main__":
    main()
