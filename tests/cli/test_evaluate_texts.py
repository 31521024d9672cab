"""`jat-engine eval` on texts: perplexity as `JatModel` has it, answers, the result file, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow", reason="needs the train extra")

from helpers import texts

from jat_engine import JatEngine, JatModel, JatProcessor
from jat_engine.cli import main
from jat_engine.evaluation.answers import exact_match, first_answer, split_question, vqa_accuracy

EVAL = ["eval", "--model_name_or_path", "model", "--use_cpu", "--backend", "torch", "--dtype", "float32"]
FILE = Path("results/model/text_results.json")
NUM_POSITIONS, NUM_PATCHES = 48, 16
NOISE, NO_IMAGE = [texts.picture(0)], {"bytes": b"no image", "path": None}


@pytest.fixture(autouse=True)
def working_directory(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, tmp_path / "model")


def _evaluate(*flags: str) -> dict[str, Any]:
    assert main([*EVAL, "--dataset", "data", *flags]) == 0
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def _error(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """Return the only line that a refused call prints."""
    capsys.readouterr()
    assert main([*EVAL, *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line.removeprefix("jat-engine: error: ")


def _loss(model: JatModel, tokens: list[int], image: Any, processor: JatProcessor) -> tuple[float, int]:
    """Return the model's loss of a text, summed over its tokens, and their number."""
    values = None if image is None else processor(images=[image], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        loss = model(input_ids=torch.tensor([tokens]), pixel_values=values).loss
    return float(loss) * (len(tokens) - 1), len(tokens) - 1


def test_perplexity_is_that_of_the_model(tiny_model: JatModel, tiny_processor: JatProcessor, capsys: Any) -> None:
    texts.write_published(Path("data"))
    names = ["wikipedia", "oscar", "conceptual-captions", "ok-vqa"]
    found = _evaluate("--tasks", *names, "--max_new_tokens", "4")
    assert found["complete"] is True
    assert list(found["tasks"]) == sorted(names)
    out = capsys.readouterr().out

    def encode(text: str) -> list[int]:
        return tiny_processor.tokenizer(text)["input_ids"] if text else []

    pieces = {name: [] for name in names}
    for text in texts.ARTICLES:
        tokens = encode(text)
        cut = [tokens[begin : begin + NUM_POSITIONS] for begin in range(0, len(tokens), NUM_POSITIONS)]
        pieces["wikipedia"] += [(piece, None) for piece in cut if len(piece) > 1]
    pieces["oscar"] = [(encode(texts.ARTICLES[0]), None)]
    room = NUM_POSITIONS - NUM_PATCHES
    pieces["conceptual-captions"] = [
        (encode(text)[:room], texts.picture(seed)) for seed, text in enumerate(texts.CAPTIONS) if len(text) > 1
    ]
    pieces["ok-vqa"] = [(encode(text), texts.picture(seed)) for seed, text in enumerate(texts.QUESTIONS)]
    for name in names:
        losses = [_loss(tiny_model, tokens, image, tiny_processor) for tokens, image in pieces[name]]
        count = sum(number for _, number in losses)
        loss = math.fsum(value for value, _ in losses) / count
        result = found["tasks"][name]
        assert result["tokens"] == count
        assert result["loss"] == pytest.approx(loss, rel=1e-5)
        assert result["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
        assert f"{result['perplexity']:.2f}" in out

    assert [found["tasks"][name]["texts"] for name in names] == [2, 1, 3, 4]
    assert [found["tasks"][name]["skipped"] for name in names] == [2, 0, 1, 0]
    assert [found["tasks"][name]["shortened"] for name in names] == [0, 0, 1, 0]
    assert "wikipedia: 2 text(s) had less than two tokens" in out
    assert "conceptual-captions: 1 text(s) did not fit beside their image" in out
    assert "ok-vqa: no accuracy, since the dataset has no column `answers`" in out
    settings = found["settings"]
    assert (settings["backend"], settings["dtype"], settings["split"]) == ("torch", "float32", "test")
    assert len(settings["weights_sha256"]) == 64


def test_answers(tiny_processor: JatProcessor) -> None:
    """Answers are those of `generate`; a text whose answer is what the model says anyway is an exact match."""
    images = [texts.picture(seed) for seed in range(4)]
    options = {"max_new_tokens": 6, "do_sample": False}
    with JatEngine.from_pretrained("model", device="cpu", backend="torch", dtype="float32") as engine:
        prompts = [split_question(text)[0] for text in texts.QUESTIONS]
        written = [first_answer(text) for text in engine.generate(prompts, images, **options)]
        known = [f"{prompts[0]} {written[0] or '-'}", *texts.QUESTIONS[1:]]
    answers = [[written[0] or "-"] * 3 + ["other"] * 7, *texts.ANSWERS[1:]]
    texts.write_texts(Path("data"), "ok-vqa", known, images=images, answers=answers)
    texts.write_texts(
        Path("other"), "ok-vqa", known, images=images, answers=[[{"answer": one} for one in each] for each in answers]
    )
    found = _evaluate("--tasks", "ok-vqa", "--max_new_tokens", "6")["tasks"]["ok-vqa"]
    references = [split_question(text)[1] for text in known]
    assert found["questions"] == 4
    assert found["exact_match"] == np.mean([exact_match(*pair) for pair in zip(written, references, strict=True)])
    expected = np.mean([vqa_accuracy(*pair) for pair in zip(written, answers, strict=True)])
    assert found["accuracy"] == pytest.approx(expected)
    assert "accuracy_reason" not in found
    assert main([*EVAL, "--tasks", "ok-vqa", "--dataset", "other", "--max_new_tokens", "6", "--overwrite"]) == 0
    assert json.loads(FILE.read_text())["tasks"]["ok-vqa"] == found
    assert json.loads(Path("results/model/earlier-1/text_results.json").read_text())["tasks"]["ok-vqa"] == found


def test_own_texts_and_a_part_of_them() -> None:
    texts.write_texts(Path("data"), "my-books", texts.ARTICLES, split="train")
    found = _evaluate("--tasks", "text:my-books", "--split", "train", "--num_texts", "1")
    assert found["tasks"]["my-books"]["texts"] == 1
    assert found["tasks"]["my-books"]["tokens"] == len(texts.ARTICLES[0]) - 1
    assert found["settings"]["num_texts"] == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "ok-vqa", "atari"], r"--tasks: expected environments or texts, got both (atari, ok-vqa); run the"),
        (["--tasks", "wikpedia"], "of the texts, did you mean wikipedia?"),
        (["--tasks", "oscar", "--num_episodes", "3"], "--num_episodes: expected it with environments only"),
        (["--tasks", "oscar", "--save_video"], "--save_video: expected it with environments only"),
        (["--tasks", "oscar", "--adapter", "image"], "--adapter: expected it with environments only"),
        (["--tasks", "babyai-open", "--dataset", "data"], "--dataset: expected it with texts only"),
        (["--tasks", "oscar", "--num_texts", "0"], "--num_texts: expected at least 1, got 0"),
        (["--tasks", "oscar", "--dataset", "no-such"], "--dataset: expected a folder or the name of a dataset"),
        (["--tasks", "text:books", "--dataset", "data"], "--dataset data: expected the task's folder data/books"),
        (["--tasks", "oscar", "--dataset", "data", "--split", "train"], "data/oscar: expected files named train-*"),
        (["--tasks", "oscar", "--dataset", "data", "--backend", "reference"], "--backend: expected an engine's"),
        (["--tasks", "text:numbers", "--dataset", "data"], "29b654dcc3597a04.parquet: row 1: text: expected a string"),
    ],
)
def test_what_is_refused(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts.write_texts(Path("data"), "oscar", texts.ARTICLES)
    texts.write_texts(Path("data"), "numbers", ["a text", None])
    assert message in _error(capsys, *flags)
    assert not FILE.exists()


@pytest.mark.parametrize(
    ("task", "given", "columns", "message"),
    [
        ("ok-vqa", texts.QUESTIONS, {}, "images: expected this column, got text"),
        ("ok-vqa", ["What? A: x"], {"images": NOISE}, "row 0: text: expected `Q: <question> A: <answer>`"),
        ("ok-vqa", [f"Q: {'x' * 40} A: y"], {"images": NOISE}, "row 0: text: expected a question of at most 28 tokens"),
        ("ok-vqa", ["Q: a A: b"], {"images": NOISE, "answers": [["b"]]}, "of at least 2 people, got ['b']"),
        ("ok-vqa", ["Q: a A: b"], {"images": NOISE, "answers": [[1, 2]]}, "of at least 2 people, got [1, 2]"),
        ("conceptual-captions", ["a", "b"], {"images": [*NOISE, None]}, "row 1: images: expected an image, got None"),
        ("conceptual-captions", ["a"], {"images": [NO_IMAGE]}, "row 0: images: expected the file of an image, got 8"),
        ("text:empty", ["", "x"], {}, "expected texts of at least 2 tokens, got none"),
    ],
)
def test_wrong_data_is_refused(
    task: str, given: list[str], columns: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts.write_texts(Path("data"), task.removeprefix("text:"), given, **columns)
    assert message in _error(capsys, "--tasks", task, "--dataset", "data", "--max_new_tokens", "4")
    assert not FILE.exists()


def test_earlier_results_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    texts.write_texts(Path("data"), "oscar", texts.ARTICLES)
    _evaluate("--tasks", "oscar")
    before = FILE.read_bytes()
    assert "has text_results.json already" in _error(capsys, "--tasks", "oscar", "--dataset", "data")
    assert FILE.read_bytes() == before
    _evaluate("--tasks", "oscar", "--overwrite")
    assert FILE.read_bytes() == before
