"""Play BabyAI with minigrid's own bot, the published demonstrator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .demonstration import ExpertLostError

if TYPE_CHECKING:
    import gymnasium


_MAX_SUBGOALS = 1000
"""Most subgoals that the bot may add in one step; a plan needs about ten."""


class Plan(list[Any]):
    """Stack of the bot's subgoals that limits how many are added in one step.

    In some states the bot adds the same subgoals forever.
    """

    def __init__(self, subgoals: Iterable[Any]) -> None:
        super().__init__(subgoals)
        self.added = 0

    def append(self, subgoal: Any) -> None:
        """Add a subgoal.

        Raises:
            ExpertLostError: more than `_MAX_SUBGOALS` were added since `added` was set to 0.
        """
        self.added += 1
        if self.added > _MAX_SUBGOALS:
            raise ExpertLostError(f"BabyAIBot: {_MAX_SUBGOALS} subgoals in one step, and still no action")
        super().append(subgoal)


class BotExpert:
    """minigrid's BabyAIBot, which plans on the map of what the agent has seen."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self._env = env
        self._bot: Any = None
        self._last: int | None = None

    def reset(self) -> None:
        """Start a new bot on the environment's current state."""
        from minigrid.utils.baby_ai_bot import BabyAIBot

        self._bot = BabyAIBot(self._env)
        self._bot.stack = Plan(self._bot.stack)
        self._last = None

    def act(self, observation: dict[str, Any]) -> int:
        """Return the bot's next action. See `Expert.act`."""
        self._bot.stack.added = 0
        try:
            return int(self._bot.replan(self._last))
        except Exception as error:  # the bot asserts, and raises errors of its own, when its plan no longer fits
            raise ExpertLostError(f"BabyAIBot: {type(error).__name__}: {error}") from error

    def executed(self, action: Any) -> None:
        """Tell the bot the executed action at its next step."""
        self._last = int(action)
