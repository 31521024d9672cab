"""`RunDatabase`: the SQLite file of a run, which has every episode as soon as it ends."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..envs import TASKS, Score, Task
from ..errors import describe_error
from .plan import Item
from .play import Finished
from .records import Episode, Evaluation, TaskEpisodes, sort_tasks
from .slots import HANG_SECONDS

FILE_NAME = "run.sqlite"
"""Name of the file in a run's folder."""

FORMAT = 1
"""Version of the tables."""

LEASE_SECONDS = 2 * HANG_SECONDS
"""Time after which an episode that a machine claimed, and was not heard of, may be claimed by another."""

_TABLES = """
create table run (key text primary key, value text not null) without rowid;
create table tasks (name text primary key, planned integer not null, description text not null) without rowid;
create table episodes (
    task text not null, number integer not null, seed text not null, return real, length integer not null,
    success integer, lives integer, capped integer not null, digest text not null, chain blob not null,
    error text not null, trace text not null, seconds real not null, worker text not null, ended real not null,
    primary key (task, number)
);
create table claims (
    task text not null, number integer not null, worker text not null, expires real not null,
    primary key (task, number)
) without rowid;
"""


class RunError(ValueError):
    """Run that cannot be read, written or continued; the message names its folder or file, and the remedy."""


@dataclass(frozen=True)
class Timing:
    """Wall time of a task's episodes.

    Attributes:
        episodes, steps: that were played.
        seconds: that the environments took for them, in all processes.
    """

    episodes: int
    steps: int
    seconds: float


