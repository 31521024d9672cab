"""BabyAI: minigrid's own bot, the published demonstrator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .demonstration import ExpertLostError

if TYPE_CHECKING:
    import gymnasium


class BotExpert:
    """minigrid's BabyAIBot, which plans on the map of what the agent has seen."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self._env = env
        self._bot: Any = None
        self._last: int | None = None

    def reset(self) -> None:
        from minigrid.utils.baby_ai_bot import BabyAIBot

        self._bot = BabyAIBot(self._env)
        self._last = None

    def act(self, observation: dict[str, Any]) -> int:
        try:
            return int(self._bot.replan(self._last))
        except Exception as error:  # it asserts, and raises errors of its own, when its plan no longer fits
            raise ExpertLostError(f"BabyAIBot: {type(error).__name__}: {error}") from error

    def executed(self, action: Any) -> None:
        self._last = int(action)
