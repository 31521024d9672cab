"""Packaging. Compiled parts are built by CMake; a machine without a compiler gets the package without them.

JAT_ENGINE_PREBUILT=FOLDER takes the compiled modules that lie in FOLDER, such as `jat_engine` of a checkout that is
set up, and compiles nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
PREBUILT = os.environ.get("JAT_ENGINE_PREBUILT")
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "jat_engine/__init__.py").read_text()).group(1)

# Floors are releases that `make test-versions` tests. A ceiling has its reason next to it.
SIMULATORS = {
    "atari": ["ale-py>=0.11", "opencv-python-headless>=4.10.0.84"],  # OpenCV: the first with numpy 2
    "babyai": ["minigrid>=3.0"],
    # Meta-World: goals are set through private names, and a release pins one MuJoCo (3.1.1: 3.3.0).
    "metaworld": ["metaworld>=3.1.1,<3.2"],
    "mujoco": ["mujoco>=3.3,<3.5", "imageio>=2.34"],  # from 3.5 on ant and standup no longer move as published
}
SB3 = ["stable-baselines3>=2.9"]  # the release that is tested
MINARI = ["minari[arrow,hdf5]>=0.5.4"]  # the release that is tested; older datasets are read by it
RAY = ["ray[serve]>=2.60"]  # the release that is tested; serve: `jat_engine.ray_serve`
# msgpack: Ray needs one below 2.
SERVE = ["msgpack>=1.2.4,<2", "prometheus-client>=0.26", "websockets>=17.4"]  # the releases that are tested
LM_EVAL = ["lm-eval>=0.4.13,<0.5"]  # the release that is tested; its interface may change with the next minor one
VIDEO = ["imageio-ffmpeg>=0.6"]
# accelerate: 1.2 lacks an argument that transformers' Trainer passes.
# tensorboard: 2.19 imports pkg_resources, which setuptools no longer has.
BENCH = ["matplotlib>=3.9"]  # the first for numpy 2
TRAIN = ["accelerate>=1.3", "datasets>=4.0", *BENCH, "pyarrow>=21", "tensorboard>=2.20"]


class CMakeBuild(build_ext):
    """Build each extension `jat_engine.<target>` as the CMake target of that name."""

    def run(self) -> None:
        try:
            if PREBUILT is None:
                self.configure()
                self.compile_together()
        except (ImportError, OSError, subprocess.CalledProcessError) as error:
            self.skip(f"CMake could not configure the build ({error})")
            self.extensions = []
            return
        super().run()

    def configure(self) -> None:
        import pybind11

        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        options = [
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            "-DCMAKE_BUILD_TYPE=Release",
        ]
        if shutil.which("ninja"):
            options += ["-G", "Ninja"]  # a build requirement: there is not always a make
        subprocess.run(["cmake", "-S", str(ROOT), "-B", str(build), *options], check=True)

    def compile_together(self) -> None:
        """Build all targets at once, which keeps every core busy; `build_extension` tells which of them failed."""
        targets = [extension.name.rpartition(".")[2] for extension in self.extensions]
        command = ["cmake", "--build", str(Path(self.build_temp).resolve()), "--parallel", "--target"]
        subprocess.run([*command, *filter(self.configured, targets)], check=False, capture_output=True)

    def configured(self, target: str) -> bool:
        """Tell if CMake found what `target` needs."""
        return target != "_cuda" or any(Path(self.build_temp).glob("CMakeFiles/*/CMakeCUDACompiler.cmake"))

    def build_extension(self, extension: Extension) -> None:
        target = extension.name.rpartition(".")[2]
        output = Path(self.get_ext_fullpath(extension.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        if PREBUILT is not None:
            for built in Path(PREBUILT).glob(output.name):
                self.copy_file(str(built), str(output))
            return
        build = Path(self.build_temp).resolve()
        if not self.configured(target):
            self.announce("No CUDA compiler: jat_engine is installed without its persistent kernel", level=2)
            return
        try:
            subprocess.run(["cmake", "--build", str(build), "--parallel", "--target", target], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            self.skip(f"{extension.name} did not compile ({error})")
            return
        built = next(build.glob(f"{target}.*{output.suffix}"))
        self.copy_file(str(built), str(output))

    def skip(self, reason: str) -> None:
        self.warn(
            f"{reason}. jat_engine is installed without its compiled parts and works without them; "
            "`jat-engine info` shows what is present. To build them, install a C++17 compiler and reinstall."
        )


setup(
    name="jat-engine",
    version=VERSION,
    description="Run a JAT agent: Atari, BabyAI, Meta-World and MuJoCo from one transformer",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # kernels/ has no __init__.py of its own: PyPI has a package `kernels` that transformers imports if it is there.
    packages=[*find_packages(include=["jat_engine", "jat_engine.*"]), "jat_engine.kernels"],
    package_dir={"jat_engine.kernels": "kernels"},
    package_data={
        "jat_engine": ["py.typed", "*.pyi", "checkpoints/*/*"],
        "jat_engine.envs": ["*.csv"],
        "jat_engine.kernels": ["*.md"],
        "jat_engine.recipes.jat_mini": ["card.md"],
        "jat_engine.runs": ["*.csv"],
        "jat_engine.serving": ["static/*"],
        "jat_engine.testing": ["*.npz", "golden_data/*", "golden_data/checkpoint/*"],
    },
    ext_modules=[
        Extension("jat_engine._cpu", sources=[], optional=True),
        Extension("jat_engine._cuda", sources=[], optional=True),
    ],
    cmdclass={"build_ext": CMakeBuild},
    install_requires=[
        "torch>=2.11",
        "transformers>=5.17,<6",  # 5 broke what was written for 4
        "huggingface_hub>=1.5",  # as transformers 5.17 requires
        "safetensors>=0.8",  # as transformers 5.17 requires
        "gymnasium>=1.4,<2",  # 2 may drop the v4 ids
        "numpy>=2.0",  # older ones cannot be imported together with today's pyarrow
        "pillow>=10.1",
        "rich>=13",
        "scipy>=1.13",  # the first with numpy 2
        "tqdm>=4.66.3",
    ],
    extras_require={
        **SIMULATORS,
        "video": VIDEO,
        "train": TRAIN,
        "minari": MINARI,
        "sb3": SB3,
        "ray": RAY,
        "serve": SERVE,
        "lm-eval": LM_EVAL,
        "cuda": ["triton>=3.6"],
        "bench": BENCH,
        "peers": ["nncf>=3", "onnx>=1.20", "onnxruntime>=1.23", "onnxscript>=0.5", "openvino>=2025.3"],
        "all": sorted(
            {package for packages in SIMULATORS.values() for package in packages} | {*VIDEO, *TRAIN, *MINARI, *BENCH}
        ),
        "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.29"],
        "dev": [
            *SB3,
            *RAY,
            *SERVE,
            # 3.1 has no wheel for Python 3.11; there are none for other systems.
            "atheris>=3,<3.1; platform_system == 'Linux' and platform_machine == 'x86_64' and python_version < '3.14'",
            "clang-format>=18",
            "cmake>=3.24",
            "hypothesis>=6",
            "import-linter>=2.9",
            "mypy>=1.15",
            "ninja>=1.11",
            "pre-commit>=4",
            "pybind11>=3.0",
            "pytest>=8",
            "pytest-benchmark>=5",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "setuptools>=77",
            "triton>=3.6; platform_system == 'Linux'",  # no higher: a CUDA build of torch pins its own
            "uv>=0.9",
        ],
    },
    entry_points={"console_scripts": ["jat-engine = jat_engine.cli:main"]},
)
