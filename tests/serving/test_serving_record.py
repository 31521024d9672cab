"""Record of a server's sessions, and its replay."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("websockets", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from helpers.damage import damaged, with_other_values
from helpers.engines import EPISODE, NATIVE
from helpers.remote_servers import ServerProcess
from helpers.servers import RunningServer, lone_actions, request_of, running_server
from websockets.sync.client import connect

from jat_engine import JatEngine
from jat_engine.cli import main
from jat_engine.cli.agent import weights_of
from jat_engine.cli.arguments import ModelArguments
from jat_engine.client import RemoteAgent
from jat_engine.errors import DataError
from jat_engine.runs.settings import machine_settings
from jat_engine.serving import codec, record
from jat_engine.serving.record import Recorder
from jat_engine.serving.record_format import read_part
from jat_engine.serving.replay import Replayed, find_log, replay
from jat_engine.serving.requests import Settings
from jat_engine.serving.sessions import ServedSession

BACKEND = "cpu" if NATIVE else "torch"
OPTIONS = {"backend": BACKEND, "dtype": "float32"}
NAMES = ("continuous_cw9", "discrete_only", "babyai_sampled", "atari_sampled_cw8")
STEPS = 8


@pytest.fixture(scope="module")
def load_engine(tiny_folder: Path) -> Callable[[], JatEngine]:
    return lambda: JatEngine.from_pretrained(tiny_folder, device="cpu", **OPTIONS)


@pytest.fixture(scope="module")
def engine(load_engine: Callable[[], JatEngine]) -> Iterator[JatEngine]:
    with load_engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def about(tiny_folder: Path) -> dict[str, Any]:
    model = ModelArguments(model_name_or_path=str(tiny_folder))
    settings = {
        "model": str(tiny_folder),
        "weights_sha256": weights_of(model),
        "device": "cpu",
        "dtype": "torch.float32",
    }
    return settings | {"backend": BACKEND} | machine_settings()


def record_into(server: RunningServer, folder: Path, about: dict[str, Any], max_bytes: int = 10**8) -> Recorder:
    recorder = Recorder(folder, max_bytes, lambda: about)
    server.call(lambda: server.service.observers.append(recorder))
    return recorder


def play(server: RunningServer, names: tuple[str, ...], episodes: int = 1) -> None:
    """Play golden episodes at once, each in a session of its own; later episodes go on with the random numbers."""
    with connect(server.url, compression=None, max_size=None) as websocket:
        websocket.recv()
        for number in range(episodes):
            for t in range(STEPS):
                for name in names:
                    fields = request_of(EPISODE[name], t)
                    if number:
                        fields |= {"episode_start": t == 0}
                        del fields["seed"]
                    if name == "discrete_only" and t % 2:
                        fields |= {"temperature": 0.7, "top_k": 2}
                    websocket.send(codec.pack(fields | {"session_id": f"../{name}\n<b>"}))
                for _ in names:
                    assert isinstance(websocket.recv(), bytes)


@pytest.fixture(scope="module")
def log(load_engine: Callable[[], JatEngine], about: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log") / "record"
    with running_server(load_engine, max_sessions=8) as server:
        recorder = record_into(server, folder, about)
        play(server, NAMES, episodes=2)
    recorder.close()
    assert recorder.num_lost == 0
    return folder


@pytest.fixture
def own_log(log: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(log, tmp_path / "log"))


def rewrite(path: Path, **changes: Any) -> None:
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    np.savez(path, **(arrays | changes))


def test_a_record_is_replayed_with_equal_actions(log: Path, engine: JatEngine) -> None:
    found = list(replay(engine, find_log(log)))
    assert [(one.session, one.episode) for one in found] == [(s, e) for s in (1, 2, 3, 4) for e in (1, 2)]
    assert all(one.is_equal and one.num_steps == STEPS for one in found), list(map(str, found))


def test_a_file_stands_for_its_session(log: Path, engine: JatEngine) -> None:
    path = sorted(log.glob("*-s000002-*"))[0]
    assert [one.session for one in replay(engine, find_log(path))] == [2, 2]


def test_files_are_read_by_numpy_alone(log: Path) -> None:
    path = sorted(log.glob("*-s000001-e000001-*"))[0]
    with np.load(path, allow_pickle=False) as file:
        assert file["continuous_observation"].shape[0] == len(file["actions"]) == STEPS
        assert np.isnan(file["rewards"][0])
        assert json.loads(str(file["about"]))["session_id"] == "../continuous_cw9\n<b>"
    assert {one.suffix for one in log.iterdir()} == {".npz"}


def test_a_changed_action_is_found(own_log: Path, engine: JatEngine) -> None:
    path = sorted(own_log.glob("*-s000002-e000001-*"))[0]
    actions = read_part(path).steps
    changed = np.array([step.action for step in actions])
    changed[4] = 1 - min(changed[4], 1)
    rewrite(path, actions=changed)
    different = [one for one in replay(engine, find_log(own_log)) if not one.is_equal]
    (one,) = different  # the session's next episode has its own random numbers still
    assert (one.session, one.episode, one.step, one.recorded) == (2, 1, 5, changed[4])
    assert str(one) == f"session 2 episode 1: step 5 differs first: action {one.now}, recorded {changed[4]}"


def test_a_changed_observation_is_found(own_log: Path, engine: JatEngine) -> None:
    path = sorted(own_log.glob("*-s000001-e000001-*"))[0]
    with np.load(path) as file:
        changed = file["continuous_observation"].copy()
    changed[3] += 0.5
    rewrite(path, continuous_observation=changed)
    first = next(iter(replay(engine, find_log(path))))
    assert first.step == 4


def test_episodes_without_their_beginning_are_not_called_equal(own_log: Path, engine: JatEngine) -> None:
    for path in own_log.glob("*-e000001-*"):
        path.unlink()
    found = list(replay(engine, find_log(own_log)))
    assert len(found) == 4
    assert all("that is not in the record" in one.reason for one in found)


def test_a_damaged_file_is_read_as_it_was_or_refused(log: Path, tmp_path: Path) -> None:
    path = sorted(log.glob("*-s000003-e000001-*"))[0]
    file = tmp_path / path.name
    for data in damaged(path.read_bytes(), 1000):
        file.write_bytes(data)
        with contextlib.suppress(DataError):
            read_part(file)


@pytest.mark.parametrize("session", [1, 3])
def test_any_value_of_any_field_is_replayed_or_refused(
    session: int, log: Path, engine: JatEngine, tmp_path: Path
) -> None:
    path = sorted(log.glob(f"*-s{session:06d}-e000001-*"))[0]
    with np.load(path) as file:
        arrays = dict(file)
    changed = tmp_path / path.name
    refused = replayed = 0

    def try_it(**changes: Any) -> None:
        nonlocal refused, replayed
        np.savez(changed, **(arrays | changes))
        try:
            replayed += sum(1 for _ in replay(engine, find_log(changed)))
        except DataError:
            refused += 1

    about = json.loads(str(arrays["about"]))
    for one in with_other_values(about):
        try_it(about=np.array(json.dumps(one)))
    for name in arrays:
        for array in (np.zeros(STEPS), np.zeros((STEPS, 1)), np.zeros(2), np.array("a"), np.full(STEPS, 9**9)):
            try_it(**{name: array})
    assert refused > 100
    assert replayed > 10


def test_the_command(own_log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(own_log)]) == 0
    assert capsys.readouterr().out == "8 of 8 episodes are equal in every action (64 steps)\n"
    path = sorted(own_log.glob("*-s000001-e000002-*"))[0]
    with np.load(path) as file:
        changed = file["actions"].copy()
    changed[7, 0] += 1e-6
    rewrite(path, actions=changed)
    assert main(["replay", str(own_log)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("session 1 episode 2: step 8 differs first: action [")
    assert lines[1] == "7 of 8 episodes are equal in every action (56 steps)"

    assert main(["replay", str(own_log), "--model_name_or_path", "jat-mini"]) == 2
    assert "was recorded with other weights than jat-mini has" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:200])
    assert main(["replay", str(path)]) == 2
    assert "expected a record of" in capsys.readouterr().err


def test_given_actions_are_recorded_and_given_again(
    load_engine: Callable[[], JatEngine], engine: JatEngine, about: dict[str, Any], tmp_path: Path
) -> None:
    """Some steps of two episodes get others than the chosen actions, which those after them depend on."""
    names = ("continuous_cw9", "discrete_only")
    with running_server(load_engine) as server:
        recorder = record_into(server, tmp_path / "log", about)
        with connect(server.url, compression=None, max_size=None) as websocket:
            websocket.recv()
            for name in names:
                for t in range(STEPS):
                    fields = request_of(EPISODE[name], t)
                    if t % 3 == 1:
                        size = EPISODE[name].action_space[1]
                        forced = np.full(size, 0.1 * t) if name == "continuous_cw9" else np.int64(size - 1)
                        fields["force_action"] = forced
                    websocket.send(codec.pack(fields | {"session_id": name}))
                    assert isinstance(websocket.recv(), bytes)
    recorder.close()
    found = list(replay(engine, find_log(tmp_path / "log")))
    assert [(one.is_equal, one.num_steps) for one in found] == [(True, STEPS)] * 2, list(map(str, found))
    for path, name in zip(sorted((tmp_path / "log").iterdir()), names, strict=True):
        steps = read_part(path).steps
        assert [step.forced is not None for step in steps] == [t % 3 == 1 for t in range(STEPS)]
        assert [step.action for step in steps] != lone_actions(engine, EPISODE[name], STEPS)
        with np.load(path) as file:
            arrays = dict(file)
        del arrays["forced"]
        np.savez(path, **arrays)
    assert not any(one.is_equal for one in replay(engine, find_log(tmp_path / "log")))


@pytest.mark.parametrize("has_snapshots", [True, False])
def test_the_record_of_an_episode_that_outlives_its_server(
    has_snapshots: bool, tiny_folder: Path, engine: JatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server is killed in mid-episode: the next one's record begins with the snapshot, or with repeated steps."""
    log, state = tmp_path / "log", tmp_path / "state"
    flags = ["--backend", BACKEND, "--dtype", "float32", "--record", str(log)]
    flags += ["--state_dir", str(state), "--snapshot_every", "3"] if has_snapshots else []
    episode = EPISODE["babyai_sampled"]
    given = [
        {**episode.observation(t), "reward": episode.reward(t), "action_space": episode.space} for t in range(STEPS)
    ]
    with ServerProcess(tiny_folder, *flags) as first, RemoteAgent(first.url, seed=episode.seed) as agent:
        expected = [agent.get_next_action(**one) for one in given[:5]]
        if has_snapshots:
            first.wait_until(lambda: len(list(state.glob("*.session"))) == 1)
        first.kill()
        with ServerProcess(tiny_folder, *flags, port=first.port) as second:
            expected += [agent.get_next_action(**one) for one in given[5:]]
            (recovery,) = agent.recoveries
            assert recovery.status == ("restored" if has_snapshots else "new")
            agent.reset_rl()
            expected += [agent.get_next_action(**one) for one in given]  # goes on with the episode's random numbers
            agent.close()
            second.stop()

    with engine.open_session(None, episode.seed) as session:
        actions = [session.get_next_action(**one) for one in given]
        session.reset()
        assert expected == actions + [session.get_next_action(**one) for one in given]
    found = list(replay(engine, find_log(log)))
    kept = STEPS - 3 if has_snapshots else STEPS  # of the killed server nothing had been written
    assert [(one.episode, one.num_steps, str(one)[-5:]) for one in found] == [(1, kept, "equal"), (2, STEPS, "equal")]

    path = sorted(log.glob("*-e000001-*"))[-1]
    with np.load(path) as file:
        changed = file["actions"].copy()
    changed[-1] = 1 - min(changed[-1], 1)
    rewrite(path, actions=changed)
    assert next(iter(replay(engine, find_log(log)))).step == STEPS  # counted from the episode's beginning
    if has_snapshots:
        assert read_part(sorted(log.iterdir())[0]).snapshot
        sorted(log.iterdir())[0].unlink()
        assert main(["replay", str(log)]) == 1
        assert capsys.readouterr().out.splitlines() == [
            "session 1 episode 1: cannot be compared: its beginning is not in the record",
            "session 1 episode 2: cannot be compared: its random numbers follow those of an episode that is not in the "
            "record",
            "0 of 2 episodes are equal in every action (0 steps); 2 cannot be compared",
        ]


