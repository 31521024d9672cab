"""Experts that a caller names: a function of any module, a file of Stable-Baselines3, or the random policy."""

from __future__ import annotations

import inspect
import random
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...envs import MissingSimulatorError, Task, TaskError
from ...envs.actions import continuous_action, discrete_action
from ...envs.build import resolve
from ...errors import InputError, describe_error
from ...evaluation.random_policy import RandomPolicy, action_seed
from .demonstration import Expert, ExpertError, ExpertLostError
from .make import make_expert
from .saved_policy import SavedPolicy, check_file, file_digest

if TYPE_CHECKING:
    import gymnasium

RANDOM, _SAVED = "random", "sb3:"

_FORMS = "module:function, sb3:model.zip or random"


@dataclass(frozen=True)
class ExpertChoice:
    """An expert by its address, which worker processes are sent.

    Attributes:
        address: "module:function", "sb3:model.zip" or "random".
        trusted: the file of Stable-Baselines3 may run code when it is loaded.
    """

    address: str
    trusted: bool = False

    @property
    def is_random(self) -> bool:
        """True for the random policy."""
        return self.address == RANDOM

    @property
    def file(self) -> Path | None:
        """File of Stable-Baselines3; None for other experts."""
        return Path(self.address.removeprefix(_SAVED)) if self.address.startswith(_SAVED) else None

    @property
    def module(self) -> str | None:
        """Module whose code acts: the given one, or Stable-Baselines3; None for the random policy."""
        if self.is_random:
            return None
        return self.address.partition(":")[0] if self.file is None else "stable_baselines3"

    @property
    def settings(self) -> dict[str, str]:
        """JSON values by which a later call tells whether it has the same expert."""
        if self.file is None:
            return {"expert": self.address}
        return {"expert": f"{_SAVED}{self.file.name}", "expert_sha256": file_digest(self.file)}

    def check(self) -> None:
        """Check everything that can be checked without an environment. Nothing is unpickled.

        Raises:
            ExpertError: the address is malformed; its module or function does not exist; its file is not one of
                Stable-Baselines3, or is not trusted.
            MissingSimulatorError: a package is not installed.
        """
        if self.is_random:
            return
        if self.file is not None:
            check_file(self.file, self.trusted)
        elif re.fullmatch(r"[\w.]+:[\w.]+", self.address):
            self._function()
        else:
            raise ExpertError(f"--expert: expected {_FORMS}, got {self.address!r}")

    def _function(self) -> Callable[[Any], Any]:
        try:
            function = resolve(self.address, "--expert")
        except TaskError as error:
            raise ExpertError(str(error)) from None
        except MissingSimulatorError:
            raise
        except Exception as error:  # of the module's own code
            raise ExpertError(f"--expert: importing {self.address.partition(':')[0]} raised {_words(error)}") from error
        if not callable(function):
            raise ExpertError(
                f"--expert: {self.address}: expected a function that takes the environment and returns the expert, got "
                f"{type(function).__name__}"
            )
        return function  # type: ignore[no-any-return]  # `callable` does not tell its arguments

    def open(self, task: Task, env: gymnasium.Env[Any, Any]) -> Expert:
        """Make the expert of an environment.

        Args:
            task: the task of `env`.
            env: as `evaluation_env` returns it.

        Raises:
            ExpertError: it cannot be made; see `check`.
        """
        if self.is_random:
            return RandomExpert(env)
        if self.file is not None:
            check_file(self.file, self.trusted)
            saved = SavedPolicy(self.file, task, env)
            return GivenExpert(self.address, saved, saved.description, task, env)

        function = self._function()
        try:
            made = function(env)
        except Exception as error:  # of the function's own code
            raise ExpertError(f"{task.name}: {self.address}(env) raised {_words(error)}") from error
        if not callable(getattr(made, "act", made)):
            raise ExpertError(
                f"{task.name}: {self.address}(env): expected an object with act(observation), or a function "
                f"policy(observation), got {made!r:.80}"
            )
        return GivenExpert(self.address, made, _description(made, function) or self.address, task, env)


def open_expert(task: Task, env: gymnasium.Env[Any, Any], choice: ExpertChoice | None = None) -> Expert:
    """Make an expert of a task.

    Args:
        task: the task of `env`; without a choice one of `EXPERT_TASKS`.
        env: as `evaluation_env` returns it.
        choice: a given expert; None for that of this package.

    Raises:
        ExpertError: see `ExpertChoice.open`.
        ValueError: the task has no expert of this package.
    """
    return make_expert(task, env) if choice is None else choice.open(task, env)


