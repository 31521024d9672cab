"""Adapter with which EleutherAI's lm-eval (the language model evaluation harness) evaluates a `JatEngine`."""

from __future__ import annotations

import fnmatch
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import lm_eval
    from lm_eval.api.model import TemplateLM
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, handle_non_serializable, make_disjoint_window, make_table
except ModuleNotFoundError as error:
    message = f"jat_engine.evaluation.lm_eval_adapter: {error}; pip install 'jat-engine[lm-eval]'"
    raise ModuleNotFoundError(message, name=error.name) from None

from tqdm import tqdm

from ..engine.engine import JatEngine
from ..errors import InputError, describe_error
from ..keywords import did_you_mean

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

_TEXTS_AT_ONCE = 64
"""Requests whose scores are computed together; the engine divides them into steps itself."""

_MAX_NEW_TOKENS = 256
"""Tokens to write for a request that names no number, as lm-eval's own models do."""

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names that lm-eval's tasks have for the most tokens to write; the first that is there counts."""


class JatLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """Language model of lm-eval that computes with an engine. Pass it as an object.

    Example:
        >>> import lm_eval
        >>> results = lm_eval.simple_evaluate(model=JatLM(engine), tasks=["lambada_openai"])  # doctest: +SKIP
    """

    def __init__(self, engine: JatEngine, seed: int = 0) -> None:
        """Take an engine, which stays open and can act meanwhile.

        Args:
            engine: of a checkpoint with a tokenizer.
            seed: of sampling, for tasks that ask for it.

        Raises:
            InputError: the engine has no tokenizer, or its configuration no token for the end of a text.
        """
        super().__init__()
        self.engine = engine
        self._seed = seed
        engine.text_tokenizer.check("tokenizer")
        eos = engine.config.eos_token_id
        if isinstance(eos, list):
            eos = eos[0] if eos else None
        if eos is None:
            raise InputError("eos_token_id: expected a token in config.json for lm-eval, got none; add it")
        self._eos: int = eos

    @property
    def eot_token_id(self) -> int:
        """Return the token at the end of a text, which also comes before texts without a context."""
        return self._eos

    @property
    def max_length(self) -> int:
        """Return the most tokens that are read."""
        return int(self.engine.config.max_position_embeddings)

    @property
    def tokenizer_name(self) -> str:
        """Return a name for lm-eval's cache of requests."""
        return f"JatEngine-{self.engine.config.vocab_size}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the tokens of a text. The model's texts have no special tokens."""
        return list(self.engine.text_tokenizer.encode(string))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of continuations, and whether each of their tokens is the most likely one.

        Args:
            requests: key for lm-eval's cache or None, tokens of a context, tokens of its continuation.
            disable_tqdm: show no progress.
            kwargs: ignored.
        """
        results: list[tuple[float, bool]] = []
        with tqdm(total=len(requests), desc="Running loglikelihood requests", disable=disable_tqdm) as bar:
            for begin in range(0, len(requests), _TEXTS_AT_ONCE):
                batch = requests[begin : begin + _TEXTS_AT_ONCE]
                contexts, texts = zip(*(self._fit(context, text) for _, context, text in batch), strict=True)
                scores = self.engine.score(input_ids=list(texts), contexts=list(contexts))
                for (key, _, _), score in zip(batch, scores, strict=True):
                    answer = score.total, bool(score.is_greedy.all())
                    results.append(answer)
                    if key is not None:
                        self.cache_hook.add_partial("loglikelihood", key, answer)
                bar.update(len(batch))
        return results

    def _fit(self, context: list[int], text: list[int]) -> tuple[list[int], list[int]]:
        """Drop the oldest tokens of a context that is too long; the last token of all is predicted, not read."""
        room = self.max_length + 1 - len(text)
        if room < 1:
            raise InputError(
                f"continuation: expected at most {self.max_length} tokens (max_position_embeddings), got {len(text)}"
            )
        return context[-room:], text

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, each read in windows of `max_length` tokens."""
        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for (text,) in (request.args for request in requests):
            tokens = self.tok_encode(text)
            rolling = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
            found = [(None, *make_disjoint_window(pair)) for pair in rolling]
            windows += found
            counts.append(len(found))

        values = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        totals = [math.fsum(value for value, _ in itertools.islice(values, count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue texts until one of the strings of `until`, which is cut off, or the end of the text."""
        written = [""] * len(requests)
        alike: dict[str, list[int]] = {}  # requests with the same options are written together
        for index, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(index)

        with tqdm(total=len(requests), desc="Running generate_until requests", disable=disable_tqdm) as bar:
            for indices in alike.values():
                for begin in range(0, len(indices), _TEXTS_AT_ONCE):
                    batch = indices[begin : begin + _TEXTS_AT_ONCE]
                    contexts = [requests[index].args[0] for index in batch]
                    for index, text in zip(batch, self._continue(contexts, requests[batch[0]].args[1]), strict=True):
                        written[index] = text
                        self.cache_hook.add_partial("generate_until", requests[index].args, text)
                    bar.update(len(batch))
        return written

    def _continue(self, contexts: list[str], given: Mapping[str, Any]) -> list[str]:
        """Continue texts with lm-eval's options; those that it does not share with `generate` are converted."""
        options = dict(given)
        until = options.pop("until", None) or []
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        lengths = [value for name in _LENGTHS if (value := options.pop(name, None)) is not None]
        max_new_tokens = int(lengths[0]) if lengths else min(_MAX_NEW_TOKENS, self.max_length // 2)
        if not options.get("do_sample"):  # tasks give a temperature of 0 beside it
            options = {name: value for name, value in options.items() if name != "temperature"} | {"do_sample": False}

        room = self.max_length - max_new_tokens
        if room < 1:
            raise InputError(
                f"max_gen_toks: expected less than {self.max_length} (max_position_embeddings), got {max_new_tokens}"
            )
        prompts = [(self.tok_encode(context) or [self.prefix_token_id])[-room:] for context in contexts]
        outputs = self.engine.generate(
            input_ids=prompts, max_new_tokens=max_new_tokens, stop_strings=stops or None, seed=self._seed, **options
        )
        texts = []
        for prompt, output in zip(prompts, outputs, strict=True):
            text = self.engine.text_tokenizer.decode(output[len(prompt) :])
            for stop in stops:
                text = text.partition(stop)[0]
            texts.append(text)
        return texts


@dataclass(frozen=True)
class LmEvalResults:
    """Results of lm-eval.

    Attributes:
        table: lines with a row for each metric.
        content: what is written to a JSON file.
    """

    table: str
    content: dict[str, Any]


def find_tasks(names: Sequence[str], include_path: str | None) -> TaskManager:
    """Return lm-eval's tasks, after those of some names have been found among them.

    Args:
        names: of tasks, groups and tags, or patterns of them, or YAML files.
        include_path: folder with further YAML files; None for none.

    Raises:
        ValueError: there is no task of a name.
    """
    if include_path is not None:  # lm-eval's own tasks are thousands of files, which take long to look at
        manager = TaskManager(include_path=include_path, include_defaults=False)
        if set(names) <= set(manager.all_subtasks):
            return manager
    manager = TaskManager(include_path=include_path)
    known = manager.all_tasks
    for name in names:
        if name not in known and not fnmatch.filter(known, name) and not Path(name).is_file():
            hint = did_you_mean(name, known, "`lm-eval ls tasks` lists them")
            raise ValueError(f"--tasks: expected a task, group or YAML file of lm-eval, got {name!r}; {hint}")
    return manager


def evaluate(
    model: JatLM,
    names: Sequence[str],
    manager: TaskManager,
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    log_samples: bool = False,
) -> LmEvalResults:
    """Evaluate a model on tasks.

    Args:
        model: with its engine.
        names: of the tasks, as for `find_tasks`.
        manager: of `find_tasks`.
        num_fewshot: examples before each question; None for each task's own number.
        limit: only this many examples of each task; None for all.
        seed: of lm-eval's random numbers.
        log_samples: keep every answer.

    Raises:
        InputError: a request is refused by the engine.
        ValueError: lm-eval cannot load or run a task, such as one whose dataset cannot be downloaded.
    """
    try:
        results = lm_eval.simple_evaluate(
            model=model,
            tasks=list(names),
            task_manager=manager,
            num_fewshot=num_fewshot,
            limit=limit,
            log_samples=log_samples,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    except InputError:
        raise
    except Exception as error:  # of tasks' own code, of `datasets` and of its file systems
        raise ValueError(f"--tasks: {', '.join(names)}: {describe_error(error)}") from error
    table = make_table(results)
    if results.get("groups"):
        table += "\n" + make_table(results, "groups")
    content = json.loads(json.dumps(results, default=handle_non_serializable))
    return LmEvalResults(table, content)
