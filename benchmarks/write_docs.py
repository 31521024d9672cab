"""Write what documents say of committed results: docs/benchmarks.md, and the table in the README.

Each file in benchmarks/results is one run: `cpu.json` of `jat-engine bench all`, `cpu_medium.json` of `jat-engine bench
latency --models medium`, `cpu_loop.json` of `jat-engine bench loop --dtypes int8 bfloat16 --hz 50 100 --paces sleep
mujoco-ant --peers JatModel openvino onnxruntime --minutes 7`, `cpu_loop_peers.json` of `jat-engine bench loop --dtypes
int8 float32 --models small jat-mini --hz 20 50 200 --paces sleep evicted --num-iters 6 --minutes 13 --upstream PYTHON`,
`cpu_loop_paces.json` of the same with `--models small --hz 50 100 --paces sleep busy mujoco-ant --num-iters 4 --minutes
12`, `cpu_limits.json` of `jat-engine bench limits --before FOLDER --hz 50 --batch-size 1 8 64 256 --num-iters 12
--minutes 4 --peers JatModel onnxruntime onnxruntime-g128 openvino openvino-g128`, where FOLDER is a checkout of the
version before, whose native module `python setup.py build_ext --inplace` has built there, `cpu_text.json` of
`jat-engine bench generate --num-iters 6`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jat_engine.bench.pacing import BACK_TO_BACK, SLEEP
from jat_engine.bench.peers import ENGINE
from jat_engine.bench.report import DRAWN, STANDINGS, by_column, columns, interval, markdown, number, standing, title
from jat_engine.bench.results import Results, Row
from jat_engine.bench.suites.generate import FIRST, LATER
from jat_engine.bench.suites.loop import FLOORS

ROOT = Path(__file__).resolve().parents[1]
RUNS = ("cpu_text", "cpu_limits", "cpu_loop_peers", "cpu_loop_paces", "cpu_loop", "cpu", "cpu_medium")
HEADLINE_RUN, LOOP_RUN = "cpu", "cpu_loop_peers"
README, PAGE = ROOT / "README.md", ROOT / "docs/benchmarks.md"

BEGIN, END = "<!-- from benchmarks/results/cpu_loop_peers.json: begin -->", "<!-- end -->"

HEADLINE = {"model": "small", "window": 256}
"""The case that is shown first, and in the README."""

SUITES = {
    "latency": "One agent: a whole `get_next_action` with a full window. `MB read`: weights and cache that a step "
    "needs; `share of bandwidth`: the time to read them at the memory's measured speed, over the step's time.",
    "loop": "One agent at a fixed rate, as a robot calls it. `pace`: what is between calls; `sleep`: nothing, `busy`: "
    "an environment that computes for half of the period, `mujoco-ant`: the real one, stepped by the agent's actions; "
    "`back to back` and `evicted` have no rate, the latter with twice the last-level cache read between calls. "
    "`neighbour` busy: another process computes on one core. `missed`: calls that, with the environment's step, "
    "took longer than the period. `one pinned thread` and `never sleeping` are the floors: an engine of one thread "
    "on one core, with nothing to wake, and one whose threads compute on between calls, which costs every core; "
    "`over floor`: the engine's percentile over that of the better floor. `over back to back`: the median over that "
    "of calls without pauses, in the same rounds. It is more than 1 since in a pause other data goes through the "
    "caches (`evicted` has that part alone) and threads fall asleep, which must be woken (the floors do without).",
    "call": "One agent: a whole `get_next_action` with a full window, back to back and at a fixed rate, asleep between "
    "calls. `bits a weight`: of the blocks' matrices, with scales, norms and biases. `MB read`: weights and cache that "
    "a call reads; `share of bandwidth`: the time to read them at the speed that memory gave just before and after the "
    "calls, over the calls' time. `over int8`, `over before`: times over those of int8, and of the version before, in "
    "the same rounds. Engines run in processes of their own, both versions' alike, and the others in this one. A peer "
    "named g128 has one scale for 128 columns instead of 32.",
    "batches": "Agents that step together, with full windows. `share of peak`: the multiply-adds of a step over what "
    "both cores can do in registers in this dtype, measured before each turn; with short windows it is that of the "
    "matrices alone. `attention's share of bandwidth`: the time to read the keys and values that full windows have "
    "more than short ones, over the time that they take longer. Errors are against the engine in float32, whose own "
    "error is in the suite above.",
    "host": "The cost of a call of the engine outside its native parts: checks, sessions, Python.",
    "throughput": "Agents that step together, windows of 32 tokens. `JatModel` serves them one after the other: its "
    "times are those of one agent, as often as there are agents. Agents follow their own actions here, so rounding "
    "adds up over the steps and errors are larger than for one agent.",
    "load": "From the start of a process to its first action.",
    "generate": "Texts, greedily, of random tokens, written together: the time from a call to the first token of each, "
    "and of each later one. `tokens/s`: of the prompts, then of the continuations. `share of limit`: of a later token, "
    "the time to read blocks, head and cache, as the engine holds them in this dtype, at the memory's measured speed, "
    "over the median; of the first one the longer of the same and of the time of its multiply-adds at the arithmetic's "
    "peak. `over ...`: the engine's time over that of another in the same dtype and the same rounds. llama.cpp has no "
    "model of this kind: it runs a GPT-2 of equal shape with random weights, whose logits cannot be compared.",
    "beside": "An agent's step with a full window, while another thread has prompts of 400 tokens read by the same "
    "engine, one after the other: in chunks, as by default, or in one step each (`prefill_chunk=512`). `first token`: "
    "the median time to a prompt's first token meanwhile. `over alone`: the median over that beside nothing.",
    "train": "A training step of a small model (4 layers of 192), on random data: forward, backward, AdamW.",
    "eval": "A step in real simulators with jat-mini, including the simulator's time and a share of its reset.",
    "parity": "How far predictions are from the reference's, over all steps: of the recorded episodes of the published "
    "implementation, or of `JatModel` in float32. Each step follows on the reference's action.",
    "growth": "A step's time over the tokens in its cache, from the beginning of an episode to a full window.",
    "soak": "Sessions of all kinds and windows that come, reset and leave at random. `error`: pages of the cache that "
    "did not come back.",
}


def read() -> dict[str, Results]:
    """Return the committed runs, by the name of their files."""
    paths = {name: ROOT / f"benchmarks/results/{name}.json" for name in RUNS}
    return {name: Results.read(path) for name, path in paths.items() if path.exists()}


def page(runs: dict[str, Results]) -> str:
    """Return docs/benchmarks.md: what follows from the tables, then how to read them, then all of them."""
    parts = ["# Benchmarks"]
    if takeaways := conclusions(runs):
        parts += ["## Conclusions", "\n".join(f"- {line}" for line in takeaways)]
    if HEADLINE_RUN in runs:
        parts += [headline(runs[HEADLINE_RUN], runs.get(LOOP_RUN))]
    parts += [
        "## Your machine",
        "```\njat-engine bench all --output-json mine.json\n"
        "jat-engine bench compare benchmarks/results/cpu.json mine.json\n```",
        "## How to read the tables",
        "Written by `benchmarks/write_docs.py` from "
        + " and ".join(f"[{name}.json](../benchmarks/results/{name}.json)" for name in runs)
        + ", which have every row's percentiles and rounds.",
        how_to_read(),
        *(section(name, results) for name, results in runs.items()),
    ]
    return "\n\n".join(parts) + "\n"


def conclusions(runs: dict[str, Results]) -> list[str]:
    """Return what follows from the tables, in sentences; only what was measured is mentioned."""
    lines = []
    for results in runs.values():
        if latency := [row for row in results.of_suite("latency") if row.agrees]:
            lines += latency_conclusions(latency, " and ".join(results.settings["models"]))
        if calls := [row for row in results.of_suite("call") if row.agrees and row.agent == ENGINE]:
            lines += call_conclusions(calls)
        if groups := [row for row in results.of_suite("batches") if row.agrees and row.agent == ENGINE]:
            lines += batch_conclusions(groups)
        if paced := [row for row in results.of_suite("loop") if row.agrees]:
            lines += loop_conclusions(paced)
        if many := [row for row in results.of_suite("throughput") if row.agrees and row.agent == ENGINE]:
            lines += throughput_conclusions(many)
        if texts := [row for row in results.of_suite("generate") if row.agrees]:
            lines += text_conclusions(texts)
        if besides := results.of_suite("beside"):
            lines += beside_conclusions(besides)
        if first := [row for row in results.of_suite("load") if row.agrees and row.agent == ENGINE]:
            seconds = span(row.p50 for row in first)
            lines.append(f"**Cold start**: first action of a new process after {seconds} s, imports included.")
    return lines


def latency_conclusions(rows: list[Row], models: str) -> list[str]:
    """Return how much faster one agent's call is than the reference's, and than the fastest other agent's."""
    lines = []
    for dtype in dict.fromkeys(row.dtype for row in rows if row.agent == ENGINE):
        faster = [row.faster.value for row in rows if row.name == f"{ENGINE} {dtype}" and row.faster is not None]
        lines.append(f"{dtype} {span(faster)}")
    found = [f"**One agent, {models}**: times faster than `JatModel` in float32: {', '.join(lines)}."]
    compared = standing(rows)
    others = {
        dtype: [
            float(cell.split()[0])
            for of, cell in zip(compared["dtype"], compared["times faster"], strict=True)
            if of == dtype
        ]
        for dtype in dict.fromkeys(compared.get("dtype", ()))
    }
    if any(agent != "JatModel" for agent in compared.get("fastest other", ())):
        ahead, cases = compared["ahead"].count("yes"), len(compared["ahead"])
        found.append(
            f"**Compared with the fastest other agent of the same dtype** (torch.compile, ONNX Runtime, OpenVINO), it "
            f"is faster in {ahead} of {cases} cases: "
            + ", ".join(f"{dtype} {span(values)} times" for dtype, values in others.items())
            + "."
        )
    return found


