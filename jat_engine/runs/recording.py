"""Recording of chosen episodes while they are played: the interface of recorders, and the one that writes videos."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..atomic_io import remove_temporaries
from ..envs import Task
from ..errors import describe_error, one_line
from ..evaluation.environment import render_frame
from ..evaluation.tile import EpisodeTiles, held_frames
from ..evaluation.video import Writer, open_writer, video_rate

if TYPE_CHECKING:
    import gymnasium

    from .records import Episode


class EpisodeRecorder(Protocol):
    """Recorder of one episode, in the process that has the environment. It raises no error of its own.

    Attributes:
        error: why there is no file, in one line; "" if nothing has failed.
    """

    error: str

    def begin(self, env: gymnasium.Env[Any, Any]) -> None:
        """Begin, after `env.reset(seed=...)`."""
        ...

    def step(self, observation: dict[str, Any], action: Any, reward: float, env: gymnasium.Env[Any, Any]) -> None:
        """Record a step, after `env.step(action)`.

        Args:
            observation: that the agent acted on, as it was before the step.
            action: as executed, an int or float32 [A].
            reward: of the step.
            env: the environment, in the state after the step.
        """
        ...

    def finish(self, episode: Episode) -> None:
        """Write the file, after the last step."""
        ...

    def abandon(self) -> None:
        """Drop what was recorded, of an episode that failed or was interrupted. Nothing is left in the folder."""
        ...


class VideoRecorder:
    """Record an episode as a video: one frame for each state, the last one held, each with task, step and return.

    Args:
        task: the task.
        index: of the episode, from 0.
        seed: of the episode.
        path: file to write, .mp4 or .gif; see `episode_path`.

    Attributes:
        error: why there is no video, in one line; "" if nothing has failed.
    """

    def __init__(self, task: Task, index: int, seed: int, path: Path) -> None:
        self.error = ""
        self._task, self._index, self._path = task, index, path
        self._title = f"{task.name}, episode {index}, seed {seed}"
        self._tiles = EpisodeTiles(task)
        self._writer: Writer | None = None
        self._last: np.ndarray | None = None
        self._shown, self._fps = 0, 0.0

    def begin(self, env: gymnasium.Env[Any, Any]) -> None:
        """Begin with the state after the reset."""
        with self._keeping_errors():
            remove_temporaries(self._path)  # of a process that was killed while it recorded this episode
            self._fps = video_rate(self._task, env)
            self._writer = open_writer(self._path, self._fps, self._title)
            self._append(self._tiles.first(render_frame(env)))

    def step(self, observation: dict[str, Any], action: Any, reward: float, env: gymnasium.Env[Any, Any]) -> None:
        """Add the state after a step."""
        if self._writer is not None:
            with self._keeping_errors():
                self._append(self._tiles.next(render_frame(env), reward))

    def finish(self, episode: Episode) -> None:
        """Hold the last state, and write the file."""
        if self._writer is not None and self._last is not None:
            with self._keeping_errors():
                self._writer.append(self._last, held_frames(self._shown, self._fps))
                self._writer.close()
        self._writer = None

    def abandon(self) -> None:
        """Drop the frames."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(Exception):  # such as of an encoder that has ended
                writer.close(keep=False)

    def _append(self, tile: np.ndarray) -> None:
        assert self._writer is not None, "opened by `begin`"
        self._writer.append(tile)
        self._shown, self._last = self._shown + 1, tile

    @contextlib.contextmanager
    def _keeping_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of rendering, the encoder or the disk: any class
            self.error = self.error or f"no video of {self._task.name}, episode {self._index}: {reason_of(error)}"
            self.abandon()


def episode_path(folder: Path, task: Task, index: int, suffix: str) -> Path:
    """Return the file of an episode, such as `<folder>/babyai-go-to/episode-0003.mp4`.

    Args:
        folder: of the run's videos or trajectories.
        task: the task.
        index: of the episode, from 0.
        suffix: of the file, such as ".mp4".
    """
    return folder / task.folder_name / f"episode-{index:04d}{suffix}"


def parse_episode_choice(texts: Sequence[str], num_episodes: int, field: str = "--video_episodes") -> frozenset[int]:
    """Return the indices of the episodes that a user chose of each task.

    Args:
        texts: indices from 0; "first:N" for the first N, or all if there are less; or "all".
        num_episodes: episodes of a task.
        field: the flag, for the message.

    Raises:
        ValueError: a text is none of them, an index is not one of the run's, or nothing is chosen.

    Example:
        >>> sorted(parse_episode_choice(["first:2", "7"], 10))
        [0, 1, 7]
    """
    expected = f"{field}: expected indices from 0 to {num_episodes - 1}, first:N, or all"
    if not texts:
        raise ValueError(f"{expected}, got nothing")

    chosen: set[int] = set()
    for text in texts:
        first = text.removeprefix("first:")
        if text == "all":
            chosen.update(range(num_episodes))
        elif not (first.isascii() and first.isdigit()):
            raise ValueError(f"{expected}, got {text!r}")
        elif text.startswith("first:"):
            if int(first) < 1:
                raise ValueError(f"{expected}, with N of at least 1, got {text!r}")
            chosen.update(range(min(int(first), num_episodes)))
        elif int(text) >= num_episodes:
            raise ValueError(
                f"{expected}, got {text}; the first episode has index 0, and --num_episodes {int(text) + 1} plays this "
                "one, too"
            )
        else:
            chosen.add(int(text))
    return frozenset(chosen)


def reason_of(error: BaseException) -> str:
    """Return an error in one line, with its class if its message does not say what it is."""
    text = one_line(error)
    return text if isinstance(error, OSError | ValueError | ImportError) and text else describe_error(error)
