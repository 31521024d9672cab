"""Upload of a checkpoint and its evaluation to the Hugging Face hub, with a model card and the hub's metadata."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    HfApi,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)

from ..evaluation.statistics import Interval
from .records import Evaluation
from .summary import (
    AGGREGATE_WORDS,
    Summary,
    TaskSummary,
    bracket,
    digits_of,
    interval_words,
    number,
    percent,
    reference_definitions,
    sentence,
    summarize,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

DATASET = "jat-project/jat-dataset"
"""Dataset of the published tasks."""

ENTRIES = ".eval_results/jat.yaml"
"""Name of the file with the hub's entries in a repository."""

_BODY = """
# {name}

A JAT agent: one transformer that plays {count} tasks ([paper](https://arxiv.org/abs/2402.09844)).

```python
import jat_engine

model = jat_engine.AutoModelForCausalLM.from_pretrained("{repo_id}")
processor = jat_engine.AutoProcessor.from_pretrained("{repo_id}")
```

Watch it: `jat-engine play --task {example} --model_name_or_path {repo_id} --render`

## Evaluation

{run}. {intervals} {definitions}

{aggregates}

{tasks}
"""


def push_to_hub(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    repo_id: str,
    evaluation: Evaluation,
    *,
    files: Iterable[Path] = (),
    api: HfApi | None = None,
) -> str:
    """Upload weights, processor, model card, the hub's entries, and further files in one commit.

    Args:
        model: the model whose weights are uploaded.
        processor: its processor.
        repo_id: repository on the hub, "owner/name"; created if it does not exist.
        evaluation: with finished episodes, from which the model card is written.
        files: further files, uploaded under their own names, such as `results.json` and `replay.mp4`.
        api: client with the token to use; by default the token of `hf auth login` or `HF_TOKEN`.

    Returns:
        The address of the repository.

    Raises:
        ValueError: the evaluation has no finished episodes.
    """
    summary = summarize(evaluation)
    api = api or HfApi()
    repo = api.create_repo(repo_id=repo_id, repo_type="model", exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        for path in files:
            shutil.copy(path, folder / path.name)
        model_card(repo_id, summary).save(folder / "README.md")
        if entries := eval_entries(summary):
            (folder / ENTRIES).parent.mkdir()
            (folder / ENTRIES).write_text(entries_text(entries), encoding="utf-8")
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload model, processor and evaluation")
    return str(repo)


def model_card(repo_id: str, summary: Summary) -> ModelCard:
    """Return the README of a repository: tags, results in the hub's format, an example of use, and tables.

    Args:
        repo_id: repository on the hub, "owner/name".
        summary: of the evaluation.
    """
    names = [task.task.name for task in summary.tasks]
    data = ModelCardData(
        library_name="jat_engine",
        pipeline_tag="reinforcement-learning",
        tags=["reinforcement-learning", *names],
        datasets=DATASET if any(task.task.is_published for task in summary.tasks) else None,
        model_name=repo_id,
        eval_results=eval_results(summary),
    )
    body = _BODY.format(
        name=repo_id.split("/")[-1],
        repo_id=repo_id,
        count=len(names),
        example=names[0],
        run=sentence(summary.run),
        intervals=interval_words(summary),
        definitions=" ".join(reference_definitions(summary)),
        aggregates=_aggregates(summary),
        tasks=_tasks(summary),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{body}")


def _tasks(summary: Summary) -> str:
    """Return the table of tasks."""
    head = ["task", "episodes", "mean return", "± standard deviation of episodes"]
    head += ["success"] if summary.overall.success is not None else []
    head += [summary.words(reference) for reference in summary.references]
    return _markdown(head, [_cells(task, summary) for task in summary.tasks])


def _cells(task: TaskSummary, summary: Summary) -> list[str]:
    digits = digits_of(task.mean.value, task.std)
    episodes = f"{task.episodes}" if task.episodes >= task.planned else f"{task.episodes} of {task.planned}"
    cells = [task.task.name, episodes, _estimate(task.mean, digits), number(task.std, digits)]
    if summary.overall.success is not None:
        cells.append("-" if task.success is None else f"{_estimate(percent(task.success), 0)} %")
    for reference in summary.references:
        score = task.scores.get(reference)
        cells.append("undefined" if score is None else _estimate(score, 2))
    return cells


def _aggregates(summary: Summary) -> str:
    """Return the table of domains and all tasks; nothing if no score is defined."""
    rows = []
    for reference in summary.references:
        for group in summary.scored(reference):
            found = group.scores[reference]
            values = [_estimate(one, 2) for one in (found.iqm, found.median, found.mean, found.optimality_gap)]
            rows.append([f"{group.title} ({found.tasks})", summary.words(reference), *values])
    if not rows:
        return ""
    return f"{AGGREGATE_WORDS}\n\n" + _markdown(["tasks", "", "IQM", "median", "mean", "optimality gap"], rows)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _estimate(interval: Interval, digits: int) -> str:
    return f"{number(interval.value, digits)} {bracket(interval, digits)}"


# ---- metadata --------------------------------------------------------------------------------------------------------


def eval_results(summary: Summary) -> list[EvalResult]:
    """Return the metrics that the published agent reports, in the format of a card's model-index.

    Args:
        summary: of the evaluation.

    Returns:
        Interquartile means per domain, then returns and normalised returns per task, both as mean and standard
        deviation of the episodes.
    """
    results: list[EvalResult] = []
    for group in sorted(summary.domains, key=lambda group: group.name):
        for reference, found in group.scores.items():
            metric = f"iqm_{reference}_normalized_total_reward"
            results.append(_result(group.name, group.title, metric, _estimate(found.iqm, 2)))

    for task in summary.tasks:
        name = task.task.name
        title = name.partition("-")[2].replace("-", " ").title() if task.task.is_published else name
        results.append(_result(name, title, "total_reward", _plus_minus(task.mean.value, task.std)))
        for reference, score in task.scores.items():
            value = _plus_minus(score.value, task.score_stds[reference])
            results.append(_result(name, title, f"{reference}_normalized_total_reward", value))
    return results


def _result(dataset: str, title: str, metric: str, value: str) -> EvalResult:
    words = metric.replace("_", " ")
    return EvalResult(
        task_type="reinforcement-learning",
        task_name="Reinforcement Learning",
        dataset_type=dataset,
        dataset_name=title,
        metric_type=metric,
        metric_name="IQM" + words[3:] if words.startswith("iqm") else words.capitalize(),
        metric_value=value,
    )


def _plus_minus(mean: float, std: float) -> str:
    return f"{number(mean, 2)} +/- {number(std, 2)}"


def eval_entries(summary: Summary) -> list[EvalResultEntry]:
    """Return the mean returns of the published tasks as entries of `.eval_results`.

    The hub lists them on the model's page, and on the leaderboard of the dataset where that is registered as a
    benchmark with these tasks.

    Args:
        summary: of the evaluation.
    """
    return [_entry(task) for task in summary.tasks if task.task.is_published]


def _entry(task: TaskSummary) -> EvalResultEntry:
    digits = digits_of(task.mean.value, task.std)
    return EvalResultEntry(
        dataset_id=DATASET,
        task_id=task.task.name,
        value=float(number(task.mean.value, digits)),
        notes=f"mean return, 95 % interval {bracket(task.mean, digits)}; {task.run}",
    )


def entries_text(entries: Iterable[EvalResultEntry]) -> str:
    """Return entries as the text of their file: JSON, which is YAML too."""
    return json.dumps(eval_result_entries_to_yaml(list(entries)), indent=1) + "\n"
