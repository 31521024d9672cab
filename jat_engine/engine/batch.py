"""`AgentBatch`: many agents that step together, as arrays, for vector environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter_ns
from typing import Any

import numpy as np

from ..errors import InputError
from ..observation import parse_action
from .arguments import check_flags
from .step import Episodes, StepRunner


class AgentBatch:
    """N agents that see and do the same kind of thing, one call a step: arrays in, arrays out.

    Made by `JatEngine.open_batch`; also a context manager that closes it. An agent of a batch costs next to no Python,
    where a session costs some 20 microseconds. Each has its own episode and can be reset by itself. Bad input of one
    refuses the call and leaves all as they were. Use it from one thread at a time.

    Attributes:
        num_agents: N.

    Example:
        >>> envs = gymnasium.vector.SyncVectorEnv([lambda: jat_engine.envs.make("mujoco-ant")] * 8)
        >>> observations, _ = envs.reset(seed=0)
        >>> with engine.open_batch(8) as batch:
        ...     actions = batch.get_next_actions(
        ...         continuous_observations=observations["continuous_observation"],
        ...         action_space=envs.single_action_space,
        ...     )
    """

    def __init__(self, runner: StepRunner, episodes: Episodes, num_agents: int) -> None:
        self.num_agents = num_agents
        self.runner = runner
        self.episodes = episodes

    @property
    def closed(self) -> bool:
        """Whether it takes no more steps."""
        return self.episodes.closed

    @property
    def num_cached_tokens(self) -> np.ndarray:
        """int64 [N]: tokens, two a step, that each agent's next step looks back on."""
        return np.array(self.episodes.state.cached.num_tokens)

    def get_next_actions(
        self,
        *,
        continuous_observations: Any = None,
        discrete_observations: Any = None,
        text_observations: Sequence[str] | None = None,
        image_observations: Any = None,
        action_space: Any = None,
        rewards: Any = None,
        deterministic: bool = False,
        return_predictions: bool = False,
    ) -> Any:
        """Take one step of all agents.

        Args:
            continuous_observations: [N, X] numbers.
            discrete_observations: [N, max_discrete_value] integers; 64 fewer with `text_observations`.
            text_observations: N missions, each truncated to 64 tokens.
            image_observations: uint8 [N, 84, 84, 4].
            action_space: of one agent: `gymnasium.spaces.Box` of shape (A,), or `Discrete(n)`.
            rewards: [N], of the previous actions; None counts as zeros.
            deterministic: take the most likely of discrete actions instead of sampling.
            return_predictions: also return what the actions were chosen from.

        Returns:
            float32 [N, A], never clipped, or int64 [N]. With `return_predictions`, `(actions, predictions)`, the
            latter float32 [N, A], or float32 [N, n], the logits.

        Raises:
            InputError: a field is not what the model takes. No agent has taken a step.
            SessionError: the call does not fit the episodes so far; `reset()` starts new ones.
        """
        observations = {
            "continuous_observations": continuous_observations,
            "discrete_observations": discrete_observations,
            "text_observations": text_observations,
            "image_observations": image_observations,
        }
        return self.step(observations, rewards, action_space, deterministic, return_predictions)

    def step(
        self,
        observations: Mapping[str, Any],
        rewards: Any,
        action_space: Any,
        deterministic: bool,
        return_predictions: bool,
        is_counted: bool = True,
    ) -> Any:
        """Take a step: `get_next_actions` with the observations' fields as one mapping.

        Args:
            is_counted: whether the call counts in `JatEngine.stats`.
        """
        begin_ns = perf_counter_ns()
        check_flags(deterministic=deterministic, return_predictions=return_predictions)
        runner = self.runner
        with runner.lock:
            request = runner.parse(self.episodes, observations, rewards, action_space, deterministic)
            (outcome,) = runner.run([request])
            if isinstance(outcome, InputError):
                raise outcome
            if is_counted:
                runner.calls.add(begin_ns)

        # The episodes keep their own.
        actions, values = outcome
        actions = np.array(actions, np.float32 if request.space.kind == "continuous" else np.int64)
        actions = actions.reshape(self.num_agents, *actions.shape[1:])
        return (actions, np.array(values, np.float32)) if return_predictions else actions

    def force_actions(self, actions: Any) -> None:
        """Let the next step follow on other actions than those that were chosen.

        Args:
            actions: [N, A] finite numbers, or [N] choices, as the last step's action space has them.

        Raises:
            InputError: they are not.
            SessionError: no step has been taken in these episodes, or the batch is closed.
        """
        with self.runner.lock:
            last = self.episodes.last_step()
            try:
                rows = list(actions)
            except TypeError:  # a number, None, an array of no dimension
                raise InputError(f"actions: expected one for each agent, got {actions!r:.80}") from None
            if len(rows) != self.num_agents:
                raise InputError(f"actions: expected one for each of {self.num_agents} agents, got {len(rows)}")
            self.episodes.force(np.array([parse_action(last.space, row) for row in rows]))

    def reset(self, which: Any = None) -> None:
        """Start new episodes.

        Args:
            which: None for all agents, a bool mask [N], or a sequence of indices.

        Raises:
            InputError: `which` is none of these.
            SessionError: the batch is closed.
        """
        mask = self._mask(which)
        with self.runner.lock:
            self.episodes.check_open()
            self.episodes.clear(mask)

    def _mask(self, which: Any) -> np.ndarray | None:
        if which is None:
            return None
        try:
            index = np.asarray(which)
        except ValueError:  # ragged
            index = np.empty((), object)
        if index.dtype == bool and index.shape == (self.num_agents,):
            return index
        if index.ndim == 1 and (
            index.size == 0
            or (index.dtype.kind in "iu" and int(index.min()) >= 0 and int(index.max()) < self.num_agents)
        ):
            mask = np.zeros(self.num_agents, bool)
            mask[index.astype(np.int64)] = True
            return mask
        raise InputError(
            f"which: expected None, a bool mask of {self.num_agents}, or indices below that, got {which!r}"
        )

    def close(self) -> None:
        """Give the batch's room in the KV cache back. Closing twice does nothing."""
        with self.runner.lock:
            self.episodes.close()

    def __enter__(self) -> AgentBatch:
        self.episodes.check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
