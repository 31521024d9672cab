"""The persistent kernel's schedule: every access is ordered by barriers, and no wait waits for itself.

Mutations show that the check can fail: each takes one step of the protocol away, or moves it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers import cuda_emulator
from helpers.cuda_emulator import Driver, Model, Sizes
from helpers.schedule import ATOMIC, READ, WRITE, Event, Kind, Range, Schedule, check

pytestmark = pytest.mark.skipif(bool(cuda_emulator.missing_tools()), reason=cuda_emulator.missing_tools())

SMALL = Sizes(hidden=32, num_heads=2, inner=64)
PUBLISHED = Sizes(hidden=96, num_heads=12, inner=1280)  # 12 heads; 2 of 12 layers
SHORT = replace(PUBLISHED, windows=(12,))


@pytest.fixture(scope="module")
def module(cuda_emulator_folder: Path) -> ModuleType:
    return cuda_emulator.load(cuda_emulator.build(cuda_emulator_folder, "cuda_emulator_recorded")[0])


def record(
    module: ModuleType,
    sizes: Sizes,
    context: int = 29,
    count: int = 3,
    dtype: str = "float32",
    num_threads: int = 96,
    max_slots: int = 4,
    **options: Any,
) -> Schedule:
    """Return the schedule of one step."""
    random = np.random.default_rng(0)
    model = Model(sizes, dtype, 0)
    driver = Driver(module, model, num_threads=num_threads, max_slots=max_slots, **options)
    plan = cuda_emulator.random_plan(model, random, context, count, 3)
    cuda_emulator.fill_context(model, random, plan)
    driver.run(plan)
    return Schedule.from_recording(module.take_recording())


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        (Sizes(), {"num_blocks": 1, "cluster_size": 1}),
        (Sizes(), {"num_blocks": 4, "cluster_size": 2}),
        (Sizes(), {"num_blocks": 4, "cluster_size": 2, "context": 0, "count": 1}),
        (Sizes(), {"num_blocks": 10, "cluster_size": 2}),  # a cluster without a head
        (Sizes(), {"num_blocks": 24, "cluster_size": 4, "context": 0, "count": 2}),  # blocks without columns
        (Sizes(), {"num_blocks": 18, "cluster_size": 1}),  # more clusters than a thread reads at once
        (Sizes(), {"num_blocks": 4, "cluster_size": 2, "dtype": "bfloat16", "max_slots": 2}),
        # The kernel of the published size.
        (
            Sizes(768, 12, 192, (20,)),
            {"num_blocks": 16, "cluster_size": 8, "dtype": "bfloat16", "num_threads": 384, "context": 9},
        ),
        # The same with the whole ring: what is loaded into registers in advance.
        (
            Sizes(768, 12, 192, (20,)),
            {
                "num_blocks": 8,
                "cluster_size": 8,
                "dtype": "bfloat16",
                "num_threads": 384,
                "context": 9,
                "max_slots": 16,
            },
        ),
        (Sizes(96, 2, windows=(12,)), {"num_blocks": 16, "cluster_size": 16}),
        (PUBLISHED, {"num_blocks": 15 * 8, "cluster_size": 8}),
        (SHORT, {"num_blocks": 16 * 8, "cluster_size": 8}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else f"hidden {value.hidden}",
)
def test_barriers_order_everything(module: ModuleType, sizes: Sizes, options: dict[str, Any]) -> None:
    assert check(record(module, sizes, **options)) == []


# ---- mutations -----------------------------------------------------------------------------------------------------

UNORDERED = "is not ordered after"
COUNTED_EARLY = "may be counted in the phase before"

LOADER = 3
"""The warp of a block that loads; those before it compute."""


@pytest.fixture(scope="module")
def right(module: ModuleType) -> Schedule:
    found = record(module, SMALL, num_blocks=4, cluster_size=2, max_slots=2)
    assert check(found) == []
    return found


def targets(right: Schedule, warps: Iterable[int], kind: Kind) -> set[int]:
    return {event.target for warp in warps for event in right.warps[warp] if event.kind == kind}


def is_full(right: Schedule, event: Event) -> bool:
    """Return whether an event is about a barrier of block 0 that says that a piece of the ring is there."""
    return event.target in targets(right, [LOADER], Kind.ARRIVE)


def is_empty(right: Schedule, event: Event) -> bool:
    """Return whether an event is about a barrier of block 0 that says that a piece has been read, and is waited for."""
    return event.target in targets(right, [LOADER], Kind.WAIT)


def is_peers(right: Schedule, event: Event) -> bool:
    """Return whether an event is about a barrier of block 0 at which cluster peers' numbers arrive."""
    waits = targets(right, range(LOADER), Kind.WAIT)
    return event.target in waits - targets(right, [LOADER], Kind.ARRIVE)


