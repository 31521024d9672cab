"""Command `jat-engine eval`: score an agent on tasks, as published."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..atomic_io import check_writable
from ..checkpoint.trained_tasks import TrainedTask, find_trained_tasks, read_trained_tasks
from ..envs import Task
from ..evaluation import (
    Agent,
    Results,
    VideoError,
    interquartile_mean,
    main_reference,
    normalize,
    undefined_reason,
    write_grid,
)
from ..evaluation.checks import check_sizes
from ..evaluation.environment import evaluation_env, require_simulators
from ..evaluation.progress import play_episodes
from ..evaluation.results import (
    EVALUATIONS,
    RESULTS,
    check_adapters,
    default_folder,
    read_earlier,
    results_lock,
    task_of_entry,
)
from ..evaluation.scores import reference_score
from ..evaluation.seeds import choose_seed, overlap_warning
from ..evaluation.video import EpisodeVideo, check_video, frame_rate
from .agent import (
    check_source,
    describe,
    load_agent,
    load_config,
    load_model,
    quiet_loading,
    settings_of,
    weights_of,
)
from .arguments import EpisodeArguments, ModelArguments, TaskArguments, failure, note, parse
from .report import interval, mean_std, milliseconds, print_table, score
from .streams import say, terminable, uninterrupted


@dataclass(kw_only=True)
class EvalArguments(EpisodeArguments):
    """Arguments of `jat-engine eval`."""

    num_episodes: int = field(default=2, metadata={"help": "episodes per task"})
    seed: int | None = field(  # type: ignore[assignment]  # `run` chooses one for None
        default=None,
        metadata={
            "help": "seed of environment and sampling; episode i of a task uses seed + i. By default 1,000,000, or the "
            "next million at which no demonstration of the training began"
        },
    )
    tasks: list[str] = field(
        default_factory=list,
        metadata={
            "help": "tasks, gym:<id>, domains or all; see `jat-engine tasks`. By default those that the checkpoint was "
            "trained on"
        },
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "folder for the results; by default one in results/ with the model's name"}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "replace results of another checkpoint or of other settings in that folder"}
    )
    save_video: bool = field(
        default=False, metadata={"help": "write a video of each task, and replay.mp4 with all of them"}
    )
    push_to_hub: bool = field(
        default=False,
        metadata={"help": "upload model and results afterwards; without --tasks those that the folder has"},
    )
    repo_id: str | None = field(default=None, metadata={"help": "repository on the hub to upload to"})

    def check(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is out of range, or a flag is missing.
        """
        super().check()
        if self.push_to_hub and not self.repo_id:
            raise ValueError("--push_to_hub needs --repo_id owner/name")

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that all results of a folder have in common, apart from the checkpoint."""
        unpublished = {"temperature": None, "top_k": None, "action_clip": None, "use_action_mask": None}
        return {"seed": self.seed, "deterministic": self.deterministic, "max_steps": self.max_steps} | (
            unpublished | self.choices
        )


def run(argv: Sequence[str]) -> int:
    """Run `jat-engine eval`.

    Returns:
        The exit code: 1 if a task, a video or the upload failed. The results of everything else are written.
    """
    model_arguments, choice, arguments = parse(
        "eval", "Score an agent on tasks, as published.", [ModelArguments, TaskArguments, EvalArguments], argv
    )
    source = model_arguments.model_name_or_path
    check_source("--model_name_or_path", source)
    trained = read_trained_tasks(source, {"cache_dir": model_arguments.cache_dir})
    if arguments.seed is None:
        arguments.seed = choose_seed(trained, arguments.num_episodes)
    arguments.check()
    tasks = find_tasks(choice, arguments, trained)
    folder = Path(arguments.output_dir) if arguments.output_dir else default_folder(source)
    check_before(model_arguments, arguments, tasks, folder)
    if not tasks:
        return upload(model_arguments, arguments.repo_id, folder)

    agent, processor = load_agent(model_arguments)
    results = Results(
        folder,
        num_episodes=arguments.num_episodes,
        arguments=asdict(model_arguments) | asdict(choice) | asdict(arguments),
        device=describe(agent),
        settings={"weights_sha256": weights_of(model_arguments)} | settings_of(agent) | arguments.settings,
    )
    with results_lock(folder), terminable():
        if not arguments.overwrite:
            results.keep_earlier()
        problems = play_tasks(agent, processor, tasks, results, arguments)
        print_results(results, tasks)
        if arguments.save_video:
            problems += write_replay(results)

    if arguments.push_to_hub and results.folder == folder:
        problems += [""] * upload(model_arguments, arguments.repo_id, folder)
    for problem in filter(None, problems):
        note(f"jat-engine: error: {problem}")
    return int(bool(problems))


def find_tasks(choice: TaskArguments, arguments: EvalArguments, trained: list[TrainedTask]) -> list[Task]:
    """Return the tasks to play, with the scores that were measured with their demonstrations.

    Args:
        choice: arguments for tasks that are not published.
        arguments: arguments of the command.
        trained: tasks of the checkpoint.

    Raises:
        ValueError: no tasks are given and the checkpoint does not know its own, or a task is not found.
        TaskError: a task's environment is not the one that the checkpoint was trained on.
    """
    names = arguments.tasks
    if not names and not arguments.push_to_hub:
        names = [task.name for task in trained if not task.is_earlier]
        if not names:
            raise ValueError(
                "--tasks: expected tasks, domains or all, got none, and the checkpoint does not say what it was "
                "trained on; `jat-engine tasks` lists them"
            )
    known = {task.name: task for task in trained}
    tasks = choice.find_trained(names, trained)
    played = [known[task.name] for task in tasks if task.name in known]
    if warning := overlap_warning(played, arguments.options["seed"], arguments.num_episodes):
        note(warning)
    return tasks


def check_before(model_arguments: ModelArguments, arguments: EvalArguments, tasks: list[Task], folder: Path) -> None:
    """Check everything that can be known before the model is loaded and the first episode is played.

    Raises:
        ValueError: the folder, a video, an upload, the sizes of a task or a simulator is a problem.
        MissingSimulatorError: simulators are missing.
        MissingVideoError: the video encoder is missing.
    """
    check_writable("--output_dir", folder)
    if tasks and not arguments.overwrite:
        check_adapters(read_earlier(folder, arguments.settings), tasks, folder)
    if arguments.save_video:
        check_video("--save_video", folder / "videos" / "replay.mp4")
    if arguments.push_to_hub:
        from ..hub_account import check_upload

        check_upload(str(arguments.repo_id))
    config = load_config(model_arguments)
    require_simulators(tasks, render=arguments.save_video)
    check_sizes(tasks, config)


def play_tasks(
    agent: Agent, processor: Any, tasks: list[Task], results: Results, arguments: EvalArguments
) -> list[str]:
    """Play all tasks and write the results, also after Ctrl-C. A task that fails does not end the others.

    Returns:
        A message for each task that failed, each video that failed, and for results that cannot be written.
    """
    problems: list[str] = []
    try:
        for task in tqdm(tasks, desc="evaluation", unit="task", disable=None):
            video = results.folder / "videos" / f"{task.folder_name}.mp4" if arguments.save_video else None
            problems += evaluate_task(agent, processor, task, results, arguments, video)
        results.complete = not results.failed
    except BaseException:  # Ctrl-C, SIGTERM
        with uninterrupted():
            for problem in write_results(results):
                note(f"jat-engine: error: {problem}")
        raise
    return problems + write_results(results)


def write_results(results: Results) -> list[str]:
    """Write the result files; where the folder cannot take them, into a temporary one, or print the returns.

    Returns:
        A message if they could not be written where they should be, else nothing.
    """
    if not any(map(results.episodes, results.task_names())) and not results.failed:
        return []
    try:
        results.write()
    except OSError as error:
        problem = f"{results.folder}: the results cannot be written ({error})"
        try:
            results.folder = Path(tempfile.mkdtemp(prefix="jat-engine-results-"))
            results.write()
        except OSError:
            say(json.dumps(results.evaluations()))
            return [f"{problem}; the returns are printed instead"]
        return [f"{problem}; they are in {results.folder}"]

    played = [name for name in results.task_names() if results.episodes(name)]
    num_episodes = sum(len(results.episodes(name)) for name in played)
    note(f"wrote {results.evaluations_path}, {results.results_path}: {num_episodes} episode(s) of this run")
    longer = [name for name in played if results.keeps_earlier(name)]
    if longer:
        note(f"{results.folder} keeps the results that it had of {', '.join(longer)}, which have more episodes")
    if len(played) < len(results.task_names()):
        note(f"{results.folder} also has {len(results.task_names()) - len(played)} other task(s) of earlier runs")
    return []


def evaluate_task(
    agent: Agent,
    processor: Any,
    task: Task,
    results: Results,
    arguments: EvalArguments,
    video: Path | None = None,
) -> list[str]:
    """Play the episodes of a task, add them to `results`, and write the result files from time to time.

    Args:
        agent: the agent.
        processor: passed to the agent; None for an engine.
        task: the task to play.
        results: the results so far.
        arguments: arguments of the command.
        video: mp4 file to write; None for no video.

    Returns:
        Messages, if the task or its video failed.
    """
    problems: list[str] = []
    recorder = None if video is None else EpisodeVideo(video)
    written, pause = time.perf_counter(), _PAUSE
    try:
        with contextlib.closing(evaluation_env(task, "rgb_array" if recorder else None)) as env:
            for episode in play_episodes(
                agent,
                processor,
                env,
                arguments.num_episodes,
                task=task,
                position=1,
                on_frame=None if recorder is None else recorder.start(frame_rate(env)),
                **arguments.options,
            ):
                results.add(task, episode)
                began = time.perf_counter()
                if began - written > pause:  # a kill loses the episodes of some seconds
                    with contextlib.suppress(OSError):  # such as a full disk; `write_results` reports it
                        results.write()
                    written = time.perf_counter()
                    pause = max(_PAUSE, _WRITE_SHARE * (written - began))
    except Exception as error:  # of a simulator, or of the agent for a simulator's output: any class
        index = len(results.episodes(task.name))
        problem = failure(task, index, arguments, error)
        results.failed[task.name] = {
            "episode": index + 1,
            "seed": arguments.options["seed"] + index,
            "error": problem,
            "traceback": traceback.format_exc(),
        }
        problems.append(problem)
        tqdm.write(problems[-1], file=sys.stderr)
    finally:
        if recorder is not None:
            recorder.finish(keep=not results.keeps_earlier(task.name))
    if recorder is not None and recorder.error:
        problems.append(f"no video of {task.name}: {recorder.error}")

    if results.episodes(task.name):
        with contextlib.suppress(OSError):  # `write_results` reports it
            results.write()
        returns = [episode.return_ for episode in results.episodes(task.name)]
        with tqdm.external_write_mode():
            say(f"{task.name}: return {mean_std(returns)}, expert-normalised {normalized(returns, task)}")
    return problems


_PAUSE, _WRITE_SHARE = 5.0, 20
"""Seconds from one write of the results to the next, at least; and that many times a write's own duration."""


