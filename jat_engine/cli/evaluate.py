"""Command `jat-engine eval`: score an agent on tasks, as published."""

from __future__ import annotations

import contextlib
import functools
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..atomic_io import check_writable
from ..checkpoint.trained_tasks import TrainedTask, find_trained_tasks, read_trained_tasks
from ..envs import Task
from ..envs.build import check_maker
from ..envs.versions import task_versions
from ..errors import UnknownTaskError, one_line
from ..evaluation import VideoError, write_grid
from ..evaluation.checks import check_sizes
from ..evaluation.environment import require_simulators
from ..evaluation.seeds import choose_seed, overlap_warning
from ..evaluation.text_tasks import TEXT_TASKS
from ..evaluation.video import check_video
from ..keywords import did_you_mean
from ..machine import available_cores
from ..runs.agents import ActOptions
from ..runs.database import FILE_NAME, RunDatabase, RunError
from ..runs.folder import check_results, default_folder, run_lock, set_aside
from ..runs.plan import Item, plan_items
from ..runs.play import PlayTiming
from ..runs.ray_package import LOCAL, check_ray
from ..runs.recorders import REPLAY, Recorders
from ..runs.recording import parse_episode_choice
from ..runs.records import Episode, Evaluation
from ..runs.results import EVALUATIONS, RESULTS, write_results
from ..runs.run import Machines, RunOptions, ThisMachine, check_run, prepare_run, record
from ..runs.settings import machine_settings
from ..runs.slots import PlayOptions
from ..runs.timing import write_timing
from ..runs.trajectories import check_trajectories
from .agent import (
    check_source,
    load_agents,
    load_config,
    load_hashed_agents,
    load_model,
    quiet_loading,
    weights_of,
    with_absolute_paths,
)
from .arguments import EpisodeArguments, ModelArguments, TaskArguments, note, parse
from .evaluate_texts import TextEvalArguments, choose_texts, evaluate_texts
from .run_progress import RunProgress
from .run_tables import failures_line, power_line, print_evaluation
from .served import AgentArguments, ServedAgent, find_served
from .served_tasks import fetch_trained_tasks
from .streams import terminable, uninterrupted

AUTO = "auto"

_NUM_EPISODES = 2