def places(right: Schedule, warp: int, kind: Kind, about: Callable[[Schedule, Event], bool]) -> list[int]:
    return [i for i, event in enumerate(right.warps[warp]) if event.kind == kind and about(right, event)]


def anything(_: Schedule, __: Event) -> bool:
    return True


def arrivals(right: Schedule, warp: int, about: Callable[[Schedule, Event], bool]) -> list[int]:
    """Return where a warp of block 0 arrives in a phase for which some warp waits."""
    phases = {
        (event.target, event.value)
        for events in right.warps[: LOADER + 1]
        for event in events
        if event.kind == Kind.WAIT
    }
    arrived: Counter[int] = Counter()
    found = []
    for place in places(right, warp, Kind.ARRIVE, about):
        target = right.warps[warp][place].target
        if (target, arrived[target]) in phases:
            found.append(place)
        arrived[target] += 1
    return found


def refills(right: Schedule) -> list[int]:
    """Return where the loader waits for a piece to be given back."""
    return [i for i in places(right, LOADER, Kind.WAIT, is_empty) if right.warps[LOADER][i].value >= 0]


def without(right: Schedule, warp: int, place: int) -> Schedule:
    events = right.warps[warp]
    return right.with_warp(warp, [*events[:place], *events[place + 1 :]])


def moved(right: Schedule, warp: int, place: int, to: int) -> Schedule:
    events = list(right.warps[warp])
    events.insert(to, events.pop(place))
    return right.with_warp(warp, events)


def changed(right: Schedule, warp: int, place: int, **fields: Any) -> Schedule:
    events = list(right.warps[warp])
    events[place] = replace(events[place], **fields)
    return right.with_warp(warp, events)


def touches(right: Schedule, event: Event, how: int, name: str) -> bool:
    return any(r.how == how and right.spaces[r.space][0] == name for r in event.ranges)


def assert_rejected(mutated: Schedule, *expected: str) -> None:
    """Assert that a schedule has a violation, and that the first is one of those expected."""
    found = check(mutated, limit=1)
    assert found, "no violation was found"
    assert any(text in found[0] for text in expected), found


def assert_most_rejected(mutations: list[Schedule]) -> None:
    """Assert that a quarter of the mutations have a violation: a wait for a later piece covers those before."""
    found = [violations[0] for mutated in mutations if (violations := check(mutated, limit=1))]
    assert len(found) >= len(mutations) / 4
    assert all(UNORDERED in text or COUNTED_EARLY in text or "two phases on" in text for text in found), found


@pytest.mark.parametrize("which", [0, -1])
@pytest.mark.parametrize("about", [is_full, is_empty, is_peers])
def test_a_missing_arrival(right: Schedule, about: Callable[[Schedule, Event], bool], which: int) -> None:
    warp = LOADER if about is is_full else 0
    place = arrivals(right, warp, about)[which]
    assert_rejected(without(right, warp, place), "never ends", COUNTED_EARLY)


@pytest.mark.parametrize("which", [1, -1])  # barriers of the block order what the first piece has
@pytest.mark.parametrize("about", [is_full, is_peers])
def test_a_missing_wait_of_a_reader(right: Schedule, about: Callable[[Schedule, Event], bool], which: int) -> None:
    found = places(right, 1, Kind.WAIT, about)
    assert_rejected(without(right, 1, found[which]), UNORDERED, COUNTED_EARLY, "may see the one two before")