def write_replay(results: Results) -> list[str]:
    """Write the grid with the videos of all tasks. Returns a message if that fails."""
    videos = [results.folder / "videos" / f"{task.folder_name}.mp4" for task in results.tasks().values()]
    videos = [path for path in videos if path.exists()]
    if not videos:
        return []
    try:
        path = write_grid(videos, results.folder / "replay.mp4")
    except (VideoError, RuntimeError, ValueError) as error:
        return [" ".join(str(error).split())]
    note(f"wrote {path}")
    return []


def upload(model_arguments: ModelArguments, repo_id: str, folder: Path) -> int:
    """Upload the model and the results of a folder. Returns 1 if that fails, else 0.

    Raises:
        ValueError: the folder has no results, or those of another checkpoint.
    """
    from ..evaluation.hub import push_to_hub

    earlier = read_earlier(folder, {"weights_sha256": weights_of(model_arguments)})
    if not earlier:
        raise ValueError(f"--push_to_hub: {folder} has no results; name --tasks to play, or another --output_dir")
    try:
        with quiet_loading():
            model, processor = load_model(model_arguments)
        source, hub = model_arguments.model_name_or_path, {"cache_dir": model_arguments.cache_dir}
        files = [folder / RESULTS, folder / "replay.mp4", find_trained_tasks(source, hub)]
        url = push_to_hub(
            model,
            processor,
            repo_id,
            evaluations=folder / EVALUATIONS,
            files=[path for path in files if path is not None and path.exists()],
            tasks={name: task_of_entry(name, entry) for name, entry in earlier.items()},
        )
    except Exception as error:  # of the network: classes of the HTTP client, which differ between releases of the hub's
        command = ["jat-engine", "eval", "--model_name_or_path", model_arguments.model_name_or_path]
        command += ["--output_dir", str(folder), "--push_to_hub", "--repo_id", repo_id]
        note(
            f"jat-engine: error: the upload to {repo_id} failed ({' '.join(str(error).split())}). The results are in "
            f"{folder}; upload them with: {shlex.join(command)}"
        )
        return 1
    note(f"pushed to {url}")
    return 0


