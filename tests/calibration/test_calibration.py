"""Rounding that recorded observations guide: it beats plain rounding, repeats itself, and is a command."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import training_data
from helpers.engines import native

from jat_engine import JatConfig, JatEngine, JatModel, JatProcessor
from jat_engine.checkpoint.quantized import dtypes_of
from jat_engine.cli import main
from jat_engine.testing.recordings import Recording, load_recordings

pytestmark = native
rounding = pytest.importorskip("jat_engine.calibration.rounding", reason="no native module")

from jat_engine.calibration.data import draw_segments  # noqa: E402
from jat_engine.calibration.model import round_model  # noqa: E402
from jat_engine.datasets.sources import open_source  # noqa: E402


def moments_of(inputs: torch.Tensor) -> Any:
    moments = rounding.SecondMoments(inputs.shape[1])
    moments.add(inputs)
    return moments


@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_uncorrelated_inputs_give_plain_rounding(dtype: str) -> None:
    weight = torch.randn(20, 70, generator=torch.Generator().manual_seed(0))
    plain = rounding.round_plainly(weight, dtype)
    found = rounding.round_with_feedback(weight, moments_of(torch.eye(70)), dtype)
    assert torch.equal(found.codes, plain.codes)
    assert torch.equal(found.weight(), plain.weight())


@pytest.mark.parametrize("max_block", [4096, 32])
@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_outputs_for_correlated_inputs_change_less(dtype: str, max_block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "MAX_BLOCK", max_block)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 96, generator=generator)
    inputs = torch.randn(500, 8, generator=generator) @ torch.randn(8, 96, generator=generator)
    inputs += 0.1 * torch.randn(500, 96, generator=generator)

    def error(codes: Any) -> float:
        return float((inputs @ (codes.weight() - weight).T).norm())

    found = rounding.round_with_feedback(weight, moments_of(inputs), dtype)
    assert error(found) < 0.6 * error(rounding.round_plainly(weight, dtype))


def test_rows_and_columns_of_zeros() -> None:
    weight = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    weight[1] = 0
    inputs = torch.randn(9, 40)
    inputs[:, 5] = 0
    found = rounding.round_with_feedback(weight, moments_of(inputs), "int4").weight()
    assert torch.isfinite(found).all()
    assert not found[1].any()


# ---- jat-mini on recorded observations -------------------------------------------------------------------------------

RECORDED = ("metaworld-drawer-open", "mujoco-reacher", "babyai-go-to", "atari-pong")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recordings that come with the package as a dataset: jat-mini's actions, the last third as the test split."""
    folder = tmp_path_factory.mktemp("recorded")
    with JatEngine.from_pretrained("jat-mini", device="cpu", dtype="float32") as engine:
        for recording in recordings():
            columns = played(engine, recording)
            length = len(recording.observations)
            for split, first, end in (("train", 0, 2 * length // 3), ("test", 2 * length // 3, length)):
                training_data.write_split(
                    folder, recording.task.name, split, [{name: x[first:end] for name, x in columns.items()}]
                )
    return folder


def recordings() -> list[Recording]:
    """Return those whose observations jat-mini takes."""
    return [recording for recording in load_recordings() if recording.task.name in RECORDED]


def played(engine: JatEngine, recording: Recording) -> dict[str, Any]:
    """Return the columns of a recorded episode, with the engine's greedy actions."""
    session = engine.open_session()
    actions = [
        session.get_next_action(**observation, action_space=recording.action_space, reward=reward, deterministic=True)
        for observation, reward in zip(recording.observations, recording.rewards, strict=True)
    ]
    kind = "discrete" if isinstance(actions[0], int) else "continuous"
    return {
        **{f"{name}s": [o[name] for o in recording.observations] for name in recording.observations[0]},
        f"{kind}_actions": np.array(actions, np.int64 if kind == "discrete" else np.float32),
        "rewards": np.array([reward or 0.0 for reward in [*recording.rewards[1:], 0.0]], np.float32),
    }


def segments_of(dataset: Path, split: str, config: JatConfig) -> list[Any]:
    tasks = {recording.task.name: recording.task for recording in recordings()}
    sources: Any = {name: open_source(str(dataset), name, split, task=task) for name, task in tasks.items()}
    return draw_segments(sources, tasks, 100, 0, config, JatProcessor.from_pretrained("jat-mini"))


@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_predictions_change_less_than_by_plain_rounding(
    dataset: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "MAX_BLOCK", 1024)  # larger ones take seconds for frames
    model = JatModel.from_pretrained("jat-mini").float().eval()
    test = segments_of(dataset, "test", model.config)

    def predict(model: JatModel) -> list[torch.Tensor]:
        with torch.no_grad():
            return [model(**scaled(segment), return_loss=False).pred_actions for segment in test]

    def errors(segments: Sequence[Any]) -> list[float]:
        rounded = copy.deepcopy(model)
        round_model(rounded, dtypes_of(dtype), segments)
        return [float((a - b).norm() / b.norm()) for a, b in zip(predict(rounded), expected, strict=True)]

    expected = predict(model)
    plain, calibrated = errors([]), errors(segments_of(dataset, "train", model.config))
    assert all(one < 0.9 * other for one, other in zip(calibrated, plain, strict=True)), (plain, calibrated)


def scaled(segment: Any) -> dict[str, Any]:
    from jat_engine.training.dataset import scale_frames

    frames = segment.get("image_observations")
    return {**segment} if frames is None else {**segment, "image_observations": scale_frames(frames)}


# ---- the command -----------------------------------------------------------------------------------------------------


def digest(folder: Path) -> str:
    files = sorted(folder.iterdir())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


def quantize(dataset: Path, output: Path, *more: str) -> int:
    argv = ["quantize", "--model", "jat-mini", "--dataset", str(dataset), "--output", str(output)]
    return main([*argv, "--tasks", "babyai-go-to", "mujoco-reacher", "--num_segments", "2", *more])


def test_a_seed_gives_the_same_checkpoint(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantize(dataset, tmp_path / "a") == 0
    assert "26 matrices with 4.6" in capsys.readouterr().err
    assert quantize(dataset, tmp_path / "b") == 0
    assert quantize(dataset, tmp_path / "c", "--dtype", "int8") == 0
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")
    with JatEngine.from_pretrained(tmp_path / "a", device="cpu") as engine:
        assert engine.choice.dtype == "int4"


def test_refused_arguments(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*argv: str) -> str:
        assert main(["quantize", *argv]) == 2
        return capsys.readouterr().err

    mini, output = ("--model", "jat-mini"), ("--output", str(tmp_path / "out"))
    assert "--tasks: expected --dataset with it" in refused(*mini, *output, "--tasks", "mujoco-reacher")
    assert "--num_segments: expected at least 1, got 0" in refused(*mini, *output, "--num_segments", "0")
    assert "expected a folder with episodes" in refused(*mini, *output, "--dataset", str(tmp_path))
    assert "text dataset wikipedia" in refused(*mini, *output, "--dataset", str(dataset), "--tasks", "wikipedia")
    assert "mujoco-ant" in refused(*mini, *output, "--dataset", str(dataset), "--tasks", "mujoco-ant")
    assert not (tmp_path / "out").exists()

    assert quantize(dataset, tmp_path / "out") == 0
    capsys.readouterr()
    assert "nothing is written over" in refused(*mini, *output)
    again = refused("--model", str(tmp_path / "out"), "--output", str(tmp_path / "again"))
    assert "expected floating-point weights, got quantised ones" in again
