"""`TextDecoder`: from tokens, one after the other, to the text that is certain by then."""

from __future__ import annotations

from collections.abc import Sequence

from .tokenizer import TextTokenizer

_REPLACEMENT = "\ufffd"
"""Character for bytes that are not UTF-8; at the end of a text, perhaps for the first bytes of a character."""

_MOST_BYTES = 3
"""Most bytes of a character that is not complete."""


class TextDecoder:
    """Decoder of a growing text. It holds back half characters, and what could be the beginning of a stop string.

    What `put` and `flush` return is together the text of all tokens, without special ones, up to a stop string.

    Attributes:
        stopped: True if a stop string has ended within the newest token; the text ends before it.
    """

    def __init__(self, tokenizer: TextTokenizer, stop_strings: Sequence[str] = (), prompt: Sequence[int] = ()) -> None:
        """Begin a text.

        Args:
            tokenizer: of the tokens.
            stop_strings: that end the text; special tokens count with their own text. One may begin in the prompt.
            prompt: tokens before the text.
        """
        self.stopped = False
        self._tokenizer = tokenizer
        self._stops = tuple(stop_strings)
        self._longest = max((len(stop) for stop in self._stops), default=0)

        # Tokens that are decoded together. The text of the first `_num_context` has been taken, and in all `_taken`
        # characters.
        self._tokens: list[int] = []
        self._num_context = 0
        self._taken = 0

        # Newest characters that stop strings are looked for in, and which of them are of the text and not returned yet.
        self._tail = ""
        self._held = bytearray()
        if self._stops:
            # A token has at least a byte, save for special ones; a few more bring a half character to its beginning.
            nearby = list(prompt[-(4 * self._longest + _MOST_BYTES) :])
            self._tail = tokenizer.decode(nearby, skip_special=False)[-self._longest :]
            self._held = bytearray(len(self._tail))

    def put(self, token: int) -> str:
        """Take the next token, and return the text that is certain now; often ""."""
        if self.stopped:
            return ""
        special = self._tokenizer.special_tokens.get(token)
        if special is not None:
            return self._take(special, is_text=False)
        self._tokens.append(token)
        return self._take(self._decode(is_end=False), is_text=True)

    def flush(self) -> str:
        """Return the rest of the text, at its end."""
        if self.stopped:
            return ""
        rest = self._decode(is_end=True)
        held = "".join(char for char, is_held in zip(self._tail, self._held, strict=True) if is_held)
        self._held = bytearray(len(self._tail))
        return held + rest

    def _decode(self, *, is_end: bool) -> str:
        """Return the characters that the newest tokens complete."""
        text = self._tokenizer.decode(self._tokens)
        end = len(text)
        while not is_end and end > max(len(text) - _MOST_BYTES, 0) and text[end - 1] == _REPLACEMENT:
            end -= 1
        new, self._taken = text[self._taken : end], max(self._taken, end)

        if end == len(text):
            # The newest tokens stay, since a token's text may depend on the token before.
            del self._tokens[: self._num_context]
            self._num_context = len(self._tokens)
            self._taken = len(self._tokenizer.decode(self._tokens))
        return new

    def _take(self, new: str, *, is_text: bool) -> str:
        """Look for stop strings that end in new characters, and return what cannot be part of one any more."""
        if not self._stops:
            return new if is_text else ""
        before = len(self._tail)
        self._tail += new
        self._held += bytes([is_text]) * len(new)
        begins = [self._find(stop, before) for stop in self._stops]
        found = [begin for begin in begins if begin >= 0]
        if found:
            self.stopped = True
            return self._release(min(found))
        return self._release(len(self._tail) - self._possible())

    def _find(self, stop: str, before: int) -> int:
        """Return where a stop string begins that ends after the first `before` characters; -1 if there is none."""
        return self._tail.find(stop, max(before - len(stop) + 1, 0))

    def _possible(self) -> int:
        """Return the length of the longest end of the text with which a stop string begins."""
        for length in range(min(self._longest - 1, len(self._tail)), 0, -1):
            if any(stop.startswith(self._tail[-length:]) for stop in self._stops):
                return length
        return 0

    def _release(self, end: int) -> str:
        """Return the held characters before `end`, and forget those that no stop string can reach."""
        text = "".join(char for char, is_held in zip(self._tail[:end], self._held, strict=False) if is_held)
        self._held[:end] = bytes(end)
        forget = max(min(end, len(self._tail) - self._longest), 0)
        self._tail = self._tail[forget:]
        del self._held[:forget]
        return text
