"""Random numbers for sampling discrete actions, as `torch.multinomial` draws them, and choices by a call's options."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..action_options import ActionRule


class Sampler:
    """Noise for the exponential-race form of `torch.multinomial`: argmax(logits - log q), q ~ Exp(1).

    The choices are those of `torch.multinomial(softmax(logits), 1, generator=generator)` on a CPU. The noise is drawn
    before a step, so that a backend can choose on the device that has the logits.
    """

    def __init__(self, generator: torch.Generator | None, num_agents: int) -> None:
        """Prepare to draw.

        Args:
            generator: source of random numbers; None for torch's global generator.
            num_agents: N, agents that draw together.
        """
        self._generator = generator
        self._num_agents = num_agents
        self._drawn: tuple[int, int, np.ndarray] = -1, 0, np.empty((num_agents, 0), np.float32)  # number, n, q

    def draw(self, number: int, size: int) -> np.ndarray:
        """Return the noise log(q), to be subtracted from logits.

        Args:
            number: of the draw. Calls with the last call's number and size return the same noise, so that a refused
                step uses up no random numbers.
            size: n, the number of choices.

        Returns:
            float32 [N, n].
        """
        # The memory of a draw is kept before it is filled, and one call of C fills it: Ctrl-C, which Python raises
        # between such calls, finds the random numbers all used and here, or all unused.
        drawn, n, q = self._drawn
        if drawn != number or n != size:
            q = np.empty((self._num_agents, size), np.float32)
            q[0, 0] = math.nan
            self._drawn = number, size, q
        if math.isnan(q[0, 0]):
            torch.from_numpy(q).exponential_(generator=self._generator)
        noise: np.ndarray = np.log(q)
        return noise


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
