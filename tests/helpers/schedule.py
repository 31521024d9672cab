"""Check the schedule of the persistent kernel: that its barriers alone order all that must be ordered.

A recording of a launch (`csrc/cuda/emulator/record.h`) has for each warp the list of what it did. `check` executes
these lists again, in an order of its own, as far as each wait allows, and derives from the semantics of the barriers
what happens before what. The order in which the recorded launch happened to run has no influence. It reports

- a wait that never ends, with all that wait for each other,
- an access that conflicts with another one and is not ordered after it,
- an arrival or transfer that could count in an earlier phase of its barrier, and a wait that could see a later one,
- a packet that is stored where an earlier one may still be read, or read where a later one may be.

Order is a vector clock for each warp, of numbers of events of other warps and of phases of mbarriers that are over.
It is kept twice, because an asynchronous store or a packet publishes what it stores and nothing that its warp wrote
before:

- `seen`: what is visible. Reads need it, and so do writes over writes in device memory.
- `done`: what has been executed, which asynchronous stores and packets do pass on: they are not executed before what
  their warp, and those it waited for, did before. Writes over what was read need no more.

Only words of 4 bytes that some warp writes are looked at; others cannot conflict.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import numpy as np


class Kind(IntEnum):
    """Kinds of events, as in record.h."""

    ACCESS = 0
    MEET = 1
    INIT = 2
    ARRIVE = 3
    EXPECT = 4
    WAIT = 5
    TRANSFER = 6
    SEND = 7
    RECEIVE = 8
    COUNT = 9
    PHASE = 10


READ, WRITE, ATOMIC = 0, 1, 2
MOST_STORED_WORDS = 4  # of an asynchronous store; a longer transfer is a bulk copy
PACKET_WORDS = 4


@dataclass(frozen=True)
class Range:
    """Words [begin, end) of a space, and how they are accessed."""

    how: int
    space: int
    begin: int
    end: int


@dataclass(frozen=True)
class Event:
    """What a warp did.

    Attributes:
        kind: see record.h, which also says what `value` is.
        target: the barrier or counter.
        ranges: memory that was accessed or, of a transfer, is read and written.
    """

    kind: Kind
    target: int = 0
    value: int = 0
    ranges: tuple[Range, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """A recorded launch.

    Attributes:
        warps: the events of each warp, by block.
        num_warps: of a block, the loading one included.
        spaces: name and words of each piece of memory; first the shared memory of each block.
        objects: names of barriers and counters.
    """

    warps: tuple[tuple[Event, ...], ...]
    num_blocks: int
    cluster_size: int
    num_warps: int
    spaces: tuple[tuple[str, int], ...]
    objects: tuple[str, ...]

    @classmethod
    def from_recording(cls, recording: Mapping[str, Any]) -> Schedule:
        """Read what `take_recording()` of the emulator returns."""

        def event(kind: int, target: int, value: int, ranges: bytes) -> Event:
            rows = np.frombuffer(ranges, np.int32).reshape(-1, 4).tolist()
            return Event(Kind(kind), target, value, tuple(Range(*row) for row in rows))

        return cls(
            warps=tuple(tuple(event(*fields) for fields in warp) for warp in recording["events"]),
            num_blocks=recording["num_blocks"],
            cluster_size=recording["cluster_size"],
            num_warps=recording["num_warps"],
            spaces=tuple(recording["spaces"]),
            objects=tuple(recording["objects"]),
        )

    def with_warp(self, warp: int, events: Iterable[Event]) -> Schedule:
        """Return the schedule with another list of events for a warp."""
        return replace(self, warps=(*self.warps[:warp], tuple(events), *self.warps[warp + 1 :]))


def check(schedule: Schedule, limit: int = 10) -> list[str]:
    """Return the violations of a schedule, at most `limit`; empty if there are none."""
    return _Checker(schedule, limit).run()


# ---- clocks --------------------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """What a warp knows; entries are those of all warps, then of all mbarriers.

    `seen <= done` holds everywhere.
    """

    seen: np.ndarray
    done: np.ndarray

    def copy(self) -> Clock:
        return Clock(self.seen.copy(), self.done.copy())

    def join(self, other: Clock) -> None:
        np.maximum(self.seen, other.seen, out=self.seen)
        np.maximum(self.done, other.done, out=self.done)

    def join_done(self, other: Clock) -> None:
        np.maximum(self.done, other.done, out=self.done)


@dataclass
class _Phase:
    """The current phase of a barrier: who has come, and what they publish."""

    arrived: int = 0
    pending: int = 0  # bytes that are expected less those that were transferred
    published: Clock | None = None

    def publish(self, clock: Clock) -> None:
        if self.published is None:
            self.published = clock.copy()
        else:
            self.published.join(clock)

    def pass_on(self, clock: Clock) -> None:
        """Publish that what the clock has done was done before; not what it has seen."""
        if self.published is None:
            self.published = Clock(np.zeros_like(clock.seen), clock.done.copy())
        else:
            self.published.join_done(clock)


@dataclass
class _Mbarrier:
    expected: int
    warp: int  # that initialised it, and the value of its clock from which on that is over
    over: int
    phases: list[Clock] = field(default_factory=list)  # what each finished one published
    current: _Phase = field(default_factory=_Phase)
    waits: list[tuple[int, int, int]] = field(default_factory=list)  # warp, its event number, phase


@dataclass
class _Meeting:
    """A barrier of whole warps: `generation` is the number of times that it was complete."""

    generation: int = 0
    current: _Phase = field(default_factory=_Phase)
    published: list[Clock] = field(default_factory=list)
    members: list[int] = field(default_factory=list)


class _Checker:
    def __init__(self, schedule: Schedule, limit: int) -> None:
        self.schedule, self.limit = schedule, limit
        self.violations: list[str] = []
        self.num_warps = len(schedule.warps)
        size = self.num_warps + len(schedule.objects)
        self.clocks = [Clock(np.zeros(size, np.int32), np.zeros(size, np.int32)) for _ in range(self.num_warps)]
        self.mbarriers: dict[int, _Mbarrier] = {}
        self.meetings: dict[int, _Meeting] = defaultdict(_Meeting)
        self.counters: dict[int, _Phase] = defaultdict(_Phase)
        self.tickets: dict[int, tuple[int, Clock]] = {}  # of each packet, and what its sender had done
        self.places = [0] * self.num_warps  # the next event of each warp
        self.met: dict[int, int] = {}  # the generation that a warp waits for, of a barrier at which it has arrived
        self.labels = [-1] * self.num_warps  # the phase of the step
        self.memory = _Memory(schedule)

    def run(self) -> list[str]:
        waiting: dict[tuple[str, int], list[int]] = defaultdict(list)
        ready = list(range(self.num_warps))
        while ready and len(self.violations) < self.limit:
            warp = ready.pop()
            self.woken: list[tuple[str, int]] = []
            blocked_on = self._advance(warp)
            if blocked_on is not None:
                waiting[blocked_on].append(warp)
            for key in self.woken:
                ready.extend(waiting.pop(key, []))
        if len(self.violations) < self.limit:
            self._check_end()
        return self.violations[: self.limit]

    # ---- events of a warp

    def _advance(self, warp: int) -> tuple[str, int] | None:
        """Execute events until one must wait; return what it waits for."""
        events, clock = self.schedule.warps[warp], self.clocks[warp]
        while self.places[warp] < len(events):
            event = events[self.places[warp]]
            if len(self.violations) >= self.limit:
                return None
            if event.kind == Kind.MEET:
                if not self._meet(warp, event):
                    return "barrier", event.target
            elif event.kind == Kind.WAIT:
                if not self._wait(warp, event):
                    return "mbarrier", event.target
            elif event.kind == Kind.RECEIVE:
                if (missing := self._receive(warp, event)) is not None:
                    return "packet", missing
            elif event.kind == Kind.COUNT:
                if not self._count(warp, event):
                    return "counter", event.target
            else:
                self._execute(warp, event)
            self.places[warp] += 1
            clock.seen[warp] += 1
            clock.done[warp] += 1
        return None

    def _execute(self, warp: int, event: Event) -> None:
        clock = self.clocks[warp]
        if event.kind == Kind.ACCESS:
            self._report_conflicts(warp, self.memory.access(event.ranges, warp, clock))
        elif event.kind == Kind.PHASE:
            self.labels[warp] = event.value
        elif event.kind == Kind.INIT:
            self.mbarriers[event.target] = _Mbarrier(event.value, warp, int(clock.seen[warp]) + 1)
        elif event.kind == Kind.SEND:
            self._send(warp, event)
        elif self._is_initialised(warp, event):
            if event.kind == Kind.TRANSFER:
                self._transfer(warp, event)
            else:
                self._arrive(warp, event)

    def _meet(self, warp: int, event: Event) -> bool:
        """Arrive at a barrier of `value` warps; return whether all are there."""
        meeting, clock = self.meetings[event.target], self.clocks[warp]
        generation = self.met.get(warp)
        if generation is None:
            entry = self.num_warps + event.target
            if clock.seen[entry] < meeting.generation:
                self._violation(warp, f"arrives at a {self._name(event)} that other warps may still be leaving")
            meeting.current.publish(clock)
            meeting.current.arrived += 1
            generation = self.met[warp] = meeting.generation
            if meeting.current.arrived < event.value:
                return False
            assert meeting.current.published is not None
            published = meeting.current.published
            for entries in (published.seen, published.done):
                entries[entry] = meeting.generation + 1
            meeting.published.append(published)
            meeting.current = _Phase()
            meeting.generation += 1
            self.woken.append(("barrier", event.target))
        if meeting.generation <= generation:
            return False
        clock.join(meeting.published[generation])
        del self.met[warp]
        return True

    # ---- mbarriers

    def _is_initialised(self, warp: int, event: Event) -> bool:
        """Return whether a warp knows that an mbarrier is initialised; report it if not."""
        mbarrier = self.mbarriers.get(event.target)
        if mbarrier is not None and (mbarrier.warp == warp or self.clocks[warp].seen[mbarrier.warp] >= mbarrier.over):
            return True
        self._violation(warp, f"{self._name(event)} is used before it is initialised")
        return False

    def _knows_the_phase(self, warp: int, mbarrier: _Mbarrier, target: int) -> bool:
        return bool(self.clocks[warp].done[self.num_warps + target] >= len(mbarrier.phases))

    def _arrive(self, warp: int, event: Event) -> None:
        mbarrier, phase = self.mbarriers[event.target], self.mbarriers[event.target].current
        if not self._knows_the_phase(warp, mbarrier, event.target):
            self._violation(warp, f"arrives at {self._name(event)} and may be counted in the phase before")
        if event.kind == Kind.ARRIVE:
            if phase.arrived == mbarrier.expected:
                self._violation(warp, f"arrives at {self._name(event)} more often than it expects")
            phase.arrived += 1
            phase.publish(self.clocks[warp])
        phase.pending += event.value
        self._end_phase(event.target)

    def _transfer(self, warp: int, event: Event) -> None:
        mbarrier, clock = self.mbarriers[event.target], self.clocks[warp]
        if not self._knows_the_phase(warp, mbarrier, event.target):
            self._violation(warp, f"transfers to {self._name(event)} and may be counted in the phase before")
        owner = self.num_warps + event.target
        conflicts = self.memory.transfer(event.ranges, owner, len(mbarrier.phases) + 1, clock)
        self._report_conflicts(warp, conflicts)
        mbarrier.current.pass_on(clock)
        mbarrier.current.pending -= event.value
        self._end_phase(event.target)

    def _end_phase(self, target: int) -> None:
        mbarrier = self.mbarriers[target]
        phase = mbarrier.current
        if phase.arrived < mbarrier.expected or phase.pending != 0:
            return
        assert phase.published is not None
        entry, number = self.num_warps + target, len(mbarrier.phases) + 1
        for entries in (phase.published.seen, phase.published.done):
            entries[entry] = number
        mbarrier.phases.append(phase.published)
        mbarrier.current = _Phase()
        self.woken.append(("mbarrier", target))
        # Whoever waited for the phase before has only its parity, which is now that of an unfinished phase again.
        late = [wait for wait in mbarrier.waits if wait[2] == number - 2]
        mbarrier.waits = [wait for wait in mbarrier.waits if wait[2] > number - 2]
        for warp, place, waited in late:
            if phase.published.done[warp] <= place:
                self._violation(
                    warp, f"waits for phase {waited} of {self.schedule.objects[target]}, which may be two phases on"
                )

    def _wait(self, warp: int, event: Event) -> bool:
        if not self._is_initialised(warp, event):
            return True
        mbarrier = self.mbarriers[event.target]
        if event.value < 0:  # the phase before the first
            return True
        if len(mbarrier.phases) <= event.value:
            return False
        clock = self.clocks[warp]
        if clock.done[self.num_warps + event.target] < event.value:
            self._violation(warp, f"waits for a phase of {self._name(event)} and may see the one two before")
        if len(mbarrier.phases) > event.value + 1:
            self._violation(warp, f"waits for phase {event.value} of {self._name(event)}, which may be two phases on")
        clock.join(mbarrier.phases[event.value])
        mbarrier.waits.append((warp, self.places[warp], event.value))
        return True

    # ---- packets

    def _send(self, warp: int, event: Event) -> None:
        self._report_conflicts(warp, self.memory.access(event.ranges, warp, self.clocks[warp]))
        sent = event.value, self.clocks[warp].copy()
        for packet in _packets(event):
            self.tickets[packet] = sent
            self.woken.append(("packet", packet))

    def _receive(self, warp: int, event: Event) -> int | None:
        """Read packets; return one that has not come yet, or None."""
        senders: dict[int, Clock] = {}
        for packet in _packets(event):
            ticket, sender = self.tickets.get(packet, (-1, None))
            if sender is None or ticket < event.value:
                return packet
            if ticket > event.value:
                self._violation(warp, "waits for a packet that may be overwritten before it is read")
            senders[id(sender)] = sender
        clock = self.clocks[warp]
        for sender in senders.values():
            clock.join_done(sender)
        self.memory.receive(event.ranges, warp, clock)
        return None

    # ---- the counter in device memory

    def _count(self, warp: int, event: Event) -> bool:
        """Each counts itself; the one that was the last in the recording goes on when all others have come."""
        counter = self.counters[event.target]
        if event.value < self.schedule.num_blocks - 1:
            counter.publish(self.clocks[warp])
            counter.arrived += 1
            self.woken.append(("counter", event.target))
            return True
        if counter.arrived < self.schedule.num_blocks - 1:
            return False
        if counter.published is not None:
            self.clocks[warp].join(counter.published)
        return True

    # ---- reports

    def _check_end(self) -> None:
        stuck = [warp for warp in range(self.num_warps) if self.places[warp] < len(self.schedule.warps[warp])]
        for (name, kind), count in Counter(
            (self._name(event), event.kind) for event in (self.schedule.warps[w][self.places[w]] for w in stuck)
        ).most_common(self.limit):
            self.violations.append(f"never ends: {count} warps at {kind.name.lower()} of {name}")
        if stuck:
            return
        for target, mbarrier in self.mbarriers.items():
            if mbarrier.current.pending < 0:  # what is expected and does not come does no harm
                unexpected = -mbarrier.current.pending
                self.violations.append(
                    f"{self.schedule.objects[target]}: {unexpected} bytes come unexpected at the end"
                )

    def _report_conflicts(self, warp: int, conflicts: Iterator[str]) -> None:
        for conflict in conflicts:
            self._violation(warp, conflict)

    def _violation(self, warp: int, text: str) -> None:
        block, index = divmod(warp, self.schedule.num_warps)
        message = f"block {block}, warp {index}, event {self.places[warp]}, phase {self.labels[warp]}: {text}"
        self.violations.append(message)

    def _name(self, event: Event) -> str:
        return "packets" if event.kind == Kind.RECEIVE else self.schedule.objects[event.target]


# ---- memory --------------------------------------------------------------------------------------------------------


class _Memory:
    """Who last read and wrote each word: the entry of a clock, and the value from which on it is over."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.num_warps = len(schedule.warps)
        written: dict[int, np.ndarray] = {}
        users: dict[tuple[int, int], set[int]] = defaultdict(set)  # entries by space and how
        for warp, event, r in _all_ranges(schedule):
            if r.how != READ:
                words = written.setdefault(r.space, np.zeros(schedule.spaces[r.space][1] + 1, bool))
                words[r.begin : r.end] = True
            users[r.space, r.how].add(self.num_warps + event.target if event.kind == Kind.TRANSFER else warp)
        self.spaces = {
            space: _Space(np.flatnonzero(words), sorted(users[space, READ]), sorted(users[space, ATOMIC]))
            for space, words in written.items()
        }

    def access(self, ranges: Sequence[Range], warp: int, clock: Clock) -> Iterator[str]:
        """Account for accesses of a warp; yield what conflicts with them."""
        over = int(clock.seen[warp]) + 1
        for r in ranges:
            if r.space in self.spaces:
                yield from self._check(r, warp, over, clock)

    def receive(self, ranges: Sequence[Range], warp: int, clock: Clock) -> None:
        """Account for packets that a warp has read; their tickets order that after the stores of these packets."""
        for r in ranges:
            space = self.spaces[r.space]
            space.reads.over[space.reads.row_of[warp], space.place(r)] = int(clock.seen[warp]) + 1

    def transfer(self, ranges: Sequence[Range], entry: int, over: int, clock: Clock) -> Iterator[str]:
        """Account for a transfer that a warp starts and a phase of an mbarrier ends."""
        is_bulk = ranges[-1].end - ranges[-1].begin > MOST_STORED_WORDS
        for r in ranges:
            if r.space not in self.spaces:
                continue
            space = self.spaces[r.space]
            before = space.write_entry[space.place(r)]
            if is_bulk and ((before >= 0) & (before < self.num_warps)).any():
                yield self._text(r, r.begin, "is by a bulk copy, and a warp wrote it without a proxy fence")
            yield from self._check(r, entry, over, clock)

    def _check(self, r: Range, entry: int, over: int, clock: Clock) -> Iterator[str]:
        space = self.spaces[r.space]
        place = space.place(r)
        before = space.write_entry[place]
        if before.size == 0:
            return
        # Of two writes in shared memory the later one stays if it is executed later.
        is_shared = r.space < self.schedule.num_blocks
        needed = clock.done if is_shared and r.how == WRITE else clock.seen
        bad = (needed[before] < space.write_over[place]) & (before != entry)
        if entry >= self.num_warps:  # two transfers of one phase come in any order
            bad |= (before == entry) & (space.write_over[place] == over)
        if bad.any():
            first = int(np.argmax(bad))
            word = int(space.index[place][first])
            yield self._text(r, word, f"is not ordered after the write of {self._who(int(before[first]))}")
        if r.how != ATOMIC:
            yield from self._check_others(r, space, space.atomics, entry, clock.seen, "atomic operation")
        if r.how != READ:
            yield from self._check_others(r, space, space.reads, entry, clock.done, "read")

        if r.how == WRITE:
            space.write_entry[place] = entry
            space.write_over[place] = over
        else:
            users = space.reads if r.how == READ else space.atomics
            users.over[users.row_of[entry], place] = over

    def _check_others(
        self, r: Range, space: _Space, users: _Users, own: int, known: np.ndarray, what: str
    ) -> Iterator[str]:
        if users.entries.size == 0:
            return
        place = space.place(r)
        bad = users.over[:, place] > known[users.entries][:, None]
        if own in users.row_of:
            bad[users.row_of[own]] = False
        if bad.any():
            row, first = np.argwhere(bad)[0]
            word = int(space.index[place][first])
            yield self._text(r, word, f"is not ordered after the {what} of {self._who(int(users.entries[row]))}")

    def _text(self, r: Range, word: int, text: str) -> str:
        how = ("read", "write", "atomic operation")[r.how]
        return f"the {how} of word {word} of {self.schedule.spaces[r.space][0]} {text}"

    def _who(self, entry: int) -> str:
        if entry >= self.num_warps:
            return f"a transfer to {self.schedule.objects[entry - self.num_warps]}"
        block, warp = divmod(entry, self.schedule.num_warps)
        return f"block {block}, warp {warp}"


