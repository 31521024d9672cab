"""Choice of what is recorded of a run's episodes besides their results: videos and trajectories."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..envs import Task
from .plan import Item
from .recording import EpisodeRecorder, VideoRecorder, episode_path
from .trajectories import TrajectoryRecorder

VIDEOS, TRAJECTORIES, REPLAY = "videos", "trajectories", "replay.mp4"
"""Names of the folders, and of the grid of videos."""


@dataclass(frozen=True)
class Recorders:
    """What is recorded. Pickled for worker processes.

    Attributes:
        folder: of the run.
        video_episodes: indices of the episodes of each task that videos are written of.
        video_suffix: ".mp4" or ".gif".
        trajectories: save all episodes.
    """

    folder: Path
    video_episodes: frozenset[int] = frozenset()
    video_suffix: str = ".mp4"
    trajectories: bool = False

    def needs_frames(self, item: Item) -> bool:
        """Return True if the episode's environment must render."""
        return item.index in self.video_episodes

    def open(self, task: Task, item: Item) -> list[EpisodeRecorder]:
        """Return the recorders of an episode, which has not begun."""
        recorders: list[EpisodeRecorder] = []
        if self.needs_frames(item):
            recorders.append(VideoRecorder(task, item.index, item.seed, self.video_path(task, item.index)))
        if self.trajectories:
            path = self.trajectory_path(task, item.index)
            recorders.append(TrajectoryRecorder(task, item.index, item.seed, path))
        return recorders

    def is_recorded(self, task: Task, item: Item) -> bool:
        """Return True if all files of an episode that has been played are there."""
        return (not self.needs_frames(item) or self.video_path(task, item.index).is_file()) and (
            not self.trajectories or self.trajectory_path(task, item.index).is_file()
        )

    def video_path(self, task: Task, index: int) -> Path:
        """Return the file of an episode's video."""
        return episode_path(self.folder / VIDEOS, task, index, self.video_suffix)

    def trajectory_path(self, task: Task, index: int) -> Path:
        """Return the file of an episode's trajectory."""
        return episode_path(self.folder / TRAJECTORIES, task, index, ".parquet")