def loop_conclusions(rows: list[Row]) -> list[str]:
    """Return what pauses, and a busy neighbour, cost the engine."""
    lines = []
    for model in dict.fromkeys(str(row.case["model"]) for row in rows):
        own = [row for row in rows if row.case["model"] == model]
        engines = []
        for name in dict.fromkeys(row.name for row in own if row.agent == ENGINE):
            parts = []
            for pace, words in ((BACK_TO_BACK, "back to back"), (SLEEP, "at a fixed rate")):
                for neighbour, more in (("none", ""), ("busy", " with a busy neighbour")):
                    case = {"pace": pace, "neighbour": neighbour}.items()
                    times = [row.p50 * 1e3 for row in own if row.name == name and case <= row.case.items()]
                    if times:
                        parts.append(f"{words}{more} {span(times)} ms")
            engines.append(f"{name}: {', '.join(parts)}")
        lines.append(f"**A robot's loop, {model}** (median calls): {'; '.join(engines)}.")
    return lines


def call_conclusions(rows: list[Row]) -> list[str]:
    """Return a call's time, its share of the bytes' limit, and its ratios to int8 and to the version before."""
    lines = []
    for row in rows:
        parts = [f"{number(row.p50 * 1e3)} ms"]
        for header, words in (
            ("share of bandwidth", "share of the memory's bandwidth"),
            ("over int8", "over int8"),
            ("over before", "over the version before"),
        ):
            if header in row.intervals:
                parts.append(f"{words} {interval(row.intervals[header])}")
        pace = "back to back" if row.case["hz"] == "none" else f"at {row.case['hz']} Hz"
        lines.append(f"**A call in {row.dtype}, {pace}**: {', '.join(parts)}.")
    return lines


