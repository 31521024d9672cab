"""Command `jat-engine generate`: continue texts, or write about images, and print tokens as they come."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..engine.engine import JatEngine
from ..errors import describe_error
from ..text.request import StreamedToken
from .agent import check_source
from .arguments import LARGEST_SEED, ModelArguments, note, parse
from .evaluate_texts import load_writer

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")


@dataclass
class GenerateArguments:
    """Arguments of `jat-engine generate`."""

    prompt: list[str] = field(
        default_factory=list, metadata={"help": "texts to continue; without this flag all of standard input is one"}
    )
    image: list[str] = field(
        default_factory=list, metadata={"help": "file of the image before each prompt; a single one is for all of them"}
    )
    max_new_tokens: int = field(default=50, metadata={"help": "the most tokens to write"})
    min_new_tokens: int | None = field(default=None, metadata={"help": "the least tokens to write"})
    do_sample: bool = field(default=False, metadata={"help": "sample instead of taking the most likely token"})
    temperature: float | None = field(default=None, metadata={"help": "divide logits by it before sampling"})
    top_k: int | None = field(default=None, metadata={"help": "sample among this many likeliest tokens"})
    top_p: float | None = field(
        default=None, metadata={"help": "sample among the likeliest tokens that have this probability together"}
    )
    min_p: float | None = field(
        default=None, metadata={"help": "sample among tokens of this probability, relative to the likeliest one's"}
    )
    typical_p: float | None = field(
        default=None, metadata={"help": "sample among the most typical tokens that have this probability together"}
    )
    repetition_penalty: float | None = field(
        default=None, metadata={"help": "divide the scores of tokens that have occurred by it"}
    )
    no_repeat_ngram_size: int | None = field(
        default=None, metadata={"help": "write no sequence of this many tokens twice"}
    )
    seed: int = field(default=0, metadata={"help": "of sampling"})
    stop: list[str] = field(default_factory=list, metadata={"help": "end at one of these strings, which is left out"})
    truncation: bool = field(
        default=False, metadata={"help": "drop the beginning of prompts that are too long, instead of refusing them"}
    )
    json: bool = field(default=False, metadata={"help": "print one line of JSON for each prompt"})

    def check(self) -> None:
        """Check what the engine does not.

        Raises:
            ValueError: a value is out of range, a flag has no effect, or an image is missing.
        """
        given = [name for name in _SAMPLING if getattr(self, name) is not None]
        if given and not self.do_sample:
            raise ValueError(f"--{given[0]}: expected --do_sample with it, got it alone")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"--seed: expected 0 to 2**64 - 1, got {self.seed}")
        for file in self.image:
            if not Path(file).is_file():
                raise ValueError(f"--image: expected the file of an image, got {file}")
        if len(self.image) > 1 and len(self.image) != max(len(self.prompt), 1):
            raise ValueError(
                f"--image: expected one for all prompts or one for each of {max(len(self.prompt), 1)}, got "
                f"{len(self.image)}"
            )
        if not all(self.stop):
            raise ValueError("--stop: expected strings with characters, got an empty one")

    @property
    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of `JatEngine.generate_stream`."""
        names = ("min_new_tokens", *_SAMPLING, "repetition_penalty", "no_repeat_ngram_size")
        options = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        options |= {"max_new_tokens": self.max_new_tokens, "do_sample": self.do_sample, "seed": self.seed}
        if self.stop:
            options["stop_strings"] = self.stop
        if self.truncation:
            options["truncation"] = "left"
        return options


