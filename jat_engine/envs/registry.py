"""Registry of tasks: the published ones, those that other packages register, and any environment of Gymnasium."""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ..errors import TaskError, UnknownTaskError, describe_error
from ..keywords import did_you_mean
from .domains import DOMAINS
from .kinds import OBSERVATIONS, Observation, Success, usual_window
from .task import Score, Task
from .tasks import TASKS

if TYPE_CHECKING:
    import gymnasium

GYM = "gym:"
"""Beginning of the names that stand for an environment of Gymnasium: "gym:CartPole-v1"."""

ENTRY_POINTS = "jat_engine.tasks"
"""Group of entry points of installed packages. Each names a module that registers tasks when it is imported."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


_loading: ContextVar[str | None] = ContextVar("loading", default=None)
"""Name of the module that `load_task_module` or an entry point is importing."""


@dataclass(frozen=True)
class _Row:
    """A registered task before its environment has been made, which tells the kinds of observation and action.

    Attributes:
        task: without them; they are replaced in `get_task`.
        observation: kind to convert observations to; None for the one that follows from the spaces.
        context_window: None for the usual one of the kind.
    """

    task: Task
    observation: Observation | None
    context_window: int | None


_rows: dict[str, _Row] = {}


def register_task(
    name: str,
    maker: Callable[..., gymnasium.Env[Any, Any]] | str,
    *,
    observation: Observation | None = None,
    context_window: int | None = None,
    loss_weight: float = 1.0,
    domain: str = "own",
    random: Score | None = None,
    expert: Score | None = None,
    success: Success | None = None,
) -> None:
    """Register a task, so that every command and function takes its name.

    The environment is made for the first time when the task is used. If its observations are a `Dict` of keyword
    arguments of `get_next_action`, they are taken as they are; all others are converted by the rule of
    `jat_engine.envs.adapters`.

    Registering the same task again, as when a module is imported twice, does nothing.

    Args:
        name: letters, digits, ".", "_" and "-"; not beginning with "gym--".
        maker: function that makes the environment, or its address, "package.module:function"; processes that collect
            need one that pickles, so no lambda and no function within another. It is called without
            arguments, and with those of `render_mode`, `max_episode_steps` and its own keywords that `make` is given.
        observation: kind to convert observations to, in place of the chosen one: "continuous", "discrete",
            "discrete+text" or "image".
        context_window: number of past tokens that the agent sees, two per step; None for 256, and for pictures 32.
        loss_weight: factor of the task's loss in training.
        domain: group of tasks.
        random, expert: returns of the random policy and of an expert, for normalised scores. Without them the random
            policy and the demonstrator are taken that were measured with the demonstrations.
        success: what counts as success of an episode: "info" for `info["success"]`, "positive_return", or None.

    Raises:
        TaskError: the name is malformed or taken, or an argument has a wrong value.

    Example:
        >>> import gymnasium
        >>> def make_cart(render_mode=None):
        ...     return gymnasium.make("CartPole-v1", render_mode=render_mode)
        >>> register_task("my-cart", make_cart, domain="examples")
        >>> get_task("my-cart").observation, get_task("my-cart").action
        ('continuous', 'discrete')
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise TaskError(f"name: expected letters, digits, '.', '_' and '-', got {name!r:.80}")
    if name.startswith("gym--"):
        raise TaskError(f"name: expected none that begins with gym--, the folders of {GYM} tasks, got {name!r:.80}")
    if not callable(maker) and not (isinstance(maker, str) and re.fullmatch(r"[\w.]+:[\w.]+", maker)):
        raise TaskError(f"{name}: maker: expected a function or its address 'package.module:function', got {maker!r}")
    if name in ("all", *DOMAINS):
        raise TaskError(f"name: expected another than all, {', '.join(DOMAINS)}, which stand for tasks, got {name!r}")
    if not isinstance(domain, str) or not _NAME.fullmatch(domain) or domain in ("all", *DOMAINS):
        raise TaskError(
            f"{name}: domain: expected letters, digits, '.', '_' and '-', and none of all, {', '.join(DOMAINS)}, got "
            f"{domain!r:.80}"
        )
    if observation not in (None, *OBSERVATIONS):
        raise TaskError(f"{name}: observation: expected one of {', '.join(OBSERVATIONS)}, got {observation!r}")
    if context_window is not None and not (isinstance(context_window, int) and context_window >= 1):
        raise TaskError(f"{name}: context_window: expected an integer of at least 1, got {context_window!r}")
    if not loss_weight > 0:
        raise TaskError(f"{name}: loss_weight: expected a number above 0, got {loss_weight!r}")
    if success not in (None, "info", "positive_return"):
        raise TaskError(f"{name}: success: expected info, positive_return or None, got {success!r}")

    task = Task(
        name=name,
        maker=maker,
        **_UNKNOWN,
        domain=domain,
        loss_weight=float(loss_weight),
        random=random,
        expert=expert,
        success=success,
        module=_loading.get(),
    )
    row = _Row(task, observation, context_window)
    there = TASKS.get(name) or (_rows[name].task if name in _rows else None)
    if there is not None and (name in TASKS or not _are_equal(_rows[name], row)):
        where = "a published task" if name in TASKS else f"the task that {_address(there.maker)} makes"
        raise TaskError(
            f"{name}: expected a name that no other task has, got that of {where}, for {_address(maker)}; give one of "
            "them another name"
        )
    if there is None:
        _rows[name] = row
        _complete.cache_clear()


