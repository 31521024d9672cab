"""The installed package: imports that must not happen, the kernels folder, builds without a compiler."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT


def python(code: str, *options: str) -> str:
    result = subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_core_needs_no_simulator_and_no_extension() -> None:
    """A model is built and acts without gymnasium, simulators, Triton and the native module."""
    code = """
import sys
missing = ("gymnasium", "ale_py", "minigrid", "metaworld", "mujoco", "cv2", "triton", "jat_engine._cpu")
for name in missing:
    sys.modules[name] = None
import types, jat_engine
Box = type("Box", (types.SimpleNamespace,), {})
config = jat_engine.JatConfig(hidden_size=64, num_layers=2, num_heads=4)
model, processor = jat_engine.JatModel(config), jat_engine.JatProcessor.byte_level(config)
print(len(model.get_next_action(processor, continuous_observation=[1.0, 2.0], action_space=Box(shape=(3,)))))
"""
    assert python(code) == "3"


def test_only_training_needs_the_packages_for_training() -> None:
    """A model acts and computes gradients without them; the command names the packages to install."""
    code = """
import sys
for name in ("accelerate", "datasets", "pyarrow", "tensorboard"):
    sys.modules[name] = None
import torch, jat_engine
from jat_engine.cli import main
config = jat_engine.JatConfig(hidden_size=64, num_layers=2, num_heads=4)
x = torch.ones(1, 2, 3)
jat_engine.JatModel(config)(continuous_observations=x, continuous_actions=x, rewards=x[..., 0]).loss.backward()
sys.stderr = sys.stdout
print(main(["train", "--tasks", "mujoco", "--preset", "small", "--output_dir", "never"]))
"""
    message, code = python(code).splitlines()
    assert message == (
        "jat-engine: error: collecting and training need accelerate, datasets, pyarrow, not installed here; "
        "pip install 'jat-engine[train]'"
    )
    assert code == "2"


def test_engine_steps_and_tests_helpers_need_no_gymnasium(tiny_folder: Path) -> None:
    """Without gymnasium, as on a bare GPU machine, an engine steps and the tests' helpers can be imported."""
    code = f"""
import sys
sys.modules["gymnasium"] = None
sys.path.insert(0, "tests")
import jat_engine
from helpers import spaces
from jat_engine.testing import golden
assert spaces.Box.__module__ == "helpers.spaces"
engine = jat_engine.JatEngine.from_pretrained({str(tiny_folder)!r}, device="cpu", backend="torch", dtype="float32")
errors = []
for name in ("continuous_full", "image_full", "text_full"):
    episode = next((e for e in golden.EPISODES if e.name == name), None)
    if episode is not None:
        golden.check_episode(engine, None, episode, 1e-5)
        errors.append(name)
print(len(errors))
"""
    assert int(python(code)) >= 1


def test_an_engine_imports_neither_models_nor_processors(tiny_folder: Path) -> None:
    """Importing them takes longer than loading the published checkpoint."""
    code = f"""
import sys, types, jat_engine
assert "torch" not in sys.modules
engine = jat_engine.JatEngine.from_pretrained({str(tiny_folder)!r})
Discrete = type("Discrete", (types.SimpleNamespace,), {{}})
observation = {{"discrete_observation": [1] * 148, "text_observation": "go to the red ball"}}
engine.get_next_action(**observation, action_space=Discrete(n=7, start=0))
heavy = ("transformers.modeling_utils", "transformers.processing_utils", "jat_engine.model.modeling")
heavy += ("gymnasium", "triton")
print([name for name in heavy if name in sys.modules])
"""
    assert python(code) == "[]"


@pytest.mark.parametrize("other", [False, True], ids=["alone", "beside another package named kernels"])
def test_kernels_folder_is_importable(other: bool, tmp_path: Path) -> None:
    if other:
        (tmp_path / "kernels").mkdir()
        (tmp_path / "kernels" / "__init__.py").write_text("OTHER = True\n")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import jat_engine.kernels
assert [p for p in jat_engine.kernels.__path__ if p.endswith("kernels")]
assert not hasattr(jat_engine.kernels, "OTHER")
try:
    import kernels
except ImportError:
    print("none")
else:
    print(getattr(kernels, "OTHER", "shadowed"))
"""
    # Run from elsewhere: from the checkout's root the folder itself would be a namespace package.
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout.strip() == ("True" if other else "none")


def build(output: Path, path: str | None) -> subprocess.CompletedProcess[str]:
    """Run `setup.py build` without copying the sources, with CMake and the compiler searched for on `path`."""
    import os

    environment = dict(os.environ)
    if path is not None:
        environment["PATH"] = path
        environment.pop("CXX", None)
    return subprocess.run(
        [sys.executable, "setup.py", "build", "--build-base", str(output / "build")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
    )


def test_build_without_a_compiler_is_a_message_not_a_failure(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="needs the dev extra")
    pytest.importorskip("pybind11", reason="needs the dev extra")
    empty = tmp_path / "bin"
    empty.mkdir()
    result = build(tmp_path, str(empty))
    assert result.returncode == 0, result.stderr
    assert "installed without its compiled parts" in result.stdout + result.stderr
    library = next((tmp_path / "build").glob("lib*/jat_engine"))
    assert (library / "model/modeling.py").exists()
    assert not list(library.glob("*.so"))
    assert (library / "kernels" / "README.md").exists()
    assert (library / "envs" / "published_tasks.csv").exists()
    assert (library / "testing" / "recordings.npz").exists()


def test_native_module() -> None:
    module = pytest.importorskip("jat_engine._cpu", reason="built without a compiler")
    features = module.cpu_features()
    flags = Path("/proc/cpuinfo")
    if flags.exists() and "avx2" in flags.read_text():
        assert "avx2" in features
    assert module.compiler


def test_native_sources_compile_for_aarch64() -> None:
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("needs aarch64-linux-gnu-g++ (Debian: g++-aarch64-linux-gnu)")
    sources = [p for p in (ROOT / "csrc/cpu").rglob("*.cpp") if "avx" not in p.name and p.parent.name != "bindings"]
    assert len(sources) >= 8
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
    for source in sources:
        result = subprocess.run([compiler, *flags, str(source)], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