@dataclass(kw_only=True)
class EvalArguments(EpisodeArguments):
    """Arguments of `jat-engine eval`."""

    num_episodes: int | None = field(  # type: ignore[assignment]  # `run` chooses one for None
        default=None, metadata={"help": f"episodes per task: {_NUM_EPISODES}, or with --resume those of the run"}
    )
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
            f"trained on. Or texts: {', '.join(TEXT_TASKS)}, text:<name>"
        },
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "folder for the results; by default one in results/ with the model's name"}
    )
    resume: bool = field(
        default=False,
        metadata={"help": "go on with the run in that folder: play what is missing of its tasks and episodes"},
    )
    overwrite: bool = field(
        default=False,
        metadata={"help": "set a run of another checkpoint or of other settings in that folder aside"},
    )
    mixed_machines: bool = field(
        default=False,
        metadata={"help": "go on with a run of another processor or of other versions; results then depend on both"},
    )
    num_workers: str = field(
        default=AUTO,
        metadata={"help": "processes for environments; 0 for none. auto: one for each core, none for a short run"},
    )
    num_envs: str = field(
        default=AUTO,
        metadata={"help": "environments of each process. auto: the number with which the run is fastest"},
    )
    ray: str | None = field(
        default=None,
        metadata={
            "help": "play with Ray: on a cluster, HOST:PORT of its head or auto; without an address in processes of "
            "this machine. --num_workers is then of each machine",
            "nargs": "?",
            "const": LOCAL,
            "metavar": "ADDRESS",
        },
    )
    save_video: bool = field(
        default=False, metadata={"help": "write videos of episodes, and replay.mp4 with the first of each task"}
    )
    video_episodes: list[str] = field(
        default_factory=lambda: ["0"], metadata={"help": "episodes of each task: indices, first:N, or all"}
    )
    format: str = field(default="mp4", metadata={"help": "of videos", "choices": ["mp4", "gif"]})
    save_trajectories: bool = field(
        default=False, metadata={"help": "write every episode in the columns of the published dataset"}
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
        for name, least in (("num_workers", 0), ("num_envs", 1)):
            text = getattr(self, name)
            if text != AUTO and not (text.isascii() and text.isdigit() and int(text) >= least):
                raise ValueError(f"--{name}: expected auto or an integer of at least {least}, got {text!r}")
        if self.ray is not None and self.number("num_workers") == 0:
            raise ValueError("--num_workers: expected auto or at least 1 with --ray, got 0")
        if self.push_to_hub and not self.repo_id:
            raise ValueError("--push_to_hub needs --repo_id owner/name")
        if self.resume and self.overwrite:
            raise ValueError("--resume, --overwrite: expected one of them, got both")

    def number(self, name: str) -> int | None:
        """Return the value of `--num_workers` or `--num_envs`; None for auto."""
        text = getattr(self, name)
        return None if text == AUTO else int(text)

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
        The exit code: 1 if an episode, a video or the upload failed. The results of everything else are written.
    """
    model_arguments, choice, arguments, text_arguments = parse(
        "eval",
        "Score an agent on tasks, as published, or its language model on texts.",
        [AgentArguments, TaskArguments, EvalArguments, TextEvalArguments],
        argv,
    )
    texts = choose_texts(arguments, choice, text_arguments)
    if texts:
        model_arguments.check_loaded("texts")
        return evaluate_texts(model_arguments, text_arguments, texts, arguments.output_dir, arguments.overwrite)
    for flag, given in (("--ray", arguments.ray is not None), ("--push_to_hub", arguments.push_to_hub)):
        if given:
            model_arguments.check_loaded(flag)
    served = find_served(model_arguments)
    trained: list[TrainedTask] = []
    if served is None:
        source = model_arguments.model_name_or_path
        check_source("--model_name_or_path", source)
        trained = read_trained_tasks(source, {"cache_dir": model_arguments.cache_dir})
    else:
        source, trained = served.name, fetch_trained_tasks(served.url, served.api_key)
    folder = Path(arguments.output_dir) if arguments.output_dir else default_folder(source)
    planned = take_up(arguments, folder)
    if arguments.num_episodes is None:
        arguments.num_episodes = _NUM_EPISODES
    if arguments.seed is None:
        arguments.seed = choose_seed(trained, arguments.num_episodes)
    arguments.check()
    tasks = find_tasks(choice, arguments, trained)
    weights = weights_of(model_arguments) if served is None else served.weights_sha256
    known = {"weights_sha256": weights, **arguments.settings}
    check_before(model_arguments, arguments, tasks, folder, known, served)
    if not tasks:
        return upload(model_arguments, arguments.repo_id, folder)

    options = run_options(arguments, folder)
    counts = {task.name: planned.get(task.name, arguments.num_episodes) for task in tasks}
    described = asdict(model_arguments) | asdict(choice) | asdict(arguments)
    with run_lock(folder), terminable():
        with (
            opened_machines(model_arguments, arguments, known, tasks, options, folder, counts, served) as machines,
            opened_run(folder, arguments) as database,
        ):
            prepare_run(database, {**known, **machines.settings}, tasks, counts, arguments.mixed_machines)
            database.set_arguments(described)
            note(power_line(counts))
            problems = play(database, machines, tasks, options, counts)
            evaluation = database.read()
        print_evaluation(evaluation, [task.name for task in tasks])
        if arguments.save_video and arguments.format == "mp4":
            problems += write_replay(folder, options, [task.task for task in evaluation.tasks.values()])
    if arguments.push_to_hub:
        problems += [""] * upload(model_arguments, arguments.repo_id, folder)
    for problem in filter(None, problems):
        note(f"jat-engine: error: {problem}")
    return int(bool(problems))


def take_up(arguments: EvalArguments, folder: Path) -> dict[str, int]:
    """Take tasks and seed from the run that is to be gone on with, as far as they are not given.

    Returns:
        Name of the task -> its planned episodes; nothing without `--resume`.

    Raises:
        RunError: the folder has no run.
    """
    if not arguments.resume:
        return {}
    with contextlib.closing(RunDatabase(folder)) as database:
        described, settings = database.task_descriptions(), database.settings
    if not described:
        raise RunError(f"{folder}: expected a run that was begun, got one without tasks; leave out --resume")
    arguments.tasks = arguments.tasks or list(described)
    if arguments.seed is None:
        arguments.seed = settings.get("seed")
    if arguments.num_episodes is not None:
        return {}
    planned = {name: int(one["planned"]) for name, one in described.items()}
    arguments.num_episodes = max(planned.values(), default=None)
    return planned


def find_tasks(choice: TaskArguments, arguments: EvalArguments, trained: list[TrainedTask]) -> list[Task]:
    """Return the tasks to play, with the scores that were measured with their demonstrations.

    Args:
        choice: arguments for tasks that are not published.
        arguments: arguments of the command.
        trained: tasks of the checkpoint.

    Raises:
        UnknownTaskError: a task is not found.
        ValueError: no tasks are given and the checkpoint does not know its own.
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
    try:
        tasks = choice.find_trained(names, trained)
    except UnknownTaskError as error:
        near = [hint for name in names if (hint := did_you_mean(name, TEXT_TASKS))]
        raise UnknownTaskError("; ".join([str(error), *(f"of the texts, {hint}" for hint in near)])) from None
    played = [known[task.name] for task in tasks if task.name in known]
    if warning := overlap_warning(played, arguments.options["seed"], arguments.num_episodes or 1):
        note(warning)
    return tasks


def check_before(
    model_arguments: ModelArguments,
    arguments: EvalArguments,
    tasks: list[Task],
    folder: Path,
    settings: dict[str, Any],
    served: ServedAgent | None,
) -> None:
    """Check everything that can be known before the model is loaded and the first episode is played.

    Raises:
        ValueError: the folder, a video, an upload, the sizes of a task, a simulator or a cluster is a problem.
        MissingRayError: Ray is missing.
        MissingSimulatorError: simulators are missing.
        MissingVideoError: the video encoder is missing.
    """
    check_writable("--output_dir", folder)
    if arguments.ray is not None:
        check_ray(arguments.ray)
        for task in tasks:
            check_maker(task)
    else:
        settings = {**settings, **(machine_settings() if served is None else served.machine)}
    if tasks and not arguments.overwrite:
        check_results(folder)
        if (folder / FILE_NAME).exists():
            with contextlib.closing(RunDatabase(folder, create=True)) as database:  # it may be empty, after a kill
                check_run(database, settings, tasks, arguments.mixed_machines)
    if arguments.save_video:
        check_video("--save_video", folder / "videos" / f"episode.{arguments.format}", (f".{arguments.format}",))
    if arguments.save_trajectories:
        check_trajectories()
    if arguments.push_to_hub:
        from ..hub_account import check_upload

        check_upload(str(arguments.repo_id))
    config = load_config(model_arguments) if served is None else served.config
    require_simulators(tasks, render=arguments.save_video)
    check_sizes(tasks, config)


def run_options(arguments: EvalArguments, folder: Path) -> RunOptions:
    """Return the options of the run."""
    assert arguments.seed is not None, "`run` chooses one"
    assert arguments.num_episodes is not None, "`run` chooses one"
    recorders = None
    if arguments.save_video or arguments.save_trajectories:
        chosen: frozenset[int] = frozenset()
        if arguments.save_video:
            chosen = parse_episode_choice(arguments.video_episodes, arguments.num_episodes)
        recorders = Recorders(folder.absolute(), chosen, f".{arguments.format}", arguments.save_trajectories)
    return RunOptions(
        seed=arguments.seed,
        act=ActOptions(arguments.deterministic, arguments.temperature, arguments.top_k, arguments.action_clip),
        play=PlayOptions(arguments.max_steps, arguments.use_action_mask, recorders),
        num_workers=arguments.number("num_workers"),
        num_envs=arguments.number("num_envs"),
    )


def most_agents(options: RunOptions, num_episodes: int) -> int | None:
    """Return the most sessions that the run opens at a time; None for as many as an engine has room for anyway."""
    if options.num_envs is None:
        return None
    workers = available_cores() if options.num_workers is None else options.num_workers
    return min(options.num_envs * max(1, workers), num_episodes)


@contextlib.contextmanager
def opened_machines(
    model_arguments: ModelArguments,
    arguments: EvalArguments,
    known: dict[str, Any],
    tasks: list[Task],
    options: RunOptions,
    folder: Path,
    counts: dict[str, int],
    served: ServedAgent | None,
) -> Iterator[Machines]:
    """Load the agent: on this machine, or with `--ray` on those of a cluster, which end with the `with` block.

    Args:
        model_arguments: of the command.
        arguments: of the command.
        known: settings of the run that do not depend on the machines.
        tasks: to be played.
        options: of the run.
        folder: of the run.
        counts: name of the task -> episodes.
        served: agent of a server, which then needs no loading.

    Raises:
        ValueError: the agent cannot be loaded, or no machine of the cluster can play the run.
    """
    if served is not None:
        with served.open_agents(options.act) as loaded:
            yield ThisMachine(loaded)
        return

    num_episodes = sum(counts.values())
    if arguments.ray is None:
        yield ThisMachine(load_agents(model_arguments, options.act, most_agents(options, num_episodes)))
        return

    from ..runs.cluster import ClusterOptions, Requirements, open_cluster  # imports Ray
    from ..runs.ray_actors import Job

    stored: dict[str, Any] = {}
    if (folder / FILE_NAME).exists() and not arguments.overwrite:
        with contextlib.closing(RunDatabase(folder)) as database:
            stored = database.settings
    everywhere = with_absolute_paths(model_arguments)
    job = Job(
        functools.partial(load_hashed_agents, everywhere, options.act),
        {task.name: task for task in tasks},
        options.play,
        options.num_envs,
    )
    requirements = Requirements(
        {**known, **stored}, {task.name: task_versions(task) for task in tasks}, arguments.mixed_machines
    )
    uses_gpus = not model_arguments.use_cpu and model_arguments.backend != "cpu"
    with open_cluster(
        arguments.ray, job, requirements, ClusterOptions(num_episodes, options.num_workers, uses_gpus), note
    ) as cluster:
        note(cluster.device)
        yield cluster


@contextlib.contextmanager
def opened_run(folder: Path, arguments: EvalArguments) -> Iterator[RunDatabase]:
    """Open the run of a folder, or begin one; with `--overwrite` another one is set aside."""
    if arguments.overwrite:
        aside = set_aside(folder)
        if aside is not None:
            note(f"the folder's earlier results are in {aside}")
    with contextlib.closing(RunDatabase(folder, create=True)) as database:
        yield database


def play(
    database: RunDatabase,
    machines: Machines,
    tasks: list[Task],
    options: RunOptions,
    counts: dict[str, int],
) -> list[str]:
    """Play what is missing of the run, and write the result files, also after Ctrl-C.

    Returns:
        A message for each episode that failed, each recording that failed, for what ended the run, and for files that
        cannot be written.
    """
    problems: list[str] = []
    failed: dict[str, list[Episode]] = {}
    planned = plan_items(counts, options.seed)
    items = database.missing(planned)
    note_unrecorded(set(planned) - set(items), tasks, options)
    timing = None
    try:
        with (
            RunProgress(tasks, counts, items) as progress,
            machines.open_player(database, tasks, items, options) as player,
        ):
            for finished in record(database, player):
                for one in finished:
                    if one.ended.episode.failed:
                        failed.setdefault(one.ended.episode.task, []).append(one.ended.episode)
                    problems += one.ended.problems
                progress.show(player, finished)
            timing = player.timing
    except (RunError, ChildProcessError) as error:  # a full disk; processes that cannot start
        problems.append(str(error))
    except BaseException:  # Ctrl-C, SIGTERM
        with uninterrupted():
            for problem in write_files(database, None, machines.device):
                note(f"jat-engine: error: {problem}")
        raise
    problems = [*map(failures_line, failed.values()), *problems]
    return problems + write_files(database, timing, machines.device)


def note_unrecorded(played: Collection[Item], tasks: list[Task], options: RunOptions) -> None:
    """Say which episodes will not be recorded because they were played before."""
    recorders, by_name = options.play.recording, {task.name: task for task in tasks}
    if recorders is None:
        return
    lost = [item for item in played if not recorders.is_recorded(by_name[item.task], item)]
    if lost:
        note(
            f"{len(lost)} episode(s) were played before, and are not recorded now; to play them again, name another "
            "--output_dir, or add --overwrite to set the run aside"
        )


def write_files(database: RunDatabase, timing: PlayTiming | None, device: str) -> list[str]:
    """Write the result files. Returns a message if they cannot be written, else nothing."""
    folder, evaluation = database.folder, database.read()
    played = sum(len(task.finished) for task in evaluation.tasks.values())
    try:
        write_results(folder, evaluation)
        write_timing(database, timing, device)
    except OSError as error:
        return [
            f"{folder}: the results cannot be written ({error}); the episodes are in {database.path}, and "
            f"`jat-engine report {shlex.quote(str(folder))}` writes them"
        ]
    note(f"wrote {folder / EVALUATIONS}, {folder / RESULTS}: {played} episode(s) of {len(evaluation.tasks)} task(s)")
    return []


def write_replay(folder: Path, options: RunOptions, tasks: list[Task]) -> list[str]:
    """Write the grid with the first video of each task. Returns a message if that fails."""
    recorders = options.play.recording
    assert recorders is not None, "--save_video"
    first = min(recorders.video_episodes)
    videos = [recorders.video_path(task, first) for task in tasks]
    videos = [path for path in videos if path.is_file()]
    if not videos:
        return []
    try:
        path = write_grid(videos, folder / REPLAY)
    except (VideoError, RuntimeError, ValueError) as error:
        return [one_line(error)]
    note(f"wrote {path}")
    return []


def upload(model_arguments: ModelArguments, repo_id: str, folder: Path) -> int:
    """Upload the model and the results of a folder. Returns 1 if that fails, else 0.

    Raises:
        RunError: the folder has no run, or that of another checkpoint.
    """
    from ..runs.hub import push_to_hub

    evaluation = read_uploaded(model_arguments, folder)
    try:
        with quiet_loading():
            model, processor = load_model(model_arguments)
        source, hub = model_arguments.model_name_or_path, {"cache_dir": model_arguments.cache_dir}
        files = [folder / RESULTS, folder / EVALUATIONS, folder / REPLAY, find_trained_tasks(source, hub)]
        url = push_to_hub(
            model, processor, repo_id, evaluation, files=[path for path in files if path is not None and path.exists()]
        )
    except Exception as error:  # of the network: classes of the HTTP client, which differ between releases of the hub's
        command = ["jat-engine", "eval", "--model_name_or_path", model_arguments.model_name_or_path]
        command += ["--output_dir", str(folder), "--push_to_hub", "--repo_id", repo_id]
        note(
            f"jat-engine: error: the upload to {repo_id} failed ({one_line(error)}). The results are in "
            f"{folder}; upload them with: {shlex.join(command)}"
        )
        return 1
    note(f"pushed to {url}")
    return 0


def read_uploaded(model_arguments: ModelArguments, folder: Path) -> Evaluation:
    """Return the episodes that are to be uploaded.

    Raises:
        RunError: the folder has no run, or that of another checkpoint.
    """
    remedy = "name --tasks to play, or another --output_dir"
    if not (folder / FILE_NAME).exists():
        raise RunError(f"--push_to_hub: {folder} has no results; {remedy}")
    with contextlib.closing(RunDatabase(folder)) as database:
        evaluation = database.read()
    weights = weights_of(model_arguments)
    if evaluation.settings.get("weights_sha256") != weights:
        raise RunError(f"--push_to_hub: {folder} has results of other weights (weights_sha256); {remedy}")
    if not any(task.finished for task in evaluation.tasks.values()):
        raise RunError(f"--push_to_hub: {folder} has no finished episodes; {remedy}")
    return evaluation