def batch_conclusions(rows: list[Row]) -> list[str]:
    """Return the agent-steps a second of each dtype, and how many times those of the version before they are."""
    lines = []
    for dtype in dict.fromkeys(row.dtype for row in rows):
        parts = []
        for row in (row for row in rows if row.dtype == dtype):
            faster = row.intervals.get("times faster than before")
            more = "" if faster is None else f" ({interval(faster)} times the version before)"
            parts.append(f"{row.case['agents']}: {number(row.facts['agent-steps/s'])}{more}")
        window = rows[0].case["window"]
        lines.append(f"**Agent-steps a second in {dtype}**, windows of {window} full, by agents: {', '.join(parts)}.")
    return lines


def text_conclusions(rows: list[Row]) -> list[str]:
    """Return the engine's times of first and later tokens, their share of the limit, and its standing among peers."""
    lines = []
    for what in (FIRST, LATER):
        of_what = [row for row in rows if row.case["time of"] == what]
        for dtype in dict.fromkeys(row.dtype for row in of_what if row.agent == ENGINE):
            parts = []
            for row in (row for row in of_what if row.name == f"{ENGINE} {dtype}"):
                share = row.intervals.get("share of limit")
                more = "" if share is None else f" (share of the limit {interval(share)})"
                parts.append(f"{row.case['texts']} x {row.case['prompt']}: {number(row.p50 * 1e3)} ms{more}")
            lines.append(f"**Texts in {dtype}, {what}**, by texts and tokens of a prompt: {', '.join(parts)}.")
        compared = standing(of_what)
        if compared:
            ahead, cases = compared["ahead"].count("yes"), len(compared["ahead"])
            values = [float(cell.split()[0]) for cell in compared["times faster"]]
            others = ", ".join(dict.fromkeys(row.agent for row in of_what if row.agent != ENGINE))
            lines.append(
                f"**Texts, {what}, compared with the fastest other of the same dtype** ({others}): the engine is "
                f"faster in {ahead} of {cases} cases, {span(values)} times."
            )
    return lines


