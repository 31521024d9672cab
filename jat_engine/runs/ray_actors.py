"""Actors of Ray that play episodes: environments in processes of their own, and engines that play in them."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..envs import Task
from ..envs.build import import_module_of
from ..envs.versions import task_versions
from ..errors import describe_error
from ..machine import available_cores
from ..worker_process import watched
from .agents import LoadedAgents
from .hosts import HostEndedError
from .plan import Item, WorkQueue, expected_length
from .play import MAX_AUTO_ENVS, Finished, Player, PlayTiming
from .settings import machine_settings
from .slots import Order, PlayOptions, Report, Slots

_PERIOD_SECONDS = 0.5
"""Time for which an engine plays before it reports, and is given more episodes."""

_START_SECONDS, _MORE_SECONDS = 300.0, 60.0
"""Longest wait for the first process with environments, and for the others after it. They wait for free cores."""

_MAX_STARTS = 3


@dataclass(frozen=True)
class Job:
    """Everything that a machine needs to play episodes of a run. Pickled once; functions are sent by their names.

    Attributes:
        load: loads the agent, with room for a number of sessions; None for the engine's default.
        tasks: name -> task, of all items.
        play: options of the environments.
        num_envs: environments of each process; None to choose.
        marker: file in the run's folder that each machine must see, since it records episodes there; else None.
    """

    load: Callable[[int | None], LoadedAgents]
    tasks: Mapping[str, Task]
    play: PlayOptions
    num_envs: int | None
    marker: Path | None = None


@dataclass(frozen=True)
class Environments:
    """Machine of a process with environments.

    Attributes:
        settings: see `machine_settings`.
        versions: name of the task -> package -> version.
        has_folder: False if episodes are recorded, and the run's folder is not there.
    """

    settings: Mapping[str, Any]
    versions: Mapping[str, Mapping[str, str]]
    has_folder: bool


@dataclass(frozen=True)
class Ready:
    """Answer of an engine that has started.

    Attributes:
        settings: of the machine and the agent, see `LoadedAgents`.
        device: description of its device.
        environments: different ones among its processes; one, unless something is wrong.
        num_hosts: processes with environments.
        wanted: episodes that it can be given.
    """

    settings: Mapping[str, Any]
    device: str
    environments: Sequence[Environments]
    num_hosts: int
    wanted: int


@dataclass(frozen=True)
class Progress:
    """Answer of an engine that has played for a while.

    Attributes:
        finished: episodes that ended.
        running: episodes that are being played.
        wanted: episodes that it can be given.
        timing: since its start.
    """

    finished: Sequence[Finished]
    running: Sequence[Item]
    wanted: int
    timing: PlayTiming


def start_actor(kind: type, node: str, *arguments: Any, **resources: int) -> Any:
    """Start an actor of Ray on a node, and return its handle.

    Args:
        kind: class of the actor.
        node: id of the node.
        arguments: of the class.
        resources: that the actor takes from those of the node, such as `num_cpus`.
    """
    actor: Any = ray.remote(kind)
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return actor.options(scheduling_strategy=strategy, **resources).remote(*arguments)


class EnvironmentActor:
    """Environments of a process.

    Args:
        job: a pickled `Job`.
    """

    def __init__(self, job: bytes) -> None:
        self._pickled = job

    def prepare(self) -> Environments:
        """Read the job, and describe the machine."""
        job: Job = pickle.loads(self._pickled)
        self._slots, self._options = Slots(job.tasks, job.play), job.play
        for task in job.tasks.values():
            import_module_of(task)
        versions = {name: task_versions(task) for name, task in job.tasks.items()}
        return Environments(machine_settings(), versions, job.marker is None or job.marker.exists())

    def obey(self, orders: Sequence[Order]) -> tuple[float, list[Report]]:
        """Carry out orders, and return how long that took in seconds, and their reports."""
        began = time.perf_counter()
        with watched(self._options.hang_seconds):
            reports = [self._slots.obey(order) for order in orders]
        return time.perf_counter() - began, reports


class RayHost:
    """Environments of an actor of Ray.

    Args:
        name: of the host.
        node: id of the node that the actor is started on.
        job: a pickled `Job`.
    """

    def __init__(self, name: str, node: str, job: bytes) -> None:
        self.name, self.seconds = name, 0.0
        self._node, self._job = node, job
        self._starts_in_vain = 0
        self._start()

    def _start(self) -> None:
        self._actor = start_actor(EnvironmentActor, self._node, self._job, num_cpus=1)
        self.prepared = self._actor.prepare.remote()
        self._reply: Any = None

    def send(self, orders: Sequence[Order]) -> None:
        """Send orders to the actor."""
        self._reply = self._actor.obey.remote(orders)

    def receive(self) -> list[Report]:
        """Receive the reports of the orders.

        Raises:
            HostEndedError: the actor's process has ended.
        """
        try:
            seconds, reports = ray.get(self._reply)  # arrays are read-only
        except RayTaskError:
            raise
        except RayError as error:
            raise HostEndedError(f"the process that played it ended ({type(error).__name__})") from error
        self._starts_in_vain, self._reply = 0, None
        self.seconds += seconds
        return list(reports)

    @staticmethod
    def wait(hosts: Sequence[RayHost]) -> list[RayHost]:
        """Wait until some of several actors have reports or have ended, and return those, in their order."""
        replies = [host._reply for host in hosts]
        ray.wait(replies, num_returns=1)
        ready, _ = ray.wait(replies, num_returns=len(replies), timeout=0)
        return [host for host in hosts if host._reply in ready]

    def restart(self) -> None:
        """Start another actor.

        Raises:
            ChildProcessError: several have ended before they played anything.
        """
        self.close()
        self._starts_in_vain += 1
        if self._starts_in_vain > _MAX_STARTS:
            raise ChildProcessError(f"{self.name}: {_MAX_STARTS} processes ended before they could play")
        self._start()

    def close(self) -> None:
        """End the process."""
        ray.kill(self._actor)


class EngineActor:
    """An agent of a node, and the processes with environments that it plays in.

    Args:
        name: of the engine.
        node: id of the node.
        num_hosts: processes with environments.
        job: a pickled `Job`.
    """

    def __init__(self, name: str, node: str, num_hosts: int, job: bytes) -> None:
        self._name, self._node, self._num_hosts, self._pickled = name, node, num_hosts, job

    def prepare(self) -> Ready:
        """Load the agent and start the processes.

        Raises:
            ChildProcessError: no process can be started.
            Exception: of any kind, if the agent cannot be loaded.
        """
        job: Job = pickle.loads(self._pickled)
        hosts = [RayHost(f"{self._name} worker {i}", self._node, self._pickled) for i in range(self._num_hosts)]
        torch.set_num_threads(available_cores())  # Ray lets actors have one
        num_envs = job.num_envs or (1 if self._num_hosts > MAX_AUTO_ENVS else None)
        loaded = job.load(None if num_envs is None else num_envs * self._num_hosts)

        hosts, environments = _wait_until_ready(hosts)
        max_steps = job.play.max_steps
        self._queue = WorkQueue((), lambda task: expected_length(task, {}, max_steps))
        self._player = Player(loaded.agents, hosts, self._queue, job.tasks, num_envs)
        return Ready(loaded.settings, loaded.device, environments, len(hosts), self._wanted(0))

    def play(self, items: Sequence[Item]) -> Progress:
        """Play for a while.

        Args:
            items: further episodes.
        """
        self._queue.add(items)
        until, finished = time.monotonic() + _PERIOD_SECONDS, []
        for ended in self._player.play():
            finished += ended
            if time.monotonic() >= until or (finished and not self._queue):
                break
        return Progress(finished, self._player.running, self._wanted(len(finished)), self._player.timing)

    def _wanted(self, num_finished: int) -> int:
        """Return how many episodes are needed to play on until the next report, if as many end as have now."""
        ahead = max(self._num_hosts, 2 * num_finished)
        return max(0, self._player.capacity + ahead - len(self._player.running) - len(self._queue))


def _wait_until_ready(hosts: Sequence[RayHost]) -> tuple[list[RayHost], list[Environments]]:
    """Wait until processes have started, and end those that take too long: other programs have their cores.

    Returns:
        Those that have started, and different descriptions among theirs.

    Raises:
        ChildProcessError: none has; the message has the reason.
    """
    all_prepared = [host.prepared for host in hosts]
    done, _ = ray.wait(all_prepared, num_returns=1, timeout=_START_SECONDS)
    if done:
        done, _ = ray.wait(all_prepared, num_returns=len(all_prepared), timeout=_MORE_SECONDS)
    ready, environments, reason = [], [], f"no core was free for {_START_SECONDS:.0f} s"
    for host in hosts:
        if host.prepared in done:
            try:
                found = ray.get(host.prepared)
                environments += [] if found in environments else [found]
                ready.append(host)
                continue
            except RayError as error:
                reason = cause_of(error)
        host.close()
    if not ready:
        raise ChildProcessError(f"no process with environments has started: {reason}")
    return ready, environments


def cause_of(error: BaseException) -> str:
    """Return an error of Ray in one line: what was raised in an actor, or how the actor has ended."""
    while isinstance(error, RayTaskError):  # an actor called another
        error = error.cause
    if isinstance(error, RayError):
        return f"its process has ended: {str(error).strip().splitlines()[-1]:.160}"
    return describe_error(error)
