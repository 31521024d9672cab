"""Random numbers for sampling discrete actions, as `torch.multinomial` draws them, and choices by a call's options."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..action_options import ActionRule

DRAWS_AHEAD = 16
"""Draws that an agent with a generator of its own makes at a time. After a step, a draw by itself takes some 60 us,
since torch's code is no longer in the caches; 16 in a row take 80 us."""


class Sampler:
    """Noise for the exponential-race form of `torch.multinomial`: argmax(logits - log q), q ~ Exp(1).

    The choices are those of `torch.multinomial(softmax(logits), 1, generator=generator)` on a CPU. The noise is drawn
    before a step, so that a backend can choose on the device that has the logits.
    """

    def __init__(self, generator: torch.Generator | None, num_agents: int) -> None:
        """Prepare to draw.

        Args:
            generator: source of random numbers, which nothing else uses; None for torch's global generator.
            num_agents: N, agents that draw together.
        """
        # From torch's global generator others draw as well, so nothing may be drawn ahead.
        self._count = DRAWS_AHEAD if generator is not None and num_agents == 1 else 1
        self._num_agents = num_agents
        self._block = _Block(generator, 0, self._count, (num_agents, 0))

    def draw(self, number: int, size: int) -> np.ndarray:
        """Return the noise log(q), to be subtracted from logits. It is overwritten by later draws.

        Args:
            number: of the draw: that of the last call, so that a refused step uses up no random numbers, or the next.
            size: n, the number of choices.

        Returns:
            float32 [N, n].
        """
        block = self._block
        if block.size != size:
            generator = block.generator_before(number)
            block = self._block = _Block(generator, number, self._count, (self._num_agents, size))
        elif number >= block.first + self._count:
            block.begin(number)
        if not block.is_drawn:
            block.draw()
        return block.noise[number - block.first]

    def state_before(self, number: int) -> np.ndarray | None:
        """Return the generator's state as if no draw from `number` on had been made, uint8; None for the global one."""
        generator = self._block.generator_before(number)
        return None if generator is None else generator.get_state().numpy()


class _Block:
    """Successive draws of one size, in memory that is kept: numbers `first`, `first + 1`, ...

    Ctrl-C, which Python raises between calls of C, may end any method; calling it again then continues.

    Attributes:
        first: number of the first draw.
        size: n, the number of choices.
        noise: of each draw, float32 [N, n]; valid if `is_drawn`.
        is_drawn: all draws have been made.
    """

    def __init__(self, generator: torch.Generator | None, first: int, count: int, shape: tuple[int, int]) -> None:
        """Allocate `count` draws of a shape [N, n], and make none."""
        self.first, self.size = first, shape[1]
        self.is_drawn = False
        self._generator = generator
        self._start = None if generator is None else generator.get_state()
        self._q = np.full((count, *shape), math.nan, np.float32)
        self._logs = np.empty_like(self._q)
        self.noise = list(self._logs)
        with torch.inference_mode(False):  # a tensor that is made in inference mode is constant outside it
            self._tensors = [torch.from_numpy(q) for q in self._q]

    def begin(self, first: int) -> None:
        """Discard the draws; those from the number `first` on follow."""
        self.is_drawn = False
        self._q.fill(math.nan)
        if self._generator is not None:
            self._start = self._generator.get_state()
        self.first = first

    def draw(self) -> None:
        """Make the draws that have not been made."""
        # One call of C makes a draw and, by that, marks it as made: no random number is lost or used twice.
        for q, tensor in zip(self._q, self._tensors, strict=True):
            if math.isnan(q[0, 0]):
                tensor.exponential_(generator=self._generator)
        np.log(self._q, out=self._logs)
        self.is_drawn = True

    def generator_before(self, number: int) -> torch.Generator | None:
        """Return a generator as if no draw from `number` on had been made; None for torch's global generator."""
        if self._generator is None or not self.size:
            return self._generator
        assert self._start is not None, "there is a generator"
        generator = torch.Generator()
        generator.set_state(self._start)
        with torch.inference_mode(False):
            unused = torch.empty(self._q.shape[1:])
        for _ in range(number - self.first):
            unused.exponential_(generator=generator)
        return generator


def choose(logits: Sequence[np.ndarray] | np.ndarray, noise: np.ndarray | None, rule: ActionRule) -> np.ndarray:
    """Return argmax(logits - temperature * noise) among the choices that a rule allows.

    With noise from `Sampler` that is a sample of softmax(logits / temperature) over these choices, for the same random
    numbers as without a rule: argmax(logits / T - log q) = argmax(logits - T log q).

    This is done here, for all backends alike, since the logits come back to the host in any case. A backend's own
    choice, made in the same step, does not know the rule.

    Args:
        logits: float32 [N, n], finite.
        noise: float32 [N, n]; None for the most likely choices.
        rule: mask, temperature and top-k.

    Returns:
        int64 [N].
    """
    allowed_logits = np.asarray(logits)
    if rule.allowed is not None:
        allowed_logits = np.where(rule.allowed, allowed_logits, np.float32(-np.inf))

    scores = allowed_logits  # its maximum is among the top k
    if noise is not None:
        with np.errstate(all="ignore"):  # a product may be too small for float32
            scores = allowed_logits - np.float32(rule.temperature) * noise
        if rule.top_k is not None:  # exactly so many: of equals the first, as without noise
            left_out = np.argsort(-allowed_logits, axis=1, kind="stable")[:, rule.top_k :]
            np.put_along_axis(scores, left_out, -np.inf, axis=1)
    best: np.ndarray = scores.argmax(axis=1)
    return best
