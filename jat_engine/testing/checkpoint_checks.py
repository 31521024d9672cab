"""`CheckpointChecks`, which compare `JatEngine` with `JatModel` on the weights of one checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..checkpoint.reader import check_header, find_weight_files
from ..checkpoint_files import find_file, resolve
from ..config import JatConfig, read_config
from ..engine.engine import JatEngine
from ..engine.missions import Missions
from ..errors import InputError
from ..observation import Limits, parse_action_space, parse_observation
from .agreement import TOLERANCES as BENCH_TOLERANCES
from .agreement import errors
from .outcome import CheckFailedError, Outcome, SkipCheckError, run_check
from .recordings import Recording, load_recordings

TOLERANCES = {**BENCH_TOLERANCES, "float32": 1e-4, "float16": 0.01}
"""Engine dtype -> largest accepted error of a step compared with `JatModel` in float32, as measured by `errors`.

Each limit lies between the errors of rounding and those of mistakes. In float32 rounding gives up to 1e-5 (published
size, random weights). The exact gelu instead of its approximation gives up to 2e-3 on the golden model and 4e-4 on
jat-mini, and a local window that is one token too short gives at least 3e-2.
"""

PROMPT = "The red ball is"
_NEW_TOKENS = 8

_SIZES = (
    "hidden_size",
    "num_layers",
    "num_heads",
    "max_position_embeddings",
    "vocab_size",
    "max_continuous_size",
    "max_discrete_value",
)


class CheckpointChecks:
    """Checks of one checkpoint, in a fixed order. Later checks use the objects that earlier ones loaded.

    Attributes:
        config, model, processor, engine: the objects loaded so far, else None.

    Example:
        >>> for outcome in CheckpointChecks("jat-mini").run():
        ...     print(outcome.status, outcome.name)
    """

    def __init__(
        self,
        source: str,
        *,
        device: str = "auto",
        dtype: str = "float32",
        backend: str = "auto",
        cache_dir: str | None = None,
    ) -> None:
        """Prepare the checks. Nothing is read yet.

        Args:
            source: a folder, a repository id on the hub, or "jat-mini".
            device: device of the engine. The model is always in float32 on the CPU.
            dtype: dtype of the engine.
            backend: backend of the engine.
            cache_dir: folder for downloads.
        """
        self._source = source
        self._hub: dict[str, Any] = {} if cache_dir is None else {"cache_dir": cache_dir}
        self._engine_options = {"device": device, "dtype": dtype, "backend": backend}
        self.config: JatConfig | None = None
        self.model: Any = None
        self.processor: Any = None
        self.engine: JatEngine | None = None
        self._why_no_text = "the tokenizer was not loaded"

    def run(self) -> Iterator[Outcome]:
        """Run the checks one by one and yield their outcomes. If the files cannot be read, only the first is run."""
        files = run_check("files", self.check_files)
        yield files
        if files.status == "FAIL":
            return

        yield run_check("JatModel", self.load_model)
        yield run_check("JatEngine", self.load_engine)
        yield run_check("tokenizer", self.load_processor)
        for recording in load_recordings():
            yield run_check(f"compare {recording.task.name}", functools.partial(self.compare, recording))
        yield run_check("text", self.generate)

    # ---- loading ---------------------------------------------------------------------------------------------------

    def check_files(self) -> str:
        """Read the configuration and the headers of the weight files, downloading them if needed."""
        source = resolve(self._source)
        self.config = config = read_config(source, dict(self._hub), {})
        files = find_weight_files(source, None, dict(self._hub))

        dtypes: set[str] = set()
        for file in files:
            check_header(file)
            with safe_open(file, framework="pt") as tensors:
                dtypes |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118 (not a dict)

        size_mb = sum(file.stat().st_size for file in files) / 1e6
        published = JatConfig()
        is_published = all(getattr(config, name) == getattr(published, name) for name in _SIZES)
        parts = [
            f"{', '.join(file.name for file in files)}: {size_mb:.1f} MB, {'/'.join(sorted(dtypes))}",
            "config.json: " + ", ".join(f"{name} {getattr(config, name)}" for name in _SIZES),
            "the published sizes" if is_published else "not the published sizes",
        ]
        revision = _revision(files[0])
        return "; ".join([*parts, f"revision {revision}"] if revision else parts)

    def load_model(self) -> str:
        """Load `JatModel`, the reference, in float32 on the CPU."""
        from ..model.modeling import JatModel

        self.model = JatModel.from_pretrained(self._source, dtype=torch.float32, **self._hub).eval()
        num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return f"{num_parameters / 1e6:.1f} M parameters, float32, on the CPU"

    def load_engine(self) -> str:
        """Load the engine."""
        self.engine = JatEngine.from_pretrained(self._source, **self._engine_options, **self._hub)
        choice = self.engine.choice
        return f"backend {choice.backend}, {choice.dtype}, on {choice.device}: {choice.reason}"

    def load_processor(self) -> str:
        """Load the tokenizer, and compare the tokens of recorded missions in `JatProcessor` and `JatEngine`."""
        from ..model.processing import JatProcessor

        config = self._config()
        # Tasks without missions need a processor too, but no tokens; this one serves if there is no tokenizer.
        self.processor = JatProcessor.byte_level(config)
        if find_file(resolve(self._source), "tokenizer.json", dict(self._hub)) is None:
            self._why_no_text = "the checkpoint has no tokenizer.json"
            raise SkipCheckError(f"{self._why_no_text}: it can neither be given missions nor write text") from None

        self._why_no_text = "the tokenizer failed"
        processor = JatProcessor.from_pretrained(self._source, **self._hub)
        size, vocab_size = len(processor.tokenizer), config.vocab_size
        if size > vocab_size:
            raise CheckFailedError(
                f"expected at most vocab_size={vocab_size} tokens, got {size}; the tokenizer is not the model's"
            )

        missions = [mission for recording in load_recordings() for mission in recording.missions]
        engine_missions = Missions.of_checkpoint(resolve(self._source), dict(self._hub), vocab_size)
        counts = []
        for mission in missions:
            expected, got = processor.encode_mission(mission), engine_missions.encode(mission).tolist()
            if got != expected:
                at = next(i for i, pair in enumerate(zip(got, expected, strict=True)) if pair[0] != pair[1])
                raise CheckFailedError(
                    f"{mission!r}: expected JatProcessor's token {expected[at]} at {at}, JatEngine has {got[at]}; "
                    "tokenizer.json and tokenizer_config.json describe different tokenizers"
                )
            counts.append(len(processor.tokenizer(mission)["input_ids"]))

        self.processor, self._why_no_text = processor, ""
        rest = "" if size == vocab_size else f", so {vocab_size - size} rows of the embedding have none"
        return f"{size} tokens of vocab_size {vocab_size}{rest}; missions have {', '.join(map(str, counts))} tokens"

    # ---- computing -------------------------------------------------------------------------------------------------

    def compare(self, recording: Recording) -> str:
        """Play a recording with model and engine, greedily, and compare their predictions of each step.

        Each agent is fed its own actions. If the actions differ although the predictions agree within the tolerance
        (two logits are nearly equal), both start a new episode, since their inputs would differ from then on.

        Args:
            recording: observations and rewards of a task.

        Raises:
            SkipCheckError: model or engine was not loaded, or the task does not fit the checkpoint.
            CheckFailedError: an error exceeds the tolerance of the engine's dtype.
        """
        self.require_input(recording.observations[0], recording.action_space)
        model, engine = self._require_model(), self.require_engine()

        predictions: list[Any] = []
        expected: list[Any] = []
        num_restarts = 0
        model.reset_rl()
        engine.reset_rl()
        for observation, reward in zip(recording.observations, recording.rewards, strict=True):
            step = {
                **observation,
                "reward": reward,
                "action_space": recording.action_space,
                "context_window": recording.task.context_window,
                "deterministic": True,
                "return_prediction": True,
            }
            wanted_action, wanted = _act("JatModel", model, self.processor, step, len(expected))
            action, got = _act("JatEngine", engine, None, step, len(expected))
            expected.append(wanted)
            predictions.append(got)
            if isinstance(action, int) and action != wanted_action:
                num_restarts += 1
                model.reset_rl()
                engine.reset_rl()

        step_errors = errors(predictions, expected)
        worst = int(step_errors.argmax())
        tolerance = TOLERANCES[engine.choice.dtype]
        if not step_errors[worst] <= tolerance:
            raise CheckFailedError(
                f"expected an error of at most {tolerance:g} in {engine.choice.dtype}, got {step_errors[worst]:.2g} at "
                f"step {worst} of {len(step_errors)}: JatModel {_numbers(expected[worst])}, "
                f"JatEngine {_numbers(predictions[worst])}"
            )
        remark = f"; {num_restarts} choices between nearly equal logits differ" if num_restarts else ""
        return f"{len(step_errors)} steps, largest error {step_errors[worst]:.2g} of at most {tolerance:g}{remark}"

    def generate(self) -> str:
        """Generate a few tokens with and without the key-value cache, and compare them."""
        if self._why_no_text:
            raise SkipCheckError(self._why_no_text)
        model = self._require_model()
        inputs = self.processor(text=PROMPT, return_tensors="pt")
        prompt_length = inputs["input_ids"].shape[1]
        room = self._config().max_position_embeddings - prompt_length
        if room < 1:
            raise SkipCheckError(f"expected max_position_embeddings > {prompt_length} tokens of the prompt")

        options = {"max_new_tokens": min(room, _NEW_TOKENS), "do_sample": False, "num_beams": 1}
        mask = torch.ones_like(inputs["input_ids"])
        cached, uncached = (
            model.generate(**inputs, attention_mask=mask, use_cache=use_cache, **options)[0, prompt_length:].tolist()
            for use_cache in (True, False)
        )
        if not cached:
            raise CheckFailedError(f"{PROMPT!r}: expected at least one new token, got none")
        if cached != uncached:
            raise CheckFailedError(
                f"{PROMPT!r}: expected the same tokens with the key-value cache as without, got {cached} and {uncached}"
            )
        text = self.processor.tokenizer.decode(cached)
        return f"{PROMPT!r} continues with {text!r}, the same {len(cached)} tokens with the cache and without"

    # ---- what a check needs ----------------------------------------------------------------------------------------

    def _config(self) -> JatConfig:
        assert self.config is not None, "the first check read it, or the others are not run"
        return self.config

    def _require_model(self) -> Any:
        if self.model is None:
            raise SkipCheckError("JatModel was not loaded")
        return self.model

    def require_engine(self) -> JatEngine:
        """Return the engine.

        Raises:
            SkipCheckError: it was not loaded.
        """
        if self.engine is None:
            raise SkipCheckError("JatEngine was not loaded")
        return self.engine

    def require_input(self, observation: dict[str, Any], action_space: Any) -> None:
        """Check that the observations and actions of a task fit the configuration and the tokenizer.

        Args:
            observation: an observation of the task.
            action_space: its action space.

        Raises:
            SkipCheckError: they do not fit.
        """
        limits = Limits.of(self._config())
        try:
            parse_action_space(limits, action_space)
            parse_observation(limits, observation)
        except InputError as error:
            raise SkipCheckError(f"config.json is too small for this task: {error}") from None
        if "text_observation" in observation and self._why_no_text:
            raise SkipCheckError(self._why_no_text)


def _act(name: str, agent: Any, processor: Any, step: dict[str, Any], number: int) -> tuple[Any, Any]:
    """Return action and prediction of one step. The error of an invalid observation names the agent and the step."""
    try:
        action, prediction = agent.get_next_action(processor, **step)
    except ValueError as error:
        raise CheckFailedError(f"{name} at step {number}: {error}") from error
    return action, prediction


def _revision(file: Path) -> str:
    """Return the commit of a file in the hub's cache; "" for other files."""
    folder = file.parent
    return folder.name if folder.parent.name == "snapshots" else ""


def _numbers(values: Any) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values[:4]) + (", ...]" if len(values) > 4 else "]")