def beside_conclusions(rows: list[Row]) -> list[str]:
    """Return how long an agent's step takes while prompts are read."""
    lines = []
    for dtype in dict.fromkeys(row.dtype for row in rows):
        parts = []
        for row in (row for row in rows if row.dtype == dtype):
            pace = "back to back" if row.case["hz"] == "none" else f"at {row.case['hz']} Hz"
            times = f"{number(row.p50 * 1e3)} ms (p99 {number(row.seconds['99'] * 1e3)})"
            parts.append(f"{pace} beside {row.case['beside']} {times}")
        lines.append(f"**An agent's step in {dtype}** while prompts of 400 tokens are read: {'; '.join(parts)}.")
    return lines


def throughput_conclusions(rows: list[Row]) -> list[str]:
    """Return the steps a second of the fewest and of the most agents, each in the fastest dtype."""
    best = {
        agents: max(int(agents) / row.p50 for row in rows if row.case["agents"] == agents)
        for agents in sorted({int(row.case["agents"]) for row in rows})
    }
    rates = ", ".join(f"{agents} agent{'s' * (agents > 1)} {number(rate)}" for agents, rate in best.items())
    return [f"**Many agents**, agent-steps per second in the fastest dtype: {rates}."]


def span(values: Iterable[float]) -> str:
    """Return "2.5 to 8.1", or one number where both ends read the same."""
    found = list(values)
    low, high = number(min(found)), number(max(found))
    return low if low == high else f"{low} to {high}"


def section(name: str, results: Results) -> str:
    """Return what one run measured. name: of its files."""
    machine = results.machine
    bandwidth = machine["bandwidth GB/s"]
    versions = [f"{package} {version}" for package, version in machine["versions"].items() if version]
    for peer, found in machine.get("peers", {}).items():
        versions.append(f"{peer} with " + ", ".join(f"{package} {version}" for package, version in found.items()))
    models = " and ".join(results.settings["models"])
    parts = [
        f"## {machine['cpu']['name']}, {machine['cpu']['cores']} cores: {models}",
        f"Commit {machine['commit']}, {machine['date'][:10]}. Memory read at {bandwidth['median']:.1f} GB/s "
        f"({bandwidth['p10']:.1f} to {bandwidth['p90']:.1f}), measured between the rounds. {'; '.join(versions)}.",
    ]

    for suite, explanation in SUITES.items():
        rows = results.of_suite(suite)
        if not rows:
            continue
        parts += [f"### {title(suite, results.settings)}, {models}", explanation]
        if suite in DRAWN:
            parts += [f"![{suite}](../benchmarks/results/{name}_{suite}.png)"]
        if suite in STANDINGS:
            parts += ["Compared with the fastest other agent of its dtype:", markdown(standing(rows))]
        parts += [markdown(columns(rows))]

    if results.skipped:
        parts += [
            f"### Not measured, {models}",
            "\n".join(f"- {what}: {why}" for what, why in results.skipped.items()),
        ]
    return "\n\n".join(parts)


