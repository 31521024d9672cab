"""The examples in docstrings run and print what they show."""

from __future__ import annotations

import doctest
import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import jat_engine
from jat_engine import JatEngine, JatModel, JatProcessor, envs, evaluation
from jat_engine.rate import Loop

HAS_SERVER = all(importlib.util.find_spec(name) for name in ("msgpack", "prometheus_client", "websockets"))

MODULES = (
    "jat_engine",
    "jat_engine.auto",
    *(["jat_engine.client.agent", "jat_engine.client.async_agent"] if HAS_SERVER else []),
    "jat_engine.config",
    "jat_engine.cli.tables",
    "jat_engine.engine.batch",
    "jat_engine.engine.engine",
    "jat_engine.engine.session",
    "jat_engine.engine.writer",
    "jat_engine.envs",
    "jat_engine.envs.make",
    "jat_engine.envs.registry",
    "jat_engine.envs.adapters",
    "jat_engine.envs.tasks",
    "jat_engine.engine.scorer",
    "jat_engine.evaluation",
    "jat_engine.evaluation.answers",
    "jat_engine.datasets.schema",
    "jat_engine.evaluation.random_policy",
    "jat_engine.evaluation.rollout",
    "jat_engine.evaluation.scores",
    "jat_engine.evaluation.text_tasks",
    "jat_engine.model.modeling",
    "jat_engine.model.processing",
    "jat_engine.policy.policy",
    *(["jat_engine.policy.sb3"] if importlib.util.find_spec("stable_baselines3") else []),
    "jat_engine.rate",
    "jat_engine.recipes.text_demo.book",
    "jat_engine.recipes.text_demo.report",
    "jat_engine.recipes.text_demo.rooms",
    "jat_engine.runs.folder",
    "jat_engine.runs.recording",
)


def examples() -> list[doctest.DocTest]:
    """Return the docstrings of `MODULES` that have examples."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name), name)]
    return [test for test in found if test.examples]


@pytest.fixture(scope="module")
def names() -> Iterator[dict[str, Any]]:
    """Yield names that examples use without defining them: public ones, agents of each kind, a server, and so on."""
    pytest.importorskip("minigrid", reason="needs the babyai extra")
    env = envs.make("babyai-go-to-obj", seed=0)
    observation, _ = env.reset()
    names = {
        **{name: getattr(jat_engine, name) for name in jat_engine.__all__},
        **{name: getattr(envs, name) for name in envs.__all__},
        **{name: getattr(evaluation, name) for name in evaluation.__all__},
        "Loop": Loop,
        "torch": torch,
        "env": env,
        "observation": observation,
        "engine": JatEngine.from_pretrained("jat-mini", device="cpu"),
        "model": JatModel.from_pretrained("jat-mini"),
        "processor": JatProcessor.from_pretrained("jat-mini"),
    }
    if not HAS_SERVER:
        yield names
        return
    from helpers.servers import running_server

    with running_server(lambda: JatEngine.from_pretrained("jat-mini", device="cpu"), max_sessions=2) as server:
        yield {**names, "url": server.url}


@pytest.mark.parametrize("example", examples(), ids=lambda test: test.name)
def test_example(example: doctest.DocTest, names: dict[str, Any]) -> None:
    example.globs.update(names)
    report: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=report.append)
    assert not report, "".join(report)
