"""`jat-engine eval` on texts: perplexity, and answers to questions about images."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ..atomic_io import check_writable
from ..checkpoint_files import local_path
from ..engine.engine import JatEngine
from ..evaluation.text_tasks import QUESTIONS, find_text_tasks, needs_images
from ..runs.database import RunError
from ..runs.folder import default_folder, run_lock, set_aside_texts
from ..runs.settings import machine_settings
from ..runs.text_results import TEXT_RESULTS, TextResult, describe, write_text_results
from .agent import load_agent, settings_of, weights_of
from .arguments import ModelArguments, TaskArguments, note
from .streams import say, terminable
from .tables import print_table

if TYPE_CHECKING:
    from ..datasets.sources import Source
    from ..datasets.texts import Example

PUBLISHED_DATASET = "jat-project/jat-dataset"

_ANSWER_TOKENS = 16

_ALLOWED = ("tasks", "output_dir", "overwrite")
"""Flags for episodes that also hold for texts."""


@dataclass
class TextEvalArguments:
    """Arguments of `jat-engine eval` for texts."""

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "texts: folder or dataset on the hub with a folder or configuration of each name, in the published "
            f"columns; by default {PUBLISHED_DATASET}"
        },
    )
    split: str | None = field(default=None, metadata={"help": "texts: split of the dataset; by default test"})
    num_texts: int | None = field(default=None, metadata={"help": "texts: only this many of each dataset, the first"})
    max_new_tokens: int | None = field(
        default=None,
        metadata={"help": f"texts: the most tokens of an answer for {QUESTIONS}; by default {_ANSWER_TOKENS}"},
    )

    def check(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is out of range.
        """
        for name in ("num_texts", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name}: expected at least 1, got {value}")


def choose_texts(arguments: Any, choice: TaskArguments, text_arguments: TextEvalArguments) -> list[str]:
    """Return the datasets of texts to evaluate on; an empty list if the tasks have environments.

    Raises:
        ValueError: both kinds of tasks are given, or a flag that is for the other kind.
    """
    texts, others = find_text_tasks(arguments.tasks)
    if not texts:
        given = _given(text_arguments, ())
        if given:
            raise ValueError(f"--{given[0]}: expected it with texts only, got it without; leave it out")
        return []
    if others:
        raise ValueError(
            f"--tasks: expected environments or texts, got both ({others[0]}, {texts[0]}); run the command once for "
            "each, --output_dir may be the same"
        )
    given = [*_given(arguments, _ALLOWED), *_given(choice, ())]
    if given:
        raise ValueError(f"--{given[0]}: expected it with environments only, got it with texts; leave it out")
    text_arguments.check()
    return texts


def _given(arguments: Any, allowed: Sequence[str]) -> list[str]:
    """Return the flags whose values are not the default ones."""
    found = []
    for one in fields(arguments):
        default = one.default if one.default_factory is MISSING else one.default_factory()
        if one.name not in allowed and getattr(arguments, one.name) != default:
            found.append(one.name)
    return found