def _are_equal(one: _Row, other: _Row) -> bool:
    """Return True if two rows are of the same registration. A module that is imported again has new functions."""
    makers = _address(one.task.maker) == _address(other.task.maker)
    return makers and replace(one, task=replace(one.task, maker=None, module=None)) == replace(
        other, task=replace(other.task, maker=None, module=None)
    )


def _address(maker: Any) -> str:
    if isinstance(maker, str):
        return maker
    return f"{getattr(maker, '__module__', '?')}:{getattr(maker, '__qualname__', type(maker).__name__)}"


def get_task(name: str | Task, observation: Observation | None = None) -> Task:
    """Return a task by its name: a published one, a registered one, or "gym:<id>" for an environment of Gymnasium.

    Args:
        name: its name, or the task itself, which is returned as it is. "gym:package.module:Id-v0" imports a module
            that registers the id first, as in Gymnasium.
        observation: kind to convert observations to, in place of the one that follows from the environment's spaces;
            not for published tasks.

    Raises:
        UnknownTaskError: there is no such task; the message suggests similar names.
        SpaceError: an agent has no such observations or actions; the message names the wrapper that helps.
        MissingSimulatorError: a package that the environment needs is not installed.
        TaskError: the environment cannot be made.

    Example:
        >>> get_task("atari-pong").context_window
        32
        >>> task = get_task("gym:CartPole-v1")
        >>> task.observation, task.action
        ('continuous', 'discrete')
    """
    if isinstance(name, Task):
        return name
    if not isinstance(name, str):
        raise unknown_task(name)
    if observation not in (None, *OBSERVATIONS):
        raise TaskError(f"{name}: observation: expected one of {', '.join(OBSERVATIONS)}, got {observation!r:.80}")
    if name in TASKS:
        if observation not in (None, TASKS[name].observation):
            raise TaskError(f"{name}: expected no adapter for a published task, got {observation}")
        return TASKS[name]
    if name not in _rows and not name.startswith(GYM):
        _load_entry_points()
        if name not in _rows:
            raise unknown_task(name)
    return _complete(name, observation)


@functools.lru_cache(maxsize=256)
def _complete(name: str, observation: Observation | None) -> Task:
    """Make the environment of a row once, and return its task with the kinds that follow from the spaces."""
    from .adapters import choose_adapter, own_action, own_kind
    from .build import build

    row = _rows.get(name) or _gym_row(name)
    env = build(row.task)
    with contextlib.closing(env):
        spaces = env.observation_space, env.action_space
    wanted = observation or row.observation
    adapter, kind = None, own_kind(spaces[0])
    try:
        if kind is None or wanted not in (None, kind):
            adapter = choose_adapter(*spaces, wanted)
            kind, action = adapter.observation, adapter.action
        else:
            action = own_action(spaces[1])
    except TaskError as error:
        raise type(error)(f"{name}: {error}") from None
    window = row.context_window or usual_window(kind)
    return replace(row.task, observation=kind, action=action, context_window=window, adapter=adapter)


def _gym_row(name: str) -> _Row:
    task = Task(
        name=name,
        maker="jat_engine.envs.gym_env:make",
        **_UNKNOWN,
        domain="gym",
        env_id=name.removeprefix(GYM),
        module=_loading.get() or _module_of_id(name.removeprefix(GYM)),
    )
    return _Row(task, None, None)


_UNKNOWN: dict[str, Any] = {"observation": "continuous", "action": "continuous", "context_window": 0}
"""Fields of a row's task until its environment has been made."""

_modules_of_ids: dict[str, str] = {}
"""Ids of Gymnasium -> module of `load_task_module` that registers them, which worker processes have to import."""


def _module_of_id(env_id: str) -> str | None:
    """Return the module that registers an id of Gymnasium, which may lack its version; None if none was loaded."""
    found = (module for known, module in _modules_of_ids.items() if env_id in (known, known.rpartition("-v")[0]))
    return next(found, None)


