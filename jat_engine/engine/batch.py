"""`AgentBatch`: N agents that step together, for vector environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter_ns
from typing import Any, NoReturn

import numpy as np

from ..action_options import ActionOptions, parse_options
from ..errors import InputError
from ..observation import parse_action
from .arguments import check_flags, find_mask
from .step import Episodes, StepRunner


class AgentBatch:
    """N agents with the same modality and action space that step together: arrays in, arrays out.

    Opened by `JatEngine.open_batch`. As a context manager it closes itself at the end. Each agent has its own episode
    and can be reset alone. Invalid input for one agent makes the call fail and leaves all agents unchanged. Python
    overhead per agent is far below that of a session, which costs about 10 us a step. Not thread-safe: use a batch from
    one thread at a time.

    Attributes:
        num_agents: N.

    Example:
        >>> from gymnasium.vector import SyncVectorEnv
        >>> vector_env = SyncVectorEnv([lambda: make("babyai-go-to-obj")] * 4)
        >>> observations, _ = vector_env.reset(seed=0)
        >>> with engine.open_batch(4) as batch:
        ...     actions = batch.get_next_actions(
        ...         discrete_observations=observations["discrete_observation"],
        ...         text_observations=observations["text_observation"],
        ...         action_space=vector_env.single_action_space,
        ...     )
        >>> actions.shape, actions.dtype
        ((4,), dtype('int64'))
    """

    def __init__(self, runner: StepRunner, episodes: Episodes, num_agents: int) -> None:
        self.num_agents = num_agents
        self.runner = runner
        self.episodes = episodes

    @property
    def closed(self) -> bool:
        """True after `close`: the batch takes no more steps."""
        return self.episodes.closed

    @property
    def num_cached_tokens(self) -> np.ndarray:
        """Cached tokens that each agent's next step attends to, two per step taken: int64 [N]."""
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
        action_masks: Any = None,
        temperature: float | None = None,
        top_k: int | None = None,
        action_clip: str | None = None,
    ) -> Any:
        """Take one step of all agents.

        Args:
            continuous_observations: [N, X] numbers, computed in float32.
            discrete_observations: [N, X] integers, up to max_discrete_value per agent, 64 fewer with
                `text_observations`; padded with 0 at the end.
            text_observations: N missions, each truncated to 64 tokens.
            image_observations: uint8 [N, 84, 84, 4].
            action_space: of one agent: `gymnasium.spaces.Box` of shape (A,), or `Discrete(n)`.
            rewards: [N], of the previous actions; None stands for zeros.
            deterministic: take the most likely discrete actions instead of sampling.
            return_predictions: also return the predictions that the actions were chosen from.
            action_masks: bool [N, n], the allowed discrete actions; None allows all. An environment's masks of zeros
                and ones, such as `infos["action_mask"]`, are taken as well.
            temperature: as for `JatEngine.get_next_action`, for all agents. The next two as well.
            top_k: as above.
            action_clip: as above.

        Returns:
            float32 [N, A], not clipped unless `action_clip` is given, or int64 [N]. With `return_predictions` a tuple
            `(actions, predictions)`; predictions are the action vectors, float32 [N, A], not clipped, or the logits of
            all actions, float32 [N, n].

        Raises:
            InputError: a field has a type, shape or value that the model does not accept; no agent has taken a step.
            SessionError: the batch is closed, or the observations' modality or size, or the kind of action, differs
                from the running episodes'; `reset()` starts new ones.
        """
        observations = {
            "continuous_observations": continuous_observations,
            "discrete_observations": discrete_observations,
            "text_observations": text_observations,
            "image_observations": image_observations,
        }
        options = parse_options(action_masks, temperature, top_k, action_clip)
        return self.step(observations, rewards, action_space, deterministic, return_predictions, options)

    def step(
        self,
        observations: Mapping[str, Any],
        rewards: Any,
        action_space: Any,
        deterministic: bool,
        return_predictions: bool,
        options: ActionOptions | None = None,
        is_counted: bool = True,
    ) -> Any:
        """Take a step: `get_next_actions` with the observations' fields as one mapping.

        Args:
            observations: arrays by `OBSERVATIONS_KEYS`; None counts as absent.
            rewards: as in `get_next_actions`.
            action_space: as in `get_next_actions`.
            deterministic: as in `get_next_actions`.
            return_predictions: as in `get_next_actions`.
            options: from `parse_options`.
            is_counted: count the call in `JatEngine.stats`.

        Returns:
            See `get_next_actions`.

        Raises:
            InputError, SessionError: see `get_next_actions`.
        """
        begin_ns = perf_counter_ns()
        check_flags(deterministic=deterministic, return_predictions=return_predictions)
        arguments = observations, rewards, action_space, deterministic, return_predictions, options, is_counted
        runner = self.runner
        runner.waiting.append(None)
        with runner.lock, runner.one_step(): return self._step(begin_ns, *arguments)  # noqa: E701  # fmt: skip

    def _step(
        self,
        begin_ns: int,
        observations: Mapping[str, Any],
        rewards: Any,
        action_space: Any,
        deterministic: bool,
        return_predictions: bool,
        options: ActionOptions | None,
        is_counted: bool,
    ) -> Any:
        """Take a step, and return what `step` does. The caller holds the lock, until the last tensor is freed."""
        runner = self.runner
        runner.enter()
        request = runner.parse(self.episodes, observations, rewards, action_space, deterministic, options=options)
        (outcome,) = runner.run([request])
        if isinstance(outcome, InputError):
            raise InputError(*outcome.args)  # `outcome` itself, kept by this frame, would keep the frame
        if is_counted:
            runner.calls.add(begin_ns)

        # Copies: the episodes keep these arrays for the next step.
        actions, values = outcome
        actions = np.array(actions, np.float32 if request.space.kind == "continuous" else np.int64)
        actions = actions.reshape(self.num_agents, *actions.shape[1:])
        return (actions, np.array(values, np.float32)) if return_predictions else actions

    def force_actions(self, actions: Any) -> None:
        """Replace the actions of the last step in the agents' histories.

        Args:
            actions: [N, A] finite numbers, or [N] integers in [0, n), as the last step's action space has them.

        Raises:
            InputError: `actions` does not fit that action space, or is not of N agents.
            SessionError: no step has been taken in these episodes, or the batch is closed.
        """
        with self.runner.lock:
            self.runner.check_idle()
            last = self.episodes.last_step()
            try:
                rows = list(actions)
            except TypeError:  # a number, None, an array of no dimension
                raise InputError(f"actions: expected one for each agent, got {actions!r:.80}") from None
            if len(rows) != self.num_agents:
                raise InputError(f"actions: expected one for each of {self.num_agents} agents, got {len(rows)}")
            self.episodes.force(np.array([parse_action(last.space, row) for row in rows]))

    def __repr__(self) -> str:
        state = "closed, " if self.closed else ""
        return f"AgentBatch({state}num_agents={self.num_agents}, context_window={self.episodes.window})"

    def __reduce__(self) -> NoReturn:
        """Refuse pickling and copying: two batches would write to the same pages of the KV cache."""
        raise TypeError("a batch cannot be pickled or copied; open another with JatEngine.open_batch")

    def reset(self, which: Any = None) -> None:
        """Start new episodes.

        Args:
            which: None for all agents; a mask [N] of bools, or of zeros and ones, such as `terminated | truncated`; or
                a sequence of distinct indices in [0, N).

        Raises:
            InputError: `which` is none of these, or integers that could be a mask as well as indices (N below 3).
            SessionError: the batch is closed.
        """
        mask = None if which is None else find_mask(which, self.num_agents)
        with self.runner.lock:
            self.runner.check_idle()
            self.episodes.check_open()
            self.episodes.clear(mask)

    def close(self) -> None:
        """Free the batch's pages of the KV cache. Closing twice does nothing."""
        with self.runner.lock:
            self.episodes.close()

    def __enter__(self) -> AgentBatch:
        self.episodes.check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
