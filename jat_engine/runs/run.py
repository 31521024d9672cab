"""Play the missing episodes of a run into its database."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ..engine.engine import JatEngine
from ..envs import Task
from ..envs.build import check_maker
from ..envs.versions import task_versions
from ..errors import TaskError, one_line
from ..machine import available_cores
from .agents import ActOptions, Agents, EngineAgents, LoadedAgents, ModelAgents
from .database import RunDatabase, RunError
from .hosts import Host, LocalHost, WorkerHost
from .plan import Item, WorkQueue, expected_length
from .play import MAX_AUTO_ENVS, Finished, Player, Playing
from .settings import MACHINE_FIELDS, differences, is_of_machine
from .slots import PlayOptions

SMALL_RUN = 4000
"""Expected steps up to which a run starts no worker processes, whose start takes seconds."""


@dataclass(frozen=True)
class RunOptions:
    """Options of a run.

    Attributes:
        seed: of episode 0; episode i has `seed + i`.
        act: choice of actions.
        play: options of the environments.
        num_workers: processes for environments; 0 for none besides this one, None to choose.
        num_envs: environments of each process; None to choose.
    """

    seed: int
    act: ActOptions = field(default_factory=ActOptions)
    play: PlayOptions = field(default_factory=PlayOptions)
    num_workers: int | None = None
    num_envs: int | None = None


def prepare_run(
    database: RunDatabase,
    settings: Mapping[str, Any],
    tasks: Sequence[Task],
    planned: Mapping[str, int],
    mixed_machines: bool = False,
) -> None:
    """Store settings and tasks in a new run, or check that they are those of the run that is there.

    Args:
        database: of the run.
        settings: of what is to be played.
        tasks: to be played.
        planned: name of the task -> episodes.
        mixed_machines: let machines of other instruction sets and versions play on; the run notes that.

    Raises:
        RunError: the run has other settings, or a task was played with another adapter or other versions.
    """
    check_run(database, settings, tasks, mixed_machines)
    before = database.settings
    now = dict(before or settings)
    if mixed_machines:
        now["mixed_machines"] = True
    if now != before:
        database.set_settings(now)
    database.add_tasks(tasks, planned, {task.name: task_versions(task) for task in tasks})


def check_run(
    database: RunDatabase, settings: Mapping[str, Any], tasks: Sequence[Task], mixed_machines: bool = False
) -> None:
    """Check that episodes with these settings belong to a run. Settings that are not given are not compared.

    Raises:
        RunError: see `prepare_run`.
    """
    remedy = "name another --output_dir, or add --overwrite to set that run aside"
    before = database.settings
    if before:
        compared = {key: value for key, value in settings.items() if not (mixed_machines and key in MACHINE_FIELDS)}
        if found := differences(before, compared):
            hint = "; or --mixed_machines" if is_of_machine(found[0]) else ""
            raise RunError(f"{database.folder}: has results of other settings ({found[0]}); {remedy}{hint}")

    known = database.task_descriptions()
    for task in tasks:
        there = known.get(task.name)
        if there is None:
            continue
        if there["rule"]["adapter"] != task.rule["adapter"]:
            raise RunError(
                f"{database.folder}: has results of {task.name} with another adapter ({there['rule']['adapter']}, now "
                f"{task.rule['adapter']}); {remedy}"
            )
        found = differences(there, {"versions": task_versions(task)})
        if found and not mixed_machines:
            raise RunError(
                f"{database.folder}: has results of {task.name} with {found[0]}; {remedy}; or --mixed_machines"
            )


def make_agents(agent: Any, processor: Any, options: ActOptions) -> Agents:
    """Return the agent's side of a run.

    Args:
        agent: a `JatEngine` or a `JatModel`.
        processor: of a `JatModel`; else None.
        options: of the choice of actions.
    """
    if isinstance(agent, JatEngine):
        return EngineAgents(agent, options)
    return ModelAgents(agent, processor, options)


def choose_workers(items: Sequence[Item], tasks: Sequence[Task], options: RunOptions, has_crashed: bool = False) -> int:
    """Return the number of worker processes; 0 to play in this process.

    Args:
        items: episodes to play.
        tasks: of the items.
        options: of the run.
        has_crashed: a process has ended while it played an episode of the run, which may do so again. In a worker
            process that episode fails, and the others are played.

    Raises:
        TaskError: workers are asked for, and a task's maker cannot be sent to them.
    """
    max_steps = options.play.max_steps
    steps = sum(expected_length(item.task, {}, max_steps) for item in items)
    number = options.num_workers
    if number is None and not has_crashed and (steps <= SMALL_RUN or len(items) < 2):
        number = 0
    if number == 0:
        return 0
    for task in tasks:
        try:
            check_maker(task)
        except TaskError:
            if number is None:
                return 0
            raise
    return min(available_cores() if number is None else number, len(items))


def share_room(room: int | None, num_workers: int, num_envs: int | None, num_items: int) -> tuple[int, int]:
    """Return the number of hosts, and the most environments of each, for which the agent has room.

    Args:
        room: episodes that can be open at a time; None if there is no limit.
        num_workers: processes for environments; 0 for this one.
        num_envs: environments of each; None to choose.
        num_items: episodes to play.

    Raises:
        RunError: there is no room for as many as are asked for.
    """
    num_hosts = max(1, num_workers)
    if room is None:
        return num_hosts, num_envs or max(1, MAX_AUTO_ENVS // num_hosts)
    if num_envs is not None and min(num_hosts * num_envs, num_items) > room:
        raise RunError(
            f"--num_envs: expected at most {room // num_hosts} environments in each of {num_hosts} processes, for "
            f"which the KV cache has room, got {num_envs}"
        )
    num_hosts = max(1, min(num_hosts, room))
    return num_hosts, num_envs or max(1, min(room, MAX_AUTO_ENVS) // num_hosts)


def start_hosts(num_workers: int, tasks: Mapping[str, Task], options: RunOptions) -> list[Host]:
    """Start the processes with the environments."""
    if num_workers == 0:
        return [LocalHost(tasks, options.play)]
    num_slots = options.num_envs or MAX_AUTO_ENVS
    return [WorkerHost(number, tasks, options.play, num_slots) for number in range(num_workers)]


@contextlib.contextmanager
def open_player(
    database: RunDatabase,
    agents: Agents,
    tasks: Sequence[Task],
    items: Sequence[Item],
    options: RunOptions,
) -> Iterator[Player]:
    """Start what plays episodes of a run, and end it with the `with` block.

    Args:
        database: of the run.
        agents: choose the actions.
        tasks: of the items.
        items: episodes to play, see `RunDatabase.missing`.
        options: of the run.

    Yields:
        The player, see `record`.

    Raises:
        TaskError: see `choose_workers`.
        OSError: a process cannot be started.
    """
    has_crashed = database.clear_claims() > 0 or not all(database.traces().values())
    played, by_name = database.mean_lengths(), {task.name: task for task in tasks}
    queue = WorkQueue(items, lambda task: expected_length(task, played, options.play.max_steps))
    if options.num_envs is not None:
        options = replace(options, num_envs=min(options.num_envs, max(1, len(items))))
    num_workers = choose_workers(items, tasks, options, has_crashed)
    num_hosts, num_envs = share_room(agents.room(tasks), num_workers, options.num_envs, len(items))
    hosts = start_hosts(min(num_hosts, num_workers), by_name, options)
    player = Player(agents, hosts, queue, by_name, options.num_envs, num_envs, database.claim)
    try:
        yield player
    finally:
        player.close()
        with contextlib.suppress(RunError):  # such as of a full disk, which ends the run with another message
            database.clear_claims()


class Machines(Protocol):
    """Interface of what a run can be played on: `ThisMachine`, or a `Cluster`."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings of the run, as far as they are the machines' and the agent's."""
        ...

    @property
    def device(self) -> str:
        """Description of the machines, for people."""
        ...

    def open_player(
        self, database: RunDatabase, tasks: Sequence[Task], items: Sequence[Item], options: RunOptions
    ) -> AbstractContextManager[Playing]:
        """Start what plays episodes of a run, and end it with the `with` block; see the function `open_player`."""
        ...


