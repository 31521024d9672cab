"""Write the tables of the server's benchmark."""

from __future__ import annotations

from typing import Any

import numpy as np

from .latency import ECHO
from .targets import OPENPI, SERVER


def write_markdown(content: dict[str, Any]) -> str:
    """Return the results as tables."""
    load = content["load_average"]
    lines = [
        "# A policy server compared with openpi's",
        "",
        f"{content['model']} in {content['dtype']}, window {content['window']}, full; {content['cpu']}, "
        f"{content['cores']} cores, which clients and servers share; load average {load[0]:.1f} before, {load[1]:.1f} "
        "after. All targets take turns.",
        "",
        "One agent. Added: to a call in process of the same round, the median of rounds, and the lowest and highest. "
        "The echo is a websocket server without a policy that reads "
        f"{content['bytes_read'] / 1e6:.0f} MB of memory for each message, as a step does; the reading is not counted.",
        "",
        "| | median ms | p99 ms | added ms | of rounds | actions equal |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in content["latency"]:
        equal = {True: "yes", False: "no", None: ""}[row["equal"]]
        times = "| | |" if row["target"] == ECHO else f"| {row['p50_ms']:.3f} | {row['p99_ms']:.3f} |"
        lines.append(
            f"| {row['target']} {times} {row['added_ms']:+.3f} | {row['added_lowest_ms']:+.3f} to "
            f"{row['added_highest_ms']:+.3f} | {equal} |"
        )
    lines += [
        "",
        "Many agents. The rate is the median of rounds, with the lowest and highest; the ratio is that of the rates of "
        "a round.",
        "",
        "| clients | | agent-steps/s | of rounds | median ms | p99 ms | agents in a step | times openpi's server |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    peers = {row["clients"]: row["rates"] for row in content["throughput"] if row["target"] == OPENPI}
    for row in content["throughput"]:
        rates, peer = np.array(row["rates"]), peers.get(row["clients"])
        times = f"{row['p50_ms']:.1f} | {row['p99_ms']:.1f} | {row['batch']:.1f}" if "p50_ms" in row else "| | "
        ratio = ""
        if peer is not None and row["target"] == SERVER:
            ratios = rates / np.array(peer)
            ratio = f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"
        lines.append(
            f"| {row['clients']} | {row['target']} | {np.median(rates):.0f} | {rates.min():.0f} to {rates.max():.0f} | "
            f"{times} | {ratio} |"
        )
    lines += ["", *(f"Left out: {name}: {reason}." for name, reason in content["skipped"].items())]
    return "\n".join(lines).rstrip() + "\n"