def normalized(returns: Sequence[float], task: Task) -> str:
    """Return mean and standard deviation of the expert-normalised scores as text, or "undefined"."""
    scores = normalize(returns, task)
    return "undefined" if scores is None else mean_std(scores)


def print_results(results: Results, tasks: list[Task]) -> None:
    """Print a table with one row per task that was played, then one line per domain, and why values are undefined."""
    rows = []
    for task in tasks:
        episodes = results.episodes(task.name)
        if not episodes:
            continue
        returns = [episode.return_ for episode in episodes]
        latency_us = float(np.median(np.concatenate([episode.latencies_us for episode in episodes])))
        rows.append(
            {
                "task": task.name,
                "domain": task.domain,
                "episodes": str(len(episodes))
                + (f" of {results.num_episodes}" if len(episodes) < results.num_episodes else "")
                + ("*" if any(episode.capped for episode in episodes) else ""),
                "return": mean_std(returns),
                "random": score(task.random),
                "expert": score(reference_score(task, main_reference(task))),
                "normalised": normalized(returns, task),
                "p50 latency": milliseconds(latency_us),
            }
        )
    if not rows:
        return

    columns = {name: [row[name] for row in rows] for name in rows[0]}
    print_table("Evaluation", columns, left=["task", "domain"], optional=["domain", "random", "expert"])
    if any("*" in cell for cell in columns["episodes"]):
        say("* stopped by --max_steps")
    played = [task for task in tasks if task.name in columns["task"]]
    for task in played:
        reason = undefined_reason(task)
        if reason is not None:
            say(f"{task.name}: expert-normalised score {reason}")

    for domain in dict.fromkeys(task.domain for task in played):
        members = [task for task in played if task.domain == domain]
        scores = [normalize([e.return_ for e in results.episodes(task.name)], task) for task in members]
        defined = [values for values in scores if values is not None]
        value = interval(interquartile_mean(defined))
        say(f"{domain}: expert-normalised IQM {value}, from {len(defined)} of {len(members)} task(s)")
