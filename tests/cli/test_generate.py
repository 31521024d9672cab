"""`jat-engine generate`: the tokens of `JatEngine.generate`, printed as they come, or as JSON."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import texts

from jat_engine import JatEngine
from jat_engine.cli import main
from jat_engine.cli.generate import Continuation, shown

GENERATE = ["generate", "--model_name_or_path", "model", "--use_cpu", "--backend", "torch", "--dtype", "float32"]
PROMPTS = ["go to the", "a"]


@pytest.fixture(autouse=True)
def working_directory(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, tmp_path / "model")
    for seed in range(2):
        texts.picture(seed).save(f"{seed}.png")


def _expected(images: Any = None, **options: Any) -> tuple[list[str], list[list[int]]]:
    """Return what the engine itself writes after `PROMPTS`: texts and tokens."""
    with JatEngine.from_pretrained("model", device="cpu", backend="torch", dtype="float32") as engine:
        ids = [engine.text_tokenizer.encode(prompt) for prompt in PROMPTS]
        written = engine.generate(PROMPTS, images, **options)
        tokens = [row.tolist() for row in engine.generate(input_ids=ids, images=images, **options)]
        return written, [row[len(prompt) :] for row, prompt in zip(tokens, ids, strict=True)]


def _lines(capsys: pytest.CaptureFixture[str], *flags: str) -> list[dict[str, Any]]:
    assert main([*GENERATE, "--json", *flags]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_texts_are_those_of_the_engine(capsys: pytest.CaptureFixture[str]) -> None:
    written, _ = _expected(max_new_tokens=8, do_sample=False)
    assert main([*GENERATE, "--prompt", PROMPTS[0], "--max_new_tokens", "8"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{written[0]}\n"
    assert captured.err.startswith("8 token(s), the first after ")
    assert captured.err.endswith("ended by: length\n")
    assert main([*GENERATE, "--prompt", *PROMPTS, "--max-new-tokens", "8"]) == 0
    out = capsys.readouterr().out
    assert out == "".join(f"==> {prompt}\n{text}\n" for prompt, text in zip(PROMPTS, written, strict=True))


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    options = {"max_new_tokens": 6, "do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "seed": 5}
    written, tokens = _expected(["0.png", "1.png"], **options)
    flags = ["--max_new_tokens", "6", "--do_sample", "--temperature", "0.7", "--top_k", "20", "--top_p", "0.9"]
    lines = _lines(capsys, "--prompt", *PROMPTS, "--image", "0.png", "1.png", *flags, "--seed", "5")
    assert [line["text"] for line in lines] == written
    assert [line["tokens"] for line in lines] == tokens
    assert [line["prompt"] for line in lines] == PROMPTS
    assert [line["image"] for line in lines] == ["0.png", "1.png"]
    assert [line["finish_reason"] for line in lines] == ["length", "length"]
    assert all(line["time_to_first_token_ms"] > 0 and line["tokens_per_second"] > 0 for line in lines)
    again = _lines(capsys, "--prompt", *PROMPTS, "--image", "0.png", *flags, "--seed", "5")
    assert again[0]["tokens"] == tokens[0]
    assert again[1]["tokens"] != tokens[1], "the image is another one"


def test_stop_strings_end_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    (whole,) = _lines(capsys, "--prompt", "go", "--max_new_tokens", "12")
    stop = next(char for char in whole["text"][3:] if char != "\ufffd")
    (cut,) = _lines(capsys, "--prompt", "go", "--max_new_tokens", "12", "--stop", stop)
    assert cut["text"] == whole["text"].partition(stop)[0]
    assert cut["finish_reason"] == "stop"


def test_standard_input_is_a_prompt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("go\n"))
    (line,) = _lines(capsys, "--max_new_tokens", "2")
    assert line["prompt"] == "go\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("x" * 60))
    (line,) = _lines(capsys, "--max_new_tokens", "8", "--truncation")
    assert len(line["tokens"]) == 8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt", "a", ""], "--prompt: expected a text with characters, got an empty one"),
        (["--prompt", "a", "--temperature", "0.5"], "--temperature: expected --do_sample with it, got it alone"),
        (["--prompt", "a", "--image", "no.png"], "--image: expected the file of an image, got no.png"),
        (["--prompt", "a", "--image", "model/config.json"], "images: expected a picture, got 'model/config.json'"),
        (["--prompt", "a", "--image", "0.png", "1.png"], "--image: expected one for all prompts or one for each of 1"),
        (["--prompt", "a", "--seed", "-1"], "--seed: expected 0 to 2**64 - 1, got -1"),
        (["--prompt", "a", "--stop", ""], "--stop: expected strings with characters, got an empty one"),
        (["--prompt", "a", "--max_new_tokens", "0"], "max_new_tokens: expected an integer"),
        (["--prompt", "x" * 60, "--max_new_tokens", "8"], "expected at most 41 tokens"),
        (["--prompt", "a", "--backend", "reference"], "--backend: expected an engine's for texts, got reference"),
    ],
)
def test_what_is_refused(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main([*GENERATE, *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("jat-engine: error: ")
    assert message in line


def test_a_terminal_is_not_given_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a\x1b[2Jb\n\tc\r\u202e\u00e9"
    assert shown(text) == text, "in a file or a pipe"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert shown(text) == "a\\x1b[2Jb\n\tc\\r\\u202e\u00e9"


def test_a_continuation_without_tokens_has_no_rate() -> None:
    empty = Continuation("a", None, 0.0)
    assert (empty.first_token_ms, empty.tokens_per_second) == (None, None)
    assert empty.describe()["text"] == ""
