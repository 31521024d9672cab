"""Command `jat-engine replay`: play the record of a server again, and say which actions differ."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..dtypes import DTYPES
from ..engine.engine import JatEngine
from ..errors import DataError
from ..runs.settings import differences, machine_settings
from .agent import check_source, load_agent, settings_of, weights_of
from .arguments import ModelArguments, note, parse
from .serve import require_serve_extra
from .streams import say, terminable

_NOTE_SECONDS = 10.0


@dataclass
class ReplayArguments:
    """Arguments of `jat-engine replay`."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "the record's checkpoint, if it is no longer where the server found it"}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "folder for downloads"})
    backend: str | None = field(
        default=None,
        metadata={
            "help": "another backend than that of the server; differences are then to be expected",
            "choices": ["cpu", "cuda", "torch"],
        },
    )
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "another type of weights and cache than that of the server; differences are then to be expected",
            "choices": list(DTYPES),
        },
    )


def run(argv: Sequence[str]) -> int:
    """Run `jat-engine replay`.

    Returns:
        The exit code: 1 if an action differs, or an episode cannot be compared.
    """
    arguments, given = parse(
        "replay",
        "Play the record of a server again, and say for each episode whose actions differ which step does first.",
        [ReplayArguments],
        argv,
        positional={"log": "folder of `jat-engine serve --record`, or a file of it, which stands for its session"},
    )
    require_serve_extra()
    from ..serving.record_format import read_part
    from ..serving.replay import find_log, replay

    log = find_log(Path(given.log))
    about = read_part(log[0].path).about
    model = model_of(arguments, about, Path(given.log))
    known = machine_settings()
    if weights_of(model) != about.get("weights_sha256"):
        raise DataError(
            f"{given.log}: was recorded with other weights than {model.model_name_or_path} has; name its checkpoint "
            "with --model_name_or_path"
        )
    options = {"kv_dtype": about["kv_dtype"]} if "kv_dtype" in about and not arguments.backend else {}
    engine, _ = load_agent(model, 1, **options)
    assert isinstance(engine, JatEngine), "the reference is not among the choices"
    with terminable(), engine:
        for reason in _reasons(about, known | settings_of(engine)):
            note(f"differences are to be expected: {reason}")

        num_episodes = num_equal = num_unknown = num_steps = num_later = 0
        noted = time.monotonic()
        for one in replay(engine, log):
            num_episodes += 1
            if one.is_equal:
                num_equal, num_steps = num_equal + 1, num_steps + one.num_steps
                num_later += one.begin > 0
            else:
                num_unknown += bool(one.reason)
                say(str(one))
            if time.monotonic() - noted > _NOTE_SECONDS:
                noted = time.monotonic()
                note(f"{num_episodes} episodes")
    unknown = f"; {num_unknown} cannot be compared" if num_unknown else ""
    later = f"; {num_later} of them only from a snapshot on" if num_later else ""
    say(f"{num_equal} of {num_episodes} episodes are equal in every action ({num_steps:,} steps){later}{unknown}")
    return int(num_equal != num_episodes)


def model_of(arguments: ReplayArguments, about: dict[str, Any], log: Path) -> ModelArguments:
    """Return the arguments for loading the agent of a record, with those that the user has chosen.

    Raises:
        DataError: there is no such checkpoint, and the user has named none; or the record does not say how it was made.
        ValueError: there is no checkpoint of the name that the user has given.
    """
    for name in ("device", "backend", "dtype"):
        if not isinstance(about.get(name), str):
            raise DataError(f"{log}: {name}: expected text, got {about.get(name)!r:.80}; copy the record again")
    source = arguments.model_name_or_path or str(about.get("model"))
    try:
        check_source("--model_name_or_path", source)
    except ValueError as error:
        if arguments.model_name_or_path is not None:
            raise
        raise DataError(f"{error}. That is what {log} was recorded with; name where it is now") from None
    backend = arguments.backend or str(about["backend"])
    return ModelArguments(
        model_name_or_path=source,
        cache_dir=arguments.cache_dir,
        use_cpu=about["device"] == "cpu" and backend != "cuda",
        backend=backend,
        dtype=arguments.dtype or str(about["dtype"]),
    )


def _reasons(about: dict[str, Any], known: dict[str, Any]) -> list[str]:
    """Return reasons to expect differences; none if the actions have to be equal."""
    reasons = differences(about, known)
    if about["backend"] != "cpu":
        reasons.append(f"backend {about['backend']}, whose actions depend on what else is in a batch")
    return reasons
