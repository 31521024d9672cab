"""The policy server as a deployment of Ray Serve: two replicas, of which one is killed in mid-episode."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("websockets", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")
pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytest.importorskip("starlette", reason="the extra `ray` is not installed")

import ray
from helpers.engines import EPISODE, native
from helpers.ray_clusters import actors
from helpers.remote_servers import CuttingProxy
from helpers.servers import lone_actions, request_of
from ray import serve
from websockets.sync.client import connect

from jat_engine import InputError, JatEngine
from jat_engine.client import RemoteAgent
from jat_engine.ray_serve import DEPLOYMENT, build
from jat_engine.serving import codec

MODALITIES = ("continuous_cw9", "discrete_only", "babyai_sampled", "atari_sampled_cw8")
NUM_REPLICAS = 2
SNAPSHOT_EVERY = 4


@pytest.fixture(scope="module")
def lone(tiny_folder: Path) -> dict[str, list[Any]]:
    with JatEngine.from_pretrained(tiny_folder, device="cpu", backend="cpu", dtype="float32") as engine:
        return {name: lone_actions(engine, EPISODE[name]) for name in MODALITIES}


@pytest.fixture(scope="module")
def args(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arguments of the deployment, whose replicas share a folder for snapshots."""
    return {
        "model_name_or_path": tiny_folder,
        "use_cpu": True,
        "backend": "cpu",
        "dtype": "float32",
        "num_replicas": NUM_REPLICAS,
        "num_cpus": 0.5,
        "max_sessions": 32,
        "allow_public": True,
        "state_dir": tmp_path_factory.mktemp("state"),
        "snapshot_every": SNAPSHOT_EVERY,
        "drain_timeout_s": 1,
    }


@pytest.fixture(scope="module")
def port(args: dict[str, Any]) -> Iterator[int]:
    """The port of the deployment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    ray.init(
        address="local",  # not a cluster that runs here already
        num_cpus=NUM_REPLICAS,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 1024**2,
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": number})
        serve.run(build(args))
        yield number
    finally:
        serve.shutdown()
        ray.shutdown()


class Player(threading.Thread):
    """Plays a golden episode on a server.

    Attributes:
        episode: that it plays.
        actions: taken so far.
        agent: that takes them.
        began_on: replica that the agent was connected to first.
    """

    def __init__(self, url: str, name: str) -> None:
        super().__init__(daemon=True)
        self.episode = EPISODE[name]
        self.actions: list[Any] = []
        self.agent = RemoteAgent(url, seed=self.episode.seed, timeout_s=60, patience_s=180)
        self.began_on = self.agent.description["replica"]
        self._pause: tuple[int, threading.Barrier] | None = None

    def pause_at(self, step: int, barrier: threading.Barrier) -> None:
        """Wait for others before a step."""
        self._pause = step, barrier

    def run(self) -> None:
        for t in range(self.episode.steps):
            if self._pause is not None and t == self._pause[0]:
                self._pause[1].wait(180)
            self.actions.append(self.act(t))
        self.agent.close()

    def act(self, t: int) -> Any:
        """Return the action of step t."""
        episode = self.episode
        return self.agent.get_next_action(
            **episode.observation(t),
            action_space=episode.space,
            reward=episode.reward(t),
            deterministic=episode.deterministic,
            context_window=episode.context_window,
        )


def replicas() -> list[int]:
    """Return the processes of the replicas, when all of them run."""
    end = time.monotonic() + 180
    while True:
        deployment = serve.status().applications["default"].deployments[DEPLOYMENT]
        found = actors(f"ServeReplica:default:{DEPLOYMENT}")
        if deployment.status == "HEALTHY" and len(found) == NUM_REPLICAS:
            return found
        assert time.monotonic() < end, deployment
        time.sleep(0.1)


def players_of_all_replicas(url: str, per_kind: int) -> list[Player]:
    """Return players of all kinds of episodes; some are on each replica."""
    while True:
        players = [Player(url, name) for name in MODALITIES for _ in range(per_kind)]
        if len({player.began_on for player in players}) == NUM_REPLICAS:
            return players
        for player in players:
            player.agent.close()


def play_while_one_is_killed(url: str, lone: dict[str, list[Any]], numbers: random.Random) -> list[Player]:
    """Play episodes, kill a replica when they are in their midst, and check all actions.

    Returns:
        The players.
    """
    victim = numbers.choice(replicas())
    players = players_of_all_replicas(url, per_kind=2)
    barrier = threading.Barrier(len(players) + 1)
    for player in players:
        player.pause_at(numbers.randrange(SNAPSHOT_EVERY + 1, player.episode.steps), barrier)
        player.start()
    barrier.wait(180)
    os.kill(victim, signal.SIGKILL)
    for player in players:
        player.join(240)
        assert player.actions == lone[player.episode.name]
    return players


@native
@pytest.mark.long
def test_sessions_of_a_killed_replica_go_on_in_the_other(port: int, lone: dict[str, list[Any]]) -> None:
    players = play_while_one_is_killed(f"ws://127.0.0.1:{port}", lone, random.Random(0))
    moved = [player for player in players if player.agent.recoveries]
    (killed,) = {player.began_on for player in moved}
    assert {player.began_on for player in players if player not in moved} == {
        player.agent.description["replica"] for player in players if player not in moved
    }
    assert killed not in {player.agent.description["replica"] for player in players}
    assert {recovery.status for player in moved for recovery in player.agent.recoveries} <= {"restored", "new"}


@native
@pytest.mark.long
def test_an_agent_whose_connection_is_cut_comes_back_to_its_replica(port: int, lone: dict[str, list[Any]]) -> None:
    replicas()
    with CuttingProxy(port, random.Random(0)) as proxy:
        for player in players_of_all_replicas(proxy.url, per_kind=1):
            for t, expected in enumerate(lone[player.episode.name]):
                if t % 5 == 4:
                    proxy.cut()
                assert player.act(t) == expected
                assert player.agent.description["replica"] == player.began_on
            assert {recovery.status for recovery in player.agent.recoveries} == {"resumed"}
            player.agent.close()


@native
@pytest.mark.long
@pytest.mark.parametrize("name", MODALITIES)
def test_clients_that_know_nothing_of_replicas(name: str, port: int, lone: dict[str, list[Any]]) -> None:
    """As openpi's: one connection, without the header that chooses a replica."""
    with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None) as websocket:
        websocket.recv()
        for t, expected in enumerate(lone[name]):
            websocket.send(codec.pack(request_of(EPISODE[name], t)))
            assert codec.unpack(websocket.recv())["actions"].tolist() == [expected]


