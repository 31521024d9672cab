"""Write report.md, and the short table at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jat_engine.bench.report import by_column, cell, markdown

from .predictions import comparison, predictions


def render(value: Any, depth: int = 3) -> str:
    """Return lists of mappings as tables, mappings of mappings as tables with a name, the rest as lists."""
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        return markdown(by_column(value))
    if isinstance(value, dict) and value:
        if all(isinstance(v, dict) and not _is_nested(v) for v in value.values()):
            return markdown(by_column({"": name, **row} for name, row in value.items()))
        parts = []
        plain = {k: v for k, v in value.items() if not _is_nested(v)}
        if plain:
            parts.append("\n".join(f"- {name}: {cell(v)}" for name, v in plain.items()))
        for name, inner in value.items():
            if name not in plain:
                parts.append(f"{'#' * min(depth, 6)} {name}\n\n{render(inner, depth + 1)}")
        return "\n\n".join(parts)
    return cell(value)


def _is_nested(value: Any) -> bool:
    if isinstance(value, list):
        return any(isinstance(item, dict) for item in value)
    return isinstance(value, dict) and any(isinstance(v, dict | list) for v in value.values())


def device(data: dict[str, Any]) -> str:
    """Return what the report was measured on, in words."""
    gpu = data["sections"].get("machine", {}).get("result", {}).get("gpu", {})
    if not data["measured on a GPU"]:
        return "a CPU: there is no NVIDIA GPU here, nothing below was measured on one"
    return str(gpu.get("name", "an NVIDIA GPU"))


def write(data: dict[str, Any], out: Path) -> None:
    """Write report.md into a folder."""
    parts = [f"# GPU report\n\nMeasured on {device(data)}. Commit {data['commit']}, {data['date']}."]
    if data["reduced"]:
        parts.append("Reduced form: the tiny model, few steps. No figure of speed here means anything.")
    parts.append("```\n" + summary(data) + "\n```")
    compared = [] if data["reduced"] else comparison(data, predictions())
    if compared:
        parts.append("## predictions and readings\n\n" + markdown(by_column(compared)))
    for section in data["sections"].values():
        head = f"## {section['title']}\n\n{section['status']}, {section['seconds']:.0f} s"
        if section.get("reason"):
            head += f"\n\n```\n{section['reason'][-1500:]}\n```"
        if section.get("log"):
            head += f"\n\n```\n{section['log'][-1500:]}\n```"
        parts.append(head)
        result = dict(section["result"])
        if isinstance(result.get("paths"), dict):
            parts.append(_paths(result.pop("paths")))
            result.pop("failed", None)
        if result:
            parts.append(render(result))
    path = out / "report.md"
    path.write_text("\n\n".join(parts) + "\n")


def verdict(row: dict[str, Any]) -> str:
    """Return what parity says of a path: having had no time is no failure."""
    if "not run" in row:
        return "not run"
    return "ok" if row.get("within") else "FAILED"


def _paths(paths: dict[str, Any]) -> str:
    """Return parity as one table, and what the engines say of themselves and of their failures below it."""
    rows = []
    for name, found in paths.items():
        row: dict[str, Any] = {"path": name, "verdict": verdict(found)}
        for part in ("tiny", "small"):
            inner = found.get(part, {})
            row[f"{part}: relative error"] = inner.get("relative error", "")
            row[f"{part}: greedy actions that agree"] = inner.get("greedy actions that agree", "")
            row[f"{part}: of"] = inner.get("of", "")
        row["limit"] = found.get("limit", "")
        row["bitwise equal twice"] = found.get("small", {}).get("two runs are bitwise equal", "")
        row["seconds"] = found.get("seconds", "")
        rows.append(row)

    parts = [markdown(by_column(rows))]
    for name, found in paths.items():
        if "error" in found:
            parts.append(f"{name}:\n\n```\n{found['error']}\n```")
        small = found.get("small", {})
        if small.get("engine"):
            parts.append(f"- {name}: {cell(small['engine'])}; by kind: {cell(small.get('by kind', {}))}")
    return "\n\n".join(parts)


def summary(data: dict[str, Any]) -> str:
    """Return one line a section, then the figures that matter most."""
    lines = [f"measured on {device(data)}; commit {data['commit']}; {data.get('seconds', 0):.0f} s"]
    for name, section in data["sections"].items():
        reason = (section.get("reason") or "").strip().splitlines()
        lines.append(
            f"{name:11} {section['status']:10} {section['seconds']:5.0f} s  {reason[-1][:90] if reason else ''}"
        )

    results = {name: section["result"] for name, section in data["sections"].items()}
    paths = results.get("parity", {}).get("paths", {})
    if isinstance(paths, dict):
        for name, row in paths.items():
            parts = [f"{part} {row[part]['relative error']:.1e}" for part in ("tiny", "small") if part in row]
            error = str(row.get("error", "")).strip().splitlines()
            lines.append(f"parity      {name:34} {verdict(row):7} {', '.join(parts)} {error[-1][:90] if error else ''}")

    for row in results.get("latency", {}).get("steps", []):
        if isinstance(row, dict) and "p50 us" in row:
            share = row.get("floor / device time") or row.get("floor / p50")
            lines.append(
                f"latency     {row['observation']:10} {row['agent']:34} {row['mode']:12} p50 {row['p50 us']:8.1f} us "
                f"p99 {row['p99 us']:8.1f} us"
                + (f"  floor / time {share:.2f}" if share and not data["reduced"] else "")
            )

    for row in results.get("throughput", {}).get("agents", []):
        if isinstance(row, dict) and "agent-steps/s" in row:
            lines.append(
                f"throughput  {row['agents']:5} agents  {row['api']:8}  step {row['step ms']:8.3f} ms  "
                f"{row['agent-steps/s']:9.0f} agent-steps/s"
            )
    return "\n".join(line.rstrip() for line in lines)
