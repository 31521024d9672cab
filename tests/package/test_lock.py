"""The locked requirements are complete, allowed by setup.py, and name only releases of PyPI."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata

import pytest
import torch
from helpers import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from requirements import lock

LOCKS = ("cpu.txt", "cuda.txt", "peers.txt", "docs.txt", "oldest.txt", "serve-cpu.txt", "serve-cuda.txt", "build.txt")
LOCKS += ("clients.txt",)
PINNED = re.compile(r"([a-z0-9-]+)==([\w.]+)( ; [^#@/]+?)?((?: --hash=sha256:[0-9a-f]{64})+)")
CUDA = re.compile("nvidia-|cuda-")


def lines(name: str) -> list[str]:
    """Return the lines of a lock without comments, with continued lines joined."""
    text = (lock.FOLDER / name).read_text()
    joined = re.sub(r" \\\n +", " ", text)
    return [line for line in joined.splitlines() if line and not line.lstrip().startswith("#")]


def pins(name: str) -> dict[str, str]:
    """Return the version of each package in a lock, for the Python and the platform of this test."""
    torch_pin = "torch-cuda.txt" if "cuda" in name else "torch-cpu.txt"
    requirements = [Requirement(line.partition(" --hash")[0]) for line in [*lines(name), *lines(torch_pin)]]
    chosen = [r for r in requirements if r.marker is None or r.marker.evaluate()]
    assert len({r.name for r in chosen}) == len(chosen)
    return {r.name: str(r.specifier).removeprefix("==") for r in chosen}


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_is_a_release_with_its_hashes(name: str) -> None:
    """A lock has no index, folder, address or local version, which other machines lack. torch has its own file."""
    assert len(lines(name)) > {"build.txt": 3, "clients.txt": 2}.get(name, 30)
    assert [line for line in lines(name) if not PINNED.fullmatch(line)] == []
    assert "torch" not in {PINNED.fullmatch(line)[1] for line in lines(name)}  # type: ignore[index]
    comments = [line for line in (lock.FOLDER / name).read_text().splitlines() if line.startswith("#")]
    assert [line for line in comments if "/" in line] == []


@pytest.mark.parametrize("name", ["torch-cpu.txt", "torch-cuda.txt"])
def test_torch_is_a_release_without_a_hash(name: str) -> None:
    """One version of torch has different files for CPUs and GPUs."""
    (line,) = lines(name)
    assert re.fullmatch(r"torch==[\d.]+", line)


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        ("cpu.txt", ("all", "dev")),
        ("cuda.txt", ("all", "dev", "cuda")),
        ("peers.txt", ("peers",)),
        ("docs.txt", ("docs",)),
        ("serve-cpu.txt", ("serve",)),
        ("serve-cuda.txt", ("serve", "cuda")),
    ],
)
def test_what_setup_requires_is_pinned_within_its_limits(name: str, extras: tuple[str, ...]) -> None:
    pinned = pins(name)
    for requirement in lock.requirements(*extras):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("name", ["cpu.txt", "build.txt"])
def test_the_build_is_locked(name: str) -> None:
    """The package is built without isolation, so the lock must contain the build's requirements."""
    pinned = pins(name)
    for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pinned[requirement.name]), requirement


def test_the_lock_of_this_machine_is_complete() -> None:
    """A lock is installed without resolving, so it must contain all that its packages require, in allowed versions."""
    pinned = pins("cuda.txt" if torch.version.cuda else "cpu.txt")
    todo = [*lock.requirements(*lock.EXTRAS), Requirement("torch")]
    seen: dict[str, set[str]] = {}
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} is required, and is in no lock; make lock adds it"
        assert requirement.specifier.contains(pinned[name], prereleases=True), (str(requirement), pinned[name])
        for extra in {"", *requirement.extras} - seen.get(name, set()):
            seen.setdefault(name, set()).add(extra)
            further = [Requirement(line) for line in metadata.requires(name) or []]
            todo += [r for r in further if r.marker is None or r.marker.evaluate({"extra": extra})]
    assert len(seen) > 50


def test_a_gpu_adds_cuda_and_changes_nothing_else() -> None:
    cpu, cuda = pins("cpu.txt"), pins("cuda.txt")
    assert {name: version for name, version in cuda.items() if not CUDA.match(name)}.keys() == cpu.keys()
    assert any(map(CUDA.match, cuda)) or not torch.version.cuda
    assert {name for name in cpu if cpu[name] != cuda[name]} <= {"torch", "triton"}


@pytest.mark.parametrize(
    ("name", "whole"), [("serve-cpu.txt", "cpu.txt"), ("serve-cuda.txt", "cuda.txt"), ("build.txt", "cpu.txt")]
)
def test_images_have_the_releases_that_are_tested(name: str, whole: str) -> None:
    assert pins(name).items() <= pins(whole).items()


def test_the_documentation_is_built_with_the_releases_that_are_installed() -> None:
    """The site's tools go into the same environment, so they must not change what is in it."""
    installed, docs = pins("cpu.txt"), pins("docs.txt")
    assert {name for name in docs if installed.get(name, docs[name]) != docs[name]} == set()
    assert {"mkdocs-material", "mkdocstrings"} <= docs.keys() - installed.keys()


def test_the_oldest_releases_are_the_floors_of_setup() -> None:
    pinned = pins("oldest.txt")
    for requirement in lock.requirements("all"):
        assert lock.at_floor(requirement).specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement
