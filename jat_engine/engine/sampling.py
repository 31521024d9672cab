"""Random numbers for sampling discrete actions, as `torch.multinomial` draws them."""

from __future__ import annotations

import math

import numpy as np
import torch


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
