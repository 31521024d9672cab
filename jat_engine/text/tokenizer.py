"""`TextTokenizer`: an engine's tokenizer, from texts to tokens and back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from ..checkpoint.tokenizer import check_tokenizer_files
from ..checkpoint_files import find_file, read_json
from ..errors import CheckpointError, InputError


@dataclass(frozen=True)
class TextTokenizer:
    """Tokenizer of an engine, or the reason why it has none.

    Attributes:
        reason: why there is no tokenizer, "expected ..., got ...; remedy"; "" if there is one.
        pad_id: token for padding; None without one.
        pad_reason: why there is no padding token, in the same form; "" if there is one.
        special_tokens: number of a special token -> its text; `decode` leaves these out if told to.
    """

    reason: str = ""
    pad_id: int | None = None
    pad_reason: str = ""
    special_tokens: Mapping[int, str] = field(default_factory=dict)
    _encode: Callable[[str], list[int]] | None = None
    _decode: Callable[[list[int], bool], str] | None = None

    @classmethod
    def of_checkpoint(cls, source: str | os.PathLike[str], hub: dict[str, Any]) -> TextTokenizer:
        """Read a checkpoint's `tokenizer.json`, with the tokenizers library: transformers' tokenizers import slowly.

        Args:
            source: the checkpoint's folder or hub repository.
            hub: options that say where to look for the repository.

        Raises:
            CheckpointError: a file of the tokenizer is damaged, or two of them disagree.
        """
        check_tokenizer_files(source, hub)
        path = find_file(source, "tokenizer.json", hub)
        if path is None:
            return cls(
                f"expected an engine with a tokenizer, got one of {source}, which had no tokenizer.json; save the "
                "processor there (processor.save_pretrained) and load the engine again"
            )
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the tokenizers library raises no other class
            raise CheckpointError(f"{path}: not a readable tokenizer: {error}") from None
        tokenizer.no_truncation()
        tokenizer.no_padding()

        pad_id = _find_pad_id(tokenizer, source, hub)
        reason = (
            f"expected a pad_token of the tokenizer in {source}/tokenizer_config.json, got none; add it and load again"
        )
        return cls._of_library(tokenizer, lambda text: list(tokenizer.encode(text).ids), pad_id, reason)

    @classmethod
    def of_processor(cls, processor: Any) -> TextTokenizer:
        """Take a `JatProcessor`'s tokenizer; without a processor there is none.

        Raises:
            InputError: `processor` is neither a processor with a tokenizer nor None.
        """
        if processor is None:
            return cls("expected an engine with a processor, got one made without")
        tokenizer = getattr(processor, "tokenizer", None)
        if tokenizer is None:
            raise InputError(f"processor: expected a JatProcessor or nothing, got {type(processor).__name__}")
        pad_id = None if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        reason = "expected a tokenizer with a pad_token, got one without; set processor.tokenizer.pad_token"

        def encode(text: str) -> list[int]:
            return list(tokenizer(text)["input_ids"])

        library = getattr(tokenizer, "backend_tokenizer", None)
        if library is not None:
            return cls._of_library(library, encode, pad_id, reason)

        def decode(tokens: list[int], skip_special: bool) -> str:
            text = tokenizer.decode(tokens, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)
            return str(text)

        special = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        return cls("", pad_id, "" if pad_id is not None else reason, special, encode, decode)

    @classmethod
    def _of_library(
        cls, tokenizer: Tokenizer, encode: Callable[[str], list[int]], pad_id: int | None, pad_reason: str
    ) -> TextTokenizer:
        added = tokenizer.get_added_tokens_decoder()
        special = {number: token.content for number, token in added.items() if token.special}

        def decode(tokens: list[int], skip_special: bool) -> str:
            return str(tokenizer.decode(tokens, skip_special_tokens=skip_special))

        return cls("", pad_id, "" if pad_id is not None else pad_reason, special, encode, decode)

    def check(self, field: str) -> None:
        """Check that there is a tokenizer.

        Args:
            field: the argument that needs it, for the message.

        Raises:
            InputError: there is none; the message has the reason.
        """
        if self._encode is None:
            raise InputError(f"{field}: {self.reason}")

    def encode(self, text: str) -> list[int]:
        """Return a text's tokens, those that the tokenizer adds by itself included.

        Raises:
            InputError: there is no tokenizer.
        """
        self.check("text")
        assert self._encode is not None, "checked"
        return self._encode(text)

    def decode(self, tokens: Iterable[int], skip_special: bool = True) -> str:
        """Return the text of tokens. Bytes that are not UTF-8 become U+FFFD.

        Args:
            tokens: numbers of the vocabulary; unknown ones have no text.
            skip_special: leave special tokens out, such as the end of a text.

        Raises:
            InputError: there is no tokenizer.
        """
        self.check("text")
        assert self._decode is not None, "checked"
        return self._decode([int(token) for token in tokens], skip_special)


def _find_pad_id(tokenizer: Tokenizer, source: str | os.PathLike[str], hub: dict[str, Any]) -> int | None:
    """Return the padding token, which is in the files that transformers adds; None if there is none."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = find_file(source, name, hub)
        pad = read_json(path).get("pad_token") if path else None
        content = pad.get("content") if isinstance(pad, dict) else pad
        pad_id = tokenizer.token_to_id(content) if content else None
        if pad_id is not None:
            return int(pad_id)
    return None