def test_a_piece_of_the_ring_is_filled_before_it_was_read(right: Schedule) -> None:
    """The loader does not wait, waits for the round before, or waits at the end only."""
    events, waits = right.warps[LOADER], refills(right)[::3]
    assert_most_rejected([without(right, LOADER, place) for place in waits])
    assert_most_rejected([changed(right, LOADER, place, value=events[place].value - 1) for place in waits])
    assert_most_rejected([moved(right, LOADER, place, len(events) - 1) for place in waits])


def test_a_piece_is_given_back_before_it_was_read(right: Schedule) -> None:
    waits = places(right, 0, Kind.WAIT, is_full)
    assert_most_rejected(
        [moved(right, 0, place, max(i for i in waits if i < place) + 1) for place in arrivals(right, 0, is_empty)]
    )


def test_a_loader_that_waits_for_what_it_has_not_loaded(right: Schedule) -> None:
    """It waits for the last piece to be given back before it fills the second."""
    second = places(right, LOADER, Kind.ARRIVE, is_full)[1]
    assert_rejected(moved(right, LOADER, refills(right)[-1], second), "never ends")


@pytest.mark.parametrize(("about", "warp"), [(is_full, LOADER), (is_peers, 0)])
def test_bytes_that_are_not_expected(right: Schedule, about: Callable[[Schedule, Event], bool], warp: int) -> None:
    place = next(i for i in places(right, warp, Kind.ARRIVE, about) if right.warps[warp][i].value > 0)
    assert_rejected(changed(right, warp, place, value=0), UNORDERED, COUNTED_EARLY, "never ends")


def test_a_transfer_that_is_left_out(right: Schedule) -> None:
    for warp in (0, LOADER):
        place = places(right, warp, Kind.TRANSFER, anything)[0]
        assert_rejected(without(right, warp, place), "never ends")


def test_an_arrival_too_many(right: Schedule) -> None:
    place = arrivals(right, 0, is_empty)[0]
    events = right.warps[0]
    mutated = right.with_warp(0, [*events[: place + 1], *events[place:]])
    assert_rejected(mutated, "more often than it expects", COUNTED_EARLY, UNORDERED)


def test_a_barrier_of_a_block_that_is_left_out(right: Schedule) -> None:
    """By one warp, or by all of the block: some of its barriers order what no other one does."""
    meetings = [places(right, warp, Kind.MEET, anything) for warp in range(LOADER)]
    assert_rejected(without(right, 0, meetings[0][1]), "never ends", "may still be leaving", "is not ordered after")
    mutations = []
    for which in range(1, len(meetings[0]) - 1, 2):
        mutated = right
        for warp in range(LOADER):
            mutated = without(mutated, warp, meetings[warp][which])
        mutations.append(mutated)
    assert_most_rejected(mutations)


def sends(right: Schedule) -> list[tuple[int, int]]:
    return [(warp, i) for warp in range(len(right.warps)) for i in places(right, warp, Kind.SEND, anything)]


def receives(right: Schedule) -> list[tuple[int, int]]:
    return [(warp, i) for warp in range(len(right.warps)) for i in places(right, warp, Kind.RECEIVE, anything)]


def test_packets(right: Schedule) -> None:
    """One is not sent, is sent behind the wait that needs it, or has the ticket of another sum."""
    found = sends(right)
    for which in (0, 1, -1):
        assert_rejected(without(right, *found[which]), "never ends")
        warp, place = found[which]
        assert_rejected(moved(right, warp, place, len(right.warps[warp]) - 1), "never ends")
        for change in (-1, 3):
            ticket = right.warps[warp][place].value + change
            assert_rejected(
                changed(right, warp, place, value=ticket), "never ends", "may be overwritten before it is read"
            )


def test_a_ticket_that_is_not_checked(right: Schedule) -> None:
    """A packet is read as if it had been there, which nothing orders after its store."""
    sent = {(r.begin, right.warps[w][i].value): w for w, i in sends(right) for r in right.warps[w][i].ranges}
    mutations = []
    for warp, place in receives(right):
        event = right.warps[warp][place]
        if any(sent[r.begin, event.value] != warp for r in event.ranges):
            mutations.append(changed(right, warp, place, kind=Kind.ACCESS, value=0))
    found = [violations[0] for mutated in mutations if (violations := check(mutated, limit=1))]
    assert all("of the packets is not ordered after" in text for text in found), found
    assert len(found) == len(mutations)


