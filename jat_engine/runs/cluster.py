"""Play a run on the machines of a Ray cluster; this process has the database.

Each node has an engine, or one for each of its GPUs, and for each core a process with environments, which the engine
plays in. This process hands episodes to the engines, and receives those that ended. Nothing is lost with a machine:
the episodes that it played are handed to others.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import pickle
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import RayError

from ..envs import Task
from ..errors import one_line
from ..evaluation.progress import simulator_output
from ..machine import available_cores
from .database import LEASE_SECONDS, RunDatabase, RunError
from .plan import Item, WorkQueue, expected_length
from .play import Finished, PlayTiming
from .ray_actors import EngineActor, Job, Progress, Ready, cause_of, start_actor
from .ray_package import LOCAL, ClusterError
from .run import RunOptions
from .settings import MACHINE_FIELDS, differences, is_of_machine

_WAIT_SECONDS, _LOOK_SECONDS = 1.0, 5.0
"""Longest wait for a report, and the time between looks for machines that have joined."""

_START_SECONDS, _MORE_SECONDS = 900.0, 60.0
"""Longest wait for the first machine, which may download the checkpoint, and for the others after it. Machines that
take longer join in later."""

_MAX_LOSSES = 3
"""Times that an engine may be lost without an episode that it finished, before its machine is no longer used."""


@dataclass(frozen=True)
class Requirements:
    """Requirements on a machine of a run.

    Attributes:
        settings: of the run, as far as they are known; a machine's must be equal.
        versions: name of the task -> package -> version.
        mixed_machines: versions and instruction set may differ.
    """

    settings: Mapping[str, Any]
    versions: Mapping[str, Mapping[str, str]]
    mixed_machines: bool = False

    def refusal(self, ready: Ready) -> str:
        """Return why a machine cannot play the run; "" if it can."""
        found = self._different(ready.settings)
        for one in ready.environments:
            if not one.has_folder:
                return (
                    "the run's folder is not there, which videos and trajectories are written to; name an "
                    "--output_dir that all machines share"
                )
            found += self._different(one.settings)
            if not self.mixed_machines:
                for task, versions in one.versions.items():
                    found += differences({"versions": self.versions[task]}, {"versions": versions})
        if not found:
            return ""
        remedy = (
            "--mixed_machines uses it"
            if is_of_machine(found[0])
            else "--backend, --dtype and --use_cpu make them equal"
        )
        return f"it differs from the run: {found[0]}; {remedy}"

    def _different(self, found: Mapping[str, Any]) -> list[str]:
        """Return the settings of a machine that differ; those that are not known of the run do not."""
        skipped = MACHINE_FIELDS if self.mixed_machines else ()
        return differences(self.settings, {k: v for k, v in found.items() if k in self.settings and k not in skipped})


@dataclass(frozen=True)
class _Place:
    """Place for an engine: a node, or one of its GPUs.

    Attributes:
        node: id of the node.
        number: among the engines of the node.
        name: for people.
        num_hosts: processes with environments.
        num_gpus: of the engine, 0 or 1.
    """

    node: str
    number: int
    name: str
    num_hosts: int
    num_gpus: int

    @property
    def key(self) -> tuple[str, int]:
        """Node and number, which no other place has."""
        return self.node, self.number


@dataclass(eq=False)
class Engine:
    """An engine of the cluster, as this process knows it.

    Attributes:
        place: of the engine.
        actor: of Ray.
        reply: reference to the answer that is awaited; None while the engine has nothing to do.
        heard: time of the last answer.
        ready: its first answer; None before it.
        held: episodes that it was handed, and that have not ended.
        progress: its last answer; None before it.
        num_episodes: that it has finished.
    """

    place: _Place
    actor: Any
    reply: Any
    heard: float
    ready: Ready | None = None
    held: set[Item] = field(default_factory=set)
    progress: Progress | None = None
    num_episodes: int = 0

    @property
    def is_waiting(self) -> bool:
        """True if it can be given episodes now."""
        return self.ready is not None and self.reply is None

    @property
    def wanted(self) -> int:
        """Episodes that it can be given."""
        answer = self.progress or self.ready
        return 0 if answer is None else answer.wanted

    def play(self, items: Sequence[Item]) -> None:
        """Let it play on, with further episodes."""
        self.held.update(items)
        self.reply, self.heard = self.actor.play.remote(items), time.monotonic()

    def end(self) -> None:
        """End it and its processes."""
        ray.kill(self.actor)


@dataclass(frozen=True)
class ClusterOptions:
    """Options of the use of a cluster.

    Attributes:
        num_episodes: that are to be played; no node needs more processes.
        num_workers: processes with environments on each node; None for one for each core.
        use_gpus: an engine for each GPU, where there are some.
        lease_seconds: an engine that is not heard of for so long is ended, and its episodes are played by others.
    """

    num_episodes: int
    num_workers: int | None = None
    use_gpus: bool = True
    lease_seconds: float = LEASE_SECONDS


class Cluster:
    """Engines on the nodes of a Ray cluster that this process is connected with; see `open_cluster`.

    Args:
        job: of the run.
        requirements: on each machine. What its settings lack is as on most machines.
        options: of the use of the cluster.
        say: called with a line about each machine that cannot be used, or is lost.
    """

    def __init__(
        self, job: Job, requirements: Requirements, options: ClusterOptions, say: Callable[[str], None]
    ) -> None:
        self._job, self._requirements, self._options, self._say = pickle.dumps(job), requirements, options, say
        self._losses: Counter[tuple[str, int]] = Counter()
        self._refused: dict[tuple[str, int], str] = {}
        self._looked = 0.0
        self.engines: list[Engine] = []

    # ---- what is known of the machines -----------------------------------------------------------------------------

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings that all machines have, see `LoadedAgents`."""
        return self._requirements.settings

    @property
    def device(self) -> str:
        """Description of the machines, for people."""
        ready = [engine.ready for engine in self.engines if engine.ready is not None]
        nodes = len({engine.place.node for engine in self.engines if engine.ready is not None})
        counts = Counter(one.device for one in ready)
        devices = ", ".join(f"{count} x {text}" if count > 1 else text for text, count in counts.items())
        processes = sum(one.num_hosts for one in ready)
        return f"Ray: {nodes} machine(s), {processes} process(es) with environments; {devices}"

    # ---- start and end ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start an engine at each place, and wait until they can play.

        Raises:
            ClusterError: no machine can.
        """
        self._look()
        until = time.monotonic() + _START_SECONDS
        while waiting := [engine.reply for engine in self.engines if engine.ready is None]:
            done, _ = ray.wait(waiting, num_returns=1, timeout=max(0.0, until - time.monotonic()))
            if not done:
                break
            for engine in [engine for engine in self.engines if engine.reply in done]:
                self._hear(engine)
                until = min(until, time.monotonic() + _MORE_SECONDS)
        self._settle()
        self._check_left()

    def _settle(self) -> None:
        """Take what is not known of the run's settings from most machines, and end those that differ."""
        ready = [engine.ready for engine in self.engines if engine.ready is not None]
        if not ready and self.engines:
            raise ClusterError(f"--ray: no machine was ready within {_START_SECONDS:.0f} s; are its GPUs in use?")
        fitting = [one for one in ready if not self._requirements.refusal(one)]
        if fitting:
            counts = Counter(json.dumps(one.settings) for one in fitting)
            usual = max(fitting, key=lambda one: counts[json.dumps(one.settings)]).settings
            self._requirements = replace(self._requirements, settings={**usual, **self._requirements.settings})
        for engine in list(self.engines):
            self._check(engine)

    def _check(self, engine: Engine) -> None:
        """End an engine that differs from the run."""
        if engine.ready is not None and (reason := self._requirements.refusal(engine.ready)):
            self._refuse(engine, reason)

    def _look(self) -> None:
        """Start an engine at each place that has none: nodes join, and engines are lost."""
        self._looked = time.monotonic()
        taken = {engine.place.key for engine in self.engines} | set(self._refused)
        for place in _places(self._options):
            if place.key not in taken:
                self.engines.append(self._start_engine(place))

    def _start_engine(self, place: _Place) -> Engine:
        arguments = place.name, place.node, place.num_hosts, self._job
        actor = start_actor(EngineActor, place.node, *arguments, num_cpus=0, num_gpus=place.num_gpus)
        return Engine(place, actor, actor.prepare.remote(), time.monotonic())

    def close(self) -> None:
        """End all engines. What is being played is lost."""
        for engine in self.engines:
            engine.end()
        self.engines = []

    # ---- while it plays --------------------------------------------------------------------------------------------

    def receive(self) -> Iterator[tuple[Engine, Progress | None]]:
        """Wait for engines to answer, and look after them.

        Yields:
            Each engine that has played for a while, with its answer, or that was lost, with None.

        Raises:
            ClusterError: no machine is left.
        """
        replies = [engine.reply for engine in self.engines if engine.reply is not None]
        done, _ = ray.wait(replies, num_returns=1, timeout=_WAIT_SECONDS) if replies else ([], [])
        for engine in list(self.engines):
            if engine.reply is None:
                continue
            if engine.reply in done:
                starting = engine.ready is None
                if not self._hear(engine):
                    yield engine, None
                elif starting:
                    self._check(engine)
                else:
                    yield engine, engine.progress
            elif time.monotonic() - engine.heard > (lease := self._lease(engine)):
                self._lose(engine, f"it was not heard of for {lease:.0f} s")
                yield engine, None
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._look()
        self._check_left()

    def _lease(self, engine: Engine) -> float:
        """Return the longest time between answers, in seconds."""
        return _START_SECONDS if engine.ready is None else self._options.lease_seconds

    def _hear(self, engine: Engine) -> bool:
        """Take in the answer of an engine. Returns False if the engine is lost."""
        try:
            answer = ray.get(engine.reply)
        except RayError as error:
            self._lose(engine, cause_of(error))
            return False
        engine.reply, engine.heard = None, time.monotonic()
        if isinstance(answer, Ready):
            engine.ready = answer
            return True
        engine.progress = answer
        engine.num_episodes += len(answer.finished)
        engine.held -= set(map(item_of, answer.finished))
        return True

    def _lose(self, engine: Engine, reason: str) -> None:
        """Give an engine up; another is started in its place, unless that has not helped."""
        key = engine.place.key
        self._losses[key] = 1 if engine.num_episodes else self._losses[key] + 1
        if engine.ready is None or self._losses[key] >= _MAX_LOSSES:
            self._refuse(engine, reason)
            return
        self._say(f"{engine.place.name}: lost, its episodes are played again: {reason}")
        self._remove(engine)

    def _refuse(self, engine: Engine, reason: str) -> None:
        self._say(f"{engine.place.name}: not used: {reason}")
        self._refused[engine.place.key] = f"{engine.place.name}: {reason}"
        self._remove(engine)

    def _remove(self, engine: Engine) -> None:
        self.engines.remove(engine)
        engine.end()

    def _check_left(self) -> None:
        if not self.engines:
            self._look()
        if not self.engines:
            reasons = "; ".join(self._refused.values()) or "it has no node with a core"
            raise ClusterError(f"--ray: no machine of the cluster can play the run: {reasons}")

    @contextlib.contextmanager
    def open_player(
        self, database: RunDatabase, tasks: Sequence[Task], items: Sequence[Item], options: RunOptions
    ) -> Iterator[ClusterPlayer]:
        """Yield what hands episodes of a run to the engines; see `runs.run.open_player`."""
        database.clear_claims()
        played, max_steps = database.mean_lengths(), options.play.max_steps
        queue = WorkQueue(items, lambda task: expected_length(task, played, max_steps))
        try:
            yield ClusterPlayer(self, queue, database.claim)
        finally:
            with contextlib.suppress(RunError):  # such as of a full disk, which ends the run with another message
                database.clear_claims()


