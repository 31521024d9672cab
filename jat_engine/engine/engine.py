"""`JatEngine`: the engine's public class, which opens agents and takes their steps."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from ..action_options import parse_options
from ..backends import Backend, Choice, choose_backend
from ..backends.build import set_up
from ..backends.options import EngineOptions, take_transformers_options
from ..checkpoint.quantized import read_quantization
from ..checkpoint.reader import find_weight_files
from ..checkpoint.weights import CheckpointWeights, ModelWeights, Weights, identifying_parameters
from ..checkpoint_files import resolve, take_hub_options
from ..config import JatConfig, read_config
from ..errors import InputError
from ..observation import OBSERVATION_KEYS, check_context_window, check_processor
from ..text.assets import TextAssets
from .arguments import (
    check_config,
    check_counts,
    check_flags,
    check_num_agents,
    check_observation,
    list_items,
    list_options,
    make_generator,
    spread,
)
from .batch import AgentBatch
from .fork_lock import make_lock
from .kv_cache import CacheStats
from .missions import Missions
from .scorer import TextScorer
from .session import AgentSession
from .snapshot import fingerprint, read, restore
from .stats import EngineStats, make_stats
from .step import StepRunner
from .step_sessions import step_sessions
from .text_batch import TextBatch
from .warm_up import STEPS, WINDOW, find_example, play_batch
from .writer import TextWriter

if TYPE_CHECKING:
    from ..envs import Task


class JatEngine(TextWriter, TextScorer):
    """Inference engine that runs JAT agents from a checkpoint's weights.

    `reset_rl` and `get_next_action` have the published model's interface and run one agent. `open_session` opens any
    number of independent agents; `get_next_actions` takes one step of several of them at once. `open_batch` opens
    agents of one task that step together, with arrays as input and output. Different sessions and batches may be used
    from different threads.

    Attributes:
        config: the checkpoint's `JatConfig`.
        choice: device, backend and dtype, with the reason for that backend.
    """

    def __init__(self, config: JatConfig, weights: Weights, choice: Choice, options: EngineOptions, assets: TextAssets):
        self.config = config
        with make_lock():  # a fork and the exit wait for native code and torch
            self.choice, backend, num_pages = set_up(config, weights, choice, options, config.max_context_tokens)
        self._runner = StepRunner(config, backend, num_pages, Missions(assets.tokenizer, config.vocab_size))
        self._assets, self._texts = assets, TextBatch(self._runner, options.prefill_chunk)
        self._drop_in: AgentSession | None = None
        self._identity = {
            "backend": self.choice.backend,
            "dtype": self.choice.dtype,
            "page_bytes": backend.page_bytes,
            "page_size": backend.page_size,
            "max_window": config.max_context_tokens,
            "weights": fingerprint(weights.get, identifying_parameters(config)),
        }

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

        Only safetensors are read: they are memory-mapped, and each weight is packed as it is read. Every parameter that
        acting needs must be present, finite and of the configured shape. `trust_remote_code` is accepted and ignored:
        code in a checkpoint is never run.

        Args:
            path_or_hub_id: a folder with `config.json` and safetensors, a repository on the hub, or "jat-mini", the
                checkpoint that comes with the package.
            device: "auto", "cpu", "cuda" or another device that torch has.
            dtype: of weights and KV cache: "float32", "bfloat16", "float16" (not on the native CPU backend), "int8" (on
                a CPU weights and activations, on a GPU weights; the cache is bfloat16), "int4" (native CPU backend
                only: weights of 4 bits, activations of 8), or "auto". A quantised checkpoint's own dtype takes its
                codes as they are, and is what "auto" selects on the native CPU backend; any other dtype begins with the
                weights that the codes stand for.
            backend: "cuda" for kernels for NVIDIA GPUs, "cpu" for native kernels, "torch" for plain torch operations on
                any device, or "auto". `jat-engine info` prints what "auto" selects on this machine and why.
            engine_options: fields of `EngineOptions`, and the options with which transformers finds a checkpoint
                (`revision`, `cache_dir`, `token`, `subfolder`, `variant`, `local_files_only`, ...). `torch_dtype` and
                `device_map` are taken for `dtype` and `device`.

        Raises:
            CheckpointError: a file or parameter is missing or invalid; the message names it.
            InputError: an option is unknown, or not supported on this machine.

        Example:
            >>> JatEngine.from_pretrained("jat-mini", device="cpu", dtype="float32", backend="torch")
            JatEngine(backend='torch', dtype='float32', device='cpu')
        """
        engine_options.pop("trust_remote_code", None)
        hub = take_hub_options(engine_options)
        source = resolve(path_or_hub_id, hub.get("subfolder"))
        variant = engine_options.pop("variant", None)
        device, dtype = take_transformers_options(engine_options, device, dtype)
        options = EngineOptions.parse(engine_options)
        config, quantization = read_config(source, hub, {}), read_quantization(source, hub)
        stored = None if quantization is None else quantization.dtype
        choice = choose_backend(device, dtype, backend, config.hidden_size // config.num_heads, stored)
        check_config(config)
        with make_lock():  # see __init__
            weights = CheckpointWeights(find_weight_files(source, variant, hub), config, quantization)
            weights.check_unread()
            return cls(config, weights, choice, options, TextAssets.of_checkpoint(source, hub, config))

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
        """Make an engine with a copy of a `JatModel`'s present weights, for instance between epochs of training.

        Args:
            model: a `JatModel`, also inside DataParallel or compiled by torch; later changes to its weights do not
                reach the engine.
            processor: a `JatProcessor`; needed for text observations.
            device: as for `from_pretrained`.
            dtype: as for `from_pretrained`.
            backend: as for `from_pretrained`.
            engine_options: fields of `EngineOptions`.

        Raises:
            CheckpointError: a parameter is not finite; the message names it.
            InputError: `model` is not a `JatModel`, or an option is unknown or not supported on this machine.

        Example:
            >>> JatEngine.from_model(model, processor, device="cpu", dtype="float32", backend="torch")
            JatEngine(backend='torch', dtype='float32', device='cpu')
        """
        from ..model.unwrap import unwrap  # slow to import, unless a model is there already

        model = unwrap(model)
        device, dtype = take_transformers_options(engine_options, device, dtype)
        options = EngineOptions.parse(engine_options)
        choice = choose_backend(device, dtype, backend, model.config.hidden_size // model.config.num_heads)
        check_config(model.config)
        assets = TextAssets.of_model(model, processor)
        return cls(model.config, ModelWeights(model, model.config), choice, options, assets)

    # ---- the end ---------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._runner.closed

    def close(self) -> None:
        """Free memory and threads, and close all sessions and batches. Closing twice does nothing.

        An engine that is no longer referred to frees them as well.
        """
        self._runner.close()

    def __enter__(self) -> JatEngine:
        self._runner.check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        """Refuse pickling and copying: an engine holds threads and memory of this process."""
        raise TypeError("an engine cannot be pickled or copied; load one in each process, JatEngine.from_pretrained")

    # ---- what it is ------------------------------------------------------------------------------------------------

    @property
    def _backend(self) -> Backend:
        self._runner.check_open()
        return self._runner.backend

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
        """Bytes allocated on the device, by purpose: "weights", "cache" and, on some backends, more."""
        with self._runner.lock:
            return self._backend.memory

    @property
    def persistent_reason(self) -> str:
        """Reason why a single agent's step does not run in the persistent kernel; "" if it does."""
        return self._backend.persistent_reason

    @property
    def persistent_geometry(self) -> dict[str, int]:
        """Launch geometry of the persistent kernel: blocks, threads, bytes; empty if it is not in use."""
        return dict(getattr(self._backend, "persistent_geometry", {}))

    @property
    def native_seconds(self) -> float | None:
        """Cumulative seconds in native calls; None if the backend does not count them."""
        seconds: float | None = getattr(self._backend, "native_seconds", None)
        return seconds

    @property
    def cache_stats(self) -> CacheStats:
        """The KV cache's counters."""
        with self._runner.lock:
            return self._runner.cache_stats()

    @property
    def stats(self) -> EngineStats:
        """Counters of calls, latencies and pages. Any thread may read them; it waits for a running call."""
        runner = self._runner
        with runner.lock:
            calls, recent, cache = runner.calls.count, runner.calls.recent(), runner.cache_stats()
        return make_stats(calls, recent, cache.used, cache.free)

    def __repr__(self) -> str:
        choice = self.choice
        state = ", closed" if self.closed else ""
        return f"JatEngine(backend={choice.backend!r}, dtype={choice.dtype!r}, device={str(choice.device)!r}{state})"

    # ---- sessions --------------------------------------------------------------------------------------------------

    def open_session(
        self, context_window: int | None = None, seed: int | torch.Generator | None = None
    ) -> AgentSession:
        """Open a session: an agent with its own episode and its own pages of the KV cache.

        Args:
            context_window: how many of the newest cached tokens, two per step, a step attends to; by default and at
                most `max_position_embeddings - 4`.
            seed: for sampling discrete actions. Or a CPU generator, such as `AgentSession.generator` of a session whose
                numbers go on, of which a copy is used. With None, torch's global generator is used.

        Raises:
            InputError: an argument has an invalid type or value.
            CacheFullError: the KV cache has too few free pages.

        Example:
            >>> with engine.open_session(context_window=128, seed=0) as session:
            ...     action = session.get_next_action(**observation, action_space=env.action_space)
            ...     observation, reward, *_ = env.step(action)
            ...     action = session.get_next_action(**observation, action_space=env.action_space, reward=reward)
            ...     session.num_cached_tokens
            2
        """
        window, generator = self._window(context_window), make_generator(seed)
        return AgentSession(self._runner, self._runner.open(window, generator), self._identity)

    def restore(self, snapshot: bytes) -> AgentSession:
        """Open a session that goes on where `AgentSession.snapshot` was taken.

        Args:
            snapshot: of a session of this engine, or of one with the same backend, dtype and weights.

        Raises:
            InputError: the bytes are damaged, or of another engine; the message names the difference.
            CacheFullError: the KV cache has too few free pages.
            SessionError: the engine is closed.
        """
        return AgentSession(self._runner, restore(self._runner, read(snapshot), self._identity), self._identity)

    def open_batch(self, num_agents: int, context_window: int | None = None, seed: int | None = None) -> AgentBatch:
        """Open a batch: N agents that step together, for a vector environment of one task.

        Args:
            num_agents: N, at least 1.
            context_window: as for `open_session`.
            seed: for sampling the discrete actions of all agents. With None, torch's global generator is used.

        Raises:
            InputError: an argument has an invalid type or value.
            CacheFullError: the KV cache has too few free pages.

        Example:
            >>> with engine.open_batch(8, seed=0) as batch:
            ...     actions = batch.get_next_actions(
            ...         discrete_observations=[observation["discrete_observation"]] * 8,
            ...         text_observations=[observation["text_observation"]] * 8,
            ...         action_space=env.action_space,
            ...     )
            >>> actions.shape, actions.dtype
            ((8,), dtype('int64'))
        """
        num_agents = check_num_agents(num_agents)
        window, generator = self._window(context_window), make_generator(seed)
        return AgentBatch(self._runner, self._runner.open(window, generator, num_agents), num_agents)

    def _window(self, context_window: Any) -> int:
        """Return how many tokens a session keeps. Raises `InputError` for an invalid context window."""
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
        num_agents: int | Iterable[int] = 1,
    ) -> None:
        """Run a few steps in temporary sessions, so that the first real step is as fast as the later ones.

        This does the one-time work: select and pack rows of the heads, tokenise the mission, start threads, allocate
        memory and, on a GPU, compile kernels and capture graphs. Open sessions, random generators and `stats` are not
        changed.

        Args:
            continuous_observation: an example of what `get_next_action` will be given; its shape matters, not its
                values. The same holds for the next four.
            discrete_observation: as above.
            text_observation: as above, except that its text matters: tokens of missions are cached.
            image_observation: as above.
            action_space: as above.
            task: instead of an example, a published task or its name; its environment is made, and closed again.
            num_agents: how many agents will step together, in sessions or as a batch. If that varies, since sessions
                come and go, all numbers that occur, such as `range(1, 65)`: a GPU has graphs for each of about 30 sizes
                up to 1024, and those that are not prepared are captured in mid-episode.

        Raises:
            InputError: an argument has an invalid type or value.
            CacheFullError: the KV cache has no room for `num_agents` short sessions; warm up before opening sessions.
            MissingSimulatorError, UnknownTaskError: for a task, see `jat_engine.envs.make`.

        Example:
            >>> engine.warm_up(**observation, action_space=env.action_space)
            >>> engine.warm_up(task="babyai-go-to-obj", num_agents=range(1, 5))
        """
        counts = self._backend.num_agents_to_warm_up(check_counts(num_agents))
        given = continuous_observation, discrete_observation, text_observation, image_observation
        example = find_example(dict(zip(OBSERVATION_KEYS, given, strict=True)), action_space, task)
        observation = check_observation(example.observation)
        for count in counts:
            self._warm_up(count, observation, example.action_space)

    def _warm_up(self, count: int, observation: Mapping[str, Any], action_space: Any) -> None:
        """Take steps of `count` agents, as sessions and as a batch."""
        with contextlib.ExitStack() as stack:
            sessions = [stack.enter_context(self.open_session(WINDOW, seed=0)) for _ in range(count)]
            for number in range(STEPS):
                inputs, runner = (observation, None, action_space, bool(number % 2)), self._runner
                with runner.lock, runner.one_step(): self._step_uncounted(sessions, *inputs)  # noqa: E701  # fmt: skip

        # A batch of one agent runs nothing that a session does not.
        if count > 1:
            with self.open_batch(count, WINDOW, seed=0) as batch:
                play_batch(batch, observation, action_space)

    def _step_uncounted(self, sessions: list[AgentSession], *inputs: Any) -> None:
        """Take a step of all sessions with one input. The caller holds the lock."""
        runner = self._runner
        for outcome in runner.run([runner.parse(session.episodes, *inputs) for session in sessions]):
            if isinstance(outcome, InputError):
                raise InputError(*outcome.args)  # not `outcome`, which this frame would keep alive, and it this frame
        last = sessions[0].episodes.state.last
        assert last is not None, "a step has been taken"
        runner.find_quick_step(last)

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
        *,
        action_mask: Any = None,
        temperature: float | None = None,
        top_k: int | None = None,
        action_clip: str | None = None,
    ) -> Any:
        """Take one step of the drop-in agent, with the published model's signature.

        Invalid input leaves the agent as it was.

        Args:
            processor: ignored, may be None; the engine has its own.
            continuous_observation: [X] numbers, computed in float32.
            discrete_observation: up to max_discrete_value integers, 64 fewer with a `text_observation`; padded with 0
                at the end.
            text_observation: the mission; truncated to 64 tokens.
            image_observation: uint8 [84, 84, 4], the last four frames.
            action_space: `gymnasium.spaces.Box` of shape (A,), or `Discrete(n)`.
            reward: of the previous action; None stands for 0. Ignored with image observations.
            deterministic: take the most likely discrete action instead of sampling (as `torch.multinomial`, one draw
                per step).
            context_window: how many of the newest cached tokens, two per step, the next step attends to; by default
                and at most `max_position_embeddings - 4`.
            return_prediction: also return the prediction that the action was chosen from.
            action_mask: bool [n], the allowed discrete actions; None allows all. An environment's mask of zeros and
                ones, such as `info["action_mask"]`, is taken as well.
            temperature: of sampling, from softmax(logits / temperature); None stands for 1, and 0 for `deterministic`.
                The random numbers are those of a call without mask, temperature and `top_k`.
            top_k: sample from this many most likely allowed actions; None for all.
            action_clip: "box" to clip continuous actions to the action space's `low` and `high`, which are then also
                those of the agent's history; None for actions as predicted.

        Returns:
            The action: a list of A floats, not clipped unless `action_clip` is given, or an int. With
            `return_prediction` a tuple `(action, prediction)`; the prediction is the action vector, float32 [A], not
            clipped, or the logits of all actions, float32 [n].

        Raises:
            InputError: a field has a type, shape or value that the model does not accept, or is so large that the
                prediction is not finite.
            SessionError: the observation's modality or size, or the kind of action, differs from the running episode's;
                `reset_rl()` starts a new one.
            CacheFullError: open sessions have left no room for the drop-in agent.

        Example:
            >>> engine.reset_rl()
            >>> action = engine.get_next_action(**observation, action_space=env.action_space)
            >>> observation, reward, *_ = env.step(action)
            >>> action, logits = engine.get_next_action(
            ...     **observation,
            ...     action_space=env.action_space,
            ...     reward=reward,
            ...     deterministic=True,
            ...     return_prediction=True,
            ... )
            >>> logits.shape, logits.dtype
            ((7,), dtype('float32'))
        """
        check_processor(processor, is_needed=False)
        window = None if context_window is None else self._window(context_window)
        observation = {
            "continuous_observation": continuous_observation,
            "discrete_observation": discrete_observation,
            "text_observation": text_observation,
            "image_observation": image_observation,
        }
        options = None
        if action_mask is not None or temperature is not None or top_k is not None or action_clip is not None:
            options = parse_options(action_mask, temperature, top_k, action_clip)
        session = self._drop_in or self._drop_in_session()
        return session.step(observation, reward, action_space, deterministic, return_prediction, window, options)

    def _drop_in_session(self) -> AgentSession:
        with self._runner.lock:
            if self._drop_in is None:
                runner = self._runner
                # As published: the reward that comes with the first observation is used.
                episodes = runner.open(runner.max_window, None, uses_first_reward=True)
                self._drop_in = AgentSession(runner, episodes, self._identity)
            return self._drop_in

    def get_next_actions(
        self,
        sessions: Sequence[AgentSession],
        observations: Sequence[Mapping[str, Any]],
        rewards: Sequence[float | None] | None = None,
        action_spaces: Any = None,
        deterministic: bool | Sequence[bool] = False,
        return_predictions: bool = False,
        *,
        action_masks: Sequence[Any] | None = None,
        temperature: float | Sequence[float | None] | None = None,
        top_k: int | Sequence[int | None] | None = None,
        action_clip: str | Sequence[str | None] | None = None,
        context_windows: Sequence[int | None] | None = None,
    ) -> list[Any]:
        """Take one step of several sessions at once, in one pass over the weights.

        Modalities and action spaces may differ between sessions. Each session's result is the same as if it had stepped
        alone: on a CPU bit for bit, on a GPU within rounding.

        Args:
            sessions: S open sessions of this engine, each at most once.
            observations: S mappings with `get_next_action`'s keywords.
            rewards: S numbers or None, of the sessions' previous actions; None for no rewards at all.
            action_spaces: a list or tuple of S spaces, or one space for all sessions.
            deterministic: as for `get_next_action`, for all sessions; or a list or tuple of S bools.
            return_predictions: also return predictions, for all sessions.
            action_masks: S masks or None, as for `get_next_action`; None for no masks at all.
            temperature: as for `get_next_action`, for all sessions with discrete actions; or a list or tuple of S
                numbers or None.
            top_k: likewise.
            action_clip: as for `get_next_action`, for all sessions with continuous actions; or a list or tuple of S.
            context_windows: S windows for the next step, as for `get_next_action`, or None for a session's own, which
                is the longest; None for the own ones of all sessions.

        Returns:
            A list of S results, each as `AgentSession.get_next_action` returns it.

        Raises:
            InputError: the arguments do not fit together; no session has taken a step.
            BatchError: the input of some sessions was refused; `.errors` has the reason for each. The other sessions
                have taken their step; `.actions` has their actions.

        Example:
            >>> sessions = [engine.open_session(seed=seed) for seed in (0, 1)]
            >>> actions = engine.get_next_actions(
            ...     sessions, [observation, observation], action_spaces=env.action_space
            ... )
            >>> [env.action_space.contains(action) for action in actions]
            [True, True]
            >>> for session in sessions:
            ...     session.close()
        """
        begin_ns = perf_counter_ns()
        check_flags(return_predictions=return_predictions)
        sessions = list_items("sessions", sessions, None)
        count = len(sessions)
        observations = list_items("observations", observations, count)
        rewards = list_items("rewards", [None] * count if rewards is None else rewards, count)
        is_single = not isinstance(action_spaces, list | tuple)
        action_spaces = list_items("action_spaces", [action_spaces] * count if is_single else action_spaces, count)
        if len({id(session) for session in sessions}) != count:
            raise InputError("sessions: expected each at most once, got one twice")

        flags = spread("deterministic", deterministic, count)
        if not isinstance(deterministic, list | tuple):
            check_flags(deterministic=deterministic)
        windows = list_items("context_windows", [None] * count if context_windows is None else context_windows, count)
        options = list_options(count, action_masks, temperature, top_k, action_clip)
        arguments = sessions, observations, rewards, action_spaces, flags, return_predictions, windows, options
        runner = self._runner
        runner.waiting.append(None)
        with runner.lock, runner.one_step(): return step_sessions(runner, begin_ns, *arguments)  # noqa: E701  # fmt: skip