def test_fewer_buffers_of_packets_than_three(module: ModuleType) -> None:
    """With two, a cluster without a head is overtaken: it sends nothing for the sum of an attention.

    Two would do where all clusters have a head; with one, a packet is overwritten before others have read it.
    """
    headless = record(module, SMALL, num_blocks=6, cluster_size=2)
    headed = record(module, SMALL, num_blocks=4, cluster_size=2)
    assert check(headless) == []
    overtaken = "may be overwritten before it is read", "the packets is not ordered after the read"
    assert_rejected(with_buffers(headless, 2), *overtaken)
    assert check(with_buffers(headed, 2)) == []
    assert_rejected(with_buffers(headed, 1), *overtaken)


def with_buffers(right: Schedule, count: int) -> Schedule:
    """Return the schedule with `count` buffers of packets in the place of three: sum n takes buffer n % count."""
    [space] = [i for i, (name, _) in enumerate(right.spaces) if name == "the packets"]
    size = right.spaces[space][1] // 3

    def fold(event: Event) -> Event:
        if event.kind not in (Kind.SEND, Kind.RECEIVE):
            return event
        to = event.value % 128 % count * size  # the ticket is 128 times the step's, and the sum's number
        return replace(
            event,
            ranges=tuple(replace(r, begin=to + r.begin % size, end=to + (r.end - 1) % size + 1) for r in event.ranges),
        )

    return replace(right, warps=tuple(tuple(map(fold, events)) for events in right.warps))


def test_one_buffer_of_sums_instead_of_two(module: ModuleType) -> None:
    """In a cluster without a head a peer sends its slice of the next sum while this block reads the one before."""
    right = record(module, Sizes(windows=(12, 12)), num_blocks=10, cluster_size=2)
    stored: dict[int, set[int]] = {}  # words, by the place of the barrier that counts them
    for warp, events in enumerate(right.warps):
        if warp % right.num_warps == LOADER:
            continue
        for event in events:
            if event.kind == Kind.TRANSFER:
                barrier = int(right.objects[event.target].rsplit(" ", 1)[1])
                stored.setdefault(barrier, set()).update(range(event.ranges[0].begin, event.ranges[0].end))
    even, odd = (stored[barrier] for barrier in sorted(stored)[-2:])
    begin, end, shift = min(odd), max(odd) + 1, min(odd) - min(even)

    def fold(r: Range) -> list[Range]:
        if r.space >= right.num_blocks:
            return [r]
        edges = [r.begin, *(edge for edge in (begin, end) if r.begin < edge < r.end), r.end]
        parts = [replace(r, begin=first, end=last) for first, last in pairwise(edges)]
        return [replace(p, begin=p.begin - shift, end=p.end - shift) if begin <= p.begin < end else p for p in parts]

    mutated = replace(
        right,
        warps=tuple(
            tuple(replace(event, ranges=tuple(part for r in event.ranges for part in fold(r))) for event in warp)
            for warp in right.warps
        ),
    )
    assert_rejected(mutated, "is not ordered after", "may be counted in the phase before")


def test_a_copy_of_slots_that_the_step_writes(right: Schedule) -> None:
    """A copy of cached keys reads what a warp writes to the KV cache meanwhile, whichever comes first."""
    [space] = [i for i, (name, _) in enumerate(right.spaces) if name == "the KV cache"]
    written = {
        r for events in right.warps for event in events for r in event.ranges if r.space == space and r.how == WRITE
    }
    place = places(right, LOADER, Kind.TRANSFER, lambda _, event: any(r.space == space for r in event.ranges))[0]
    copy = right.warps[LOADER][place]
    mutations = [
        changed(right, LOADER, place, ranges=(replace(r, how=READ), *copy.ranges))
        for r in sorted(written, key=lambda r: r.begin)[::8]
    ]
    found = [violations[0] for mutated in mutations if (violations := check(mutated, limit=1))]
    assert any("is not ordered after the read of a transfer" in text for text in found)
    assert all("the KV cache" in text for text in found), found
    assert len(found) >= len(mutations) / 3  # those of later layers are written when the copy has been waited for


