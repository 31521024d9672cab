"""`JatEngine`: JAT agents, fast. Encode -> embed -> decode -> head -> action, for one session or many."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..backends import Choice, Embedding, Plan, choose_backend
from ..backends.build import set_up
from ..backends.options import STEP_TOKENS, EngineOptions
from ..checkpoint.reader import find_weight_files
from ..checkpoint.weights import CheckpointWeights, ModelWeights, Weights
from ..checkpoint_files import resolve, take_hub_options
from ..config import JatConfig, read_config
from ..errors import BatchError, InputError, SessionError
from ..observation import (
    OBSERVATION_KEYS,
    ActionSpace,
    Limits,
    Observation,
    check_context_window,
    check_processor,
    check_same_episode,
    not_finite,
    parse_action_space,
    parse_observation,
)
from .arguments import check_config, check_flags, check_num_agents, list_items, make_generator, observation_fields
from .batch import AgentBatch
from .fork_lock import make_lock
from .kv_cache import BatchPages, CacheStats, PagePool, Pages
from .missions import Missions
from .sampling import Sampler, choose
from .session import AgentSession, LastStep
from .stats import CallTimes, EngineStats, make_stats
from .warm_up import STEPS, WINDOW, find_example, play_batch

if TYPE_CHECKING:
    from ..envs import Task


class _Step(NamedTuple):
    """One session's checked part of a batch."""

    number: int  # in the call
    session: AgentSession
    observation: Observation
    mission: np.ndarray | None  # int64 [64], its tokens
    space: ActionSpace


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
        self._missions = missions
        self._limit = config.max_position_embeddings - 4
        self._limits = Limits.of(config)
        self._lock = make_lock()
        self.choice, self._backend, num_pages = set_up(config, weights, choice, options, self._limit)
        self._pool = PagePool(num_pages, self._backend.page_size, self._backend.page_bytes)
        self._abandoned: deque[Pages | BatchPages] = deque()  # filled by the garbage collector, at any time
        self._drop_in: AgentSession | None = None
        self._calls = CallTimes()

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
        with self._lock:
            return self._backend.memory

    @property
    def one_launch_reason(self) -> str:
        """Why single agents' steps are not one launch each on a GPU; "" where they are."""
        return str(getattr(self._backend, "one_launch_reason", f"the backend is {self.choice.backend}"))

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
        with self._lock:
            self._collect_abandoned()
            return self._pool.stats

    @property
    def stats(self) -> EngineStats:
        """Counters of calls, latencies and pages. May be read from any thread; it waits for a call that runs."""
        with self._lock:
            calls, recent = self._calls.count, self._calls.recent()
            cache = self.cache_stats
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
        limit, generator = self._window(context_window), make_generator(seed)
        with self._lock:
            self._collect_abandoned()
            session = AgentSession(self, Pages(self._pool, limit + STEP_TOKENS), limit, Sampler(generator))
        session.finalizer = weakref.finalize(session, self._abandoned.append, session.pages)
        return session

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
        limit, generator = self._window(context_window), make_generator(seed)
        return self._make_batch(num_agents, limit, generator, self._calls)

    def _make_batch(
        self, num_agents: int, limit: int, generator: torch.Generator | None, calls: CallTimes
    ) -> AgentBatch:
        with self._lock:
            self._collect_abandoned()
            pages = BatchPages(self._pool, num_agents, limit + STEP_TOKENS)
        return AgentBatch(
            self._backend,
            self._limits,
            self._missions,
            self._lock,
            pages,
            limit,
            generator,
            self._abandoned.append,
            calls,
        )

    def _window(self, context_window: Any) -> int:
        """How many tokens a session keeps."""
        window = check_context_window(context_window)
        return self._limit if window is None else min(window, self._limit)

    def reset_session(self, session: AgentSession) -> None:
        """What `AgentSession.reset` does."""
        with self._lock:
            self._check_open(session)
            session.pages.clear()
            session.last, session.is_computed = None, False

    def close_session(self, session: AgentSession) -> None:
        """What `AgentSession.close` does."""
        with self._lock:
            self._check_own(session)
            if not session.closed:
                assert session.finalizer is not None, "set when it was opened"
                session.finalizer.detach()
                session.pages.close()
                session.closed, session.last = True, None

    def _collect_abandoned(self) -> None:
        """Take back the room of sessions that were dropped without being closed."""
        while self._abandoned:
            self._abandoned.popleft().close()

    def _check_own(self, session: AgentSession) -> None:
        if not isinstance(session, AgentSession) or session.engine is not self:
            raise InputError(f"session: expected one that this engine opened, got {session!r}")

    def _check_open(self, session: AgentSession) -> None:
        self._check_own(session)
        if session.closed:
            raise SessionError("session: expected an open one, got one that was closed")

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
        fields = observation_fields(example.observation)
        with contextlib.ExitStack() as stack:
            sessions = [stack.enter_context(self.open_session(WINDOW, seed=0)) for _ in range(count)]
            for number in range(STEPS):
                with self._lock:
                    steps = [self._parse(i, s, *fields, None, example.action_space) for i, s in enumerate(sessions)]
                    results = self._step(steps, bool(number % 2), False)
                for result in results:
                    if isinstance(result, InputError):
                        raise result
        if count > 1:
            with self._make_batch(count, WINDOW, make_generator(0), CallTimes()) as batch:
                play_batch(batch, fields, example.action_space)

    # ---- acting ----------------------------------------------------------------------------------------------------

    def reset_rl(self) -> None:
        """Start a new episode of the drop-in agent."""
        with self._lock:
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
        limit = self._window(context_window)
        fields = continuous_observation, discrete_observation, text_observation, image_observation
        with self._lock:
            session = self._drop_in_session()
            before = session.limit
            session.limit = limit
            try:
                return self.step_one(session, *fields, action_space, reward, deterministic, return_prediction)
            except BaseException:
                session.limit = before
                raise

    def _drop_in_session(self) -> AgentSession:
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
        steps: list[_Step] = []
        with self._lock:
            for index in range(count):
                try:
                    fields = observation_fields(observations[index])
                    step = self._parse(index, sessions[index], *fields, rewards[index], action_spaces[index])
                    steps.append(step)
                except Exception as error:  # nothing has changed yet: whatever it is, it is this session's alone
                    errors[index] = error
            for step, result in zip(steps, self._step(steps, deterministic, return_predictions), strict=True):
                if isinstance(result, InputError):
                    errors[step.number] = result
                else:
                    actions[step.number] = result
            if not errors:
                self._calls.add(begin_ns)
        if errors:
            raise BatchError(actions, errors)
        return actions

    def step_one(
        self,
        session: AgentSession,
        continuous_observation: Any,
        discrete_observation: Any,
        text_observation: Any,
        image_observation: Any,
        action_space: Any,
        reward: Any,
        deterministic: bool,
        return_prediction: bool,
    ) -> Any:
        """What `AgentSession.get_next_action` does: a batch of one, whose error is raised as it is."""
        begin_ns = perf_counter_ns()
        check_flags(deterministic=deterministic, return_prediction=return_prediction)
        with self._lock:
            fields = continuous_observation, discrete_observation, text_observation, image_observation
            step = self._parse(0, session, *fields, reward, action_space)
            (result,) = self._step([step], deterministic, return_prediction)
            if isinstance(result, InputError):
                raise result
            self._calls.add(begin_ns)
        return result

    def _parse(
        self,
        number: int,
        session: Any,
        continuous_observation: Any,
        discrete_observation: Any,
        text_observation: Any,
        image_observation: Any,
        reward: Any,
        action_space: Any,
    ) -> _Step:
        self._check_open(session)
        observation = parse_observation(
            self._limits,
            continuous_observation=continuous_observation,
            discrete_observation=discrete_observation,
            text_observation=text_observation,
            image_observation=image_observation,
            reward=reward,
        )
        space = parse_action_space(self._limits, action_space)
        last = session.last
        if last is not None:
            check_same_episode(last.observation, last.space, observation, space)
        mission = None if observation.text is None else self._missions.encode(observation.text)
        return _Step(number, session, observation, mission, space)

    def _step(self, steps: list[_Step], deterministic: bool, with_prediction: bool) -> list[Any]:
        """The action of each session, or the `InputError` that says why there is none."""
        if not steps:
            return []
        embeddings = self._encode(steps)
        plan = self._plan(steps, embeddings, deterministic)
        results: list[Any] = []
        for step, embedding, noise, (prediction, is_finite, choice) in zip(
            steps, embeddings, plan.noise, self._backend.decode(plan), strict=True
        ):
            if not is_finite:
                results.append(not_finite(step.observation))
                continue
            chosen: Any = prediction
            action: Any
            if step.space.kind == "continuous":
                action = prediction.tolist()
            else:
                chosen = action = choose(prediction, noise) if choice is None else choice
                if noise is not None:
                    step.session.sampler.used()
            self._advance(step, embedding, chosen)
            # The prediction is also the session's last action: the caller gets a copy.
            results.append((action, prediction.copy()) if with_prediction else action)
        return results

    def _encode(self, steps: list[_Step]) -> list[Embedding]:
        """Each observation's embedding; images together, and integers together."""
        embeddings: list[Embedding] = [None] * len(steps)
        images, discrete = [], []
        for index, (_, _, observation, _, _) in enumerate(steps):
            if observation.modality == "continuous":
                embeddings[index] = self._backend.embed_continuous(observation.values, observation.reward)
            elif observation.modality == "image":
                images.append(index)
            else:
                discrete.append(index)
        if images:
            frames = [steps[index].observation.values for index in images]
            for index, embedding in zip(images, self._backend.embed_images(frames), strict=True):
                embeddings[index] = embedding
        if discrete:
            values = [steps[index].observation.values for index in discrete]
            missions = [steps[index].mission for index in discrete]
            rewards = [steps[index].observation.reward for index in discrete]
            for index, embedding in zip(discrete, self._backend.embed_discrete(values, missions, rewards), strict=True):
                embeddings[index] = embedding
        return embeddings

    def _plan(self, steps: list[_Step], embeddings: list[Embedding], deterministic: bool) -> Plan:
        """Each session's new tokens: [s_0], or [s_{t-1}, a_{t-1}, s_t] less what is computed already."""
        plan = Plan([], [], [], [], [], [], [])
        for step, embedding in zip(steps, embeddings, strict=True):
            session = step.session
            pages, last = session.pages, session.last
            context_len, num_new = pages.num_tokens, 1
            if last is not None:
                if session.is_computed:
                    context_len += 1
                else:
                    plan.embeddings.append(last.embedding)
                    num_new += 1
                plan.embeddings.append(self._embed_action(last))
                num_new += 1
            plan.embeddings.append(embedding)
            pages.make_room(context_len + num_new)
            plan.num_new.append(num_new)
            plan.context_lens.append(context_len)
            plan.start_offsets.append(pages.start_offset)
            plan.page_tables.append(pages.table)
            plan.spaces.append(step.space)
            is_sampled = step.space.kind == "discrete" and not deterministic
            plan.noise.append(session.sampler.draw(step.space.size) if is_sampled else None)
        return plan

    def _embed_action(self, last: LastStep) -> Embedding:
        if last.space.kind == "continuous":
            return self._backend.embed_continuous(last.action, None)
        return self._backend.embed_choice(last.action, last.space.size)

    def _advance(self, step: _Step, embedding: Embedding, action: Any) -> None:
        """Take the step's tokens into the session. s_t is not one of them: it is fed again, with its action."""
        session = step.session
        kept = session.pages.num_tokens + (2 if session.last is not None else 0)
        dropped = session.pages.keep(kept, session.limit)
        # s_t lies behind the kept tokens. It is what the next step would compute unless its position changes.
        session.is_computed = not dropped
        session.last = LastStep(step.observation, embedding, step.space, action)