def test_a_snapshot_that_the_record_has_no_room_for(engine: JatEngine, about: dict[str, Any], tmp_path: Path) -> None:
    """The rest of its episode is left out."""
    with engine.open_session(None, 3) as session:
        episode = EPISODE["discrete_only"]
        for t in range(2):
            session.get_next_action(**episode.observation(t), action_space=episode.space, reward=episode.reward(t))
        snapshot = session.snapshot()
    for most, num_files in ((len(snapshot), 0), (len(snapshot) + 1, 1)):
        recorder = Recorder(tmp_path / str(most), most, lambda: about)
        recorder.on_restore(ServedSession("owner", "", 1, Settings()), snapshot)
        recorder.close()
        assert (recorder.num_lost, len(list((tmp_path / str(most)).iterdir()))) == (1 - num_files, num_files)


def test_no_record(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got no files of one"):
        find_log(tmp_path)
    (tmp_path / "a.npz").touch()
    with pytest.raises(DataError, match="got another name"):
        find_log(tmp_path / "a.npz")


def test_a_disk_that_fails_costs_the_record_alone(
    load_engine: Callable[[], JatEngine], about: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "_STEPS_OF_PART", 2)
    with running_server(load_engine, max_sessions=8) as server:
        recorder = record_into(server, tmp_path / "log", about)
        shutil.rmtree(tmp_path / "log")
        play(server, NAMES)
        (tmp_path / "log").mkdir()
        play(server, NAMES[:1])
    recorder.close()
    assert recorder.num_lost > 0
    assert {int(one.name.split("-s")[1][:6]) for one in (tmp_path / "log").iterdir()} == {5}


def test_a_record_has_a_limit_and_gaps_are_told(
    load_engine: Callable[[], JatEngine],
    engine: JatEngine,
    about: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(record, "_STEPS_OF_PART", 2)
    with running_server(load_engine, max_sessions=8) as server:
        recorder = record_into(server, tmp_path / "log", about, max_bytes=3 * 4096)
        play(server, NAMES[:1])
    recorder.close()
    files = sorted((tmp_path / "log").iterdir())
    assert (len(files), recorder.num_lost) == (3, 1)
    assert [one.num_steps for one in replay(engine, find_log(tmp_path / "log"))] == [6]
    files[1].unlink()
    (one,) = replay(engine, find_log(tmp_path / "log"))
    assert one == Replayed(1, 1, None, 4, reason="cannot be compared from step 3 on, which is not in the record")
