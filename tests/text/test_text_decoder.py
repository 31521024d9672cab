"""`TextDecoder` streams what the whole text is, however it is divided into tokens."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from jat_engine import JatProcessor
from jat_engine.text.streaming import TextDecoder
from jat_engine.text.tokenizer import TextTokenizer

END = 256


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> TextTokenizer:
    """One token for each byte, and one for the end."""
    return TextTokenizer.of_checkpoint(tiny_folder, {})


def tokens_of(tokenizer: TextTokenizer, text: str) -> list[int]:
    return tokenizer.encode(text)


def stream(tokenizer: TextTokenizer, tokens: list[int], stops: tuple[str, ...] = ()) -> tuple[list[str], int]:
    """Return the pieces of a text, and how many tokens were taken."""
    decoder, pieces = TextDecoder(tokenizer, stops), []
    for token in tokens:
        pieces.append(decoder.put(token))
        if decoder.stopped:
            break
    return [*pieces, decoder.flush()], len(pieces)


def test_characters_come_when_they_are_complete(tokenizer: TextTokenizer) -> None:
    pieces, _ = stream(tokenizer, tokens_of(tokenizer, "aé€😀b"))
    assert pieces == ["a", "", "é", "", "", "€", "", "", "", "😀", "b", ""]


def test_bytes_that_are_no_text_come_at_the_end(tokenizer: TextTokenizer) -> None:
    tokens = [*tokens_of(tokenizer, "a"), *tokens_of(tokenizer, "€")[:2]]
    assert stream(tokenizer, tokens)[0] == ["a", "", "", "\ufffd"]


@pytest.mark.parametrize("seed", range(30))
def test_random_bytes(seed: int, tokenizer: TextTokenizer) -> None:
    """Valid, invalid and half characters, and special tokens between them."""
    rng = random.Random(seed)
    texts = [tokens_of(tokenizer, rng.choice(["a", "é", "€", "😀", " the", "\ufffd"])) for _ in range(20)]
    tokens = [token for text in texts for token in text[: rng.choice([1, 2, 9])]]
    tokens = [rng.choice([token, token, token, rng.randrange(257), END]) for token in tokens]
    pieces, _ = stream(tokenizer, tokens)
    assert "".join(pieces) == tokenizer.decode(tokens)
    so_far = ""
    for number, piece in enumerate(pieces[:-1]):
        so_far += piece
        assert tokenizer.decode(tokens).startswith(so_far)
        assert tokenizer.decode(tokens[: number + 1]).startswith(so_far)


def words_tokenizer() -> TextTokenizer:
    """Tokens of several characters, some of which end within a character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: number for number, char in enumerate(alphabet)}
    merges = []
    for first, second in ["ab", "bc", ("ab", "c"), ("c", "d"), ("Ã", "©"), ("a", "Ã"), ("d", "ab")]:
        merges.append((first, second))
        vocabulary[first + second] = len(vocabulary)
    library = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    library.decoder = decoders.ByteLevel()
    return TextTokenizer("", None, "", {}, None, None)._of_library(
        library, lambda text: library.encode(text).ids, 0, ""
    )


@pytest.mark.parametrize("seed", range(60))
def test_stop_strings(seed: int) -> None:
    """The token with which a stop string is complete is the last, and no part of the string comes out before."""
    tokenizer, rng = words_tokenizer(), random.Random(seed)
    size = len(pre_tokenizers.ByteLevel.alphabet()) + 7
    pool = [*range(size - 7, size), *(tokens_of(tokenizer, char)[0] for char in "abcd")]
    tokens = [rng.choice(pool) for _ in range(40)]
    stops = tuple("".join(rng.choice("abcdé") for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(1, 3)))

    pieces, number = stream(tokenizer, tokens, stops)
    whole = [tokenizer.decode(tokens[:n]) for n in range(len(tokens) + 1)]
    ends = [n for n in range(1, len(tokens) + 1) if any(stop in whole[n] for stop in stops)]
    assert number == (ends[0] if ends else len(tokens))
    expected = (
        whole[-1]
        if not ends
        else whole[ends[0]][: min(whole[ends[0]].find(stop) for stop in stops if stop in whole[ends[0]])]
    )
    assert "".join(pieces) == expected

    so_far = ""
    for piece in pieces:
        so_far += piece
        assert expected.startswith(so_far)


def test_stop_strings_begin_in_the_prompt_and_hold_special_tokens(tokenizer: TextTokenizer) -> None:
    decoder = TextDecoder(tokenizer, ["stop"], tokens_of(tokenizer, "please st"))
    assert decoder.put(ord("o") - 33) == ""
    assert not decoder.stopped
    decoder = TextDecoder(tokenizer, ["b<|endoftext|>", "xyz"])
    pieces = [decoder.put(token) for token in [*tokens_of(tokenizer, "axb"), END]]
    assert decoder.stopped
    assert "".join(pieces) + decoder.flush() == "ax"


def test_processors_and_checkpoints_have_one_tokenizer(tokenizer: TextTokenizer, tiny_processor: JatProcessor) -> None:
    other = TextTokenizer.of_processor(tiny_processor)
    for text in ("", "Größe: 3 €", "go  to\nthe door", "<|endoftext|>a"):
        tokens = tokenizer.encode(text)
        assert tokens == other.encode(text) == tiny_processor.tokenizer(text)["input_ids"]
        for skip in (True, False):
            expected = tiny_processor.tokenizer.decode(tokens, skip_special_tokens=skip)
            assert tokenizer.decode(tokens, skip) == other.decode(tokens, skip) == expected
    assert tokenizer.pad_id == other.pad_id == 256
    assert tokenizer.special_tokens == other.special_tokens == {256: "<|endoftext|>"}