class ClusterPlayer:
    """Hand the episodes of a queue to the engines of a cluster.

    Args:
        cluster: has been started.
        queue: episodes to play.
        on_give: called with the items that an engine is handed, and its name.
    """

    def __init__(self, cluster: Cluster, queue: WorkQueue, on_give: Callable[[Sequence[Item], str], None]) -> None:
        self._cluster, self._queue, self._on_give = cluster, queue, on_give
        self._timings: dict[Engine, PlayTiming] = {}
        self._began = time.perf_counter()

    @property
    def timing(self) -> PlayTiming:
        """Wall time so far, of all engines together."""
        timings = self._timings.values()
        engines = [engine for engine in self._cluster.engines if engine.ready is not None]
        return PlayTiming(
            episodes=sum(one.episodes for one in timings),
            steps=sum(one.steps for one in timings),
            batches=sum(one.batches for one in timings),
            seconds=time.perf_counter() - self._began,
            agent_seconds=sum(one.agent_seconds for one in timings),
            env_seconds=sum(one.env_seconds for one in timings),
            hosts=sum(engine.ready.num_hosts for engine in engines if engine.ready is not None),
            num_envs=max((one.num_envs for one in timings), default=0),
            agents=len(engines),
        )

    @property
    def expected_seconds(self) -> float | None:
        """Seconds that the run will last at the present rate; None at its beginning."""
        return self.timing.expected_seconds(self._queue.expected_steps)

    @property
    def running(self) -> list[Item]:
        """Episodes that were being played when the engines last answered."""
        return [item for engine in self._cluster.engines if engine.progress for item in engine.progress.running]

    def play(self) -> Iterator[list[Finished]]:
        """Play until there are no more episodes.

        Yields:
            After each answer of an engine, and at least each second, the episodes that ended, which may be none.

        Raises:
            ClusterError: no machine is left.
        """
        while True:
            for engine in self._cluster.engines:
                self._give(engine)
            if not self._queue and not any(engine.held for engine in self._cluster.engines):
                return
            yield self._receive()

    def _give(self, engine: Engine) -> None:
        """Hand an engine as many episodes as it wants, of those that are left at most its share."""
        if not engine.is_waiting:
            return
        share = math.ceil(len(self._queue) / len(self._cluster.engines))
        finished = engine.progress.finished if engine.progress else ()
        recent: list[str | None] = [one.ended.episode.task for one in finished]
        items: list[Item] = []
        while len(items) < min(engine.wanted, share) and (item := self._queue.take(recent.pop() if recent else None)):
            items.append(item)
        if items or engine.held:
            engine.play(items)
            self._on_give(items, engine.place.name)

    def _receive(self) -> list[Finished]:
        finished: list[Finished] = []
        for engine, progress in self._cluster.receive():
            if progress is None:
                self._queue.give_back(engine.held)
                continue
            self._timings[engine] = progress.timing
            finished += progress.finished
            for one in progress.finished:
                self._queue.note_end(item_of(one), one.ended.episode.length)
        return finished


