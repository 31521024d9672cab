"""Common parts of agents on a server, with blocking calls or in an event loop."""

from __future__ import annotations

import operator
from collections.abc import Generator, Sequence
from typing import Any

from ..errors import InputError, SessionError
from ..serving.errors import ServerError
from .conversation import Conversation, Recovery
from .operations import Operation
from .options import ConversationOptions
from .requests import RequestWriter, read_result


class RemoteAgentBase:
    """An agent's state without its connection; see `RemoteAgent`."""

    def __init__(
        self,
        url: str | Sequence[str] = "ws://127.0.0.1:8000",
        *,
        task: str | None = None,
        seed: int | None = None,
        api_key: str | None = None,
        timeout_s: float = 10.0,
        patience_s: float = 30.0,
        max_log_bytes: int = 64 * 1024**2,
    ) -> None:
        options = ConversationOptions(
            urls=ConversationOptions.urls_of(url),
            api_key=api_key,
            timeout_s=timeout_s,
            patience_s=patience_s,
            max_log_bytes=max_log_bytes,
        )
        self.closed = False
        self._conversation = Conversation(options)
        self._writer = RequestWriter(task, _checked_seed(seed))

    @property
    def description(self) -> dict[str, Any]:
        """Description of the server, as its `/config` shows it; empty before the first connection."""
        return dict(self._conversation.description)

    @property
    def recoveries(self) -> list[Recovery]:
        """The newest steps whose answers did not come at once, and how the agent went on."""
        return list(self._conversation.recoveries)

    @property
    def num_repeated(self) -> int:
        """Requests that were sent again over another connection."""
        return self._conversation.num_repeated

    @property
    def num_kept(self) -> int:
        """Steps that are kept, to be repeated to another server."""
        return self._conversation.num_kept

    def reset(self, seed: int | None = None) -> None:
        """Start a new episode, without asking the server: the next step begins it.

        Args:
            seed: of sampling. None goes on with the random numbers of the last seed that was given; if none was, each
                episode has a seed of its own that nobody knows.

        Raises:
            InputError: the seed is neither None nor an integer in [0, 2^64).
            SessionError: the agent is closed.
        """
        self._check_open()
        self._writer.reset(_checked_seed(seed))

    def reset_rl(self) -> None:
        """Start a new episode, under the published model's name for that; see `reset`."""
        self.reset()

    def _check_open(self) -> None:
        if self.closed:
            raise SessionError("agent: expected an open one, got one that was closed")

    def _act(
        self,
        continuous_observation: Any,
        discrete_observation: Any,
        text_observation: Any,
        image_observation: Any,
        action_space: Any,
        reward: Any,
        deterministic: Any,
        context_window: Any,
        return_prediction: Any,
        action_mask: Any,
        temperature: Any,
        top_k: Any,
        action_clip: Any,
    ) -> Generator[Operation, Any, Any]:
        """Take a step, and return what `get_next_action` does."""
        self._check_open()
        observation = {
            "continuous_observation": continuous_observation,
            "discrete_observation": discrete_observation,
            "text_observation": text_observation,
            "image_observation": image_observation,
        }
        options = {"action_mask": action_mask, "temperature": temperature, "top_k": top_k, "action_clip": action_clip}
        writer, conversation = self._writer, self._conversation
        if not conversation.description:  # which tells the longest window
            yield from conversation.connect()
        if type(return_prediction) is not bool:
            raise InputError(f"return_prediction: expected True or False, got {return_prediction!r:.80}")
        options["return_prediction"] = return_prediction or None
        longest = conversation.description.get("max_context_window")
        fields = writer.write(observation, action_space, reward, deterministic, context_window, longest, options)
        try:
            message = yield from conversation.step(fields, writer.is_fresh)
        except (InputError, SessionError, ServerError):
            if not conversation.is_unanswered:
                writer.forget()
            raise
        writer.taken()
        action, prediction = read_result(message)
        return action if prediction is None else (action, prediction)


def _checked_seed(seed: Any) -> int | None:
    if seed is None:
        return None
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:  # also of an array
        number = -1
    if not 0 <= number < 2**64:
        raise InputError(f"seed: expected None or an integer in [0, 2^64), got {seed!r:.80}")
    return number
