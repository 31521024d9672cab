"""What is uploaded to the hub: files, the model card, its metadata, and the hub's entries."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.evaluations import SETTINGS, episodes_of, evaluation_of
from huggingface_hub import ModelCard, parse_eval_result_entries

from jat_engine.envs import TASKS, Score, get_task
from jat_engine.runs import hub
from jat_engine.runs.records import Evaluation
from jat_engine.runs.summary import summarize

PENDULUM = TASKS["mujoco-pendulum"].with_scores(None, Score(1000.0, None))
PLAYED = evaluation_of(
    [
        episodes_of(TASKS["atari-pong"], [-21.0, 21.0]),
        episodes_of(TASKS["atari-bowling"], [30.0]),
        episodes_of(TASKS["babyai-go-to-obj"], [0.9, 0.0], [True, False]),
        episodes_of(PENDULUM, [1000.0, 1000.0]),
    ]
)


class FakeApi:
    """Stand-in for the hub that records uploads."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def create_repo(self, **options: Any) -> str:
        return f"https://huggingface.co/{options['repo_id']}"

    def upload_folder(self, *, folder_path: Path, **_: Any) -> None:
        paths = [path for path in folder_path.rglob("*") if path.is_file()]
        self.files = {str(path.relative_to(folder_path)): path.read_bytes() for path in paths}


def test_push_uploads_model_results_and_card(tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> None:
    replay = tmp_path / "replay.mp4"
    replay.write_bytes(b"video")
    api = FakeApi()
    url = hub.push_to_hub(tiny_model, tiny_processor, "me/agent", PLAYED, files=[replay], api=api)  # type: ignore[arg-type]
    assert url == "https://huggingface.co/me/agent"
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "replay.mp4"} <= set(api.files)

    card = ModelCard(api.files["README.md"].decode())
    assert {"reinforcement-learning", *PLAYED.tasks} <= set(card.data.tags)
    assert card.data.datasets == "jat-project/jat-dataset"

    entries = parse_eval_result_entries(json.loads(api.files[".eval_results/jat.yaml"]))
    assert [entry.task_id for entry in entries] == list(PLAYED.tasks)
    pong = next(entry for entry in entries if entry.task_id == "atari-pong")
    assert (pong.dataset_id, pong.value) == ("jat-project/jat-dataset", 0.0)
    assert pong.notes is not None
    assert pong.notes.startswith(
        "mean return, 95 % interval [-21.00, 21.00]; 2 episodes, sampled actions, seeds 1000000"
    )


def test_the_metadata_are_those_of_the_published_agent() -> None:
    metrics = {(one.dataset_type, one.metric_type): one for one in hub.eval_results(summarize(PLAYED))}
    assert metrics["atari-pong", "total_reward"].metric_value == "0.00 +/- 21.00"
    assert metrics["atari-pong", "total_reward"].dataset_name == "Pong"
    assert ("atari-bowling", "total_reward") in metrics
    assert ("atari-bowling", "expert_normalized_total_reward") not in metrics
    assert metrics["mujoco-pendulum", "demonstrator_normalized_total_reward"].metric_value == "1.00 +/- 0.00"
    atari = metrics["atari", "iqm_human_normalized_total_reward"]
    assert (atari.dataset_name, atari.metric_name) == ("Atari 57", "IQM human normalized total reward")
    assert ("mujoco", "iqm_human_normalized_total_reward") not in metrics


def test_the_card_names_what_normalises_and_what_brackets_and_deviations_are() -> None:
    text = hub.model_card("me/agent", summarize(PLAYED)).text
    (head,) = [line for line in text.splitlines() if line.startswith("| task |")]
    assert head == (
        "| task | episodes | mean return | ± standard deviation of episodes | success | "
        "normalised by the published expert | normalised by its demonstrator | normalised by humans |"
    )
    (pendulum,) = [line for line in text.splitlines() if line.startswith("| mujoco-pendulum |")]
    assert pendulum.startswith("| mujoco-pendulum | 2 | 1000.0 [1000.0, 1000.0] | 0.0 | - | ")
    assert pendulum.endswith(" | 2.12 [2.12, 2.12] | 1.00 [1.00, 1.00] | undefined |")
    assert "| babyai-go-to-obj | 2 | 0.45 [0.00, 0.90] | 0.45 | 50 [9, 91] % | " in text
    assert "| atari-bowling | 1 | 30.00 [30.00, 30.00] | 0.00 | - | undefined | undefined | " in text
    for words in (
        "1 to 2 episodes per task, sampled actions, seeds 1000000 to 1000001.",
        "Brackets are 95 % percentile bootstrap intervals",
        "IQM is the interquartile mean",
        "| Atari 57 (1) | normalised by the published expert | ",
        "| All tasks (3) | normalised by the published expert | ",
    ):
        assert words in text, words
    greedy = Evaluation({**SETTINGS, "deterministic": True}, PLAYED.tasks)
    assert "greedy (most likely) actions" in hub.model_card("me/agent", summarize(greedy)).text


def test_the_card_of_tasks_of_ones_own() -> None:
    task = get_task("gym:CartPole-v1").with_scores(Score(20.0, None), Score(500.0, None))
    summary = summarize(evaluation_of([episodes_of(task, [260.0])]))
    card = hub.model_card("me/agent", summary)
    metrics = {(one.dataset_name, one.metric_type): one.metric_value for one in card.data.eval_results}
    assert metrics["gym:CartPole-v1", "demonstrator_normalized_total_reward"] == "0.50 +/- 0.00"
    assert card.data.datasets is None  # it was not trained on the published one
    assert hub.eval_entries(summary) == []


def test_tasks_without_scores_have_a_card() -> None:
    unscored = replace(get_task("gym:CartPole-v1"), name="cart")
    card = hub.model_card("me/agent", summarize(evaluation_of([episodes_of(unscored, [1.0, 3.0])])))
    assert "| cart | 2 | 2.00 [1.00, 3.00] | 1.00 |" in card.text
    assert "normalised" not in card.text


def test_an_evaluation_without_episodes_is_refused(tiny_model: Any, tiny_processor: Any) -> None:
    api = FakeApi()
    with pytest.raises(ValueError, match="expected finished episodes, got none"):
        hub.push_to_hub(tiny_model, tiny_processor, "me/agent", Evaluation(), api=api)  # type: ignore[arg-type]
    assert not api.files