def how_to_read() -> str:
    return (
        "What a table compares took turns: in each round every agent takes a few steps, in an order that changes, "
        "after a pause in which other agents' threads fall asleep. A time is the median of all calls, next to it the "
        "5th and 95th percentile; `times faster` is the median over rounds of the ratio to the case's reference within "
        "a round, with a 95 % interval (of fewer than 6 rounds, their range). `error` is the largest distance of a "
        "prediction from `JatModel`'s in float32, over their root mean square, while the window filled with the same "
        "observations; in training it is of the loss, in simulators of an action, in generation of the logits on given "
        "continuations. An agent whose error exceeds its tolerance (float32 0.001, bfloat16 0.05, int8 0.2, int4 0.75) "
        "is not compared, nor is one in another precision where its outputs cannot be held against the reference's."
    )


LOOP_RATE = 50
"""Calls a second at which a busy neighbour and missed deadlines are shown, if it was measured."""

PUBLISHED = "published package float32"


def readme_table(results: Results) -> str:
    """Return the README's table of paced calls: the published package, the fastest other agent, and the engine.

    Args:
        results: of calls at a rate.
    """
    cases = paced_cases([row for row in results.of_suite("loop") if row.case["model"] == HEADLINE["model"]])
    first = next(iter(cases.values()))
    others = [name for name in first if not name.startswith((ENGINE, PUBLISHED, "JatModel"))]
    shown = [name for name in (PUBLISHED, "JatModel float32") if name in first][:1]
    shown += sorted(others, key=lambda name: max(found[name].p50 for found in cases.values()))[:1]
    shown += [f"{ENGINE} {dtype}" for dtype in ("float32", "bfloat16", "int8") if f"{ENGINE} {dtype}" in first]

    lines = []
    for name in shown:
        label = f"**{name}**" if name.startswith(ENGINE) else name
        if name in others:
            label += " (fastest of torch.compile, ONNX Runtime and OpenVINO)"
        line = {"ms per call, median (p99)": label}
        for heading, found in cases.items():
            row = found[name]
            line[heading] = f"{milliseconds(row.p50)} ({milliseconds(row.seconds['99'])})"
        lines.append(line)

    machine = results.machine
    caption = (
        f"A whole `get_next_action`, published size (192.7 M parameters, random weights), full window of "
        f"{HEADLINE['window']} tokens, on {machine['cpu']['cores']} cores of {cpu_name(machine)}, all in one run "
        f"({machine['date'][:10]}). At {LOOP_RATE} Hz the process sleeps between calls, as a robot's does; a busy "
        "neighbour is another process that computes on one of the two cores:"
    )
    return f"{caption}\n\n{markdown(by_column(lines))}"


def paced_cases(rows: list[Row]) -> dict[str, dict[str, Row]]:
    """Return the agents' rows, by name, back to back, at `LOOP_RATE`, and at that rate with a busy neighbour."""
    cases: dict[str, dict[str, object]] = {
        "back to back": {"pace": BACK_TO_BACK, "neighbour": "none"},
        f"at {LOOP_RATE} Hz": {"pace": SLEEP, "hz": LOOP_RATE, "neighbour": "none"},
        f"at {LOOP_RATE} Hz, busy neighbour": {"pace": SLEEP, "hz": LOOP_RATE, "neighbour": "busy"},
    }
    rows = [row for row in rows if row.agrees and row.agent not in FLOORS]
    return {
        heading: {row.name: row for row in rows if case.items() <= row.case.items()} for heading, case in cases.items()
    }


def milliseconds(seconds: float) -> str:
    return number(seconds * 1e3)


def cpu_name(machine: dict[str, Any]) -> str:
    """Return the CPU's name with its instructions: virtual machines often hide the model."""
    cpu = machine["cpu"]
    features = [name.upper().replace("_", "-") for name in cpu.get("features", ()) if name.startswith("avx512_")]
    return f"{cpu['name']}" + (f" ({', '.join(features)})" if features else "")


def headline_rows(results: Results) -> list[Row]:
    """Return the rows of the case that is shown first."""
    return [
        row
        for row in results.of_suite("latency")
        if row.agrees and all(row.case.get(name) == value for name, value in HEADLINE.items())
    ]


def headline(results: Results, paced: Results | None = None) -> str:
    """Return the tables that sum up: paced calls, where they were measured, above calls back to back.

    Args:
        results: of calls back to back.
        paced: of paced calls; None if they are in `results` too.
    """
    paced = results if paced is None else paced
    is_paced = any(row.case["pace"] == SLEEP for row in paced.of_suite("loop"))
    if not is_paced:
        return latency_table(results)
    return f"{loop_table(paced)}\n\nBack to back: {latency_table(results)}"