class RunDatabase:
    """Episodes of a run, the tasks that they are of, and who plays the missing ones.

    Everything is committed at once: what was added is there after a SIGKILL. One process at a time writes to a run, see
    `run_lock`; others may read.

    Args:
        folder: of the run.
        create: make the file if there is none; the folder exists.

    Raises:
        RunError: there is none, it is damaged, of another version, or cannot be opened.
    """

    def __init__(self, folder: str | Path, create: bool = False) -> None:
        self.folder = Path(folder)
        self.path = self.folder / FILE_NAME
        if not create and not self.path.exists():
            raise self._missing()
        is_writable = os.access(self.path if self.path.exists() else self.folder, os.W_OK)
        is_writable = is_writable and os.access(self.folder, os.W_OK)
        with self._errors("opened"):
            self._connection = self._connect(is_writable)
        try:
            with self._errors("opened"):
                self._prepare(create, is_writable)
        except BaseException:
            self.close()
            raise

    def _missing(self) -> RunError:
        return RunError(f"{self.folder}: expected the folder of a run, got no {FILE_NAME} with a run in it")

    def _connect(self, is_writable: bool) -> sqlite3.Connection:
        if is_writable:
            return sqlite3.connect(self.path, isolation_level=None, timeout=30)
        # "immutable" ignores the log of a process that writes or was killed; else SQLite needs one, and cannot make it.
        log = Path(f"{self.path}-wal")
        mode = "mode=ro" if log.exists() and log.stat().st_size else "mode=ro&immutable=1"
        return sqlite3.connect(f"{self.path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None)

    def _prepare(self, create: bool, is_writable: bool) -> None:
        """Check that the file has a run, or make its tables; another file is left as it is.

        Raises:
            RunError: it has something else.
        """
        (version,) = self._connection.execute("pragma user_version").fetchone()
        is_empty = self._connection.execute("select count(*) from sqlite_master").fetchone() == (0,)
        if is_empty and not create:
            raise self._missing()
        if version == 0 and not is_empty:
            raise RunError(f"{self.path}: expected a run of jat_engine, got another database; name another folder")
        if version != FORMAT and not is_empty:
            raise RunError(
                f"{self.path}: expected a run of version {FORMAT}, got version {version}; use the release of "
                "jat_engine that wrote it, or name another folder"
            )

        if is_writable:
            self._connection.execute("pragma journal_mode = wal")
            self._connection.execute("pragma synchronous = normal")
        if is_empty:  # new, or of a process that was killed before the tables were there
            self._make_tables()

    def _make_tables(self) -> None:
        with self._transaction():
            for statement in filter(str.strip, _TABLES.split(";")):
                self._connection.execute(statement)
            self._connection.execute(f"pragma user_version = {FORMAT}")

    # ---- settings and tasks ----------------------------------------------------------------------------------------

    @property
    def settings(self) -> dict[str, Any]:
        """What the run's episodes depend on besides their seeds; empty for a new run."""
        found: dict[str, Any] = self._run_value("settings") or {}
        return found

    def set_settings(self, settings: Mapping[str, Any]) -> None:
        """Store the settings of a new run, or those of a run that machines of several kinds play."""
        self._set_run_value("settings", settings)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the command that last played the run."""
        found: dict[str, Any] = self._run_value("arguments") or {}
        return found

    def set_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Store the arguments of the command."""
        self._set_run_value("arguments", arguments)

    def _run_value(self, key: str) -> Any:
        with self._errors("read"):
            row = self._connection.execute("select value from run where key = ?", (key,)).fetchone()
            return None if row is None else json.loads(row[0])

    def _set_run_value(self, key: str, value: Any) -> None:
        with self._transaction():
            self._connection.execute("insert or replace into run values (?, ?)", (key, json.dumps(value)))

    def add_tasks(
        self, tasks: Iterable[Task], planned: Mapping[str, int], versions: Mapping[str, Mapping[str, str]]
    ) -> None:
        """Store tasks and how many episodes of them are wanted; of tasks that are there, the larger number counts.

        Args:
            tasks: to be played.
            planned: name of the task -> episodes.
            versions: name of the task -> package -> version, of what can change an episode.
        """
        known = self.task_descriptions()
        with self._transaction():
            for task in tasks:
                planned_before = known.get(task.name, {}).get("planned", 0)
                description = describe_task(task) | {"versions": dict(versions[task.name])}
                self._connection.execute(
                    "insert or replace into tasks values (?, ?, ?)",
                    (task.name, max(planned[task.name], planned_before), json.dumps(description)),
                )

    def task_descriptions(self) -> dict[str, dict[str, Any]]:
        """Return name -> description of the tasks, see `describe_task`, with "planned" and "versions"."""
        with self._errors("read"):
            rows = self._connection.execute("select name, planned, description from tasks").fetchall()
            return {name: json.loads(text) | {"planned": planned} for name, planned, text in rows}

    # ---- episodes --------------------------------------------------------------------------------------------------

    def missing(self, items: Iterable[Item]) -> list[Item]:
        """Return the items that no episode was finished of: those that failed are played again."""
        with self._errors("read"):
            rows = self._connection.execute("select task, number from episodes where error = ''").fetchall()
        finished = set(rows)
        return [item for item in items if (item.task, item.index) not in finished]

    def mean_lengths(self) -> dict[str, float]:
        """Return task -> mean steps of its finished episodes."""
        with self._errors("read"):
            rows = self._connection.execute("select task, avg(length) from episodes where error = '' group by task")
            return dict(rows.fetchall())

    def claim(self, items: Iterable[Item], worker: str) -> None:
        """Note that a worker plays episodes."""
        expires = time.time() + LEASE_SECONDS
        with self._transaction():
            self._connection.executemany(
                "insert or replace into claims values (?, ?, ?, ?)",
                [(item.task, item.index, worker, expires) for item in items],
            )

    def clear_claims(self) -> int:
        """Forget all claims, as of a run that was killed, and return how many there were."""
        with self._transaction():
            return self._connection.execute("delete from claims").rowcount

    def claims(self) -> dict[tuple[str, int], tuple[str, float]]:
        """Return (task, index) -> worker and the time at which its claim expires, in seconds since 1970."""
        with self._errors("read"):
            rows = self._connection.execute("select task, number, worker, expires from claims").fetchall()
        return {(task, number): (worker, expires) for task, number, worker, expires in rows}

    def add(self, finished: Sequence[Finished]) -> None:
        """Add episodes that ended, and release their claims. A finished episode is never replaced.

        Raises:
            RunError: they cannot be written, as when the disk is full; none is added then.
        """
        rows = [_row(one) for one in finished]
        with self._transaction():
            self._connection.executemany(
                "insert into episodes values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
                "on conflict do update set seed = excluded.seed, return = excluded.return, length = excluded.length, "
                "success = excluded.success, lives = excluded.lives, capped = excluded.capped, "
                "digest = excluded.digest, chain = excluded.chain, error = excluded.error, trace = excluded.trace, "
                "seconds = excluded.seconds, worker = excluded.worker, ended = excluded.ended "
                "where episodes.error <> ''",
                rows,
            )
            self._connection.executemany("delete from claims where task = ? and number = ?", [row[:2] for row in rows])

    def read(self) -> Evaluation:
        """Return all episodes."""
        with self._errors("read"):
            return self._read()

    def _read(self) -> Evaluation:
        rows = self._connection.execute(
            "select task, number, seed, return, length, success, lives, capped, digest, error from episodes "
            "order by task, number"
        ).fetchall()
        episodes: dict[str, list[Episode]] = {}
        for task, number, seed, return_, length, success, lives, capped, digest, error in rows:
            solved = None if success is None else bool(success)
            one = Episode(task, number, int(seed), return_, length, solved, lives, bool(capped), digest, error)
            episodes.setdefault(task, []).append(one)

        known = self.task_descriptions()
        return Evaluation(
            self.settings,
            {
                name: TaskEpisodes(
                    read_task(name, known[name]), known[name]["planned"], tuple(episodes.get(name, ())), known[name]
                )
                for name in sort_tasks(known)
            },
        )

    def traces(self) -> dict[tuple[str, int], str]:
        """Return (task, index) -> traceback of the episodes that failed."""
        with self._errors("read"):
            rows = self._connection.execute("select task, number, trace from episodes where error <> ''").fetchall()
        return {(task, number): trace for task, number, trace in rows}

    def chain(self, task: str, index: int) -> bytes:
        """Return the kept bytes of an episode's hash chain; see `slots.CHAIN_BYTES`."""
        with self._errors("read"):
            row = self._connection.execute(
                "select chain from episodes where task = ? and number = ?", (task, index)
            ).fetchone()
        return b"" if row is None else bytes(row[0])

    def timings(self) -> dict[str, Timing]:
        """Return the wall time of each task's episodes."""
        with self._errors("read"):
            rows = self._connection.execute(
                "select task, count(*), sum(length), sum(seconds) from episodes group by task"
            ).fetchall()
        found = {task: Timing(*values) for task, *values in rows}
        return {task: found[task] for task in sort_tasks(found)}

    def rescue(self, finished: Sequence[Finished]) -> Path:
        """Copy the run into a temporary folder, with episodes that could not be added.

        Returns:
            The folder, which can be played on and reported like any other.

        Raises:
            RunError: that cannot be written either.
        """
        folder = Path(tempfile.mkdtemp(prefix="jat-engine-run-"))
        with self._errors("copied"), contextlib.closing(sqlite3.connect(folder / FILE_NAME)) as copy:
            self._connection.backup(copy)
        with contextlib.closing(RunDatabase(folder)) as database:
            database.add(finished)
        return folder

    # ---- SQLite ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the file. What is added is in it, and no other file of SQLite is left."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors("written"):
            self._connection.execute("begin immediate")
            try:
                yield
                self._connection.execute("commit")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("rollback")
                raise

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except RunError:
            raise
        except sqlite3.Error as error:
            raise RunError(f"{self.path}: cannot be {what}: {error}{_remedy(str(error))}") from error
        except (LookupError, TypeError, ValueError) as error:
            if what == "written":
                raise
            # The file has values that this package has not written.
            raise RunError(f"{self.path}: cannot be {what}: {describe_error(error)}{_remedy('malformed')}") from error


def _remedy(message: str) -> str:
    if "full" in message:
        return "; free space on its disk, then play on with --resume"
    if "not a database" in message or "malformed" in message or "no such" in message:
        return "; it is not a run of jat_engine, or is damaged: name another folder"
    if "unable to open" in message:
        return "; copy the folder to where it can be written"
    if "locked" in message:
        return "; another process is writing to it"
    return ""


def _row(finished: Finished) -> tuple[Any, ...]:
    ended, episode = finished.ended, finished.ended.episode
    return (
        episode.task,
        episode.index,
        str(episode.seed),  # SQLite's integers end at 2^63
        episode.return_,
        episode.length,
        episode.success,
        episode.lives,
        episode.capped,
        episode.digest,
        ended.chain,
        episode.error,
        ended.trace,
        ended.seconds,
        finished.host,
        time.time(),
    )


_SCORES = ("random", "expert", "human", "demonstrator")


def describe_task(task: Task) -> dict[str, Any]:
    """Return JSON values from which `read_task` makes the task again, without its environment."""
    scores = {name: getattr(task, name) for name in _SCORES}
    return {
        "domain": task.domain,
        "success": task.success,
        "rule": task.rule,
        **{name: None if one is None else {"mean": one.mean, "std": one.std} for name, one in scores.items()},
    }


def read_task(name: str, description: Mapping[str, Any]) -> Task:
    """Return a task as a run describes it."""
    scores = {key: Score.from_json(description.get(key)) for key in _SCORES}
    if name in TASKS:
        return TASKS[name].with_scores(None, scores["demonstrator"])
    rule = description["rule"]
    return Task(
        name=name,
        maker=None,
        observation=rule["observation"],
        action=rule["action"],
        context_window=rule["context_window"],
        domain=description["domain"],
        success=description["success"],
        module=rule["module"],
        random=scores["random"],
        expert=scores["expert"],
        human=scores["human"],
        demonstrator=scores["demonstrator"],
    )


def read_run(folder: str | Path) -> Evaluation:
    """Read the episodes of a run.

    Args:
        folder: of the run, `--output_dir` of `jat-engine eval`.

    Raises:
        RunError: the folder has no run, or one that cannot be read.

    Example:
        >>> evaluation = read_run("results/jat-mini")
        >>> evaluation.tasks["mujoco-reacher"].returns.mean()
    """
    with contextlib.closing(RunDatabase(folder)) as database:
        return database.read()