def test_mbarriers_that_are_used_before_they_are_initialised(right: Schedule) -> None:
    """No warp waits for its cluster at the begin, whatever the order in which warps happen to run."""
    mutated = right
    for warp in range(len(right.warps)):
        first = places(right, warp, Kind.MEET, lambda found, event: "cluster" in found.objects[event.target])[0]
        mutated = without(mutated, warp, first)
    assert any("is used before it is initialised" in text for text in check(mutated, limit=100))
    mutated = right
    for warp in range(LOADER + 1):  # of one block: its own threads wait for what its loading thread has done
        first = places(right, warp, Kind.MEET, anything)[0]
        mutated = without(mutated, warp, first)
    assert any("is used before it is initialised" in text for text in check(mutated, limit=100))


def test_two_peers_that_store_to_the_same_place(right: Schedule) -> None:
    events, peer = right.warps[0], right.warps[LOADER + 1]
    place = next(i for i, event in enumerate(events) if event.kind == Kind.TRANSFER)
    stored = next(e for e in peer if e.kind == Kind.TRANSFER and e.target == events[place].target)
    assert stored.ranges != events[place].ranges
    assert_rejected(changed(right, 0, place, ranges=stored.ranges), "is not ordered after the write of a transfer")


def test_packets_before_other_warps_have_added(module: ModuleType) -> None:
    """The parts of the attention's sums are added up before the barrier of the block, all of whose warps have some."""
    wide = record(module, Sizes(windows=(12,)), num_blocks=4, cluster_size=2)  # two warps share each output
    assert check(wide) == []
    place = places(wide, 0, Kind.SEND, anything)[0]
    barrier = max(i for i in places(wide, 0, Kind.MEET, anything) if i < place)
    assert_rejected(moved(wide, 0, barrier, place), "is not ordered after the write of block 0, warp")


def test_what_an_asynchronous_store_does_not_publish() -> None:
    """Two blocks: 0 writes to device memory and then stores to 1, which waits and reads device memory."""
    spaces = (("shared memory of block 0", 8), ("shared memory of block 1", 8), ("the KV cache", 8))
    stored, written = Range(WRITE, 1, 0, 4), Range(WRITE, 2, 0, 4)
    first = (
        Event(Kind.MEET, 0, 2),
        Event(Kind.ACCESS, ranges=(written,)),
        Event(Kind.TRANSFER, 1, 16, (stored,)),
    )

    def second(read: Range) -> tuple[Event, ...]:
        return (
            Event(Kind.INIT, 1, 1),
            Event(Kind.MEET, 0, 2),
            Event(Kind.ARRIVE, 1, 16),
            Event(Kind.WAIT, 1, 0),
            Event(Kind.ACCESS, ranges=(read,)),
        )

    def both(read: Range) -> Schedule:
        return Schedule((first, second(read)), 2, 2, 1, spaces, ("cluster barrier", "mbarrier"))

    assert check(both(replace(stored, how=READ))) == []
    assert_rejected(
        both(replace(written, how=READ)), "the read of word 0 of the KV cache is not ordered after the write"
    )
    assert check(both(replace(written, how=ATOMIC)))


def test_what_a_packet_does_not_publish() -> None:
    """Block 0 writes to device memory and sends a packet; 1 waits for it, and reads or overwrites what 0 has used."""
    spaces = (("shared memory of block 0", 8), ("shared memory of block 1", 8), ("the KV cache", 8), ("the packets", 4))
    written, packet = Range(WRITE, 2, 0, 4), Range(WRITE, 3, 0, 4)

    def both(before: Range, after: Range) -> Schedule:
        first = Event(Kind.ACCESS, ranges=(before,)), Event(Kind.SEND, value=5, ranges=(packet,))
        second = Event(Kind.RECEIVE, value=5, ranges=(replace(packet, how=READ),)), Event(Kind.ACCESS, ranges=(after,))
        return Schedule((first, second), 2, 1, 1, spaces, ())

    assert_rejected(both(written, replace(written, how=READ)), "the read of word 0 of the KV cache is not ordered")
    assert check(both(replace(written, how=READ), written)) == []
