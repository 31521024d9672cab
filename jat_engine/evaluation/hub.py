"""Upload of a checkpoint and its evaluation to the Hugging Face hub."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData

from ..envs import Task, get_domain, get_task
from .scores import REFERENCES, normalize
from .statistics import interquartile_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

Evaluations = Mapping[str, Sequence[float]]

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

| task | episodes | return | expert-normalised |
|---|---|---|---|
{rows}
"""


def push_to_hub(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    repo_id: str,
    *,
    evaluations: Path,
    files: Iterable[Path] = (),
    tasks: Mapping[str, Task] | None = None,
    api: HfApi | None = None,
) -> str:
    """Upload weights, processor, model card, `evaluations` and further files in one commit.

    Args:
        model: the model whose weights are uploaded.
        processor: its processor.
        repo_id: repository on the hub, "owner/name"; created if it does not exist.
        evaluations: an `evaluations.json`, from which the model card is written.
        files: further files, uploaded under their own names, such as `results.json` and `replay.mp4`.
        tasks: the tasks of `evaluations` by name; None looks them up.
        api: client with the token to use; by default the token of `hf auth login` or `HF_TOKEN`.

    Returns:
        The address of the repository.
    """
    api = api or HfApi()
    repo = api.create_repo(repo_id=repo_id, repo_type="model", exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        for path in (evaluations, *files):
            shutil.copy(path, folder / path.name)
        model_card(repo_id, json.loads(evaluations.read_text()), tasks).save(folder / "README.md")
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload model, processor and evaluation")
    return str(repo)


def model_card(repo_id: str, evaluations: Evaluations, tasks: Mapping[str, Task] | None = None) -> ModelCard:
    """Return the README of a repository: tags, results in the hub's format, and an example of use.

    Args:
        repo_id: repository on the hub, "owner/name".
        evaluations: task -> returns of its episodes.
        tasks: the tasks by name; None looks them up.
    """
    tasks = {name: get_task(name) for name in evaluations} if tasks is None else tasks
    data = ModelCardData(
        library_name="jat_engine",
        pipeline_tag="reinforcement-learning",
        tags=["reinforcement-learning", *evaluations],
        datasets="jat-project/jat-dataset" if any(tasks[name].is_published for name in evaluations) else None,
        model_name=repo_id,
        eval_results=eval_results(evaluations, tasks) or None,
    )

    rows = []
    for name, returns in evaluations.items():
        scores = normalize(returns, tasks[name])
        normalized = "undefined" if scores is None else _plus_minus(scores)
        rows.append(f"| {name} | {len(returns)} | {_plus_minus(returns)} | {normalized} |")
    body = _BODY.format(
        name=repo_id.split("/")[-1],
        repo_id=repo_id,
        count=len(evaluations),
        example=next(iter(evaluations), "atari-pong"),
        rows="\n".join(rows),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{body}")


def eval_results(evaluations: Evaluations, tasks: Mapping[str, Task]) -> list[EvalResult]:
    """Return the metrics that the published agent reports, in the hub's format.

    Args:
        evaluations: task -> returns of its episodes.
        tasks: the tasks by name.

    Returns:
        Interquartile means per domain, then returns and normalised scores per task.
    """
    results: list[EvalResult] = []

    for domain in sorted({tasks[name].domain for name in evaluations}):
        title = get_domain(domain).title
        names = [name for name in evaluations if tasks[name].domain == domain]
        for reference in REFERENCES:
            scores = [normalize(evaluations[name], tasks[name], reference) for name in names]
            interval = interquartile_mean(s for s in scores if s is not None)
            if interval is not None:
                value = f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
                metric = f"iqm_{reference}_normalized_total_reward"
                results.append(_result(domain, title, metric, value))

    for name, returns in evaluations.items():
        title = name.partition("-")[2].replace("-", " ").title() if tasks[name].is_published else name
        results.append(_result(name, title, "total_reward", _plus_minus(returns)))
        for reference in REFERENCES:
            task_scores = normalize(returns, tasks[name], reference)
            if task_scores is not None:
                metric = f"{reference}_normalized_total_reward"
                results.append(_result(name, title, metric, _plus_minus(task_scores)))
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


def _plus_minus(values: Any) -> str:
    array = np.asarray(values, np.float64)
    return f"{array.mean():.2f} +/- {array.std():.2f}"
