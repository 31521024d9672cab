"""Helpers for tests of the engine: the variants of an engine that run here, and steps of the recorded episodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from helpers import spaces
from jat_engine import AgentSession, JatEngine
from jat_engine.backends.select import native_module
from jat_engine.testing import golden

NATIVE = native_module()[0]
INSTRUCTION_SETS = NATIVE.instruction_sets() if NATIVE else []
native = pytest.mark.skipif(NATIVE is None, reason=f"no native module: {native_module()[1]}")
TOLERANCE = 1e-5

EPISODE = {episode.name: episode for episode in golden.EPISODES}
BOX8 = spaces.Box(-1, 1, (8,))

Load = Callable[..., JatEngine]


def variants(*dtypes: str) -> list[Any]:
    """Return options for every backend, and every instruction set of the native one, that this machine supports."""
    cases: list[dict[str, Any]] = [{"backend": "torch", "dtype": dtype} for dtype in dtypes if dtype != "int4"]
    for name in INSTRUCTION_SETS:
        cases += [{"backend": "cpu", "instruction_set": name, "dtype": dtype} for dtype in dtypes]
    return [pytest.param(case, id="-".join(case.values())) for case in cases]


def kv_variants(*kv_dtypes: str) -> list[Any]:
    """Return options for float32 weights and these keys and values, for every native instruction set."""
    return [
        pytest.param(
            {"backend": "cpu", "instruction_set": name, "dtype": "float32", "kv_dtype": kv_dtype},
            id=f"{name}-kv-{kv_dtype}",
        )
        for name in INSTRUCTION_SETS
        for kv_dtype in kv_dtypes
    ]


def play(session: AgentSession, episode: golden.Episode, t: int, action: Any = None) -> tuple[Any, np.ndarray]:
    """Take a step of a golden episode, and force `action` into the history if it is given."""
    chosen, prediction = session.get_next_action(
        **episode.observation(t),
        action_space=episode.space,
        reward=episode.reward(t),
        deterministic=episode.deterministic,
        return_prediction=True,
    )
    if action is not None:
        session.force_action(action)
    return chosen, prediction