class ThisMachine:
    """This machine, with an agent.

    Args:
        loaded: the agent.
    """

    def __init__(self, loaded: LoadedAgents) -> None:
        self.settings, self.device, self._agents = loaded.settings, loaded.device, loaded.agents

    def open_player(
        self, database: RunDatabase, tasks: Sequence[Task], items: Sequence[Item], options: RunOptions
    ) -> AbstractContextManager[Player]:
        """Call the function `open_player`."""
        return open_player(database, self._agents, tasks, items, options)


def record(database: RunDatabase, player: Playing) -> Iterator[list[Finished]]:
    """Play all episodes, and add each to the database as soon as it ends.

    Yields:
        After each batch the episodes that were added, which may be none.

    Raises:
        RunError: they cannot be written; the message says where they are instead.
    """
    for finished in player.play():
        if finished:
            try:
                database.add(finished)
            except RunError as error:
                raise RunError(f"{error}. {_rescue(database, finished)}") from error
        yield finished


def _rescue(database: RunDatabase, finished: Sequence[Finished]) -> str:
    """Keep episodes that cannot be added in a temporary folder, and return a sentence about where they are."""
    try:
        return f"All finished episodes are in {database.rescue(finished)}"
    except (RunError, OSError) as error:
        lost = ", ".join(f"{one.ended.episode.task} {one.ended.episode.index}" for one in finished)
        return f"Those that ended before are kept; {lost} will be played again ({one_line(error)})"