def evaluate_texts(
    model_arguments: ModelArguments,
    arguments: TextEvalArguments,
    names: Sequence[str],
    output_dir: str | None,
    overwrite: bool,
) -> int:
    """Evaluate on datasets of texts, and write `text_results.json`. Returns the exit code.

    Args:
        model_arguments: of the command.
        arguments: of the command.
        names: of the datasets.
        output_dir: folder for the results; None for one with the model's name.
        overwrite: set results that the folder has aside.

    Raises:
        ValueError: the folder, a dataset or the checkpoint is a problem.
        ImportError: packages for reading datasets are missing.
    """
    from ..runs.text_tasks import evaluate_texts as score_texts

    folder = Path(output_dir) if output_dir else default_folder(model_arguments.model_name_or_path)
    check_writable("--output_dir", folder)
    if (folder / TEXT_RESULTS).exists() and not overwrite:
        raise RunError(
            f"{folder}: has {TEXT_RESULTS} already; name another --output_dir, or add --overwrite to set it aside"
        )
    sources = {name: open_texts(model_arguments, arguments, name) for name in names}
    agent = load_writer(model_arguments)
    settings = {
        "weights_sha256": weights_of(model_arguments),
        **settings_of(agent),
        **machine_settings(),
        "dataset": arguments.dataset or PUBLISHED_DATASET,
        "split": arguments.split or "test",
        "num_texts": arguments.num_texts,
        "max_new_tokens": arguments.max_new_tokens or _ANSWER_TOKENS,
    }
    results: dict[str, TextResult] = {}
    with run_lock(folder), terminable():
        if overwrite and (aside := set_aside_texts(folder)) is not None:
            note(f"the folder's earlier results are in {aside}")
        for name, source in sources.items():
            examples = read_texts(source, name, arguments.num_texts)
            with tqdm(desc=name, unit=" texts", disable=None, leave=False) as bar:
                results[name] = score_texts(agent, name, examples, settings["max_new_tokens"], bar.update)
            if not results[name].texts:
                raise ValueError(f"--dataset: {source.where}: expected texts of at least 2 tokens, got none")
            path = write_text_results(folder, results, settings, complete=len(results) == len(names))
    print_results(results, settings)
    note(f"wrote {path}: {sum(one.texts for one in results.values())} text(s) of {len(results)} dataset(s)")
    return 0


def load_writer(model_arguments: ModelArguments) -> JatEngine:
    """Load an engine for texts.

    Raises:
        ValueError: `--backend reference`, or the checkpoint cannot be loaded.
    """
    if model_arguments.backend == "reference":
        raise ValueError(
            "--backend: expected an engine's for texts, got reference; JatModel.generate is in Python only"
        )
    agent, _ = load_agent(model_arguments)
    assert isinstance(agent, JatEngine), "not the reference"
    return agent


def open_texts(model_arguments: ModelArguments, arguments: TextEvalArguments, name: str) -> Source:
    """Open the split of a dataset.

    Raises:
        DataError: there is no such dataset.
        ValueError: it has no such split.
        ImportError: packages for reading datasets are missing.
    """
    from ..datasets.requirements import require_datasets
    from ..datasets.sources import open_source

    require_datasets()
    dataset, split = arguments.dataset or PUBLISHED_DATASET, arguments.split or "test"
    is_local = local_path(dataset).is_dir()
    # Of a few texts on the hub, only the beginning is downloaded.
    streaming = not is_local and arguments.num_texts is not None
    source = open_source(dataset, name, split, cache_dir=model_arguments.cache_dir, streaming=streaming)
    if source is None:
        other = "train" if split != "train" else "test"
        raise ValueError(f"--split: expected a split that {dataset} has of {name}, got {split}; try --split {other}")
    return source


def read_texts(source: Source, name: str, num_texts: int | None) -> Iterator[Example]:
    """Return an iterator over the first texts of a dataset."""
    from ..datasets.texts import read_examples

    return itertools.islice(read_examples(source, needs_images=needs_images(name)), num_texts)


def print_results(results: dict[str, TextResult], settings: dict[str, Any]) -> None:
    """Print a table with one row per dataset, and what its columns are."""
    rows = {name: describe(result) for name, result in results.items()}
    columns = {
        "texts": list(rows),
        "number": [str(row["texts"]) for row in rows.values()],
        "tokens": [str(row["tokens"]) for row in rows.values()],
        "perplexity": [_number(row["perplexity"]) for row in rows.values()],
    }
    if QUESTIONS in rows:
        for name in ("answer_perplexity", "exact_match", "begins_with_answer", "accuracy"):
            show = _number if name == "answer_perplexity" else _percent
            columns[name.replace("_", " ")] = [show(row.get(name)) for row in rows.values()]
    print_table(f"Texts of {settings['dataset']}, {settings['split']}", columns, left=["texts"])
    for name, result in results.items():
        for count, reason in (
            (result.skipped, "had less than two tokens, and are left out"),
            (result.shortened, "did not fit beside their image, and were shortened"),
        ):
            if count:
                say(f"{name}: {count} text(s) {reason}")
    if QUESTIONS in rows and "accuracy_reason" in rows[QUESTIONS]:
        say(f"{QUESTIONS}: no accuracy, since {rows[QUESTIONS]['accuracy_reason']}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 1e6 else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
