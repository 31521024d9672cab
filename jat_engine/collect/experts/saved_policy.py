"""Policies that Stable-Baselines3 saved.

Loading such a file runs pickled code of whoever wrote it, so that it is only done for files that are trusted. Nothing
else of this package unpickles.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...envs import MissingSimulatorError, Task
from ...errors import describe_error
from ...zip_damage import ZIP_DAMAGE
from .demonstration import ExpertError

if TYPE_CHECKING:
    import gymnasium

_ALGORITHMS = {
    # an argument that only this algorithm has -> its class
    "clip_range": "PPO",
    "target_entropy": "SAC",
    "exploration_rate": "DQN",
    "policy_delay": "TD3",  # and DDPG, which is TD3 with other defaults
    "gae_lambda": "A2C",  # after PPO, which has it too
}

_NO_POLICY: tuple[type[Exception], ...] = (*ZIP_DAMAGE, KeyError, TypeError)
"""Classes of the errors of a file that is none of Stable-Baselines3, or is damaged."""

_OTHERWISE = "for others give a function that loads it, --expert module:function"


def check_file(path: Path, trusted: bool) -> str:
    """Check a file of Stable-Baselines3 without unpickling anything.

    Args:
        path: the file.
        trusted: the caller said so.

    Returns:
        Name of the algorithm's class.

    Raises:
        ExpertError: it is not trusted, does not exist, or has no algorithm that is known.
        MissingSimulatorError: Stable-Baselines3 is not installed.
    """
    if not path.is_file():
        raise ExpertError(f"--expert sb3:{path}: expected a file that Stable-Baselines3 saved, got none")
    if not trusted:
        raise ExpertError(
            f"--expert sb3:{path}: loading a file of Stable-Baselines3 runs pickled code of whoever wrote it; if you "
            "trust it, say so with --trust_expert"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            data = json.loads(archive.read("data"))
        module = str(data["policy_class"]["__module__"])
    except _NO_POLICY as error:
        raise ExpertError(
            f"--expert sb3:{path}: expected a file that Stable-Baselines3 saved, got {type(error).__name__}: {error}"
        ) from None

    algorithm = next((name for argument, name in _ALGORITHMS.items() if argument in data), None)
    if algorithm is None or module.partition(".")[0] == "sb3_contrib":
        raise ExpertError(
            f"--expert sb3:{path}: expected {', '.join(_ALGORITHMS.values())} or DDPG, got a policy of {module}; "
            f"{_OTHERWISE}"
        )
    if importlib.util.find_spec("stable_baselines3") is None:
        raise MissingSimulatorError(
            f"--expert sb3:{path} needs Stable-Baselines3, not installed here; pip install stable-baselines3"
        )
    return algorithm


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class SavedPolicy:
    """Most likely actions of a policy that Stable-Baselines3 saved, on the CPU.

    Args:
        path: the file, which `check_file` has accepted. Its pickled code is run.
        task: the task of `env`.
        env: environment as `make` returns it. The policy gets the observations of the environment that was adapted; of
            one that was not, the observation's only entry, or the whole `Dict`.

    Raises:
        ExpertError: the file cannot be loaded, or has actions of another kind or size.
    """

    def __init__(self, path: Path, task: Task, env: gymnasium.Env[Any, Any]) -> None:
        import stable_baselines3

        name = check_file(path, trusted=True)
        try:
            self._model: Any = getattr(stable_baselines3, name).load(path, device="cpu")
        except Exception as error:  # of the file's own code
            reason = describe_error(error)
            raise ExpertError(f"--expert sb3:{path}: {name}.load raised {reason:.300}; {_OTHERWISE}") from error
        self.description = f"Policy of Stable-Baselines3, {path.name}, its most likely actions"
        self._env, self._adapted = env, task.adapter is not None

        given, own = self._model.action_space, env.action_space
        if type(given) is not type(own) or getattr(given, "n", given.shape) != getattr(own, "n", own.shape):
            raise ExpertError(f"{task.name}: --expert sb3:{path}: expected actions of {own}, got {given}")

    def act(self, observation: dict[str, Any]) -> Any:
        """Return the most likely action for the environment's own last observation."""
        if self._adapted:
            raw = self._env.get_wrapper_attr("raw_observation")
        else:
            raw = next(iter(observation.values())) if len(observation) == 1 else observation
        action, _ = self._model.predict(raw, deterministic=True)
        return action
