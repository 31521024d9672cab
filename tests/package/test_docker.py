"""Dockerfiles name sources and locks of the repository, a supported Python, and valid flags."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from helpers import ROOT

from jat_engine.cli.arguments import ModelArguments, parse
from jat_engine.cli.serve import ServeArguments

FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
IGNORE = ROOT / ".dockerignore"


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return name and arguments of each instruction, with continued lines joined and without comments."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    joined = re.sub(r" \\\n\s*", " ", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.strip().partition(" ") for line in joined.splitlines())]


def sources(path: Path) -> list[str]:
    """Return what a file copies from the repository."""
    copied = [rest.split()[:-1] for name, rest in instructions(path) if name == "COPY" and "--from=" not in rest]
    return [source for one in copied for source in one]


def test_there_is_a_file_for_cpus_and_one_for_gpus() -> None:
    assert [path.name for path in FILES] == ["cpu.Dockerfile", "cuda.Dockerfile"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_copied_is_in_the_repository_and_not_ignored(path: Path) -> None:
    taken = [line.removeprefix("!") for line in IGNORE.read_text().splitlines() if line.startswith("!")]
    for source in sources(path):
        assert (ROOT / source).exists(), source
        assert any(Path(source).match(pattern) for pattern in taken), source


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_a_wheel_is_built_from_is_copied(path: Path) -> None:
    """The wheel needs the files of an sdist, which setup.py and MANIFEST.in name."""
    build = {"setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "jat_engine", "kernels"}
    included = re.findall(r"^(?:include|graft) (.+)$", (ROOT / "MANIFEST.in").read_text(), re.MULTILINE)
    assert build | {name for line in included for name in line.split()} <= set(sources(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_everything_is_installed_from_locks(path: Path) -> None:
    """Locks have hashes, except for torch, whose releases have several files, and the package's own wheel."""
    steps = [step for name, rest in instructions(path) if name == "RUN" for step in rest.split(" && ")]
    installs = [step for step in steps if "pip install" in step]
    locks = {lock for step in installs for lock in re.findall(r"-r (\S+)", step)}
    assert locks == {source for source in sources(path) if source.startswith("requirements/")}
    for step in installs:
        assert "--no-deps" in step
        assert "--require-hashes" in step or "/torch-" in step or "--no-index" in step


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_server_is_not_open_to_everyone(path: Path) -> None:
    by_name = dict(instructions(path))
    assert by_name["USER"] == "jat"
    command = json.loads(by_name["ENTRYPOINT"]) + json.loads(by_name["CMD"])
    assert command[:2] == ["jat-engine", "serve"]
    model, arguments = parse("serve", "", [ModelArguments, ServeArguments], command[2:])
    arguments.check()
    assert (arguments.host, str(arguments.port)) == ("0.0.0.0", by_name["EXPOSE"])
    assert arguments.api_key_file
    assert not arguments.allow_public
    assert model.model_name_or_path == "jat-mini"
    assert f":{arguments.port}/healthz" in by_name["HEALTHCHECK"]


def test_the_python_of_the_image_is_supported() -> None:
    """CI builds wheels for it, and Meta-World's pins, which bound it in the Makefile, are for simulators only."""
    (version,) = re.findall(r"^ARG PYTHON=3\.(\d+)$", FILES[0].read_text(), re.MULTILINE)
    built = re.search(r'build = "(.+)"', (ROOT / "pyproject.toml").read_text())
    assert built is not None
    assert f"cp3{version}-*" in built[1].split()


def test_files_that_are_not_committed_stay_out_of_images() -> None:
    """Above all the compiled modules of this machine: the wheel of an image has its own."""
    found = subprocess.run(
        ["git", "ls-files", "--others", "--ignored", "--exclude-standard", "jat_engine", "csrc", "kernels"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if found.returncode:
        pytest.skip("not a checkout of git")
    kinds = {Path(line).suffix for line in found.stdout.splitlines() if "__pycache__" not in line}
    assert kinds <= {".so"}
    assert {"**/*.so", "**/__pycache__"} <= set(IGNORE.read_text().splitlines())
