"""`JatPolicy`: the agents of a vector environment, in a loop of the user's or of Stable-Baselines3."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ..action_options import parse_options
from ..engine.arguments import check_flags
from ..engine.engine import JatEngine
from ..envs.kinds import usual_window
from ..envs.vector import count_envs, find_mode, is_of_stable_baselines, read_flags
from ..errors import BatchError, InputError, SessionError
from ..observation import Limits, check_context_window, parse_action_space, parse_observations
from .turns import Turn, first_turn, next_turn

if TYPE_CHECKING:
    from .sb3 import LastStep, RecordRewards

_TEXT = "text_observation"


class JatPolicy:
    """The agents of a vector environment: observations in, actions out, an episode's beginning and rewards in between.

    For Gymnasium's vector environments in every `AutoresetMode`, call `reset` and `step`; for Stable-Baselines3, give
    it an environment of `jat_engine.policy.sb3.make_vec_env` and call `predict`, as `evaluate_policy` does.

    Each agent is a session of the engine. Its actions depend on its own observations, rewards and seed, not on the
    number of agents or on the other ones; on a CPU bit for bit, on a GPU within rounding.

    - With `deterministic=True`, agent i plays as `run_episode(..., deterministic=True)` does.
    - Otherwise discrete actions are sampled from the random numbers of the seed `seed + i`. If the environments are
      reset with the same seed, as by `vector_env.reset(seed=seed)`, the first episode of agent i is that of
      `run_episode(seed=seed + i)`. Later ones go on with the random numbers of agent and environment, as those of
      `run_episode(seed=None)` do: they are the same in each run, and not those of other seeds.

    A session costs Python about 10 us a step. For hundreds of agents on a GPU, see `JatEngine.open_batch`.

    As a context manager it closes itself at the end. Not thread-safe.

    Attributes:
        num_envs: N.
        mode: the environment's `AutoresetMode`: "NextStep", "SameStep" or "Disabled".
        context_window: how many of the newest tokens, two per step, an agent attends to.

    Example:
        >>> import gymnasium
        >>> vector_env = gymnasium.make_vec("jat/babyai-go-to-obj-v0", num_envs=2)
        >>> with JatPolicy(engine, vector_env, seed=0) as policy:
        ...     actions = policy.reset(*vector_env.reset(seed=0))
        ...     for _ in range(10):
        ...         actions = policy.step(*vector_env.step(actions))
        >>> actions.shape, actions.dtype
        ((2,), dtype('int64'))
    """

    def __init__(
        self,
        engine: JatEngine,
        vector_env: Any,
        *,
        seed: int | Sequence[int] | None = None,
        deterministic: bool = False,
        context_window: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        action_clip: str | None = None,
        mode: Any = None,
    ) -> None:
        """Open a session for each environment.

        Args:
            engine: a `JatEngine`; its KV cache needs room for the sessions (`max_cached_tokens`).
            vector_env: environments of one task from `jat_engine.envs.make`, `gymnasium.make` or `gymnasium.make_vec`,
                in a vector environment of Gymnasium, or of Stable-Baselines3 with `RecordRewards`. It is only asked
                for its spaces and metadata; `predict` also reads `RecordRewards`.
            seed: for sampling discrete actions, that of the first agent, or one for each; None for torch's global
                generator.
            deterministic: take the most likely discrete actions. `predict` has an argument instead.
            context_window: how many of the newest tokens an agent attends to; None for the task's own number: 32 with
                pictures and 256 otherwise, unless the task was registered with another.
            temperature: as for `JatEngine.get_next_action`, like the next two.
            top_k: see above.
            action_clip: see above.
            mode: an `AutoresetMode` or its value, for environments that do not state it in
                `metadata["autoreset_mode"]`.

        Raises:
            InputError: an argument has an invalid type or value, or the environment's observations or actions are not
                an agent's; the message has the remedy.
            CacheFullError: the KV cache has too few free pages.
        """
        if not isinstance(engine, JatEngine):
            raise InputError(f"engine: expected a JatEngine, got {type(engine).__name__}")
        check_flags(deterministic=deterministic)
        self.num_envs = count_envs(vector_env)
        self.mode = find_mode(vector_env, mode)
        self._recorder: RecordRewards | None = None
        space, self._action_space = _spaces(vector_env)
        metadata = getattr(vector_env, "metadata", None) or {}
        if is_of_stable_baselines(vector_env):
            from .sb3 import find_recorder

            self._recorder = find_recorder(vector_env)
            metadata = vector_env.get_attr("metadata", 0)[0]  # the vector environment's own has less

        kind, self._sizes = _read_space(space)
        limits = Limits.of(engine.config)
        self._limits, self._space = limits, parse_action_space(limits, self._action_space)
        options = parse_options(None, temperature, top_k, action_clip)
        if options is not None:
            options.bind(self._space, self._action_space)
        self._options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "action_clip": action_clip}
        self._deterministic = deterministic
        window = check_context_window(context_window) or int(metadata.get("context_window") or usual_window(kind))
        self.context_window = min(window, engine.config.max_context_tokens)

        seeds = _seeds(seed, self.num_envs)
        self._engine = engine
        self._turn: Turn | None = None  # the last one, if the agents can go on from it
        self._num_seen: tuple[int, int] | None = None
        with contextlib.ExitStack() as stack:
            self._sessions = [stack.enter_context(engine.open_session(self.context_window, each)) for each in seeds]
            self._open = stack.pop_all()

    # ---- Gymnasium -------------------------------------------------------------------------------------------------

    def reset(self, observations: Any, infos: Any = None, *, action_masks: Any = None) -> np.ndarray:
        """Begin an episode of each agent, and return their first actions. Random numbers go on.

        Args:
            observations: what `vector_env.reset()` has returned: a dict of arrays [N, ...].
            infos: likewise; not used, so that `policy.reset(*vector_env.reset())` works.
            action_masks: bool [N, n], the allowed discrete actions; None allows all.

        Returns:
            Actions for `vector_env.step`: int64 [N], or float32 [N, A], which are not clipped unless `action_clip` is
            set, as the published agent's.

        Raises:
            InputError: a value has a type or shape that the environment does not return, or is not finite.
            SessionError: the policy is closed.
        """
        self._check_loop("reset")
        return self._play(first_turn(self.num_envs), observations, action_masks, self._deterministic)

    def step(
        self,
        observations: Any,
        rewards: Any,
        terminated: Any,
        truncated: Any,
        infos: Any,
        *,
        reset_mask: Any = None,
        action_masks: Any = None,
    ) -> np.ndarray:
        """Return the actions after a step: `actions = policy.step(*vector_env.step(actions))`.

        In the mode "Disabled", reset the environments that have ended first, and pass the observations of that reset,
        with all else from the step:

            observations, rewards, terminated, truncated, infos = vector_env.step(actions)
            reset_mask = terminated | truncated
            if reset_mask.any():
                observations, _ = vector_env.reset(options={"reset_mask": reset_mask})
            actions = policy.step(observations, rewards, terminated, truncated, infos)

        Args:
            observations: a dict of arrays [N, ...].
            rewards: [N], of the step. The agent was trained with them.
            terminated: bool [N].
            truncated: bool [N].
            infos: of the step; a lost life of Atari with `terminal_on_life_loss` is in it.
            reset_mask: bool [N], environments that were reset by a mask after the step, if they are others than those
                that have ended.
            action_masks: bool [N, n], the allowed discrete actions; None allows all.

        Returns:
            As `reset`. In the mode "NextStep" zeros for environments whose next step only resets them.

        Raises:
            InputError: a value has a type or shape that the environment does not return, or is not finite.
            SessionError: the policy is closed, `reset` has not been called, or the last call has failed in the middle
                of a step, some agents of which have taken it.
        """
        self._check_loop("step")
        last = self._last_turn("step: expected reset(*vector_env.reset())")
        turn = next_turn(self.mode, last, rewards, terminated, truncated, infos, reset_mask)
        return self._play(turn, observations, action_masks, self._deterministic)

    # ---- Stable-Baselines3 -----------------------------------------------------------------------------------------

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, None]:
        """Return the actions for an observation of Stable-Baselines3's vector environment, as its policies do.

        Rewards, ends of episodes and lost lives are read from the environment's `RecordRewards`. Call it once after
        each `vec_env.reset()` and `vec_env.step(actions)`. `evaluate_policy` does.

        Args:
            observation: a dict of arrays [N, ...].
            state: None, as it is returned: agents keep their own history.
            episode_start: bool [N], True for each environment whose last step has ended an episode; more may be True.
                None for the environment's own word.
            deterministic: take the most likely discrete actions.

        Returns:
            The actions, int64 [N] or float32 [N, A], not clipped unless `action_clip` is set; and None.

        Raises:
            InputError: an argument does not fit the environment, or the environment has not taken one step since the
                last call.
            SessionError: see `step`.
        """
        self._check_open()
        if self._recorder is None:
            raise InputError(
                "predict: expected a policy of Stable-Baselines3's vector environment, got one of Gymnasium's; call "
                "reset(*vector_env.reset()) and step(*vector_env.step(actions))"
            )
        check_flags(deterministic=deterministic)
        if state is not None:
            raise InputError(f"state: expected None, as predict returns it, got {type(state).__name__}")
        last = self._last_step(self._recorder)
        begins = last.dones if last.num_steps else np.ones(self.num_envs, bool)
        flags = begins if episode_start is None else read_flags("episode_start", episode_start, self.num_envs)
        if (begins & ~flags).any():
            raise InputError(
                f"episode_start: expected True for environments {np.flatnonzero(begins & ~flags).tolist()}, whose "
                "episodes begin; pass the dones of the last step, after a reset all True, or None"
            )

        turn = first_turn(self.num_envs)
        if last.num_steps:
            before = self._last_turn("predict: expected a call after vec_env.reset()")
            turn = next_turn(self.mode, before, last.rewards, last.dones, np.zeros(self.num_envs, bool), last.infos)
        actions = self._play(turn, observation, None, deterministic)
        self._num_seen = last.num_resets, last.num_steps
        return actions, None

    def _last_step(self, recorder: RecordRewards) -> LastStep:
        """Return the environment's last step, which must be the one after that of the last call.

        Raises:
            InputError: it is not.
            SessionError: the last call has failed in the middle of a step.
        """
        last, seen = recorder.last_step, self._num_seen
        count = None if last is None else (last.num_resets, last.num_steps)
        if last is None or count == seen:
            raise InputError(
                "observation: expected one of a new step, got no reset or step of RecordRewards since the last call; "
                "call predict once for each, and pass evaluate_policy the environment that the policy was made with"
            )
        if not last.num_steps:
            return last
        self._last_turn("predict: expected a call after vec_env.reset()")
        if seen != (last.num_resets, last.num_steps - 1):
            raise InputError(
                f"observation: expected that of step {1 + (seen[1] if seen else 0)} since vec_env.reset(), got that of "
                f"step {last.num_steps}; call predict after each step, or reset the environment"
            )
        return last

    # ---- a step ----------------------------------------------------------------------------------------------------

    def _play(self, turn: Turn, observations: Any, action_masks: Any, deterministic: bool) -> np.ndarray:
        """Take a step of the agents whose turn it is. See `step`."""
        rows = self._read(observations, turn)
        masks = None if action_masks is None else self._read_masks(action_masks)

        # Interrupted or refused from here on, some agents may have taken the step.
        self._turn = None
        for agent in np.flatnonzero(turn.begins):
            self._sessions[agent].reset()
        acting = np.flatnonzero(turn.acts)
        actions = np.zeros(
            (self.num_envs, self._space.size) if self._space.kind == "continuous" else self.num_envs,
            np.float32 if self._space.kind == "continuous" else np.int64,
        )
        if len(acting):
            try:
                actions[acting] = self._engine.get_next_actions(
                    [self._sessions[agent] for agent in acting],
                    [rows[agent] for agent in acting],
                    turn.rewards[acting].tolist(),
                    self._action_space,
                    deterministic,
                    action_masks=None if masks is None else [masks[agent] for agent in acting],
                    **self._options,
                )
            except BatchError as error:
                reasons = {int(acting[index]): reason for index, reason in error.errors.items()}
                raise InputError(
                    f"agents {sorted(reasons)}: {reasons[min(reasons)]}; reset environments and policy"
                ) from error
        self._turn = turn
        return actions

    def _read(self, observations: Any, turn: Turn) -> list[dict[str, Any]]:
        """Return the checked observation of each agent; of those that do not act, anything.

        Raises:
            InputError: observations or rewards are not of N agents, or not those that the model accepts.
        """
        if not isinstance(observations, Mapping) or set(observations) != set(self._sizes):
            got = sorted(map(str, observations)) if isinstance(observations, Mapping) else type(observations).__name__
            raise InputError(f"observations: expected a dict of {sorted(self._sizes)}, as the space has, got {got}")
        (key,) = set(self._sizes) - {_TEXT}
        values, texts = observations[key], observations.get(_TEXT)
        if getattr(getattr(texts, "dtype", None), "kind", "") in tuple("biuf"):
            from .missions import decode_missions

            texts = decode_missions(texts)
        if not turn.acts.all() and np.shape(values)[:1] == (self.num_envs,):
            values = np.array(values)
            values[~turn.acts] = 0  # a simulation may have ended because it diverged
        checked = parse_observations(self._limits, self.num_envs, {f"{key}s": values, f"{_TEXT}s": texts}, turn.rewards)

        size = checked.values[0].size - checked.num_padding
        if size != self._sizes[key]:
            raise InputError(f"{key}: expected {self._sizes[key]} values of each agent, as the space has, got {size}")
        rows: list[dict[str, Any]] = [{key: row} for row in checked.values]
        if checked.texts is not None:
            for row, mission in zip(rows, checked.texts, strict=True):
                row[_TEXT] = mission
        return rows

    def _read_masks(self, action_masks: Any) -> Any:
        options = parse_options(action_masks, None, None, None)
        return None if options is None else options.bind(self._space, self._action_space, self.num_envs).allowed

    # ---- the end ---------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """True after `close`, and after that of the engine."""
        return self._sessions[0].closed

    def close(self) -> None:
        """Close the agents' sessions; the environment stays open. Closing twice does nothing."""
        self._open.close()

    def __enter__(self) -> JatPolicy:
        self._check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed, " if self.closed else ""
        return f"JatPolicy({state}num_envs={self.num_envs}, mode={self.mode!r}, context_window={self.context_window})"

    def __reduce__(self) -> NoReturn:
        """Refuse pickling and copying: two policies would write to the same pages of the KV cache."""
        raise TypeError("a policy cannot be pickled or copied; make another")

    def _check_open(self) -> None:
        if self.closed:
            raise SessionError("policy: expected an open one, got one that was closed")

    def _check_loop(self, name: str) -> None:
        self._check_open()
        if self._recorder is not None:
            raise InputError(
                f"{name}: expected a policy of Gymnasium's vector environment, got one of Stable-Baselines3's; call "
                "predict(observation)"
            )

    def _last_turn(self, expected: str) -> Turn:
        if self._turn is None:
            raise SessionError(f"{expected} first, got none, or a call since then that failed in the middle of a step")
        return self._turn


