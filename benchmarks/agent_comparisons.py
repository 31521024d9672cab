"""Compare jat-mini with itself in other dtypes and on other backends, on the same episodes.

`python -m benchmarks.agent_comparisons` plays what is missing of the runs in `results/agent_comparisons`, and writes
`benchmarks/results/agent_comparisons.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from jat_engine.checkpoint.trained_tasks import read_trained_tasks
from jat_engine.checkpoint_files import JAT_MINI
from jat_engine.cli import evaluate
from jat_engine.cli.compare_agents import to_json, words
from jat_engine.cli.tables import interval, number
from jat_engine.runs.compare import Comparison, compare
from jat_engine.runs.database import read_run

FIRST = ("cpu", "float32")
OTHERS = (("cpu", "bfloat16"), ("cpu", "int8"), ("torch", "float32"))
PONG, PONG_EPISODES = "atari-pong", 6
RESULTS = Path(__file__).parent / "results"


def play(folder: Path, backend: str, dtype: str, episodes: int) -> None:
    """Play greedy episodes of all tasks that jat-mini was trained on; fewer of Pong, whose episodes are long."""
    names = [task.name for task in read_trained_tasks(JAT_MINI)]
    for count, tasks in ((episodes, [name for name in names if name != PONG]), (PONG_EPISODES, [PONG])):
        argv = ["--model_name_or_path", JAT_MINI, "--use_cpu", "--backend", backend, "--dtype", dtype]
        argv += ["--deterministic", "--num_episodes", str(count), "--output_dir", str(folder), "--tasks", *tasks]
        code = evaluate.run(argv)
        assert code == 0, f"{backend} {dtype}: exit code {code}"


def write_markdown(found: dict[tuple[str, str], Comparison], episodes: int) -> str:
    lines = [
        f"jat-mini, {episodes} greedy episodes of each task it was trained on, {PONG_EPISODES} of Pong; each row "
        "compares with the native CPU backend in float32 on the same seeds. Differences of mean returns have 95 % "
        "paired bootstrap intervals. Equal: episodes with the same observations, actions and rewards. p: sign test, by "
        "Holm's method for all tasks.",
        "",
        "| backend | dtype | task | float32 | this | difference | equal | p | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (backend, dtype), one in found.items():
        for task in one.tasks:
            cells = [backend, dtype, task.pairs.task.name, number(task.means[0]), number(task.means[1])]
            cells += [interval(task.difference), f"{task.equal} of {len(task.pairs.first)}", f"{task.p_value:.2f}"]
            lines.append(f"| {' | '.join([*cells, words(task.verdict, 'float32', 'this')])} |")
    lines += [
        "",
        "| backend | dtype | difference of the mean score by the published expert | of the IQM | of the success rate | "
        "verdict |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for (backend, dtype), one in found.items():
        scores = one.overall.scores
        assert scores is not None, "published tasks have scores"
        cells = [backend, dtype, interval(scores.mean), interval(scores.iqm), interval(one.overall.success)]
        lines.append(f"| {' | '.join([*cells, words(one.verdict, 'float32', 'this')])} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=30)
    parser.add_argument("--runs", type=Path, default=Path("results/agent_comparisons"))
    arguments = parser.parse_args()

    for backend, dtype in (FIRST, *OTHERS):
        play(arguments.runs / f"{backend}-{dtype}", backend, dtype, arguments.episodes)
    first = read_run(arguments.runs / "-".join(FIRST))
    found = {
        variant: compare(first, read_run(arguments.runs / "-".join(variant)), reference="expert") for variant in OTHERS
    }
    content = {f"{backend} {dtype}": to_json(one) for (backend, dtype), one in found.items()}
    (RESULTS / "agent_comparisons.json").write_text(json.dumps(content, indent=1) + "\n")
    (RESULTS / "agent_comparisons.md").write_text(write_markdown(found, arguments.episodes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
