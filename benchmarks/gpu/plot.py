"""latency.png: p50 and p99 of a whole call, by path and kind of observation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .markdown import device


def write(data: dict[str, Any], out: Path) -> None:
    rows = [r for r in data["sections"].get("latency", {}).get("result", {}).get("steps", []) if "p50 us" in r]
    if not rows:
        return
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(row["observation"] for row in rows))
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    agents = list(dict.fromkeys(row["agent"] for row in rows))
    figure, axes = plt.subplots(1, len(kinds), figsize=(4.2 * len(kinds), 1.4 + 0.5 * len(agents)), sharey=True)
    for axis, kind in zip([axes] if len(kinds) == 1 else axes, kinds, strict=True):
        for number, mode in enumerate(modes):
            chosen = {r["agent"]: r for r in rows if r["observation"] == kind and r["mode"] == mode}
            for position, agent in enumerate(agents):
                row = chosen.get(agent)
                if row is None:
                    continue
                y = position + 0.36 * (number - (len(modes) - 1) / 2)
                label = mode if position == 0 else None
                axis.barh(y, row["p50 us"], height=0.34, color=f"C{number}", label=label)
                axis.plot([row["p50 us"], row["p99 us"]], [y, y], color="black", linewidth=0.8)
        axis.set(title=kind, xlabel="us, p50 (bar) to p99 (line)", xscale="log")
        axis.set_yticks(range(len(agents)), agents)
        axis.invert_yaxis()
    axes_list = [axes] if len(kinds) == 1 else list(axes)
    axes_list[-1].legend(fontsize=7)
    form = ", reduced form: says nothing of speed" if data["reduced"] else ""
    figure.suptitle(f"whole call of one agent, on {device(data).split(':')[0]}{form}", fontsize=9)
    figure.tight_layout()
    figure.savefig(out / "latency.png", dpi=100)
    plt.close(figure)