@dataclass
class Continuation:
    """Continuation of a prompt, as far as it has been written.

    Attributes:
        prompt: the text.
        image: file of the image before it; None for none.
        begin: when its request was made, in seconds of `time.perf_counter`.
        tokens: written so far.
        text: of these.
        first: when the first token came; None before.
        last: when the newest token came.
        finish_reason: why it ended; None before.
        error: that ended it, in words; None if there was none.
    """

    prompt: str
    image: str | None
    begin: float
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    first: float | None = None
    last: float = 0.0
    finish_reason: str | None = None
    error: str | None = None

    def add(self, event: StreamedToken) -> None:
        """Take the next token."""
        self.last = time.perf_counter()
        if event.token is not None:
            self.tokens.append(event.token)
            self.first = self.last if self.first is None else self.first
        self.text += event.text
        self.finish_reason = event.finish_reason
        if event.error is not None:
            self.error = describe_error(event.error)

    @property
    def first_token_ms(self) -> float | None:
        """Return the milliseconds until the first token came."""
        return None if self.first is None else 1e3 * (self.first - self.begin)

    @property
    def tokens_per_second(self) -> float | None:
        """Return the rate of the tokens after the first one."""
        seconds = self.last - (self.first or self.last)
        return (len(self.tokens) - 1) / seconds if seconds > 0 else None

    def describe(self) -> dict[str, Any]:
        """Return the fields of a line of JSON."""
        return {
            "prompt": self.prompt,
            "image": self.image,
            "text": self.text,
            "tokens": self.tokens,
            "finish_reason": self.finish_reason,
            "error": self.error,
            "time_to_first_token_ms": self.first_token_ms,
            "tokens_per_second": self.tokens_per_second,
        }


def run(argv: Sequence[str]) -> int:
    """Run `jat-engine generate`.

    Returns:
        The exit code: 1 if a prompt's continuation ended with an error.
    """
    model_arguments, arguments = parse(
        "generate", "Continue texts, or write about images.", [ModelArguments, GenerateArguments], argv
    )
    check_source("--model_name_or_path", model_arguments.model_name_or_path)
    arguments.check()
    prompts = arguments.prompt or [sys.stdin.read()]
    if not all(prompts):
        where = "--prompt" if arguments.prompt else "standard input"
        raise ValueError(f"{where}: expected a text with characters, got an empty one")

    problems = 0
    with load_writer(model_arguments) as engine:
        is_first = True
        for continuation, piece in write(engine, prompts, arguments):
            if arguments.json:
                if continuation.finish_reason is not None:
                    print(json.dumps(continuation.describe()), flush=True)
            else:
                if is_first and len(prompts) > 1:
                    print(f"==> {shown(continuation.prompt)}", flush=True)
                print(shown(piece), end="", flush=True)
                if continuation.finish_reason is not None:
                    print(flush=True)
                    note(summary(continuation))
            is_first = continuation.finish_reason is not None
            if continuation.error is not None:
                problems += 1
                note(f"jat-engine: error: {continuation.error}")
    return int(bool(problems))


def write(
    engine: JatEngine, prompts: Sequence[str], arguments: GenerateArguments
) -> Iterator[tuple[Continuation, str]]:
    """Continue all prompts at once, and yield what is written in the order of the prompts.

    Yields:
        A continuation, and the text that has been added to it since it was yielded before. The last time of each, its
        `finish_reason` is set.
    """
    images: list[str | None] = [*arguments.image]
    if len(images) < len(prompts):
        images = (images or [None]) * len(prompts)  # one for all of them, or none
    begin = time.perf_counter()
    found = [Continuation(prompt, image, begin) for prompt, image in zip(prompts, images, strict=True)]
    turn, taken = 0, 0
    given: dict[str, Any] = {"images": images} if arguments.image else {}
    for event in engine.generate_stream(list(prompts), **given, **arguments.options):
        found[event.index].add(event)
        while turn < len(found) and (len(found[turn].text) > taken or found[turn].finish_reason is not None):
            current = found[turn]
            yield current, current.text[taken:]
            taken = len(current.text)
            if current.finish_reason is None:
                break
            turn, taken = turn + 1, 0


def shown(text: str) -> str:
    """Return a text without the control characters that would change a terminal, which are escaped."""
    if not sys.stdout.isatty():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)


def summary(continuation: Continuation) -> str:
    """Return a line about the speed of a continuation, and why it ended."""
    parts = [f"{len(continuation.tokens)} token(s)"]
    if continuation.first_token_ms is not None:
        parts.append(f"the first after {continuation.first_token_ms:.0f} ms")
    if continuation.tokens_per_second is not None:
        parts.append(f"then {continuation.tokens_per_second:.1f} tokens/s")
    return f"{', '.join(parts)}; ended by: {continuation.finish_reason}"