def item_of(finished: Finished) -> Item:
    """Return the item of an episode that ended."""
    episode = finished.ended.episode
    return Item(episode.task, episode.index, episode.seed)


def _places(options: ClusterOptions) -> Iterator[_Place]:
    """Yield the places for engines on the nodes that are there."""
    for node in ray.nodes():
        cores = int(node["Resources"].get("CPU", 0))
        if not node["Alive"] or not cores:
            continue
        num_hosts = min(cores, options.num_workers or cores, options.num_episodes)
        num_gpus = int(node["Resources"].get("GPU", 0)) if options.use_gpus else 0
        num_engines = min(max(1, num_gpus), num_hosts)
        for number in range(num_engines):
            name = node["NodeManagerAddress"] + (f" GPU {number}" if num_engines > 1 else "")
            count = num_hosts // num_engines + (number < num_hosts % num_engines)
            yield _Place(node["NodeID"], number, name, count, min(1, num_gpus))


@contextlib.contextmanager
def open_cluster(
    address: str, job: Job, requirements: Requirements, options: ClusterOptions, say: Callable[[str], None]
) -> Iterator[Cluster]:
    """Connect with a Ray cluster, or start one of this machine, and start engines on its nodes.

    What Ray prints goes to standard error.

    Args:
        address: see `check_ray`.
        job: of the run.
        requirements: see `Cluster`.
        options: see `Cluster`.
        say: see `Cluster`.

    Yields:
        The cluster; its engines end with the `with` block.

    Raises:
        ClusterError: Ray cannot be connected with, or no machine can play the run.
    """
    with simulator_output(), _connected(address, options), _marked(job) as marked:
        cluster = Cluster(marked, requirements, options, say)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.close()


@contextlib.contextmanager
def _connected(address: str, options: ClusterOptions) -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray's authors are told of each cluster that starts
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address == LOCAL:
            cores = options.num_workers or available_cores()
            ray.init(LOCAL, num_cpus=cores, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
        else:
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise ClusterError(f"--ray {address}: {one_line(error)}") from error
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, handler)  # Ray has set its own
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _marked(job: Job) -> Iterator[Job]:
    """Write a file into the run's folder, if episodes are recorded there, by which other machines can tell it."""
    if job.play.recording is None:
        yield job
        return
    marker = job.play.recording.folder / f".{uuid4().hex}"
    marker.touch()
    try:
        yield replace(job, marker=marker)
    finally:
        marker.unlink(missing_ok=True)