def _spaces(vector_env: Any) -> tuple[Any, Any]:
    """Return the observation and the action space of one environment."""
    if is_of_stable_baselines(vector_env):
        return vector_env.observation_space, vector_env.action_space
    names = "single_observation_space", "single_action_space"
    if not all(hasattr(vector_env, name) for name in names):
        raise InputError(
            f"vector_env: expected a vector environment of Gymnasium, with single_observation_space, got "
            f"{type(vector_env).__name__}"
        )
    return vector_env.single_observation_space, vector_env.single_action_space


def _read_space(space: Any) -> tuple[Any, dict[str, int]]:
    """Return kind of observations, and numbers of each of their entries.

    Raises:
        InputError: an agent has no such observations.
    """
    from ..envs.adapters import own_kind

    kind = own_kind(space)
    if kind is None:
        raise InputError(
            "vector_env: expected observations of an agent, a Dict of continuous_observation and so on, got "
            f"{space!r:.120}; make each environment with jat_engine.envs.make('gym:<id>'), or make(name) after "
            "register_task"
        )
    return kind, {key: int(np.prod(part.shape or ())) for key, part in space.spaces.items()}


def _seeds(seed: Any, num_envs: int) -> list[Any]:
    """Return the seed of each agent. Sessions check the seeds themselves."""
    if isinstance(seed, Sequence | np.ndarray) and not isinstance(seed, str | bytes):
        if len(seed) != num_envs:
            raise InputError(f"seed: expected one for each of {num_envs} agents, got {len(seed)}")
        return list(seed)
    is_number = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    return [seed + agent if is_number else seed for agent in range(num_envs)]