class RandomExpert:
    """Uniform random actions."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self._policy = RandomPolicy(env.action_space)

    def seed(self, seed: int) -> None:
        """Begin the random numbers of an episode."""
        self._policy.seed(seed)

    def reset(self) -> None:
        """Do nothing: there is no state."""

    def act(self, observation: dict[str, Any]) -> Any:
        """Return a random action."""
        return self._policy.act()

    def executed(self, action: Any) -> None:
        """Do nothing: earlier actions do not matter."""


class GivenExpert:
    """Expert of another package: what it returns is checked, and what it raises is named with seed and step.

    Args:
        address: for messages.
        made: an object with `act(observation)`, and with the other methods of `Expert` and `seed` if it needs them; or
            a function policy(observation).
        description: for the data card.
        task: the task of `env`.
        env: the environment that it acts in.
    """

    def __init__(self, address: str, made: Any, description: str, task: Task, env: gymnasium.Env[Any, Any]) -> None:
        self.description = description
        self._address, self._made, self._task, self._env = address, made, task, env
        self._space: Any = env.action_space
        self._seed, self._step = 0, 0

    def seed(self, seed: int) -> None:
        """Seed every generator that the expert may draw from, so that episodes do not depend on what ran before."""
        self._seed, self._step = seed, 0
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (the expert's code may use it)
        if torch := sys.modules.get("torch"):
            torch.manual_seed(seed % 2**63)
        self._space.seed(action_seed(seed))
        self._call("seed", seed)

    def reset(self) -> None:
        """Begin an episode."""
        self._call("reset")

    def act(self, observation: dict[str, Any]) -> Any:
        """Return the expert's action.

        Raises:
            ExpertError: it raised an error, or the action is not one of the action space.
            ExpertLostError: raised by the expert.
        """
        act = getattr(self._made, "act", self._made)
        action = self._guarded(act, observation)
        try:
            checked = _checked_action(action, self._space)
        except InputError as error:
            raise self._error(f"returned a wrong action: {str(error).removeprefix('action: ')}") from None
        self._step += 1
        return checked

    def executed(self, action: Any) -> None:
        """Tell the expert which action was executed."""
        self._call("executed", action)

    def _call(self, name: str, *arguments: Any) -> None:
        """Call a method of the expert if it has it."""
        method = getattr(self._made, name, None) if hasattr(self._made, "act") else None
        if method is not None:
            self._guarded(method, *arguments)

    def _guarded(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (ExpertError, ExpertLostError):
            raise
        except Exception as error:  # of the expert's own code
            raise self._error(f"raised {_words(error)}") from error

    def _error(self, what: str) -> ExpertError:
        return ExpertError(
            f"{self._task.name}: episode with seed {self._seed}, step {self._step}: --expert {self._address} {what}"
        )


def _checked_action(action: Any, space: Any) -> Any:
    """Return an action of a space: an int, or a new array, float32 [A].

    Raises:
        InputError: it has another shape or type, or is outside the space.
    """
    if not hasattr(space, "low"):
        return discrete_action(action, int(space.n))

    values = np.array(continuous_action(action, space.shape), np.float32)
    outside = np.flatnonzero(~((values >= space.low) & (values <= space.high)))  # also NaN
    if outside.size:
        first = int(outside[0])
        raise InputError(
            f"action: element {first}: expected a number in [{space.low[first]:g}, {space.high[first]:g}], got "
            f"{values[first]:g}; clip it with numpy.clip(action, env.action_space.low, env.action_space.high)"
        )
    return values


def _description(made: Any, function: Any) -> str:
    """Return the first line of the docstring of the expert, or of the function that made it; "" if they have none."""
    kind = made if inspect.isroutine(made) else type(made)
    documented = [one for one in (kind, function) if getattr(one, "__module__", "") not in ("builtins", "functools")]
    lines = [line for one in documented for line in (one.__doc__ or "").strip().splitlines()[:1]]
    return lines[0].strip() if lines else ""


def _words(error: Exception) -> str:
    """Return an error of another package's code in one line, with its place."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    reason = describe_error(error)
    is_file = not last.filename.startswith("<")  # an error of syntax is raised by importlib, and has its place
    return f"{reason:.300}" + (f" ({Path(last.filename).name}, line {last.lineno})" if is_file else "")
