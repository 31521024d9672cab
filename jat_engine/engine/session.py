"""`AgentSession`: one agent of a `JatEngine`, with its own episode."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter_ns
from typing import Any

from ..errors import InputError
from ..observation import ActionSpace, parse_action
from .arguments import check_flags
from .step import Episodes, StepRunner


class AgentSession:
    """One agent: its episode in the KV cache, its window and its random numbers.

    Made by `JatEngine.open_session`; also a context manager that closes it. Bad input leaves it as it was. Use it from
    one thread at a time; sessions of one engine may be used from several.

    Example:
        >>> engine = JatEngine.from_pretrained("jat-mini")
        >>> env = jat_engine.envs.make("mujoco-ant")
        >>> with engine.open_session(context_window=256) as session:
        ...     observation, _ = env.reset(seed=0)
        ...     action = session.get_next_action(**observation, action_space=env.action_space)
    """

    def __init__(self, runner: StepRunner, episodes: Episodes) -> None:
        self.runner = runner
        self.episodes = episodes

    @property
    def closed(self) -> bool:
        """Whether it takes no more steps."""
        return self.episodes.closed

    @property
    def num_cached_tokens(self) -> int:
        """Tokens, two a step, that the next step looks back on."""
        return int(self.episodes.state.cached.num_tokens)

    def get_next_action(
        self,
        *,
        continuous_observation: Any = None,
        discrete_observation: Any = None,
        text_observation: str | None = None,
        image_observation: Any = None,
        action_space: Any = None,
        reward: float | None = None,
        deterministic: bool = False,
        return_prediction: bool = False,
    ) -> Any:
        """Choose the action for one observation. Arguments, result and errors: see `JatEngine.get_next_action`."""
        observation = {
            "continuous_observation": continuous_observation,
            "discrete_observation": discrete_observation,
            "text_observation": text_observation,
            "image_observation": image_observation,
        }
        return self.step(observation, reward, action_space, deterministic, return_prediction)

    def step(
        self,
        observation: Mapping[str, Any],
        reward: Any,
        action_space: Any,
        deterministic: Any,
        return_prediction: Any,
        window: int | None = None,
    ) -> Any:
        """Take a step: `get_next_action` with the observation's fields as one mapping.

        Args:
            window: how many of the newest tokens the next step may look back on; None for the session's own.
        """
        begin_ns = perf_counter_ns()
        if type(deterministic) is not bool or type(return_prediction) is not bool:
            check_flags(deterministic=deterministic, return_prediction=return_prediction)
        runner = self.runner
        with runner.lock:
            request = runner.parse(self.episodes, observation, reward, action_space, deterministic, window)
            (outcome,) = runner.run([request])
            if isinstance(outcome, InputError):
                raise outcome
            runner.calls.add(begin_ns)
        return answer(outcome, request.space, return_prediction)

    def force_action(self, action: Any) -> None:
        """Let the next step follow on `action` instead of the one that was chosen.

        For an expert or a safety layer that overrules the agent: what was really done belongs into its history.

        Args:
            action: A finite numbers, or one of the n choices, as the last step's action space has them.

        Raises:
            InputError: it is not.
            SessionError: no step has been taken in this episode, or the session is closed.
        """
        with self.runner.lock:
            self.episodes.force([parse_action(self.episodes.last_step().space, action)])

    def reset(self) -> None:
        """Start a new episode. Random numbers go on where they were. Raises `SessionError` on a closed session."""
        with self.runner.lock:
            self.episodes.check_open()
            self.episodes.clear()

    def close(self) -> None:
        """Give the session's room in the KV cache back. Closing twice does nothing."""
        with self.runner.lock:
            self.episodes.close()

    def __enter__(self) -> AgentSession:
        self.episodes.check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def answer(outcome: tuple[Any, Any], space: ActionSpace, return_prediction: bool) -> Any:
    """Return a single agent's action, and with `return_prediction` a copy of what it was chosen from."""
    actions, values = outcome
    action = actions[0].tolist() if space.kind == "continuous" else int(actions[0])
    return (action, values[0].copy()) if return_prediction else action
