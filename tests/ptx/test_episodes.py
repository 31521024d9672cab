"""Golden episodes of the whole CUDA backend, its kernels executed from PTX.

On sm_90 they are launched as on a GPU, before earlier kernels have ended: what one reads before it waits must not have
been written by another of the same step.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.engines import EPISODE, play
from helpers.ptx.launcher import PtxLauncher
from helpers.ptx.memory import AccessError

from jat_engine import JatEngine
from jat_engine.backends.base import TextRows
from jat_engine.backends.cuda.graph import GraphStep
from jat_engine.backends.cuda.text import TextStep
from jat_engine.testing.golden import relative_error

BOUNDS = {"float32": 1e-5, "bfloat16": 4e-2, "float16": 6e-3, "int8": 5e-2}
DTYPES = ["bfloat16", "int8", "float16"]

Load = Callable[..., JatEngine]


@pytest.fixture(scope="module", autouse=True)
def checked_steps(ptx_launcher: PtxLauncher) -> Any:
    """Check each step's order of writes and reads by itself: its inputs, weights and older keys were there before."""

    def beginning(launch: Callable[[Any], None]) -> Callable[[Any], None]:
        def begin_and_launch(graph: Any) -> None:
            ptx_launcher.begin_step()
            launch(graph)

        return begin_and_launch

    with pytest.MonkeyPatch.context() as patch:
        for step in (GraphStep, TextStep):
            patch.setattr(step, "launch", beginning(step.launch))
        yield


@pytest.fixture(scope="module")
def engines(tiny_folder: Path, ptx_launcher: PtxLauncher) -> Load:
    made: dict[str, JatEngine] = {}

    def make(dtype: str) -> JatEngine:
        if dtype not in made:
            made[dtype] = JatEngine.from_pretrained(
                tiny_folder, device="cpu", backend="cuda", dtype=dtype, persistent=False, max_cached_tokens=1600
            )
            backend: Any = made[dtype]._backend
            backend._weights.pdl = ptx_launcher.compute_capability >= 90
        return made[dtype]

    return make


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "steps"), [("continuous_cw9", 8), ("babyai_greedy_full", 3), ("atari_greedy_full", 2)]
)
def test_golden_episode(dtype: str, name: str, steps: int, engines: Load) -> None:
    """One agent, the published actions forced: splits of keys, narrow tiles."""
    episode = EPISODE[name]
    steps = min(steps, episode.steps)
    given = episode.actions if episode.actions is not None else [value.tolist() for value in episode.predictions]
    with engines(dtype).open_session(episode.context_window) as session:
        predictions = [play(session, episode, t, given[t])[1] for t in range(steps)]
    assert relative_error(predictions, episode.predictions[:steps]) <= BOUNDS[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_agents_of_all_kinds(dtype: str, engines: Load, load: Load) -> None:
    """7 agents in a bucket of 8, 24 rows: tiles of tensor cores, beside a plain torch engine in float32."""
    names = ("continuous_cw9", "babyai_greedy_full", "continuous_cw16", "atari_greedy_full", "continuous_full",
             "babyai_greedy_full", "continuous_cw9")  # fmt: skip
    reference = load(backend="torch", dtype="float32", max_cached_tokens=1600)
    sessions = [(engine, [engine.open_session(9) for _ in names]) for engine in (engines(dtype), reference)]
    for t in range(4):
        results = [
            engine.get_next_actions(
                opened,
                [EPISODE[name].observation(t) for name in names],
                [EPISODE[name].reward(t) for name in names],
                [EPISODE[name].space for name in names],
                deterministic=True,
                return_predictions=True,
            )
            for engine, opened in sessions
        ]
        for index, ((_, prediction), (action, expected)) in enumerate(zip(*results, strict=True)):
            assert relative_error(prediction, expected) <= 1.5 * BOUNDS[dtype]
            sessions[0][1][index].force_action(action)
    for _, opened in sessions:
        for session in opened:
            session.close()


@pytest.mark.parametrize("dtype", DTYPES)
def test_texts(dtype: str, engines: Load, load: Load) -> None:
    """A prompt is read, then goes on while another one is read."""
    tokens, more = (np.random.default_rng(seed).integers(0, 257, 24) for seed in (0, 1))
    found = []
    for engine in (engines(dtype), load(backend="torch", dtype="float32", max_cached_tokens=1600)):
        runner, backend = engine._runner, engine._backend
        with runner.lock:
            first, second = runner.open_text(32), runner.open_text(32)
            tables = first.empty.table, second.empty.table
            logits = backend.run_text([TextRows(None, tokens[:20], 0, tables[0], 3)])
            for place in range(20, 22):
                logits += backend.run_text([TextRows(None, tokens[place : place + 1], place, tables[0], 1)])
            own = TextRows(None, tokens[22:23], 22, tables[0], 1)
            logits += backend.run_text([own, TextRows(None, more, 0, tables[1], 1)])
            first.close()
            second.close()
        found.append(np.concatenate(logits))
    assert relative_error(*found) <= BOUNDS[dtype]


FAULTS: dict[str, Callable[[str], str]] = {
    "does not wait": lambda ptx: re.sub(r"griddepcontrol\.wait\s*;", "", ptx),
    "waits at the end": lambda ptx: re.sub(r"\bret;", "griddepcontrol.wait; ret;", FAULTS["does not wait"](ptx)),
    "ends without waiting": lambda ptx: re.sub(
        r"(ld\.param\.b64\s+%rd\d+, \[_linear_residual_kernel_param_0\];)", r"\1 ret;", ptx
    ),
}


@pytest.mark.ptx_all
@pytest.mark.planted_fault
@pytest.mark.parametrize("name", FAULTS)
def test_an_order_that_nothing_guarantees_is_found(name: str, engines: Load, ptx_launcher: PtxLauncher) -> None:
    if ptx_launcher.compute_capability < 90:
        pytest.skip("kernels are launched one after the other")
    engine, episode = engines("bfloat16"), EPISODE["continuous_cw9"]
    session = engine.open_session(9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ptx_launcher, "_change", FAULTS[name])
        patch.setattr(ptx_launcher, "_compiled", {})
        with pytest.raises(AccessError, match=r"before griddepcontrol.wait|does not wait"):
            play(session, episode, 0)
    session.close()
