"""`JatEngine.score`: how likely texts are to the model."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config import JatConfig
from ..errors import InputError
from ..text.assets import TextAssets
from ..text.score import ScoredText
from ..text.score_inputs import is_single, parse_ids, parse_texts
from ..text.tokenizer import TextTokenizer
from .text_batch import TextBatch

_TEXTS_AT_ONCE = 256
"""Texts that are given to the batch together, which divides them into steps itself."""

_TRUNCATIONS = (False, "left", "right")


class TextScorer:
    """Mixin with `score`."""

    config: JatConfig
    _assets: TextAssets
    _texts: TextBatch

    @property
    def text_tokenizer(self) -> TextTokenizer:
        """The tokenizer, with `encode` and `decode`."""
        return self._assets.tokenizer

    def score(
        self,
        texts: Any = None,
        images: Any = None,
        *,
        contexts: Any = None,
        input_ids: Any = None,
        pixel_values: Any = None,
        truncation: bool | str = False,
    ) -> Any:
        """Return how likely texts are to the model, token by token.

        Without a context, a text's first token is not scored, with an image before it or not: the published loss
        leaves it out, and e to the power of that loss is the perplexity. A score does not depend on the other texts: on
        the native CPU backend bit for bit.

        Args:
            texts: a string, or a list of strings of any lengths.
            images: a picture before each text, as `JatProcessor` takes them; None for none at all.
            contexts: a string before each text, which is read and not scored; None for none at all.
            input_ids: tokens in place of `texts`: a list of integers, a list of such lists, or an array or tensor [S]
                or [B, S]. `contexts` are then tokens, too.
            pixel_values: [B, num_channels, image_size, image_size], processed images in place of `images`.
            truncation: what to do with more tokens than `max_position_embeddings`, an image's patches included: False
                refuses them, "right" drops the last tokens, and "left" the first ones. The last token is predicted and
                not read, so it needs no position.

        Returns:
            A `TextScore`, or a list of them for a list of texts.

        Raises:
            InputError: an argument has an invalid type or value, a text is too long, or too short to have a token that
                is scored. No text has been computed.
            CacheFullError: the KV cache has too few free pages for one of the texts.
            SessionError: the engine is closed.

        Example:
            >>> engine.score("go to the red ball").num_tokens
            4
            >>> scores = engine.score([" red", " blue ball"], contexts=["go to the", "go to the"])
            >>> [score.num_tokens for score in scores]
            [1, 2]
        """
        if (texts is None) == (input_ids is None):
            raise InputError("texts, input_ids: expected one of them, got " + ("both" if texts is not None else "none"))
        if not any(truncation is each or truncation == each for each in _TRUNCATIONS):
            raise InputError(f'truncation: expected False, "left" or "right", got {truncation!r:.40}')

        vocab_size = self.config.vocab_size
        if texts is not None:
            self.text_tokenizer.check("texts")
            parsed = parse_texts(texts, contexts, self.text_tokenizer.encode, vocab_size)
        else:
            parsed = parse_ids(input_ids, contexts, vocab_size)
        pictures = self._read_pictures(images, pixel_values, len(parsed))
        positions, num_patches = self.config.max_position_embeddings, self.config.num_image_tokens
        sequences = []
        for one, picture in zip(parsed, pictures, strict=True):
            # The last token is not read, so it needs no position.
            fitting = one.fit(positions + 1 - (0 if picture is None else num_patches), truncation)
            sequences.append(ScoredText(fitting.tokens, picture, fitting.first))

        for begin in range(0, len(sequences), _TEXTS_AT_ONCE):
            self._read_texts(sequences[begin : begin + _TEXTS_AT_ONCE])
        scores = [sequence.score() for sequence in sequences]
        return scores[0] if is_single(texts if texts is not None else input_ids) else scores

    def _read_pictures(self, images: Any, pixel_values: Any, count: int) -> list[np.ndarray | None]:
        """Return processed images, one or None for each of `count` texts."""
        if images is not None and pixel_values is not None:
            raise InputError("images, pixel_values: expected one of them, got both")
        if images is not None:
            given = images if isinstance(images, list | tuple) else [images]
            if len(given) != count:
                raise InputError(f"images: expected one for each of {count} text(s), got {len(given)}")
            found = iter(self._assets.pictures.convert([image for image in given if image is not None]))
            return [None if image is None else next(found) for image in given]
        if pixel_values is not None:
            if not hasattr(pixel_values, "__len__") or len(pixel_values) != count:
                got = len(pixel_values) if hasattr(pixel_values, "__len__") else f"{pixel_values!r:.40}"
                raise InputError(f"pixel_values: expected one image for each of {count} text(s), got {got}")
            check = self._assets.pictures.check_values
            return [check(f"pixel_values[{index}]", values) for index, values in enumerate(pixel_values)]
        return [None] * count

    def _read_texts(self, sequences: list[ScoredText]) -> None:
        """Run steps of texts until all of these have been read."""
        try:
            for sequence in sequences:
                self._texts.add(sequence)
            while not all(sequence.finished for sequence in sequences):
                self._texts.advance(sequences)
        finally:
            self._texts.remove(sequences)
