"""Call the maker of a task, which builds its environment."""

from __future__ import annotations

import importlib
import inspect
import pickle
from numbers import Integral
from typing import TYPE_CHECKING, Any

from ..errors import MissingSimulatorError, RenderingError, TaskError, UnknownTaskError, describe_error
from .domains import get_domain
from .task import Task

if TYPE_CHECKING:
    import gymnasium


def build(task: Task, **options: Any) -> gymnasium.Env[Any, Any]:
    """Build a task's environment as its maker returns it, before observations are converted.

    Args:
        task: the task.
        **options: of the maker; `max_episode_steps` also if it does not take it.

    Raises:
        See `make`.
    """
    maker = _maker(task)
    parameters = inspect.signature(maker).parameters
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    accepted = [name for name in parameters if name != "task"]
    check_step_limit(options.get("max_episode_steps"))
    limit = None
    if "max_episode_steps" not in parameters:
        limit = options.pop("max_episode_steps", None)
    if "render_mode" not in parameters and options.get("render_mode", "") is None:
        del options["render_mode"]
    for name in options:
        if name not in accepted and not takes_all:
            takes = ", ".join(accepted) or "none"
            raise TypeError(f"make({task.name!r}): unexpected option {name!r}; {task.domain} takes {takes}")

    try:
        env: gymnasium.Env[Any, Any] = maker(**({"task": task} if "task" in parameters else {}), **options)
    except (MissingSimulatorError, TaskError, UnknownTaskError, RenderingError):
        raise
    except ImportError as error:
        raise _missing(task, error) from error
    except (Exception, SystemExit) as error:  # of the environment's own code
        if task.is_published:
            raise
        reason = describe_error(error)
        raise TaskError(f"{task.name}: expected an environment that can be made, got {reason:.300}") from error
    if not task.is_published:
        _check_env(task, env)
    if limit is not None and limit > 0:
        from gymnasium.wrappers import TimeLimit

        env = TimeLimit(env, int(limit))
    return env


def _check_env(task: Task, env: Any) -> None:
    """Check that a maker returned an environment of Gymnasium.

    Raises:
        TaskError: it is none, or its spaces are none, as those of OpenAI's package gym.
    """
    import gymnasium

    if not isinstance(env, gymnasium.Env):
        raise TaskError(
            f"{task.name}: maker: expected it to return a gymnasium.Env, got {type(env).__qualname__}; the "
            "package shimmy converts environments of other libraries"
        )
    for name in ("observation_space", "action_space"):
        space = getattr(env, name, None)
        if not isinstance(space, gymnasium.Space):
            raise TaskError(f"{task.name}: {name}: expected a space of Gymnasium, got {space!r:.80}")


def _maker(task: Task) -> Any:
    """Return the function that makes a task's environment, after importing the module that registered it."""
    if task.maker is None:
        raise TaskError(
            f"{task.name}: expected a task with an environment, got one that is known by its demonstrations alone; "
            "register it with register_task, in a module that --task_module names"
        )
    import_module_of(task)
    if not isinstance(task.maker, str):
        return task.maker
    try:
        return resolve(task.maker, task.name)
    except MissingSimulatorError as error:
        raise _missing(task, error.__cause__ or error) from error


def import_module_of(task: Task) -> None:
    """Import the module that registered a task, which has not been in a worker process."""
    if task.module is not None:
        importlib.import_module(task.module)


def _missing(task: Task, reason: BaseException) -> MissingSimulatorError:
    """Return the error for a task whose environment needs a package that is not installed."""
    extra = get_domain(task.domain).extra
    if extra is None:
        return MissingSimulatorError(f"{task.name}: its environment needs a package ({reason}); install it")
    return MissingSimulatorError(
        f"{task.name}: the {task.domain} simulator is not installed ({reason}); pip install 'jat-engine[{extra}]'"
    )


def check_maker(task: Task) -> None:
    """Check that a worker process can be sent a task.

    Raises:
        TaskError: the maker is a lambda, or a function within another.
    """
    try:
        pickle.dumps(task)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TaskError(
            f"{task.name}: maker: expected a function that worker processes can import, got {task.maker} ({error}); "
            "define it with def in a module, outside other functions"
        ) from None


def check_step_limit(value: Any) -> None:
    """Check the option `max_episode_steps`.

    Raises:
        ValueError: it is not None, a number of at least 1, or -1, which stands for no limit.
    """
    if value is not None and not (isinstance(value, Integral) and (int(value) >= 1 or int(value) == -1)):
        raise ValueError(f"max_episode_steps: expected at least 1, or -1 for no limit, got {value!r}")


def resolve(address: str, field: str) -> Any:
    """Return the object at an address "package.module:name".

    Args:
        address: the address.
        field: what has it, for messages.

    Raises:
        TaskError: the module cannot be imported, or has no such name.
        MissingSimulatorError: the module needs a package that is not installed.
    """
    module, _, names = address.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and module.startswith(error.name):
            raise TaskError(f"{field}: expected a module that can be imported, got {address}: {error}") from None
        raise MissingSimulatorError(f"{field}: {address} needs a package that is not installed ({error})") from error
    try:
        for name in names.split("."):
            found = getattr(found, name)
    except AttributeError as error:
        raise TaskError(f"{field}: expected a name of the module, got {address}: {error}") from None
    return found
