"""`JatEngine`: run JAT agents fast, one session or many."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import torch

from ..backends import Choice, choose_backend
from ..backends.build import set_up
from ..backends.options import EngineOptions
from ..checkpoint.reader import find_weight_files
from ..checkpoint.weights import CheckpointWeights, ModelWeights, Weights
from ..checkpoint_files import resolve, take_hub_options
from ..config import JatConfig, read_config
from ..errors import BatchError, InputError
from ..observation import OBSERVATION_KEYS, check_context_window, check_processor
from .arguments import check_config, check_flags, check_num_agents, check_observation, list_items, make_generator
from .batch import AgentBatch
from .kv_cache import CacheStats
from .missions import Missions
from .session import AgentSession, answer
from .stats import EngineStats, make_stats
from .step import Request, StepRunner
from .warm_up import STEPS, WINDOW, find_example, play_batch

if TYPE_CHECKING:
    from ..envs import Task


class JatEngine:
    """Runs JAT agents from a checkpoint's weights.

    The drop-in calls `reset_rl` and `get_next_action` are those of the published model. `open_session` gives any number
    of agents beside each other, and `get_next_actions` one step of many of them at once.

    Attributes:
        config: the checkpoint's `JatConfig`.
        choice: device, backend and dtype, and why.
    """

    def __init__(self, config: JatConfig, weights: Weights, choice: Choice, options: EngineOptions, missions: Missions):
        self.config = config
        self.choice, self._backend, num_pages = set_up(config, weights, choice, options, config.max_context_tokens)
        self._runner = StepRunner(config, self._backend, num_pages, missions)
        self._drop_in: AgentSession | None = None

    # ---- loading ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | os.PathLike[str],
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        backend: str = "auto",
        **engine_options: Any,
    ) -> JatEngine:
        """Load a checkpoint folder, a hub repository, or "jat-mini".

        Weights are read from the memory-mapped safetensors one at a time and packed at once. Only safetensors are
        read, and every parameter that acting needs must be there, have the configured shape and be finite.
        `trust_remote_code` is accepted and ignored: code in a checkpoint is never run.

        Args:
            device: "auto", "cpu", "cuda", ...
            dtype: of weights and KV cache: "float32", "bfloat16", "float16" (not on the native CPU backend), "int8" (on
                a CPU weights and activations, on a GPU weights; the cache is bfloat16), or "auto".
            backend: "cuda", kernels for NVIDIA GPUs; "cpu", native ones; "torch", plain operations on any device; or
                "auto". `jat-engine info` says what "auto" takes here and why.
            engine_options: those of `EngineOptions`, and transformers' that say where to look (`revision`,
                `cache_dir`, `token`, `subfolder`, `variant`, `local_files_only`, ...).

        Raises:
            CheckpointError: names the file and the parameter; what `JatModel` refuses, an engine refuses.
            InputError: an option is not known, or not possible here.
        """
        source = resolve(path_or_hub_id)
        engine_options.pop("trust_remote_code", None)
        hub = take_hub_options(engine_options)
        variant = engine_options.pop("variant", None)
        options = EngineOptions.parse(engine_options)
        config = read_config(source, hub, {})
        choice = choose_backend(device, dtype, backend, config.hidden_size // config.num_heads)
        check_config(config)
        weights = CheckpointWeights(find_weight_files(source, variant, hub), config)
        weights.check_unread()
        missions = Missions.of_checkpoint(source, hub, config.vocab_size)
        return cls(config, weights, choice, options, missions)

    @classmethod
    def from_model(
        cls,
        model: Any,
        processor: Any = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        backend: str = "auto",
        **engine_options: Any,
    ) -> JatEngine:
        """An engine with a copy of a `JatModel`'s weights as they are now, for instance between epochs of a training.

        Args:
            processor: a `JatProcessor`; needed for text observations.
        """
        options = EngineOptions.parse(engine_options)
        choice = choose_backend(device, dtype, backend, model.config.hidden_size // model.config.num_heads)
        check_config(model.config)
        missions = Missions.of_processor(processor, model.config.vocab_size)
        return cls(model.config, ModelWeights(model, model.config), choice, options, missions)

    # ---- what it is ------------------------------------------------------------------------------------------------

    @property
    def num_threads(self) -> int:
        """Threads that compute a step on a CPU."""
        return self._backend.num_threads

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        return self._backend.weight_bytes

    @property
    def memory(self) -> dict[str, int]:
        """Bytes the engine has taken on its device, by what they are for."""
        with self._runner.lock:
            return self._backend.memory

    @property
    def one_launch_reason(self) -> str:
        """Why single agents' steps are not one launch each on a GPU; "" where they are."""
        return self._backend.one_launch_reason

    @property
    def one_launch_geometry(self) -> dict[str, int]:
        """How a single agent's one launch lies on the GPU: blocks, threads, bytes; empty where it is not in use."""
        return dict(getattr(self._backend, "one_launch_geometry", {}))

    @property
    def native_seconds(self) -> float | None:
        """Cumulative seconds in native calls; None where the backend does not count them."""
        seconds: float | None = getattr(self._backend, "native_seconds", None)
        return seconds

    @property
    def cache_stats(self) -> CacheStats:
        """The KV cache's counters."""
        with self._runner.lock:
            return self._runner.cache_stats()

    @property
    def stats(self) -> EngineStats:
        """Counters of calls, latencies and pages. May be read from any thread; it waits for a call that runs."""
        runner = self._runner
        with runner.lock:
            calls, recent, cache = runner.calls.count, runner.calls.recent(), runner.cache_stats()
        return make_stats(calls, recent, cache.used, cache.free)

    def __repr__(self) -> str:
        choice = self.choice
        return f"JatEngine(backend={choice.backend!r}, dtype={choice.dtype!r}, device={str(choice.device)!r})"

    # ---- sessions --------------------------------------------------------------------------------------------------

    def open_session(self, context_window: int | None = None, seed: int | None = None) -> AgentSession:
        """A new agent, with room of its own in the KV cache.

        Args:
            context_window: how many of the newest tokens, two a step, a step may look back on; at most and by default
                `max_position_embeddings - 4`.
            seed: of the sampling of discrete actions. None samples with torch's global generator.

        Raises:
            InputError: an argument is not as above.
            CacheFullError: there is no room for another session.
        """
        window, generator = self._window(context_window), make_generator(seed)
        return AgentSession(self._runner, self._runner.open(window, generator))

    def open_batch(self, num_agents: int, context_window: int | None = None, seed: int | None = None) -> AgentBatch:
        """New agents that step together, for a vector environment of one task: arrays in, arrays out.

        Args:
            num_agents: how many.
            context_window: as for `open_session`.
            seed: of the sampling of all their discrete actions. None samples with torch's global generator.

        Raises:
            InputError: an argument is not as above.
            CacheFullError: there is no room for so many.
        """
        num_agents = check_num_agents(num_agents)
        window, generator = self._window(context_window), make_generator(seed)
        return AgentBatch(self._runner, self._runner.open(window, generator, num_agents), num_agents)

    def _window(self, context_window: Any) -> int:
        """Return how many tokens a session keeps."""
        window = check_context_window(context_window)
        return self._runner.max_window if window is None else min(window, self._runner.max_window)

    def warm_up(
        self,
        *,
        continuous_observation: Any = None,
        discrete_observation: Any = None,
        text_observation: str | None = None,
        image_observation: Any = None,
        action_space: Any = None,
        task: str | Task | None = None,
        num_agents: int = 1,
    ) -> None:
        """Make the first call as fast as the next ones, by a few steps of sessions that are closed again.

        What a step needs for the first time is done here: rows of the heads are selected and packed, the mission is
        tokenised, threads start, memory is allocated and, on a GPU, kernels are compiled and graphs captured. Open
        sessions, random generators and `stats` stay as they are.

        Args:
            continuous_observation, discrete_observation, text_observation, image_observation, action_space: an example
                of what `get_next_action` will be given; values do not matter, shapes and missions do.
            task: instead of these, a published task or its name; its environment is made, and closed again.
            num_agents: how many will step together, in sessions or as a batch.

        Raises:
            InputError: an argument is not as above.
            CacheFullError: open sessions have left no room for `num_agents` short ones; warm up before they open.
            MissingSimulatorError, UnknownTaskError: for a task, see `jat_engine.envs.make`.
        """
        count = check_num_agents(num_agents)
        given = continuous_observation, discrete_observation, text_observation, image_observation
        example = find_example(dict(zip(OBSERVATION_KEYS, given, strict=True)), action_space, task)
        observation = check_observation(example.observation)
        with contextlib.ExitStack() as stack:
            sessions = [stack.enter_context(self.open_session(WINDOW, seed=0)) for _ in range(count)]
            for number in range(STEPS):
                is_greedy = bool(number % 2)
                with self._runner.lock:
                    requests = [
                        self._runner.parse(s.episodes, observation, None, example.action_space, is_greedy)
                        for s in sessions
                    ]
                    outcomes = self._runner.run(requests)
                for outcome in outcomes:
                    if isinstance(outcome, InputError):
                        raise outcome
        if count > 1:
            with self.open_batch(count, WINDOW, seed=0) as batch:
                play_batch(batch, observation, example.action_space)

    # ---- acting ----------------------------------------------------------------------------------------------------

    def reset_rl(self) -> None:
        """Start a new episode of the drop-in agent."""
        self._drop_in_session().reset()

    def get_next_action(
        self,
        processor: Any = None,
        continuous_observation: Any = None,
        discrete_observation: Any = None,
        text_observation: str | None = None,
        image_observation: Any = None,
        action_space: Any = None,
        reward: float | None = None,
        deterministic: bool = False,
        context_window: int | None = None,
        return_prediction: bool = False,
    ) -> Any:
        """The published drop-in call: one agent, one step.

        Args:
            processor: not used, may be None; the engine has its own.
            continuous_observation: X numbers.
            discrete_observation: max_discrete_value integers; 64 fewer with a `text_observation`.
            text_observation: the mission; truncated to 64 tokens.
            image_observation: uint8 [84, 84, 4], the four last frames.
            action_space: `gymnasium.spaces.Box` of shape (A,), or `Discrete(n)`.
            reward: of the previous action; None counts as 0. Image observations do not use it.
            deterministic: take the most likely of discrete actions instead of sampling (`torch.multinomial`, one draw
                a step).
            context_window: how many of the newest tokens, two a step, the next step may look back on; at most and by
                default `max_position_embeddings - 4`.
            return_prediction: also return what the action was chosen from.

        Returns:
            The action: a list of A floats, never clipped, or an int. With `return_prediction`, `(action, prediction)`:
            float32 [A], the action vector, or float32 [n], the logits.

        Raises:
            InputError: a field is not what the model takes, or so large that the prediction is not finite.
            SessionError: the call does not fit the episode so far; `reset_rl()` starts a new one.
            CacheFullError: open sessions have left no room for the drop-in agent.
        """
        check_processor(processor, is_needed=False)
        window = None if context_window is None else self._window(context_window)
        observation = {
            "continuous_observation": continuous_observation,
            "discrete_observation": discrete_observation,
            "text_observation": text_observation,
            "image_observation": image_observation,
        }
        session = self._drop_in or self._drop_in_session()
        return session.step(observation, reward, action_space, deterministic, return_prediction, window)

    def _drop_in_session(self) -> AgentSession:
        with self._runner.lock:
            if self._drop_in is None:
                self._drop_in = self.open_session()
            return self._drop_in

    def get_next_actions(
        self,
        sessions: Sequence[AgentSession],
        observations: Sequence[Mapping[str, Any]],
        rewards: Sequence[float | None] | None = None,
        action_spaces: Any = None,
        deterministic: bool = False,
        return_predictions: bool = False,
    ) -> list[Any]:
        """One step of several sessions at once, of any modalities and kinds of action, in one pass over the weights.

        Each session's result is what it would be alone: on a CPU bit for bit, on a GPU within rounding.

        Args:
            sessions: open sessions of this engine, each at most once.
            observations: one mapping a session, with the keys of `get_next_action`.
            rewards: one a session, or None for none.
            action_spaces: one a session, or a single one for all.

        Returns:
            For each session what `AgentSession.get_next_action` returns.

        Raises:
            InputError: the arguments do not fit together; no session has taken a step.
            BatchError: some sessions' inputs were refused. The others have taken their step; `.actions` has theirs.
        """
        begin_ns = perf_counter_ns()
        check_flags(deterministic=deterministic, return_predictions=return_predictions)
        sessions = list_items("sessions", sessions, None)
        count = len(sessions)
        observations = list_items("observations", observations, count)
        rewards = list_items("rewards", [None] * count if rewards is None else rewards, count)
        is_single = not isinstance(action_spaces, list | tuple)
        action_spaces = list_items("action_spaces", [action_spaces] * count if is_single else action_spaces, count)
        if len({id(session) for session in sessions}) != count:
            raise InputError("sessions: expected each at most once, got one twice")

        actions: list[Any] = [None] * count
        errors: dict[int, Exception] = {}
        requests: dict[int, Request] = {}
        runner = self._runner
        with runner.lock:
            for index, session in enumerate(sessions):
                try:
                    self._check_own(session)
                    observation = check_observation(observations[index])
                    requests[index] = runner.parse(
                        session.episodes, observation, rewards[index], action_spaces[index], deterministic
                    )
                except Exception as error:  # nothing has changed yet: whatever it is, it is this session's alone
                    errors[index] = error

            outcomes = runner.run(list(requests.values()))
            for (index, request), outcome in zip(requests.items(), outcomes, strict=True):
                if isinstance(outcome, InputError):
                    errors[index] = outcome
                else:
                    actions[index] = answer(outcome, request.space, return_predictions)
            if not errors:
                runner.calls.add(begin_ns)
        if errors:
            raise BatchError(actions, errors)
        return actions

    def _check_own(self, session: Any) -> None:
        if not isinstance(session, AgentSession) or session.runner is not self._runner:
            raise InputError(f"session: expected one that this engine opened, got {session!r}")
