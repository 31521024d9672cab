"""The loop of a run: collect observations from whichever environments are ready, choose their actions in one batch."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..envs import Task
from ..errors import describe_error
from .agents import Agents
from .hosts import Host, HostEndedError
from .plan import MAX_DEATHS, Item, WorkQueue
from .records import Episode
from .slots import Act, Begin, Ended, Fail, Observed, Order

MAX_AUTO_ENVS = 64
"""Most environments of all processes together where the number is not given: an engine has room for as many."""

_FIRST_ENVS = 8
"""Environments of each host that a run begins with where the number is not given."""

_FEW_STEPS = 100
"""Steps up to which the rate is too uncertain to say how long a run lasts."""

_WINDOW_SECONDS, _LEAST_GAIN = 2.0, 1.05
"""Time for which each number of environments is tried, and the least gain in rate for which it is doubled again."""


@dataclass(frozen=True)
class Finished:
    """An episode that ended, and where.

    Attributes:
        ended: the report.
        host: name of the host that played it.
    """

    ended: Ended
    host: str


@dataclass(frozen=True)
class PlayTiming:
    """Wall time of playing.

    Attributes:
        episodes, steps, batches: that were played.
        seconds: of all.
        agent_seconds: in which actions were chosen.
        env_seconds: that the environments took, in all hosts together.
        hosts: number of hosts.
        num_envs: most environments of each host, at last.
        agents: number of processes that chose actions.
    """

    episodes: int
    steps: int
    batches: int
    seconds: float
    agent_seconds: float
    env_seconds: float
    hosts: int
    num_envs: int
    agents: int = 1

    @property
    def rate(self) -> float:
        """Steps per second."""
        return self.steps / max(self.seconds, 1e-9)

    def expected_seconds(self, steps: float) -> float | None:
        """Return the seconds that so many more steps take; None at the beginning of a run."""
        return steps / self.rate if self.steps > _FEW_STEPS else None

    @property
    def demand(self) -> float:
        """λ: steps per second that the environments could take if they never waited for actions."""
        return self.hosts * self.steps / max(self.env_seconds, 1e-9)

    @property
    def supply(self) -> float:
        """μ: steps per second that actions could be chosen for, in batches as they were."""
        return self.agents * self.steps / max(self.agent_seconds, 1e-9)


class Playing(Protocol):
    """Interface of what plays the episodes of a run: a `Player`, or the players of a cluster."""

    @property
    def timing(self) -> PlayTiming:
        """Wall time so far."""
        ...

    @property
    def expected_seconds(self) -> float | None:
        """Seconds that the run will last at the present rate; None at its beginning."""
        ...

    @property
    def running(self) -> list[Item]:
        """Episodes that are being played."""
        ...

    def play(self) -> Iterator[list[Finished]]:
        """Play until there are no more episodes.

        Yields:
            Now and then the episodes that ended, which may be none.
        """
        ...


@dataclass
class _HostState:
    """A host's slots, as the player knows them.

    Attributes:
        items: what is being played, by slot.
        steps: that were taken of it, by slot.
        last_tasks: the task that each slot plays, or has played.
        orders: to be sent next.
        waiting: True if reports are to be received.
    """

    items: dict[int, Item] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)
    last_tasks: dict[int, str] = field(default_factory=dict)
    orders: list[Order] = field(default_factory=list)
    waiting: bool = False


class Player:
    """Play the episodes of a queue with an agent in the environments of some hosts.

    Args:
        agents: choose the actions.
        hosts: of the environments.
        queue: episodes to play.
        tasks: name -> task, of all items.
        num_envs: most episodes at a time in each host; None to find the number that is fastest.
        most_envs: the most that is tried then.
        on_begin: called with the items that a host begins with, and its name.
    """

    def __init__(
        self,
        agents: Agents,
        hosts: Sequence[Host],
        queue: WorkQueue,
        tasks: Mapping[str, Task],
        num_envs: int | None,
        most_envs: int = MAX_AUTO_ENVS,
        on_begin: Callable[[Sequence[Item], str], None] = lambda items, host: None,
    ) -> None:
        self._agents, self._queue, self._tasks, self._on_begin = agents, queue, tasks, on_begin
        self._hosts = {host: _HostState() for host in hosts}
        self._limit = _Growing(most_envs) if num_envs is None else _Fixed(num_envs)
        self._episodes, self._batches, self._began = 0, 0, time.perf_counter()

    @property
    def timing(self) -> PlayTiming:
        """Wall time so far."""
        return PlayTiming(
            episodes=self._episodes,
            steps=self._agents.steps,
            batches=self._batches,
            seconds=time.perf_counter() - self._began,
            agent_seconds=self._agents.seconds,
            env_seconds=sum(host.seconds for host in self._hosts),
            hosts=len(self._hosts),
            num_envs=self._limit.value,
        )

    @property
    def expected_seconds(self) -> float | None:
        """Seconds that the run will last at the present rate; None at its beginning."""
        return self.timing.expected_seconds(self._queue.expected_steps)

    @property
    def _gathers(self) -> bool:
        """True if the agent is the limit: actions are then chosen for all environments at once, in larger batches.

        Otherwise they are chosen for those that are ready, while the others work.
        """
        timing = self.timing
        return timing.supply < timing.demand

    @property
    def running(self) -> list[Item]:
        """Episodes that are being played."""
        return [item for busy in self._hosts.values() for item in busy.items.values()]

    @property
    def capacity(self) -> int:
        """Episodes that can be played at a time."""
        return len(self._hosts) * self._limit.value

    def play(self) -> Iterator[list[Finished]]:
        """Play until the queue is empty.

        Yields:
            After each batch the episodes that ended, which may be none.
        """
        while True:
            self._fill()
            for host, busy in self._hosts.items():
                self._send(host, busy)
            waiting = [host for host, busy in self._hosts.items() if busy.waiting]
            if not waiting:
                return
            yield self._step(waiting if self._gathers else type(waiting[0]).wait(waiting))

    def close(self) -> None:
        """End the hosts and close the sessions. Episodes that are being played are lost."""
        for host, busy in self._hosts.items():
            host.close()
            for slot in busy.items:
                self._agents.close((host.name, slot))

    def _fill(self) -> None:
        """Give episodes to free slots, first of the hosts that play the fewest."""
        begun: dict[Host, list[Item]] = {}
        free = [host for host, busy in self._hosts.items() if not busy.waiting]
        while free:
            host = min(free, key=lambda each: len(self._hosts[each].items))
            busy = self._hosts[host]
            is_alone = any(map(self._queue.is_suspect, busy.items.values()))
            is_full = is_alone or len(busy.items) >= self._limit.value
            slot = next(number for number in range(len(busy.items) + 1) if number not in busy.items)
            item = None if is_full else self._queue.take(busy.last_tasks.get(slot), is_free=not busy.items)
            if item is None:
                free.remove(host)
                continue
            busy.last_tasks[slot] = item.task
            busy.items[slot], busy.steps[slot] = item, -1
            busy.orders.append(Begin(slot, item))
            begun.setdefault(host, []).append(item)
        for host, items in begun.items():
            self._on_begin(items, host.name)

    def _send(self, host: Host, busy: _HostState) -> None:
        if busy.orders and not busy.waiting:
            host.send(busy.orders)
            busy.orders, busy.waiting = [], True

    def _step(self, ready: Iterable[Host]) -> list[Finished]:
        """Receive the reports of hosts, and choose actions for all of their observations at once."""
        finished: list[Finished] = []
        keys: list[tuple[Host, int]] = []
        observed: list[Observed] = []
        for host in ready:
            busy = self._hosts[host]
            try:
                reports = host.receive()
            except HostEndedError as error:
                finished += self._recover(host, str(error))
                continue
            busy.waiting = not reports
            for report in reports:
                if isinstance(report, Ended):
                    self._queue.note_end(busy.items.pop(report.slot), report.episode.length)
                    self._agents.close((host.name, report.slot))
                    finished.append(Finished(report, host.name))
                    continue
                busy.steps[report.slot] += 1
                if self._open(host, report):
                    keys.append((host, report.slot))
                    observed.append(report)

        actions = self._agents.act([(host.name, slot) for host, slot in keys], observed) if keys else []
        for (host, slot), action in zip(keys, actions, strict=True):
            self._hosts[host].orders.append(_fail(slot, action) if isinstance(action, Exception) else Act(slot, action))
        self._batches += bool(keys)
        self._episodes += len(finished)
        self._limit.note(len(keys), is_full=bool(self._queue))
        return finished

    def _open(self, host: Host, report: Observed) -> bool:
        """Open a session for an episode that has begun. Returns False if that fails, which ends the episode."""
        if report.action_space is None:
            return True
        busy = self._hosts[host]
        item = busy.items[report.slot]
        try:
            self._agents.open((host.name, report.slot), self._tasks[item.task], item.seed)
        except ValueError as error:  # InputError: the task does not fit the agent
            busy.orders.append(_fail(report.slot, error))
            return False
        return True

    def _recover(self, host: Host, reason: str) -> list[Finished]:
        """Start a host again whose process has ended, and return the episodes that have failed by that."""
        busy = self._hosts[host]
        for slot in busy.items:
            self._agents.close((host.name, slot))
        failed = self._queue.note_death(busy.items.values())
        steps = {item: max(0, busy.steps[slot]) for slot, item in busy.items.items()}
        self._hosts[host] = _HostState()
        host.restart()
        error = f"{reason}, {MAX_DEATHS} times"
        return [
            Finished(Ended(0, Episode(item.task, item.index, item.seed, None, steps[item], error=error)), host.name)
            for item in failed
        ]


def _fail(slot: int, error: Exception) -> Fail:
    return Fail(slot, describe_error(error), "".join(traceback.format_exception(error)))


class _Fixed:
    """A number of environments that was given."""

    def __init__(self, value: int) -> None:
        self.value = value

    def note(self, steps: int, is_full: bool) -> None:
        """Do nothing."""


class _Growing:
    """A number of environments that is doubled as long as that makes the run faster.

    More environments make larger batches, which cost less for each step, and let the environments work while actions
    are chosen. The number has no influence on any episode.
    """

    def __init__(self, most: int) -> None:
        self.value = min(_FIRST_ENVS, most)
        self._most = most
        self._best: tuple[float, int] = 0.0, self.value
        self._began, self._steps, self._settled = time.perf_counter(), 0, False

    def note(self, steps: int, is_full: bool) -> None:
        """Note the steps of a batch.

        Args:
            steps: of the batch.
            is_full: more episodes are waiting, so that all environments play.
        """
        if self._settled or not is_full:
            return
        self._steps += steps
        seconds = time.perf_counter() - self._began
        if seconds < _WINDOW_SECONDS:
            return
        rate, (best, number) = self._steps / seconds, self._best
        self._began, self._steps = time.perf_counter(), 0
        if rate < best * _LEAST_GAIN:
            self.value, self._settled = (number if rate < best else self.value), True
            return
        self._best = rate, self.value
        self._settled = self.value == self._most
        self.value = min(2 * self.value, self._most)
