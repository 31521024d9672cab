"""A wheel built from an sdist works in a separate environment, outside of the checkout."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.engines import NATIVE

pytest.importorskip("setuptools", reason="needs the dev extra")
pytest.importorskip("pip", reason="builds and installs with pip")


NOT_SOURCES = {".so", ".pyc"}


def sources(folder: str) -> set[str]:
    """Return the files below a folder of the checkout, relative to its root. Links to folders are not followed."""
    found = (path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix not in NOT_SOURCES)
    return {path.relative_to(ROOT).as_posix() for path in found}


def run(command: list[str | Path], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env={**inherited, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    # Not the checkout's egg-info: what it lists from earlier builds would be taken, too.
    run([sys.executable, "setup.py", "-q", "egg_info", "--egg-base", out, "sdist", "--dist-dir", out], ROOT)
    return next(out.glob("jat_engine-*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel with the native module of the checkout, which is already compiled."""
    out = tmp_path_factory.mktemp("wheel")
    options = ["-q", "--no-deps", "--no-index", "--no-build-isolation", "-w", out]
    run([sys.executable, "-m", "pip", "wheel", *options, sdist], out, JAT_ENGINE_PREBUILT=str(ROOT / "jat_engine"))
    return next(out.glob("jat_engine-*.whl"))


@pytest.fixture(scope="module")
def binaries(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the `bin` folder of a new environment with the wheel, which shares all other packages with this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    run([*pip, str(wheel)], folder)

    # Paths named in a .pth file are searched after the environment's own packages, and the .pth files that lie there,
    # such as the checkout's editable install, are not read.
    others = {
        *site.getsitepackages(),
        *(path for path in sys.path if path.endswith(("site-packages", "dist-packages"))),
    }
    own = next(folder.glob("lib/python*/site-packages"))
    (own / "others.pth").write_text("\n".join(sorted(others)))
    return folder / "bin"


def test_an_sdist_has_what_the_build_reads(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "MANIFEST.in"}
    assert needed | sources("csrc") | sources("kernels") <= names


def test_a_wheel_has_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = sources("jat_engine") | {f"jat_engine/{name}" for name in sources("kernels")}
    assert {
        "jat_engine/py.typed",
        "jat_engine/_cpu.pyi",
        "jat_engine/checkpoints/jat-mini/model.safetensors",
    } < expected
    installed = {name for name in names if name.startswith("jat_engine/")}
    assert {name for name in installed if not name.endswith(".so")} == expected
    assert any(name.startswith("jat_engine/_cpu.") and name.endswith(".so") for name in names) == (NATIVE is not None)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"jat_engine"}, "no tests, no benchmarks"


AGENTS = """
import sys
from pathlib import Path
import numpy as np
import jat_engine, jat_engine.kernels
from jat_engine import JatEngine, JatModel, JatProcessor, checkpoint_files
from jat_engine.bench.peers import open_peer, torch_compile
from jat_engine.bench.workload import SPACES, step_arguments

for path in (jat_engine.__file__, checkpoint_files.JAT_MINI_FOLDER, *jat_engine.kernels.__path__):
    assert Path(path).is_relative_to(sys.prefix), path
engine = JatEngine.from_pretrained("jat-mini", device="cpu", dtype="float32")
session = JatModel.from_pretrained("jat-mini").eval().open_session()
processor = JatProcessor.from_pretrained("jat-mini")
peers = {
    "reference": open_peer("JatModel", checkpoint_files.JAT_MINI_FOLDER, "float32"),
    "engine": open_peer("JatEngine", checkpoint_files.JAT_MINI_FOLDER, "float32"),
    "export": torch_compile.open_peer(checkpoint_files.JAT_MINI_FOLDER, "float32", backend="eager"),
}
for kind in ("continuous", "babyai"):
    agents = {name: peer.open(16) for name, peer in peers.items()}
    for step in range(3):
        found = {}
        for name, agent in agents.items():
            action, found[name] = agent.get_next_action(**step_arguments(kind, step), return_prediction=True)
        for name, prediction in found.items():
            assert np.allclose(prediction, found["reference"], rtol=1e-3, atol=1e-3), name
print(engine.choice.backend, len(engine.get_next_action(**step_arguments("continuous", 0))))
print(len(session.get_next_action(processor, **step_arguments("continuous", 0))))
"""


def test_model_engine_and_exported_step_run(binaries: Path, tmp_path: Path) -> None:
    done = run([binaries / "python", "-c", AGENTS], tmp_path)
    assert done.stdout.splitlines() == ["cpu 8" if NATIVE is not None else "torch 8", "8"]


def test_bench_runs_with_peers(binaries: Path, tmp_path: Path, tiny_folder: Path) -> None:
    peers = ["onnxruntime", "openvino"]
    options = ["--models", str(tiny_folder), "--peers", *peers, "--dtypes", "float32", "--windows", "8"]
    options += ["--observations", "continuous", "--num-iters", "2", "--num-iters-warmup", "1", "--use_cpu"]
    run([binaries / "jat-engine", "bench", "latency", *options, "--output-json", "out.json"], tmp_path)
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["settings"]["plain_torch"] == "") == (NATIVE is not None)
    measured = {row["agent"] for row in found["rows"] if row["suite"] == "latency"}
    for peer in peers:
        assert peer in measured or "is not installed" in found["skipped"][f"{peer} float32"], found["skipped"]
    assert {"JatModel", "JatEngine"} <= measured


def test_demo_plays(binaries: Path, tmp_path: Path) -> None:
    pytest.importorskip("minigrid", reason="needs the babyai extra")
    tasks = ["babyai-go-to-obj", "mujoco-reacher"]  # those of a missing simulator are left out
    options = ["--tasks", *tasks, "--video", "", "--max_steps", "5", "--use_cpu"]
    shown = run([binaries / "jat-engine", "demo", *options], tmp_path).stdout
    assert tasks[0] in shown
    assert ("backend cpu" in shown) == (NATIVE is not None)