def load_task_module(module: str) -> None:
    """Import a module that registers tasks, or environments of Gymnasium.

    Args:
        module: its name, "package.module".

    Raises:
        TaskError: it cannot be imported, or raises an error while it is; the message has the reason.
    """
    import gymnasium

    if not re.fullmatch(r"\w+(\.\w+)*", module) or module.endswith(".py"):
        raise TaskError(f"--task_module: expected the name of a module, such as package.module, got {module!r:.80}")
    is_new, there = module not in sys.modules, set(gymnasium.registry)
    with _importing(module):
        try:
            importlib.import_module(module)
        except TaskError:
            raise
        except (Exception, SystemExit) as error:  # of the module's own code
            reason = describe_error(error)
            is_absent = isinstance(error, ModuleNotFoundError) and error.name is not None and _is_in(module, error.name)
            raise TaskError(
                f"--task_module {module}: expected a module that can be imported, got {reason}"
                + ("; name the folder that has it in PYTHONPATH" if is_absent else "")
            ) from error
    # Of a module that was imported before, the ids are those of its own package.
    ids = [env_id for env_id in gymnasium.registry if env_id not in there or (not is_new and _is_of(env_id, module))]
    for env_id in ids:
        _modules_of_ids.setdefault(env_id, module)
    _complete.cache_clear()


def _is_of(env_id: str, module: str) -> bool:
    """Return True if an id of Gymnasium makes an environment of the package that a module is in."""
    import gymnasium

    entry = gymnasium.registry[env_id].entry_point
    made_in = entry.partition(":")[0] if isinstance(entry, str) else getattr(entry, "__module__", "")
    return made_in.partition(".")[0] == module.partition(".")[0]


def _is_in(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


@contextlib.contextmanager
def _importing(module: str) -> Iterator[None]:
    token = _loading.set(module)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # results of commands are on standard output
            yield
    finally:
        _loading.reset(token)


@functools.cache
def _load_entry_points() -> None:
    """Import the modules that installed packages name in the group `ENTRY_POINTS`. A broken one is a warning."""
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        with _importing(entry.module):
            try:
                entry.load()
            except (Exception, SystemExit) as error:  # of the package's own code
                warnings.warn(
                    f"tasks of the package {entry.dist.name if entry.dist else entry.module} are left out: importing "
                    f"{entry.value} raised {type(error).__name__}: {error}",
                    RuntimeWarning,
                    stacklevel=3,
                )


def registered_names() -> list[str]:
    """Return the names of all tasks that have a row: the published ones, then the others as they were registered."""
    _load_entry_points()
    return [*TASKS, *_rows]


def is_free(name: str) -> bool:
    """Return True if a task of one's own can have this name: it is well formed, and no task or domain has it."""
    return bool(_NAME.fullmatch(name)) and name not in ("all", *registered_names(), *domain_names())


def domain_names() -> list[str]:
    """Return the names of all domains: the published ones, then those of registered tasks."""
    _load_entry_points()
    return list(dict.fromkeys([*DOMAINS, *(row.task.domain for row in _rows.values())]))


def expand_tasks(names: Iterable[str]) -> list[str]:
    """Expand domain names and "all" to task names.

    Args:
        names: names of tasks and domains, and "all", which stands for the published tasks.

    Returns:
        Names of tasks, each once, in the given order.

    Raises:
        UnknownTaskError: a name is unknown; the message suggests similar ones.

    Example:
        >>> expand_tasks(["atari-pong", "mujoco"])[:2]
        ['atari-pong', 'mujoco-ant']
    """
    if isinstance(names, str):
        raise UnknownTaskError(f"tasks: expected a list of names, got the string {names!r}")
    expanded: dict[str, None] = {}
    for name in names:
        if name in TASKS or name in _rows or (isinstance(name, str) and name.startswith(GYM)):
            expanded[name] = None
        elif name == "all":
            expanded.update(dict.fromkeys(TASKS))
        elif name in DOMAINS:
            expanded.update(dict.fromkeys(task.name for task in TASKS.values() if task.domain == name))
        elif name in domain_names():
            expanded.update(dict.fromkeys(row.task.name for row in _rows.values() if row.task.domain == name))
        elif name in _rows:  # of an entry point
            expanded[name] = None
        else:
            raise unknown_task(name)
    return list(expanded)


def find_tasks(names: Iterable[str], observation: Observation | None = None) -> list[Task]:
    """Return the tasks of some names, see `expand_tasks` and `get_task`.

    Args:
        names: names of tasks and domains, and "all".
        observation: kind to convert observations to, for tasks whose environments are converted.
    """
    return [get_task(name, None if name in TASKS else observation) for name in expand_tasks(names)]


def unknown_task(name: object) -> UnknownTaskError:
    """Return the error for an unknown task name, with similar names in its message."""
    known = [known for known in (*TASKS, *_rows, *domain_names()) if known != name]
    hint = did_you_mean(str(name), known, f"domains are {', '.join(domain_names())}", most=3, cutoff=0.5)
    return UnknownTaskError(
        f"task: no task is named {name!r}; {hint} (`jat-engine tasks` lists all; an environment of Gymnasium is "
        "gym:<id>, and --task_module imports a module that registers tasks)"
    )
