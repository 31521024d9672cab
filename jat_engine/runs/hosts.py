"""Hosts of environments: this process, or worker processes that are sent orders and answer with reports."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from ..envs import Task
from ..evaluation.progress import simulator_output
from ..worker_process import Watchdog, describe_end, end_workers, prepare_worker, start_worker
from .shared_block import Layout, SharedBlock
from .slots import Ended, Observed, Order, PlayOptions, Report, Slots


class HostEndedError(ChildProcessError):
    """Process of a host that ended, whatever it played; the message says how."""


class Host(Protocol):
    """Environments in slots, which are sent orders and answer each with a report.

    Attributes:
        name: of the host, such as "worker 2".
        seconds: that the environments have taken.
    """

    name: str
    seconds: float

    def send(self, orders: Sequence[Order]) -> None:
        """Send orders. The reports of those before were received."""
        ...

    def receive(self) -> list[Report]:
        """Wait for the reports of the orders. The list is empty if a process has started, and reports come later.

        Raises:
            HostEndedError: the process has ended; `restart` starts another.
        """
        ...

    @staticmethod
    def wait(hosts: Sequence[Any]) -> list[Any]:
        """Wait until some of several hosts of this class can receive, and return those, in their order."""
        ...

    def restart(self) -> None:
        """Start again, with empty slots."""
        ...

    def close(self) -> None:
        """End. What is being played is lost."""
        ...


class LocalHost:
    """Environments of this process.

    Args:
        tasks: name -> task, of all items.
        options: of all episodes.
    """

    def __init__(self, tasks: Mapping[str, Task], options: PlayOptions) -> None:
        self.name, self.seconds = "this process", 0.0
        self._slots = Slots(tasks, options)
        self._orders: list[Order] = []

    def send(self, orders: Sequence[Order]) -> None:
        """Keep orders for `receive`."""
        self._orders = list(orders)

    def receive(self) -> list[Report]:
        """Carry out the orders."""
        began = time.perf_counter()
        with simulator_output():
            reports = [self._slots.obey(order) for order in self._orders]
        self._orders = []
        self.seconds += time.perf_counter() - began
        return reports

    @staticmethod
    def wait(hosts: Sequence[LocalHost]) -> list[LocalHost]:
        """Return all hosts: their orders are carried out by `receive`."""
        return list(hosts)

    def restart(self) -> None:
        """Do nothing: this process has not ended."""

    def close(self) -> None:
        """Close the environments."""
        self._slots.close()


class WorkerHost:
    """Environments of a worker process. Their observations come through shared memory.

    Args:
        number: of the worker, for its name.
        tasks: name -> task, of all items. Their makers are functions that another process can import.
        options: of all episodes.
        num_slots: most episodes at a time.
    """

    def __init__(self, number: int, tasks: Mapping[str, Task], options: PlayOptions, num_slots: int) -> None:
        self.name, self.seconds = f"worker {number}", 0.0
        self._arguments = dict(tasks), options
        self._num_slots = num_slots
        self._starts_in_vain = 0
        self._connection: Connection
        self._process: BaseProcess
        self._start()

    def _start(self) -> None:
        self._layouts: dict[int, Layout] = {}
        with SharedBlock.create(self._num_slots) as (self._block, descriptor):
            self._connection, self._process = start_worker(_run_worker, *self._arguments)
            with contextlib.suppress(OSError):  # it has ended, which `receive` reports
                SharedBlock.send(descriptor, self._connection)

    def send(self, orders: Sequence[Order]) -> None:
        """Send orders to the worker."""
        with contextlib.suppress(OSError):  # it has ended, which `receive` reports
            self._connection.send(orders)

    def receive(self) -> list[Report]:
        """Receive the reports of the orders; none when the process has started.

        Raises:
            HostEndedError: the process has ended.
        """
        try:
            seconds, messages = self._connection.recv()
        except (EOFError, OSError):
            raise HostEndedError(f"the process that played it {describe_end(self._process)}") from None
        self._starts_in_vain = 0  # if it ends now, that is because of what it plays
        self.seconds += seconds
        return [self._report(message) for message in messages]

    def _report(self, message: Any) -> Report:
        if isinstance(message, Ended):
            return message
        observed, layout = message
        if layout is not None:
            self._layouts[observed.slot] = layout
        observed.observation |= self._block.read(self._layouts[observed.slot])
        return observed  # type: ignore[no-any-return]

    @staticmethod
    def wait(hosts: Sequence[WorkerHost]) -> list[WorkerHost]:
        """Wait until some of several workers have sent reports or have ended, and return those, in their order."""
        ready = set(wait([host._connection for host in hosts]))
        return [host for host in hosts if host._connection in ready]

    def restart(self) -> None:
        """Start another process.

        Raises:
            ChildProcessError: several have ended before they played anything.
        """
        self._end()
        self._starts_in_vain += 1
        if self._starts_in_vain > _MAX_STARTS:
            raise ChildProcessError(
                f"{self.name}: {_MAX_STARTS} processes ended before they could play; their last words are above"
            )
        self._start()

    def close(self) -> None:
        """End the process."""
        self._end()

    def _end(self) -> None:
        end_workers({self._connection: self._process})


_MAX_STARTS = 3


def _run_worker(connection: Connection, tasks: Mapping[str, Task], options: PlayOptions) -> None:
    """Carry out orders until the connection or the parent process ends.

    Args:
        connection: receives the shared block, then lists of orders; sends the seconds and the reports of each, and at
            first no reports. The report of an observation is a tuple with its layout in the shared block, or None where
            it has not changed.
        tasks, options: see `Slots`.
    """
    prepare_worker()
    slots, layouts = Slots(tasks, options), dict[int, Layout]()
    watchdog = Watchdog(options.hang_seconds)
    try:
        block = SharedBlock.receive(connection)
        connection.send((0.0, []))
    except (EOFError, OSError):
        return
    while True:
        try:
            orders = watchdog.receive(connection)
        except (EOFError, OSError):
            return
        began = time.perf_counter()
        messages: list[Any] = []
        for order in orders:
            watchdog.progress()
            report = slots.obey(order)
            if isinstance(report, Observed):
                layout, report.observation = block.write(report.slot, report.observation)
                known = layouts.get(report.slot) == layout
                layouts[report.slot] = layout
                messages.append((report, None if known else layout))
            else:
                messages.append(report)
        try:
            connection.send((time.perf_counter() - began, messages))
        except OSError:
            return
