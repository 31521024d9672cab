"""`Task`, one row of the registry of tasks, and `Score`, a return that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .kinds import Action, Observation, Success

if TYPE_CHECKING:
    from .adapters import Adapter


@dataclass(frozen=True)
class Score:
    """Return of a policy: mean and standard deviation; None if the deviation is not known."""

    mean: float
    std: float | None

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | None) -> Score | None:
        """Return the score of JSON values, "mean" and if it is known "std", as datasets and checkpoints keep it.

        Args:
            values: None for a score that is not known.

        Raises:
            KeyError, TypeError, ValueError: the values are malformed.
        """
        if values is None:
            return None
        std = values.get("std")
        return cls(float(values["mean"]), None if std is None else float(std))


@dataclass(frozen=True)
class Task:
    """Row of the registry: an environment, and how the agent plays it.

    Attributes:
        name: such as "metaworld-reach" or "gym:CartPole-v1".
        maker: function that builds the environment, or its address "package.module:function". It is called with options
            of `make` that its signature names, and with the row itself if it has a parameter `task`. None for a task
            that is only known by its demonstrations, which cannot be played.
        observation: kind of the observations: "continuous", "discrete", "discrete+text" or "image".
        action: kind of the actions: "continuous" or "discrete".
        context_window: number of past tokens that the agent sees, two per step.
        domain: group of tasks; its name stands for all of them on command lines, and scores are summarised by it.
        env_id: Gymnasium's id of the environment, if it has one.
        published_env_id: id of the environment in the published code; "" for other tasks.
        loss_weight: factor of the task's loss in training.
        random, expert, human: returns of the random policy, the expert and humans; None if they are not known. Those of
            published tasks are the published ones; others have what `register_task` was given.
        demonstrator: return of the policy whose episodes a checkpoint was trained on; None if it is not known.
        success: what counts as success: "info" (`info["success"]`), "positive_return", or None if it is not defined.
        adapter: rule by which observations and actions are converted; None if the environment has the agent's own.
        module: module whose import registered the task; worker processes import it. None for published tasks.
        action_size: number of an action's values or choices, for published tasks; None where the environment says it.
    """

    name: str
    maker: Callable[..., Any] | str | None
    observation: Observation
    action: Action
    context_window: int
    domain: str = "own"
    env_id: str = ""
    published_env_id: str = ""
    loss_weight: float = 1.0
    random: Score | None = None
    expert: Score | None = None
    human: Score | None = None
    demonstrator: Score | None = None
    success: Success | None = None
    adapter: Adapter | None = None
    module: str | None = None
    action_size: int | None = None

    @property
    def is_published(self) -> bool:
        """True for the 157 tasks that JAT was published with, whose simulators and scores this package knows."""
        return bool(self.published_env_id)

    @property
    def folder_name(self) -> str:
        """Name of the task's folder in a dataset; see `folder_name`."""
        return folder_name(self.name)

    @property
    def rule(self) -> dict[str, Any]:
        """JSON values that datasets and checkpoints keep, so that a task is always played as it was learned."""
        return {
            "observation": self.observation,
            "action": self.action,
            "context_window": self.context_window,
            "adapter": None if self.adapter is None else self.adapter.rule,
            "module": self.module,
        }

    def differs_from(self, rule: Mapping[str, Any]) -> str | None:
        """Return the part of a stored rule by which episodes are not those of this task; None if they are.

        Args:
            rule: a `rule` of earlier. What it leaves open is not compared, such as the adapter of a dataset that was
                imported without an environment.

        Returns:
            "observation", "action" or "adapter".
        """
        parts = ("observation", "action", "adapter")
        return next((part for part in parts if rule.get(part) not in (None, self.rule[part])), None)

    def with_scores(self, random: Score | None, demonstrator: Score | None) -> Task:
        """Return the task with these scores in place of those that it lacks."""
        return replace(self, random=self.random or random, demonstrator=self.demonstrator or demonstrator)


def folder_name(name: str) -> str:
    """Return the name of a task's folder in a dataset: "gym:ALE/Pong-v5" is stored in "gym--ALE--Pong-v5"."""
    return name.replace(":", "--").replace("/", "--")
