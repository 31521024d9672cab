"""The adapter for lm-eval: local tasks of each kind, compared with lm-eval's own adapter of the same model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs the lm-eval extra, which is not in the locked requirements")

import lm_eval
from lm_eval.models.huggingface import HFLM

from jat_engine import InputError, JatEngine, JatModel, JatProcessor
from jat_engine.cli import main
from jat_engine.evaluation.lm_eval_adapter import JatLM, evaluate, find_tasks

CHOICES = [
    {"question": "go to the", "choices": [" red ball", " blue", " k"], "answer": 0},
    {
        "question": "pick up a blue key, then open the door and go to the green",
        "choices": [" box", " door"],
        "answer": 1,
    },
    {"question": "", "choices": ["open", "put"], "answer": 1},
]
TEXTS = [{"text": "go to the red ball"}, {"text": "put the green box next to the purple ball. " * 4}, {"text": "ab"}]
TASKS = {
    "choose": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "read": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "write": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "ball",
        "generation_kwargs": {"until": ["\n", "q"], "max_gen_toks": 9, "do_sample": False, "temperature": 0.0},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def tasks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for name, rows in (("choices", CHOICES), ("texts", TEXTS)):
        (folder / f"{name}.json").write_text("\n".join(map(json.dumps, rows)))
    for name, task in TASKS.items():
        data = folder / ("choices.json" if name == "choose" else "texts.json")
        # A JSON file is a YAML file.
        given = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(json.dumps({"task": f"tiny_{name}", **given, **task}))
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def engine(tiny_folder: Path) -> Iterator[JatEngine]:
    with JatEngine.from_pretrained(tiny_folder, device="cpu", backend="torch", dtype="float32") as engine:
        yield engine


def _samples(results: dict[str, Any], task: str) -> list[Any]:
    return [sample["resps"] for sample in results["samples"][f"tiny_{task}"]]


def test_results_are_those_of_lm_evals_own_adapter(
    engine: JatEngine, tiny_model: JatModel, tiny_processor: JatProcessor, tasks_folder: Path
) -> None:
    names = [f"tiny_{name}" for name in TASKS]
    manager = find_tasks(names, str(tasks_folder))
    reference = HFLM(pretrained=tiny_model, tokenizer=tiny_processor.tokenizer, max_length=48, device="cpu")
    found, expected = (
        lm_eval.simple_evaluate(model=model, tasks=names, task_manager=manager, bootstrap_iters=0)
        for model in (JatLM(engine), reference)
    )
    for name in ("choose", "read"):
        pairs = zip(_samples(found, name), _samples(expected, name), strict=True)
        for ours, theirs in pairs:
            flat = [one[0] for one in ours], [one[0] for one in theirs]
            for mine, other in zip(*flat, strict=True):
                if name == "choose":
                    assert mine[0] == pytest.approx(other[0], abs=1e-3)
                    assert bool(mine[1]) == bool(other[1])
                else:
                    assert mine == pytest.approx(other, abs=1e-2)
    assert _samples(found, "write") == _samples(expected, "write")
    for name in names:
        for metric, value in expected["results"][name].items():
            if isinstance(value, float):
                assert found["results"][name][metric] == pytest.approx(value, rel=1e-4)


def test_what_is_refused(engine: JatEngine, tasks_folder: Path) -> None:
    with pytest.raises(
        ValueError, match="--tasks: expected a task, group or YAML file of lm-eval, got 'tiny_chose'; did"
    ):
        find_tasks(["tiny_chose"], str(tasks_folder))
    model = JatLM(engine)
    with pytest.raises(InputError, match="continuation: expected at most 48 tokens"):
        model._loglikelihood_tokens([(None, [1], [2] * 49)])
    manager = find_tasks(["tiny_choose"], str(tasks_folder))
    (tasks_folder / "choices.json").rename(tasks_folder / "moved.json")
    try:
        with pytest.raises(ValueError, match="--tasks: tiny_choose: FileNotFoundError"):
            evaluate(model, ["tiny_choose"], manager)
    finally:
        (tasks_folder / "moved.json").rename(tasks_folder / "choices.json")


def test_the_command(tiny_folder: Path, tasks_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(tiny_folder, "model")
    flags = ["lm-eval", "--model_name_or_path", "model", "--use_cpu", "--backend", "torch", "--dtype", "float32"]
    flags += ["--tasks", "tiny_choose", "tiny_read", "--include_path", str(tasks_folder)]
    assert main([*flags, "--output_dir", "results", "--limit", "2"]) == 0
    out = capsys.readouterr().out
    assert "tiny_choose" in out
    assert "word_perplexity" in out
    found = json.loads(Path("results/lm_eval_results.json").read_text())
    assert set(found["results"]) == {"tiny_choose", "tiny_read"}
    assert found["n-samples"]["tiny_read"] == {"original": 3, "effective": 2}
    assert "samples" not in found
    assert main([*flags, "--log_samples"]) == 2
    assert "--log_samples: expected --output_dir with it, got none" in capsys.readouterr().err
