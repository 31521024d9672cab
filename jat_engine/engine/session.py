"""`AgentSession`: one agent of a `JatEngine`, with its own episode."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter_ns
from typing import Any, NoReturn

import torch

from ..action_options import ActionOptions, parse_options
from ..errors import InputError
from ..observation import ActionSpace, parse_action
from .arguments import check_flags
from .snapshot import Captured, capture
from .step import Episodes, StepRunner


class AgentSession:
    """One agent: its episode in the KV cache, its window and its random numbers.

    Opened by `JatEngine.open_session`. As a context manager it closes itself at the end. Invalid input leaves
    it unchanged. Not thread-safe: use a session from one thread at a time; different sessions of an engine may be used
    from different threads.

    Example:
        >>> with engine.open_session(context_window=128) as session:
        ...     observation, _ = env.reset(seed=0)
        ...     reward, is_over = None, False
        ...     while not is_over:
        ...         action = session.get_next_action(**observation, action_space=env.action_space, reward=reward)
        ...         observation, reward, terminated, truncated, _ = env.step(action)
        ...         is_over = terminated or truncated
    """

    def __init__(self, runner: StepRunner, episodes: Episodes, identity: dict[str, Any]) -> None:
        self.runner = runner
        self.episodes = episodes
        self._identity = identity

    @property
    def closed(self) -> bool:
        """True after `close`: the session takes no more steps."""
        return self.episodes.closed

    @property
    def num_cached_tokens(self) -> int:
        """Cached tokens that the next step attends to, two per step taken."""
        return int(self.episodes.state.cached.num_tokens)

    @property
    def generator(self) -> torch.Generator | None:
        """Copy of the generator that the next step draws from; None for torch's global generator.

        Example:
            >>> with engine.open_session(context_window=8, seed=0) as session:
            ...     action = session.get_next_action(**observation, action_space=env.action_space)
            ...     generator = session.generator
            >>> with engine.open_session(context_window=32, seed=generator) as session:  # its numbers go on
            ...     action = session.get_next_action(**observation, action_space=env.action_space)
        """
        with self.runner.lock:
            state = self.episodes.generator_state()
        return None if state is None else torch.Generator().set_state(torch.from_numpy(state))

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
        action_mask: Any = None,
        temperature: float | None = None,
        top_k: int | None = None,
        action_clip: str | None = None,
    ) -> Any:
        """Take one step. See `JatEngine.get_next_action` for the arguments and the result.

        Example:
            >>> import gymnasium
            >>> taxi = gymnasium.make("Taxi")  # its masks leave out moves into walls
            >>> state, info = taxi.reset(seed=0)
            >>> with engine.open_session(seed=0) as session:
            ...     action = session.get_next_action(
            ...         discrete_observation=list(taxi.unwrapped.decode(state)),
            ...         action_space=taxi.action_space,
            ...         action_mask=info["action_mask"],
            ...     )
            >>> int(info["action_mask"][action])
            1

        Raises:
            InputError: see `JatEngine.get_next_action`.
            SessionError: the session is closed, or the observation's modality or size, or the kind of action, differs
                from the running episode's; `reset()` starts a new one.
        """
        observation = {
            "continuous_observation": continuous_observation,
            "discrete_observation": discrete_observation,
            "text_observation": text_observation,
            "image_observation": image_observation,
        }
        options = None
        if action_mask is not None or temperature is not None or top_k is not None or action_clip is not None:
            options = parse_options(action_mask, temperature, top_k, action_clip)
        return self.step(observation, reward, action_space, deterministic, return_prediction, None, options)

    def step(
        self,
        observation: Mapping[str, Any],
        reward: Any,
        action_space: Any,
        deterministic: Any,
        return_prediction: Any,
        window: int | None = None,
        options: ActionOptions | None = None,
    ) -> Any:
        """Take a step: `get_next_action` with the observation's fields as one mapping.

        Args:
            observation: values by `OBSERVATION_KEYS`; None counts as absent.
            reward: of the previous action, or None.
            action_space: to choose from.
            deterministic: take the most likely discrete action.
            return_prediction: also return the prediction.
            window: how many of the newest cached tokens the next step attends to; None for the session's own.
            options: from `parse_options`.

        Returns:
            See `JatEngine.get_next_action`.

        Raises:
            InputError, SessionError: see `get_next_action`.
        """
        begin_ns = perf_counter_ns()
        if type(deterministic) is not bool or type(return_prediction) is not bool:
            check_flags(deterministic=deterministic, return_prediction=return_prediction)
        arguments = begin_ns, observation, reward, action_space, deterministic, return_prediction, window, options
        runner = self.runner
        runner.waiting.append(None)
        with runner.lock, runner.one_step(): return self._step(*arguments)  # noqa: E701  # fmt: skip

    def _step(
        self,
        begin_ns: int,
        observation: Mapping[str, Any],
        reward: Any,
        action_space: Any,
        deterministic: Any,
        return_prediction: Any,
        window: int | None,
        options: ActionOptions | None,
    ) -> Any:
        """Take a step, and return what `step` does. The caller holds the lock, until the last tensor is freed."""
        runner = self.runner
        runner.enter()
        if options is None:
            quick = runner.run_quick(self.episodes, observation, reward, action_space, deterministic, window)
            if quick is not None:
                runner.calls.add(begin_ns)
                return (quick[0], quick[1].copy()) if return_prediction else quick[0]

        request = runner.parse(self.episodes, observation, reward, action_space, deterministic, window, options)
        (outcome,) = runner.run([request])
        if isinstance(outcome, InputError):
            raise InputError(*outcome.args)  # `outcome` itself, kept by this frame, would keep the frame
        runner.calls.add(begin_ns)
        return answer(outcome, request.space, return_prediction)

    def force_action(self, action: Any) -> None:
        """Replace the action of the last step in the agent's history.

        For an expert or a safety layer that overrules the agent: the next step must see the action that was taken.

        Args:
            action: [A] finite numbers, or an integer in [0, n), as the last step's action space has it.

        Raises:
            InputError: `action` does not fit that action space.
            SessionError: no step has been taken in this episode, or the session is closed.
        """
        with self.runner.lock:
            self.runner.check_idle()
            self.episodes.force([parse_action(self.episodes.last_step().space, action)])

    def snapshot(self) -> bytes:
        """Return the session's whole state: keys and values, last step, window and random numbers.

        `JatEngine.restore` goes on from it, in this or another process: with the native CPU backend bit for bit. The
        engine must have the same backend, dtype and weights. A session without a seed draws from torch's global
        generator, which is not a part of its state.

        Returns:
            Bytes in a checked format of their own, without pickle: the cached keys and values (2 layers x hidden_size x
            2 bytes a token in bfloat16, in whole pages) and some kilobytes.

        Raises:
            SessionError: the session is closed, or the call comes from within a step.

        Example:
            >>> with engine.open_session(seed=0) as session:
            ...     action = session.get_next_action(**observation, action_space=env.action_space)
            ...     blob = session.snapshot()
            >>> with engine.restore(blob) as session:
            ...     action = session.get_next_action(**observation, action_space=env.action_space)
        """
        return self.capture().to_bytes()

    def capture(self) -> Captured:
        """Return a copy of the session's state, whose `to_bytes` is the snapshot.

        The copy is quick. Its bytes, with their digest, can be made in another thread while the session goes on.

        Raises:
            SessionError: see `snapshot`.
        """
        return capture(self.runner, self.episodes, self._identity)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"num_cached_tokens={self.num_cached_tokens}"
        return f"AgentSession({state}, context_window={self.episodes.window})"

    def __reduce__(self) -> NoReturn:
        """Refuse pickling and copying: two sessions would write to the same pages of the KV cache."""
        raise TypeError("a session cannot be pickled or copied; open another with JatEngine.open_session")

    def reset(self) -> None:
        """Start a new episode. The sequence of random numbers continues.

        Raises:
            SessionError: the session is closed.
        """
        with self.runner.lock:
            self.runner.check_idle()
            self.episodes.check_open()
            self.episodes.clear()

    def close(self) -> None:
        """Free the session's pages of the KV cache. Closing twice does nothing."""
        with self.runner.lock:
            self.episodes.close()

    def __enter__(self) -> AgentSession:
        self.episodes.check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def answer(outcome: tuple[Any, Any], space: ActionSpace, return_prediction: bool) -> Any:
    """Return a single agent's result, as `get_next_action` does.

    Args:
        outcome: of its step, see `StepRunner.run`.
        space: that the action was chosen from.
        return_prediction: also return a copy of the prediction.
    """
    actions, values = outcome
    action = actions[0].tolist() if space.kind == "continuous" else int(actions[0])
    return (action, values[0].copy()) if return_prediction else action
