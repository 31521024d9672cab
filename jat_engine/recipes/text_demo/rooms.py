"""Pictures of BabyAI rooms, with captions and questions whose answers are taken from the state of the environment."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import envs

TASKS = ("babyai-go-to-obj", "gym:BabyAI-GoToLocalS8N2-v0")
"""Tasks with one and with two objects in a room of 6 x 6 cells between walls."""

KINDS = {"ball": "balls", "box": "boxes", "key": "keys"}
"""Kinds of objects, and their plurals."""

NUMBERS = ("none", "one", "two")

CAPTION = "Caption:"

FIRST_LEARNED_SEED = 1_000_000
"""Seed of the first room of the training; those that are held out have the seeds from 0."""


@dataclass(frozen=True)
class Example:
    """A text about a picture.

    Attributes:
        kind: "caption", "colour" or "count".
        prompt: beginning of the text.
        answer: the rest, beginning with a space.
    """

    kind: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Room:
    """Picture of a room, and what is in it.

    Attributes:
        picture: uint8 [192, 192, 3], 32 pixels for a cell; without the walls, over which the mission would be written.
        objects: (colour, kind) of each object, row by row from the top left.
    """

    picture: np.ndarray
    objects: tuple[tuple[str, str], ...]

    def examples(self) -> list[Example]:
        """Return the caption and all questions about the room."""
        return [Example("caption", CAPTION, f" {describe(self.objects)}"), *questions(self.objects)]


def make_rooms(seeds: Iterable[int], known: Iterable[Room] = ()) -> list[Room]:
    """Return one room per seed, with the tasks in turn.

    Args:
        seeds: of the environments.
        known: rooms whose pictures are left out, if they come up again.

    Raises:
        MissingSimulatorError: Minigrid is not installed.
    """
    seen = {room.picture.tobytes() for room in known}
    rooms = []
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(contextlib.closing(envs.make(task, render_mode="rgb_array"))) for task in TASKS]
        for seed in seeds:
            env = made[seed % len(made)]
            env.reset(seed=seed)
            room = look_at(env.unwrapped)
            if room.picture.tobytes() not in seen:
                rooms.append(room)
    return rooms


def look_at(env: Any) -> Room:
    """Return the picture and the objects of an environment of Minigrid, in its current state."""
    cells = [env.grid.get(column, row) for row in range(env.grid.height) for column in range(env.grid.width)]
    objects = tuple((cell.color, cell.type) for cell in cells if cell is not None and cell.type in KINDS)
    frame = env.render()
    wall = frame.shape[0] // env.grid.height  # one cell
    return Room(np.ascontiguousarray(frame[wall:-wall, wall:-wall]), objects)


def describe(objects: Iterable[tuple[str, str]]) -> str:
    """Return the caption of a room with at least one object.

    Example:
        >>> describe([("red", "ball"), ("blue", "key"), ("grey", "box")])
        'a red ball, a blue key and a grey box'
    """
    *first, last = [f"a {colour} {kind}" for colour, kind in objects]
    return f"{', '.join(first)} and {last}" if first else last


def questions(objects: Iterable[tuple[str, str]]) -> list[Example]:
    """Return how many objects there are of each kind, and the colour of each kind that there is one of."""
    objects = list(objects)
    count = Counter(kind for _, kind in objects)
    counts = [Example("count", _question(f"how many {KINDS[kind]}"), f" {NUMBERS[count[kind]]}") for kind in KINDS]
    colours = [
        Example("colour", _question(f"what colour is the {kind}"), f" {colour}")
        for colour, kind in objects
        if count[kind] == 1
    ]
    return counts + colours


def _question(text: str) -> str:
    return f"Question: {text}? Answer:"
