"""The text demonstration: captions are true, what is held out is not learned, and the model learns both."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image

pytest.importorskip("minigrid", reason="needs the babyai extra")

from minigrid.core.constants import COLORS

from jat_engine import JatEngine, JatModel, envs
from jat_engine.errors import InputError
from jat_engine.recipes.text_demo import __main__ as command
from jat_engine.recipes.text_demo import book, recipe, report, rooms

CELL = 32


@pytest.mark.parametrize("task", rooms.TASKS)
def test_objects_are_those_of_the_environment_and_lie_in_the_picture_where_they_are(task: str) -> None:
    env: Any = envs.make(task, render_mode="rgb_array")
    for seed in range(10):
        env.reset(seed=seed)
        grid, room = env.unwrapped.grid, rooms.look_at(env.unwrapped)
        there = [(cell.color, cell.type) for cell in grid.grid if cell is not None and cell.type != "wall"]
        assert list(room.objects) == there
        assert len(there) == 1 + rooms.TASKS.index(task)

        assert room.picture.shape == (6 * CELL, 6 * CELL, 3)
        for row in range(6):
            for column in range(6):
                cell = grid.get(column + 1, row + 1)
                pixels = room.picture[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL].reshape(-1, 3)
                if cell is not None:
                    # Cells that the agent sees are drawn lighter.
                    lit = COLORS[cell.color] + 0.3 * (255 - COLORS[cell.color])
                    near = [np.abs(pixels - color).max(axis=1) <= 2 for color in (COLORS[cell.color], lit)]
                    assert max(map(np.sum, near)) > 50
                elif (column + 1, row + 1) != tuple(env.unwrapped.agent_pos):
                    assert np.ptp(pixels.astype(int), axis=1).max() == 0  # grey: an empty cell and its border
    env.close()


def test_answers_follow_from_the_objects() -> None:
    objects = (("red", "ball"), ("blue", "ball"), ("grey", "key"))
    answers = {example.prompt: example.answer for example in rooms.questions(objects)}
    assert answers == {
        "Question: how many balls? Answer:": " two",
        "Question: how many boxes? Answer:": " none",
        "Question: how many keys? Answer:": " one",
        "Question: what colour is the key? Answer:": " grey",  # of two balls no colour is asked
    }
    room = rooms.Room(np.zeros((192, 192, 3), np.uint8), objects)
    assert room.examples()[0] == rooms.Example("caption", "Caption:", " a red ball, a blue ball and a grey key")


def test_rooms_that_are_known_are_not_held_out() -> None:
    known = rooms.make_rooms(range(4))
    assert len(known) == 4
    assert rooms.make_rooms(range(4), known=known) == []
    held_out = rooms.make_rooms(range(6), known=known)
    assert len(held_out) == 2
    assert not {room.picture.tobytes() for room in known} & {room.picture.tobytes() for room in held_out}


def test_chapters_are_learned_or_held_out(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(f"verse {number}\nverse again" for number in range(25)), encoding="utf-8")
    split = book.read_book(file)
    assert split.held_out == ["verse 9\nverse again\n", "verse 19\nverse again\n"]
    assert len(split.learned) == 23
    assert not set(split.learned) & set(split.held_out)

    parts = book.passages(split.learned, 12)
    assert "".join(parts) == "".join(split.learned)
    assert max(map(len, parts)) == len("verse again\n")

    file.write_text("one chapter", encoding="utf-8")
    with pytest.raises(InputError, match=r"text_file: expected at least 10 chapters .* got 1 in"):
        book.read_book(file)


def test_verses_are_read_from_the_package() -> None:
    pytest.importorskip("pythonbible", reason="the text of the demonstration is in a package that is not required")
    split = book.read_book()
    assert len(split.learned) + len(split.held_out) == 42 + 150 + 31 + 12 + 8
    assert any("A soft answer turneth away wrath" in chapter for chapter in split.learned)
    assert not set(split.learned) & set(split.held_out)


def test_without_the_package_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pythonbible", None)  # its import fails
    assert command.run(["--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: text: expected the package pythonbible")
    assert "pip install pythonbible" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_model_learns_both_and_engine_and_model_write_the_same(tmp_path: Path) -> None:
    split = book.read_book(ROOT / "LICENSE")
    learned = rooms.make_rooms(range(rooms.FIRST_LEARNED_SEED, rooms.FIRST_LEARNED_SEED + 40))
    held_out = rooms.make_rooms(range(3), known=learned)
    examples = [example for room in learned for example in room.examples()]
    processor = recipe.make_processor([*split.learned, *(example.prompt + example.answer for example in examples)])
    model = recipe.make_model(processor, hidden_size=64, num_heads=2, num_layers=2)

    losses = recipe.train(model, processor, split.learned, learned, 20)
    text, pictures = np.transpose(losses)
    assert np.mean(text[-3:]) < 0.92 * np.mean(text[:3])
    assert np.mean(pictures[-3:]) < 0.85 * np.mean(pictures[:3])

    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = JatModel.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))

    measured = report.measure(tmp_path, split, learned, held_out)
    assert measured["agreement"]["equal"] == measured["agreement"]["count"] > 3
    assert measured["text"]["perplexity"] < 0.75 * model.config.vocab_size  # of a model that knows nothing
    assert measured["pictures"]["caption"]["count"] == 3
    assert Image.open(tmp_path / "rooms.webp").size == (3 * (192 + 16) + 16, 192 + 28 + 2 * 16)
    assert len(measured["samples"]) == len(report.PROMPTS)
    assert any(line.startswith("held-out text: perplexity") for line in report.lines(measured))

    # The perplexity is e to the power of the model's own loss.
    engine = JatEngine.from_pretrained(tmp_path, device="cpu", dtype="float32")
    inputs = processor([split.held_out[0][:200]], return_tensors="pt")
    with torch.no_grad():
        loss = model(**inputs).loss
    assert engine.score(split.held_out[0][:200]).perplexity == pytest.approx(float(loss.exp()), rel=1e-4)