def loop_table(results: Results) -> str:
    """Return p50 and p99 of paced calls, sleeping between them: a column a rate, and one with a busy neighbour."""
    rows = [row for row in results.of_suite("loop") if row.agrees and row.case["model"] == HEADLINE["model"]]
    rows = [row for row in rows if row.case["pace"] in (BACK_TO_BACK, SLEEP) and row.agent not in FLOORS]
    rates = sorted({row.case["hz"] for row in rows if isinstance(row.case["hz"], int)})
    rate = LOOP_RATE if LOOP_RATE in rates else rates[0]
    cases: dict[str, dict[str, object]] = {"back to back": {"hz": "none", "neighbour": "none"}}
    cases |= {f"{hz} Hz": {"hz": hz, "neighbour": "none"} for hz in rates}
    cases |= {f"{rate} Hz, busy neighbour": {"hz": rate, "neighbour": "busy"}}
    found = {
        heading: {row.name: row for row in rows if case.items() <= row.case.items()} for heading, case in cases.items()
    }
    found = {heading: by_name for heading, by_name in found.items() if by_name}
    last = list(found)[-1]
    order = sorted(dict.fromkeys(row.name for row in rows), key=lambda name: -_median(rows, name, rate))

    lines = []
    for name in order:
        line = {"ms a call, p50 (p99)": f"**{name}**" if name.rpartition(" ")[0] == ENGINE else name}
        for heading, by_name in found.items():
            row = by_name.get(name)
            line[heading] = f"{number(row.p50 * 1e3)} ({number(row.seconds['99'] * 1e3)})" if row else ""
        missed = found[last][name].facts.get("missed %") if name in found[last] else None
        line["missed there"] = "" if missed is None else f"{number(missed)} %"
        lines.append(line)

    machine, window = results.machine, rows[0].case["window"]
    caption = (
        f"As a robot calls it, at a fixed rate and asleep between calls: {machine['cpu']['name']}, "
        f"{machine['cpu']['cores']} cores, published size with random weights, a full window of {window} tokens, all "
        f"in one run ({machine['date'][:10]}). A busy neighbour is another process that computes on one core; a "
        "deadline is missed when a call takes longer than the period."
    )
    return f"{caption}\n\n{markdown(by_column(lines))}"


def _median(rows: list[Row], name: str, hz: object) -> float:
    return max((row.p50 for row in rows if row.name == name and row.case["hz"] == hz), default=0.0)


def latency_table(results: Results) -> str:
    """Return medians of calls back to back in one case, a column a modality."""
    machine = results.machine
    rows = headline_rows(results)
    kinds = list(dict.fromkeys(str(row.case["observation"]) for row in rows))
    names = sorted(dict.fromkeys(row.name for row in rows), key=lambda name: -_slowest(rows, name))

    lines = []
    for name in names:
        found = {str(row.case["observation"]): row for row in rows if row.name == name}
        errors = [row.error for row in found.values() if row.error is not None]
        line = {f"ms a step, {machine['cpu']['cores']} cores": f"**{name}**" if name.startswith(ENGINE) else name}
        line |= {kind: number(found[kind].p50 * 1e3) if kind in found else "" for kind in kinds}
        line["error"] = f"{max(errors):.1g}" if errors else ""
        lines.append(line)

    caption = (
        f"{machine['cpu']['name']}, {machine['cpu']['cores']} cores, published size with random weights, a "
        f"full window of {HEADLINE['window']} tokens, all in one run ({machine['date'][:10]})."
    )
    return f"{caption}\n\n{markdown(by_column(lines))}"


def _slowest(rows: list[Row], name: str) -> float:
    return max(row.p50 for row in rows if row.name == name)


def with_headline(readme: str, text: str) -> str:
    """Return the README with its table replaced. Raises `ValueError` unless it has the two marks once."""
    if readme.count(BEGIN) != 1 or END not in readme.partition(BEGIN)[2]:
        raise ValueError(f"README.md: expected {BEGIN} once, and {END} after it")
    return re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: f"{BEGIN}\n{text}\n{END}", readme, flags=re.S)


def main() -> None:
    runs = read()
    PAGE.write_text(page(runs))
    README.write_text(with_headline(README.read_text(), readme_table(runs[LOOP_RUN])))


if __name__ == "__main__":
    main()
