"""Agents on real servers, in processes of their own: as in this process, bit for bit, whatever happens on the way."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("websockets", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from helpers import environment
from helpers.engines import EPISODE, NATIVE
from helpers.remote_servers import CuttingProxy, ServerProcess
from safetensors.numpy import load_file, save_file

from jat_engine import InputError, JatEngine, SessionError
from jat_engine.client import AccessError, AsyncRemoteAgent, OverloadError, RemoteAgent, ServerLostError
from jat_engine.testing import golden

BACKEND = "cpu" if NATIVE else "torch"
MODALITIES = ("continuous_cw9", "discrete_only", "babyai_sampled", "atari_sampled_cw8")


@pytest.fixture(scope="module")
def engine(tiny_folder: Path) -> Iterator[JatEngine]:
    with JatEngine.from_pretrained(tiny_folder, device="cpu", backend=BACKEND, dtype="float32") as engine:
        yield engine


@pytest.fixture(scope="module")
def start(tiny_folder: Path) -> Iterator[Callable[..., ServerProcess]]:
    with contextlib.ExitStack() as stack:

        def start(*flags: str, **options: Any) -> ServerProcess:
            server = ServerProcess(tiny_folder, "--backend", BACKEND, "--dtype", "float32", *flags, **options)
            return stack.enter_context(server)

        yield start


@pytest.fixture(scope="module")
def server(start: Callable[..., ServerProcess]) -> Iterator[ServerProcess]:
    with start("--max_sessions", "16") as server:
        yield server


def arguments(episode: golden.Episode, t: int) -> dict[str, Any]:
    return {
        **episode.observation(t),
        "action_space": episode.space,
        "reward": episode.reward(t),
        "deterministic": episode.deterministic,
        "return_prediction": True,
    }


def lone_steps(engine: JatEngine, episode: golden.Episode) -> list[tuple[Any, np.ndarray]]:
    with engine.open_session(episode.context_window, episode.seed) as session:
        return [session.get_next_action(**arguments(episode, t)) for t in range(episode.steps)]


def check(taken: tuple[Any, np.ndarray], expected: tuple[Any, np.ndarray]) -> None:
    """Check action and prediction, bit for bit."""
    assert type(taken[0]) is type(expected[0])
    assert taken[0] == expected[0]
    assert taken[1].dtype == expected[1].dtype
    assert taken[1].tobytes() == expected[1].tobytes()


def act(agent: RemoteAgent, episode: golden.Episode, t: int) -> Any:
    return agent.get_next_action(None, **arguments(episode, t), context_window=episode.context_window)


@pytest.mark.parametrize("name", list(EPISODE))
def test_an_episode_is_as_in_this_process(name: str, server: ServerProcess, engine: JatEngine) -> None:
    episode = EPISODE[name]
    with RemoteAgent(server.url) as agent:
        assert agent.description["model"]
        for _ in range(2):
            agent.reset(seed=episode.seed)
            for t, expected in enumerate(lone_steps(engine, episode)):
                check(act(agent, episode, t), expected)
        assert (agent.recoveries, agent.num_repeated) == ([], 0)


def test_the_drop_in_call_of_a_task(server: ServerProcess, engine: JatEngine) -> None:
    """A task stands for its action space and window; random numbers go on from episode to episode."""
    episode = EPISODE["babyai_sampled"]
    with RemoteAgent(server.url, task="babyai-open", seed=3) as agent, engine.open_session(256, 3) as session:
        for _ in range(2):
            agent.reset_rl()
            session.reset()
            for t in range(6):
                action = agent.get_next_action(**episode.observation(t), reward=episode.reward(t))
                expected = {**arguments(episode, t), "deterministic": False, "return_prediction": False}
                assert action == session.get_next_action(**expected)


def test_settings_may_change_from_step_to_step(server: ServerProcess, engine: JatEngine) -> None:
    """As with the drop-in agent each call says all; what a refused one said is not kept."""
    episode = EPISODE["discrete_only"]
    with RemoteAgent(server.url, seed=5) as agent, engine.open_session(None, 5) as session:
        for t in range(12):
            mask = np.arange(episode.action_space[1]) % 2 == t % 2 if t % 3 else None
            options = {"deterministic": t % 4 == 1, "action_mask": mask, "temperature": 0.5 if t % 5 else None}
            given = {**arguments(episode, t), **options}
            if t % 3 == 2:
                with pytest.raises(InputError, match="discrete_observation: expected"):
                    agent.get_next_action(**{**given, "deterministic": True, "discrete_observation": [-1]})
            check(agent.get_next_action(**given), session.get_next_action(**given))


def test_many_agents_of_an_event_loop(server: ServerProcess, engine: JatEngine) -> None:
    async def play(number: int) -> list[Any]:
        episode = EPISODE[MODALITIES[number % 4]]
        async with AsyncRemoteAgent(server.url, seed=episode.seed) as agent:
            given = [arguments(episode, t) for t in range(episode.steps)]
            return [await agent.get_next_action(**one, context_window=episode.context_window) for one in given]

    async def play_all() -> list[list[Any]]:
        return await asyncio.gather(*(play(number) for number in range(12)))

    for number, taken in enumerate(asyncio.run(play_all())):
        for one, expected in zip(taken, lone_steps(engine, EPISODE[MODALITIES[number % 4]]), strict=True):
            check(one, expected)


BAD: dict[str, dict[str, Any]] = {
    "not finite": {"continuous_observation": [float("nan")] * 4},
    "not numbers": {"continuous_observation": ["a", "b"]},
    "objects": {"continuous_observation": [object()]},
    "text for numbers": {"continuous_observation": "abc"},
    "no space": {"action_space": 5},
    "reward": {"reward": "high"},
    "large reward": {"reward": 10**30},
    "window": {"context_window": 0},
    "flag": {"deterministic": "yes"},
}


def test_errors_are_those_of_an_agent_in_this_process(server: ServerProcess, engine: JatEngine) -> None:
    episode = EPISODE["continuous_cw9"]
    expected = lone_steps(engine, episode)
    with RemoteAgent(server.url, seed=episode.seed) as agent:
        for t, (name, bad) in enumerate(BAD.items()):
            with pytest.raises(InputError, match="expected") as caught:
                agent.get_next_action(**{**arguments(episode, t), "context_window": 9, **bad})
            assert "\n" not in str(caught.value), name
            check(act(agent, episode, t), expected[t])
        with pytest.raises(SessionError, match="continuous_observation"):
            agent.get_next_action(discrete_observation=[1, 2], action_space=episode.space, context_window=9)
        check(act(agent, episode, len(BAD)), expected[len(BAD)])
    with pytest.raises(SessionError, match="closed"):
        agent.reset_rl()


def test_servers_that_are_absent_refuse_or_are_full(start: Callable[..., ServerProcess], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first\n")
    episode = EPISODE["continuous_cw9"]
    with start("--api_key_file", str(keys), "--max_sessions", "1") as server:
        for key in (None, "second"):
            with pytest.raises(AccessError, match="api_key: expected"):
                RemoteAgent(server.url, api_key=key)
        with pytest.raises(InputError, match="url: expected a path"):
            RemoteAgent(f"{server.url}/other", api_key="first")
        with RemoteAgent(server.url, api_key="first") as agent:
            act(agent, episode, 0)
            with pytest.raises(OverloadError, match=r"no room for 0\.3 s; all 1 sessions"):
                RemoteAgent(server.url, api_key="first", patience_s=0.3)
        with RemoteAgent(server.url, api_key="first", patience_s=3) as agent:  # after the other one
            act(agent, episode, 0)
            server.kill()
            with pytest.raises(ServerLostError, match="expected an answer within 3 s"):
                act(agent, episode, 1)
    with pytest.raises(ServerLostError, match=r"url: expected a server at .*, got none"):
        RemoteAgent(server.url)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        *(({"url": url}, "url") for url in ("http//", "http://a", [], None, [None], "ws://", "ws://[::1")),
        *(({"url": f"ws://127.0.0.1:{port}"}, "url") for port in (0, 99999, "abc")),
        ({"url": f"ws://{'a' * 70}"}, "url"),
        *(({"api_key": key}, "api_key") for key in ("", "a\n", " a", "schlüssel", b"a", 1, "a" * 5000)),
        *(({name: value}, name) for name in ("timeout_s", "patience_s") for value in (0, True, float("inf"), 10**400)),
        *(({"max_log_bytes": value}, "max_log_bytes") for value in (-1, "a", None, 1.5)),
        *(({"seed": value}, "seed") for value in (-1, 2**64, "a", True, 0.5)),
        ({"seed": np.array([3])}, "seed"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=f"^{field}: expected") as caught:
        RemoteAgent(**options)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
    assert "schl" not in str(caught.value)


def test_requests_that_no_server_takes(server: ServerProcess) -> None:
    with RemoteAgent(server.url) as agent:
        act(agent, EPISODE["continuous_cw9"], 0)
        with pytest.raises(InputError, match="request: expected at most 16777216 bytes"):
            agent.get_next_action(image_observation=np.zeros((5000, 5000, 1), np.uint8))
        with pytest.raises(InputError, match="return_prediction: expected"):
            agent.get_next_action(continuous_observation=[1.0], return_prediction=np.ones(2))  # type: ignore[arg-type]
        act(agent, EPISODE["continuous_cw9"], 1)


def test_paths_of_other_protocols(server: ServerProcess) -> None:
    with pytest.raises(InputError, match="url: expected the path of openpi's protocol, /"):
        RemoteAgent(f"{server.url}/v1/realtime/robot/openpi")
    with pytest.raises(ServerLostError, match=r"is its path / \?"):
        RemoteAgent(f"{server.url}/vla-eval", timeout_s=0.2, patience_s=0.3)


def test_another_event_loop(server: ServerProcess, engine: JatEngine) -> None:
    episode = EPISODE["discrete_only"]
    agent = AsyncRemoteAgent(server.url, seed=episode.seed)
    for t, expected in enumerate(lone_steps(engine, episode)[:4]):
        check(asyncio.run(agent.get_next_action(**arguments(episode, t))), expected)
    asyncio.run(agent.close())


def test_an_episode_does_not_go_on_with_other_weights(start: Callable[..., ServerProcess], tmp_path: Path) -> None:
    episode = EPISODE["discrete_only"]
    server = start()
    agent = RemoteAgent(server.url, seed=episode.seed)
    for t in range(3):
        act(agent, episode, t)
    server.kill()
    other = golden.write_checkpoint(tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["continuous_encoder.bias"] = weights["continuous_encoder.bias"] + 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with ServerProcess(other, "--backend", BACKEND, "--dtype", "float32", port=server.port):
        with pytest.raises(SessionError, match="other weights"):
            act(agent, episode, 3)
        agent.reset(seed=1)
        act(agent, episode, 0)
        agent.close()


@pytest.mark.parametrize("name", MODALITIES)
def test_every_step_acts_once_however_the_connection_is_cut(
    name: str, server: ServerProcess, engine: JatEngine
) -> None:
    episode = EPISODE[name]
    largest = 120_000 if episode.kind == "image" else 6000
    with CuttingProxy(server.port, random.Random(1), largest) as proxy, RemoteAgent(proxy.url, timeout_s=5) as agent:
        for _ in range(3):
            agent.reset(seed=episode.seed)
            for t, expected in enumerate(lone_steps(engine, episode)):
                check(act(agent, episode, t), expected)
        assert proxy.num_cut >= 3
        assert {recovery.status for recovery in agent.recoveries} <= {"resumed", "new"}


def test_a_late_answer_is_not_taken_for_the_next(server: ServerProcess, engine: JatEngine) -> None:
    episode = EPISODE["discrete_only"]
    with CuttingProxy(server.port, random.Random(0)) as proxy:
        agent = RemoteAgent(proxy.url, seed=episode.seed, timeout_s=1.0, patience_s=1.5)
        for t, expected in enumerate(lone_steps(engine, episode)):
            if t in (2, 7):
                proxy.hold_answers()
                with pytest.raises(ServerLostError, match="patience_s"):
                    act(agent, episode, t)
                with pytest.raises(SessionError, match="expected the step again"):
                    act(agent, episode, t + 1)
                proxy.release_answers()
            check(act(agent, episode, t), expected)
        agent.close()


@pytest.mark.parametrize("every", [2, 1000])
def test_episodes_end_as_without_the_kill_of_the_server(
    every: int, start: Callable[..., ServerProcess], engine: JatEngine, tmp_path: Path
) -> None:
    """Agents of all kinds: those that have snapshots, and those that have to begin again."""
    flags = ("--state_dir", str(tmp_path), "--snapshot_every", str(every))
    numbers = random.Random(every)
    server = start(*flags)
    episodes = [EPISODE[name] for name in MODALITIES]
    expected = [lone_steps(engine, episode) for episode in episodes]
    agents = [RemoteAgent(server.url, seed=episode.seed) for episode in episodes]
    kills = set(numbers.sample(range(2, 18), 2))
    has_snapshots = every < 1000
    for t in range(max(episode.steps for episode in episodes)):
        if t in kills:
            server.wait_until(lambda: len(list(tmp_path.glob("*.session"))) == len(agents) * has_snapshots)
            server.kill()
            server = start(*flags, port=server.port)
        for agent, episode, steps in zip(agents, episodes, expected, strict=True):
            if t < episode.steps:
                check(act(agent, episode, t), steps[t])

    for agent in agents:
        found = agent.recoveries
        assert [recovery.status for recovery in found] == ["restored" if has_snapshots else "new"] * 2
        assert [recovery.replayed for recovery in found] == sorted(kills) or has_snapshots
    for agent in agents:
        agent.close()
    server.wait_until(lambda: not list(tmp_path.iterdir()))
    server.stop()


def test_two_servers_share_their_snapshots(
    start: Callable[..., ServerProcess], engine: JatEngine, tmp_path: Path
) -> None:
    """The agent goes back and forth between two servers, each of which still has the state that it left there."""
    flags = ("--state_dir", str(tmp_path), "--snapshot_every", "3")
    episode = EPISODE["atari_sampled_cw8"]
    expected = lone_steps(engine, episode)
    with (
        start(*flags) as first,
        start(*flags) as second,
        CuttingProxy(first.port, random.Random(1)) as proxy,
        RemoteAgent(proxy.url, seed=episode.seed) as agent,
    ):
        for t, step in enumerate(expected):
            if t % 5 == 4:
                proxy.port_of_server = second.port if proxy.port_of_server == first.port else first.port
                proxy.cut()
            check(act(agent, episode, t), step)
        assert len(agent.recoveries) == len(expected) // 5


def test_a_server_that_ends_in_an_orderly_way_leaves_the_newest_state(
    start: Callable[..., ServerProcess], engine: JatEngine, tmp_path: Path
) -> None:
    flags = ("--state_dir", str(tmp_path), "--drain_timeout_s", "0.1")
    episode = EPISODE["continuous_cw9"]
    server = start(*flags)
    with RemoteAgent(server.url, seed=episode.seed) as agent:
        for t, expected in enumerate(lone_steps(engine, episode)):
            if t == 7:
                server.stop()
                server = start(*flags, port=server.port)
            check(act(agent, episode, t), expected)
        assert [(found.status, found.replayed) for found in agent.recoveries] == [("restored", 0)]
    server.stop()


def test_an_episode_that_nothing_has_is_refused(start: Callable[..., ServerProcess]) -> None:
    episode = EPISODE["atari_sampled_cw8"]
    server = start()
    with RemoteAgent(server.url, max_log_bytes=60_000) as agent:
        for t in range(4):
            act(agent, episode, t)
        assert agent.num_kept == 2
        server.kill()
        server = start(port=server.port)
        with pytest.raises(SessionError, match=r"expected a server with this episode .* reset_rl"):
            act(agent, episode, 4)
        agent.reset_rl()
        act(agent, episode, 0)
    server.stop()


def test_the_client_needs_no_torch() -> None:
    code = "import sys, jat_engine.client; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