class _Users:
    """For each word of a space the last read, or atomic operation, of each warp or, by mbarrier, of a transfer."""

    def __init__(self, entries: list[int], num_words: int) -> None:
        self.entries = np.array(entries, np.int64)
        self.row_of = {entry: row for row, entry in enumerate(entries)}
        self.over = np.zeros((len(entries), num_words), np.int32)


class _Space:
    """The written words of a space."""

    def __init__(self, index: np.ndarray, readers: list[int], adders: list[int]) -> None:
        self.index = index
        self.write_entry = np.full(index.size, -1, np.int32)
        self.write_over = np.zeros(index.size, np.int32)
        self.reads = _Users(readers, index.size)
        self.atomics = _Users(adders, index.size)
        self.places: dict[tuple[int, int], slice] = {}

    def place(self, r: Range) -> slice:
        """Return which of the written words a range has."""
        key = r.begin, r.end
        if key not in self.places:
            begin, end = np.searchsorted(self.index, key)
            self.places[key] = slice(int(begin), int(end))
        return self.places[key]


def _packets(event: Event) -> Iterator[int]:
    """Yield a number for each packet of an event."""
    for r in event.ranges:
        for word in range(r.begin, r.end, PACKET_WORDS):
            yield r.space << 32 | word


def _all_ranges(schedule: Schedule) -> Iterator[tuple[int, Event, Range]]:
    for warp, events in enumerate(schedule.warps):
        for event in events:
            for r in event.ranges:
                yield warp, event, r
