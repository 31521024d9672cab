"""The queue of a run's episodes: order, and what becomes of those whose process ends."""

from __future__ import annotations

from jat_engine.envs import TASKS
from jat_engine.runs.plan import MAX_DEATHS, Item, WorkQueue, expected_length, plan_items, shipped_lengths

LENGTHS = {"short": 10.0, "middle": 100.0, "long": 1000.0}


def queue(**counts: int) -> WorkQueue:
    return WorkQueue(plan_items(counts, 5), LENGTHS.__getitem__)


def drain(waiting: WorkQueue, last_task: str | None = None) -> list[Item]:
    """Take all episodes that one slot is given."""
    taken = []
    while item := waiting.take(last_task):
        taken.append(item)
        waiting.note_end(item)
    return taken


def test_seeds_follow_the_index() -> None:
    assert plan_items({"a": 2, "b": 1}, 2**64 - 2) == [
        Item("a", 0, 2**64 - 2),
        Item("a", 1, 2**64 - 1),
        Item("b", 0, 2**64 - 2),
    ]


def test_the_longest_come_first_and_indices_in_order() -> None:
    items = drain(queue(short=3, long=2, middle=1))
    assert [(item.task, item.index) for item in items] == [
        ("long", 0),
        ("long", 1),
        ("middle", 0),
        ("short", 0),
        ("short", 1),
        ("short", 2),
    ]


def test_slots_share_tasks_by_the_steps_that_are_left() -> None:
    """A second slot helps with the longest task only if more steps are left of it than of each other task."""
    waiting = queue(long=3, middle=5)
    assert [waiting.take().task for _ in range(3)] == ["long", "long", "middle"]  # type: ignore[union-attr]
    # 1000 / 3 expected steps are left for a third slot of the long one, 400 / 2 for a second one of the other.
    assert waiting.take().task == "long"  # type: ignore[union-attr]


def test_a_slot_stays_with_the_task_whose_environment_it_has() -> None:
    waiting = queue(long=2, short=2)
    assert [item.task for item in drain(waiting, last_task="short")] == ["short", "short", "long", "long"]
    assert waiting.take("short") is None


def test_what_is_given_back_comes_next() -> None:
    waiting = queue(short=3)
    first, second = waiting.take(), waiting.take()
    assert first is not None
    assert second is not None
    waiting.give_back([second])
    assert len(waiting) == 2
    assert waiting.take() == second

    waiting.note_death([second])
    suspect = waiting.take()
    assert suspect == second
    waiting.give_back([suspect])
    assert waiting.take(is_free=False) == Item("short", 2, 7), "a suspect stays one"
    assert waiting.take() == second


def test_episodes_of_a_process_that_ended_are_played_alone() -> None:
    waiting = queue(short=2, long=1)
    items = [waiting.take(), waiting.take()]
    assert waiting.note_death(items) == []  # type: ignore[arg-type]
    assert len(waiting) == 3
    assert waiting.take(is_free=False) == Item("short", 1, 6), "a process that plays something is given no suspect"
    assert waiting.take(is_free=False) is None
    assert [waiting.take(), waiting.take(), waiting.take()] == [*items, None]
    assert all(map(waiting.is_suspect, filter(None, items)))


def test_an_episode_whose_process_ends_again_and_again_has_failed() -> None:
    waiting = queue(short=1)
    item = waiting.take()
    assert item is not None
    for _ in range(MAX_DEATHS - 1):
        assert waiting.note_death([item]) == []
        assert waiting.take() == item
    assert waiting.note_death([item]) == [item]
    assert len(waiting) == 0
    assert waiting.take() is None


def test_lengths_that_were_played_are_preferred_and_limited() -> None:
    task = "atari-pong"
    shipped = shipped_lengths()[task]
    assert expected_length(task, {}, None) == shipped > 100
    assert expected_length(task, {task: 7.0}, None) == 7.0
    assert expected_length(task, {task: 7.0}, 5) == 5
    assert expected_length("task of one's own", {}, None) > 0


def test_lengths_of_all_tasks_are_shipped() -> None:
    assert set(shipped_lengths()) == set(TASKS)
    assert min(shipped_lengths().values()) >= 1