@native
@pytest.mark.long
def test_a_new_deployment_in_mid_episode(port: int, args: dict[str, Any], lone: dict[str, list[Any]]) -> None:
    """The deployment replaces all replicas, which drain for a second."""
    players = players_of_all_replicas(f"ws://127.0.0.1:{port}", per_kind=1)
    half = {player: player.episode.steps // 2 for player in players}
    for player in players:
        player.actions = [player.act(t) for t in range(half[player])]
    before = set(replicas())
    serve.run(build(args))
    assert before.isdisjoint(replicas())
    for player in players:
        player.actions += [player.act(t) for t in range(half[player], player.episode.steps)]
        assert player.actions == lone[player.episode.name]
        assert player.agent.description["replica"] != player.began_on
        player.agent.close()


@native
@pytest.mark.long
def test_replicas_killed_again_and_again(port: int, lone: dict[str, list[Any]]) -> None:
    numbers = random.Random(1)
    seconds = []
    for _ in range(20):
        players = play_while_one_is_killed(f"ws://127.0.0.1:{port}", lone, numbers)
        seconds += [recovery.seconds for player in players for recovery in player.agent.recoveries]
    seconds.sort()
    print(f"{len(seconds)} recoveries: median {seconds[len(seconds) // 2]:.3f} s, longest {seconds[-1]:.3f} s")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "model_name_or_path: expected a folder"),
        ({"model_name_or_path": "jat-mini"}, "api_key_file: expected a file with keys"),
        ({"model_name_or_path": "jat-mini", "port": 80}, "args: expected names of .*, got 'port'"),
        ({"model_name_or_path": "jat-mini", "allow_public": True, "max_sessions": "x"}, "args: expected values of"),
        (
            {"model_name_or_path": "jat-mini", "allow_public": True, "num_replicas": 0},
            "num_replicas: expected at",
        ),
        ({"model_name_or_path": "jat-mini", "allow_public": True, "num_cpus": -1}, "num_cpus: expected a number"),
    ],
)
def test_arguments_are_checked(args: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(args)
