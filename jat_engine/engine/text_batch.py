"""`TextBatch`: run texts in steps that they share, between the steps of agents.

A step reads the newest token of each text that is being written and, up to a number of rows, the next part of prompts.
Texts join with any step and leave when they are finished. The thread that wants its texts to advance runs the step, for
all texts of the engine; between steps agents take their turns. What is done with a step's logits (sampling, a user's
objects) does not keep agents waiting.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..backends.base import TextRows
from ..errors import CacheFullError, InputError, SessionError
from ..text.sequence import Sequence
from .kv_cache import Pages
from .step import StepRunner

_AGENTS_REST_SECONDS = 1.0
"""Agents that have not acted for so long are taken to be at rest."""


class _Running:
    """A text in the batch.

    Attributes:
        sequence: what is read and written.
        num_patches: rows of its image.
        num_rows: rows that are in the cache.
        next_token: to be read; None while the prompt is.
        pages: None until the text has its pages.
        patches: embeddings of its image, until they are in the cache.
    """

    def __init__(self, sequence: Sequence, num_patches: int) -> None:
        self.sequence = sequence
        self.num_patches = 0 if sequence.pixel_values is None else num_patches
        self.num_rows = 0
        self.next_token: int | None = None
        self.pages: Pages | None = None
        self.patches: Any = None

    @property
    def num_prompt_rows(self) -> int:
        """Return the rows of image and prompt."""
        return self.num_patches + len(self.sequence.prompt)

    def next_rows(self, most: int) -> TextRows:
        """Return the next rows to compute, at most `most`; more than one for a prompt only."""
        assert self.pages is not None, "the text has been admitted"
        table, begin, wants_all = self.pages.empty.table, self.num_rows, self.sequence.wants_prompt_logits
        if self.next_token is not None:
            return TextRows(None, np.array([self.next_token], np.int64), begin, table, 1)

        end = min(begin + most, self.num_prompt_rows)
        patches = self.patches[begin:end] if begin < self.num_patches else None
        tokens = self.sequence.prompt[max(begin - self.num_patches, 0) : max(end - self.num_patches, 0)]
        # After the image's last patch, the first token is predicted.
        first_predicted = max(begin, self.num_patches - 1) if wants_all else self.num_prompt_rows - 1
        return TextRows(patches, tokens, begin, table, max(end - first_predicted, 0))

    def commit(self, rows: TextRows, logits: np.ndarray) -> None:
        """Give the sequence the logits of rows that have been computed."""
        begin, end = self.num_rows, self.num_rows + rows.num_rows
        sequence = self.sequence
        if len(logits) and not np.isfinite(logits).all():
            raise InputError("text: expected numbers that the model can compute with, got logits that are not finite")
        if begin < self.num_prompt_rows and sequence.wants_prompt_logits and len(logits):
            sequence.accept_prompt(end - len(logits) - self.num_patches, logits)
        self.num_rows = end
        if end >= self.num_patches:
            self.patches = None
        if end >= self.num_prompt_rows:
            self.next_token = sequence.accept(logits[-1])
            if self.next_token is None:
                sequence.finished = True

    def end(self, error: BaseException | None = None) -> None:
        """Give the pages back; with an error, the sequence is finished."""
        if self.pages is not None:
            self.pages.close()
        self.patches = None
        if error is not None:
            self.sequence.error = error
            self.sequence.finished = True


class TextBatch:
    """The texts of an engine: those that run, and those that wait for pages."""

    def __init__(self, runner: StepRunner, prefill_chunk: int | None = None) -> None:
        """Begin without texts.

        Args:
            runner: of the engine.
            prefill_chunk: the most rows of prompts in a step; None for few while agents act, many otherwise.
        """
        self._runner = runner
        self._prefill_chunk = prefill_chunk
        self._running: list[_Running] = []
        self._waiting: deque[_Running] = deque()
        self._turn = threading.Condition(runner.lock)
        self._owner: tuple[int, int] | None = None  # process and thread that runs a step, and what follows it
        self._agents_seen = (-1, 0.0)

    def add(self, sequence: Sequence) -> None:
        """Add a text, which is computed by the next steps.

        Raises:
            SessionError: the engine is closed.
        """
        with self._runner.lock:
            self._runner.check_open()
            self._waiting.append(_Running(sequence, self._runner.config.num_image_tokens))

    def remove(self, sequences: Iterable[Sequence]) -> None:
        """Remove texts, finished or not, and give their pages back. Absent ones are ignored."""
        ids = {id(sequence) for sequence in sequences}
        with self._runner.lock:
            self._take_turn()
            for text in [*self._running, *self._waiting]:
                if id(text.sequence) in ids:
                    text.end()
            self._running = [text for text in self._running if id(text.sequence) not in ids]
            self._waiting = deque(text for text in self._waiting if id(text.sequence) not in ids)

    def advance(self, sequences: Iterable[Sequence]) -> None:
        """Run a step of all texts, unless all of these are finished already. Another thread's step is waited for.

        Raises:
            SessionError: the engine is closed, or the call comes from within a step.
        """
        runner = self._runner
        wanted = list(sequences)
        runner.give_way()
        with runner.lock:
            self._take_turn()
            runner.check_open()
            if all(sequence.finished for sequence in wanted):
                return
            self._owner = os.getpid(), threading.get_ident()

        try:
            # Its own statement, since agents may take their steps while the logits are used.
            with runner.lock, runner.one_step(): parts, logits = self._run()  # noqa: E701  # fmt: skip
            self._commit(parts, logits)
        finally:
            with runner.lock:
                self._owner = None
                self._turn.notify_all()

    def _take_turn(self) -> None:
        """Wait until no thread runs a step. The caller holds the lock.

        Raises:
            SessionError: this thread does, so that the call comes from an object that a request was given.
        """
        while self._owner is not None:
            process, thread = self._owner
            if process != os.getpid():  # a fork: the thread was the parent's, as were those of all texts
                self._owner = None
                for text in [*self._running, *self._waiting]:
                    text.end(SessionError("text: expected one of this process, got its parent's"))
                self._running, self._waiting = [], deque()
            elif thread == threading.get_ident():
                raise SessionError(
                    "engine: expected a text's processor, criterion or streamer to leave the engine's texts alone, got "
                    "a call from within their step"
                )
            else:
                self._turn.wait()

    # ---- a step ----------------------------------------------------------------------------------------------------

    def _run(self) -> tuple[list[tuple[_Running, TextRows]], list[np.ndarray]]:
        """Run a step, and return its texts, their rows and their logits. The caller holds the lock."""
        self._admit()
        plan, backend = self._plan(), self._runner.backend
        if not plan:
            return [], []
        for text, _ in plan:
            if text.num_patches and text.patches is None and text.num_rows < text.num_patches:
                assert text.sequence.pixel_values is not None, "it has patches"
                text.patches = backend.embed_picture(text.sequence.pixel_values)
        parts = [(text, text.next_rows(most)) for text, most in plan]
        return parts, backend.run_text([rows for _, rows in parts])

    def _admit(self) -> None:
        """Give waiting texts their pages, in the order in which they came."""
        while self._waiting and len(self._running) < self._runner.backend.max_text_rows:
            text = self._waiting[0]
            most = text.num_prompt_rows + max(text.sequence.max_new_tokens - 1, 0)
            try:
                text.pages = self._runner.open_text(most)
            except CacheFullError as error:
                if self._running:  # which will give pages back
                    return
                self._waiting.popleft()
                text.end(error.with_traceback(None))
                continue
            self._running.append(text)
            self._waiting.popleft()

    def _plan(self) -> list[tuple[_Running, int]]:
        """Return the texts of a step, each with the most rows that it may have in it."""
        writing = [text for text in self._running if text.next_token is not None]
        reading = [text for text in self._running if text.next_token is None]
        most = self._runner.backend.max_text_rows
        left = min(max(self._prompt_rows(), 1), most - len(writing)) if reading else 0
        plan = [(text, 1) for text in writing]
        for text in reading:
            if left <= 0:
                break
            count = min(left, text.num_prompt_rows - text.num_rows)
            plan.append((text, count))
            left -= count
        return plan

    def _prompt_rows(self) -> int:
        """Return how many rows of prompts the next step may read."""
        if self._prefill_chunk is not None:
            return self._prefill_chunk
        count, now = self._runner.calls.count, time.monotonic()
        if count != self._agents_seen[0]:
            self._agents_seen = count, now
        is_acting = count > 0 and now - self._agents_seen[1] < _AGENTS_REST_SECONDS
        backend = self._runner.backend
        return backend.prompt_rows_beside_agents if is_acting else backend.max_text_rows

    def _commit(self, parts: list[tuple[_Running, TextRows]], logits: list[np.ndarray]) -> None:
        """Hand out the logits. What a sequence raises ends that sequence alone, unless it ends the program."""
        try:
            for (text, rows), values in zip(parts, logits, strict=True):
                try:
                    text.commit(rows, values)
                except Exception as error:
                    text.end(error)
                except BaseException as error:
                    text.end(error)
                    raise
        finally:
            with self._runner.lock:
                for text in self._running:
                    if text.sequence.finished:
                        text.end()
                self._running = [text for text in self._running if not text.sequence.finished]
