"""Write what documents say of committed results: docs/benchmarks.md, and the table in the README.

jat-engine bench all --output-json benchmarks/results/cpu.json
python benchmarks/write_docs.py
"""

from __future__ import annotations

import re
from pathlib import Path

from jat_engine.bench import table, verdict
from jat_engine.bench.results import Results, Row

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/cpu.json"
README, PAGE = ROOT / "README.md", ROOT / "docs/benchmarks.md"

BEGIN, END = "<!-- from benchmarks/results/cpu.json: begin -->", "<!-- end -->"

HEADLINE = {"model": "small", "window": 256}
"""The case of the README's table."""

SUITES = {
    "latency": "One agent: a whole `get_next_action`, its window full. `MB read`: weights and cache that a step needs; "
    "`share of bandwidth`: the time that reading them takes at the memory's measured speed, over the step's time.",
    "host": "What a call of the engine costs beside its native parts: checks, sessions, Python.",
    "throughput": "Agents that step together, windows of 32 tokens. `JatModel` serves them one after the other: its "
    "times are those of one agent, as often as there are agents.",
    "load": "From the start of a process to its first action.",
    "generate": "Text, greedily. By `JatModel`: the engine acts and does not write.",
    "train": "A training step of a small model (4 layers of 192), on random data: forward, backward, AdamW.",
    "eval": "A step in real simulators with jat-mini, the simulator's and a share of its reset included.",
}


def page(results: Results) -> str:
    machine = results.machine
    bandwidth = machine["bandwidth GB/s"]
    versions = {name: version for name, version in machine["versions"].items() if version}
    parts = [
        "# Benchmarks",
        "Written by `benchmarks/write_docs.py` from [cpu.json](../benchmarks/results/cpu.json), which has every row's "
        "percentiles and rounds. To measure a machine of yours:",
        "```\njat-engine bench all --output-json mine.json\n"
        "jat-engine bench compare benchmarks/results/cpu.json mine.json\n```",
        how_to_read(),
        f"## {machine['cpu']['name']}, {machine['cpu']['cores']} cores",
        f"Commit {machine['commit']}, {machine['date'][:10]}. Memory read at {bandwidth['median']:.1f} GB/s "
        f"({bandwidth['p10']:.1f} to {bandwidth['p90']:.1f}), measured between the rounds. "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".",
    ]
    for suite, explanation in SUITES.items():
        rows = results.of_suite(suite)
        if not rows:
            continue
        parts += [f"### {suite}", explanation]
        if suite == "latency":
            parts += ["![latency](../benchmarks/results/cpu_latency.png)"]
            parts += ["Beside the fastest other agent of its dtype:", table.markdown(verdict.columns(rows))]
        if suite == "throughput":
            parts += ["![throughput](../benchmarks/results/cpu_throughput.png)"]
        parts += [table.markdown(table.columns(rows))]
    if results.skipped:
        parts += ["### Not measured", "\n".join(f"- {name}: {why}" for name, why in results.skipped.items())]
    return "\n\n".join(parts) + "\n"


def how_to_read() -> str:
    return (
        "What a table compares took turns: in each round every agent takes a few steps, in an order that changes, "
        "after a pause in which other agents' threads fall asleep. A time is the median of all calls, beside it the "
        "5th and 95th percentile; `times faster` is the median over rounds of the ratio to the case's reference within "
        "a round, with a 95 % interval (of fewer than 6 rounds, their range). `error` is the largest distance of a "
        "prediction from `JatModel`'s in float32, over their root mean square, while the window filled with the same "
        "observations; in training it is of the loss, in simulators of an action, in generation the share of other "
        "tokens. An agent whose error exceeds its tolerance (float32 0.001, bfloat16 0.05, int8 0.2) is not compared, "
        "nor is one in another precision where its outputs cannot be held against the reference's."
    )


def headline(results: Results) -> str:
    """The README's table: medians of one case, a column a modality."""
    rows = [
        row
        for row in results.of_suite("latency")
        if row.agrees and all(row.case.get(name) == value for name, value in HEADLINE.items())
    ]
    kinds = list(dict.fromkeys(str(row.case["observation"]) for row in rows))
    names = sorted(dict.fromkeys(row.name for row in rows), key=lambda name: -_slowest(rows, name))
    lines = [f"| ms a step, {results.machine['cpu']['cores']} cores | {' | '.join(kinds)} | error |"]
    lines += ["| --- " * (len(kinds) + 2) + "|"]
    for name in names:
        found = {str(row.case["observation"]): row for row in rows if row.name == name}
        cells = [table.number(found[kind].p50 * 1e3) if kind in found else "" for kind in kinds]
        errors = [row.error for row in found.values() if row.error is not None]
        label = f"**{name}**" if name.startswith(verdict.ENGINE) else name
        lines.append(f"| {label} | {' | '.join(cells)} | {f'{max(errors):.1g}' if errors else ''} |")
    machine = results.machine
    caption = (
        f"{machine['cpu']['name']}, {machine['cpu']['cores']} cores, published size with random weights, a full window "
        f"of {HEADLINE['window']} tokens, all in one run ({machine['date'][:10]})."
    )
    return caption + "\n\n" + "\n".join(lines)


def _slowest(rows: list[Row], name: str) -> float:
    return max(row.p50 for row in rows if row.name == name)


def with_headline(readme: str, text: str) -> str:
    """Raises `ValueError` unless the README has the two marks once."""
    if readme.count(BEGIN) != 1 or END not in readme.partition(BEGIN)[2]:
        raise ValueError(f"README.md: expected {BEGIN} once, and {END} after it")
    return re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: f"{BEGIN}\n{text}\n{END}", readme, flags=re.S)


def main() -> None:
    results = Results.read(RESULTS)
    PAGE.write_text(page(results))
    README.write_text(with_headline(README.read_text(), headline(results)))


if __name__ == "__main__":
    main()
