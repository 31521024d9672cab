"""Write the locked requirements: the exact releases, with hashes, that a checkout is installed with.

    make lock                    # adds what is missing and drops what is no longer needed; no other release changes
    make lock UPGRADE=numpy      # takes the newest release of one package; or of several: UPGRADE="numpy scipy"
    make lock UPGRADE=all        # takes the newest of everything

cpu.txt and cuda.txt are complete, except for torch, which torch-cpu.txt and torch-cuda.txt pin, and hold for every
Python from 3.11 on. peers.txt adds what `jat-engine bench` measures the engine against, docs.txt what builds the
documentation. build.txt has what builds a wheel, and serve-cpu.txt and serve-cuda.txt what the images of docker/ serve
with. All take the releases of cpu.txt or cuda.txt where they need the same packages. clients.txt has other projects'
clients of the policy server, for the tests, without what they require: openpi's allows only older NumPys. oldest.txt
has the oldest releases that setup.py allows, on Python 3.11, with today's releases of what those require in turn;
`make test-versions` tests them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOLDER = Path(__file__).parent
EXTRAS = ("all", "dev")
IMAGE_EXTRAS = {"cpu": (), "cuda": ("cuda",)}
CLIENTS = ("openpi-client==0.1.2", "vla-eval==0.8.0", "dm-tree>=0.1.10")
TEST_TOOLS = ("pytest", "pytest-benchmark", "pytest-xdist")


def requirements(*extras: str) -> list[Requirement]:
    """Return the direct requirements of the installed jat-engine, with those of `extras`, except torch."""
    found = []
    for line in metadata.requires("jat-engine") or []:
        extra = re.search(r"""( and|;) extra == ["']([\w-]+)["']""", line)
        if extra is None or extra[2] in extras:
            found.append(Requirement(line.replace(extra[0], "") if extra else line))
    return [r for r in found if r.name != "torch"]


def test_tools() -> list[Requirement]:
    """Return what the tests are run with, out of the extra `dev`."""
    return [r for r in requirements("dev") if r.name in TEST_TOOLS]


def build_tools() -> list[Requirement]:
    """Return what a wheel is built with."""
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())
    return [Requirement(line) for line in project["build-system"]["requires"]]


def at_floor(requirement: Requirement) -> Requirement:
    """Return the requirement of the oldest release that `requirement` allows."""
    (floor,) = (s.version for s in requirement.specifier if s.operator == ">=")
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return Requirement(f"{requirement.name}{extras}=={floor}")


def torch(build: str) -> Requirement:
    """Return the pin of torch for `build`, "cpu" or "cuda"."""
    return Requirement((FOLDER / f"torch-{build}.txt").read_text().splitlines()[-1])


def cpu_build() -> str:
    """Return uv's settings that give torch the requirements of its CPU build, which PyPI does not have."""
    needs = [r for r in metadata.requires("torch") or [] if not re.match("cuda|nvidia|triton", r)]
    version = str(torch("cpu").specifier).removeprefix("==")
    lines = [
        "[[dependency-metadata]]",
        'name = "torch"',
        f'version = "{version}"',
        f"requires-dist = {json.dumps(needs)}",
    ]
    return "\n".join(lines)


def resolve(
    wanted: list[Requirement], output: Path, *options: str, build: str | None = "cpu", python: str = "3.11"
) -> None:
    """Run `uv pip compile` on `wanted` and torch, with wheels from PyPI only.

    Args:
        wanted: the direct requirements, without torch.
        output: the file to write; releases that it pins already stay.
        options: further options of `uv pip compile`.
        build: of torch, "cpu" or "cuda"; None to do without torch.
        python: the oldest Python that the releases must work with.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "uv.toml"
        config.write_text(cpu_build() if build == "cpu" else "")  # and no settings of the user or the machine
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--config-file", str(config)]
        command += ["--python-version", python, "--only-binary", ":all:", "--no-emit-package", "torch"]
        command += ["--output-file", str(output), *options, "-"]
        direct = wanted if build is None else [torch(build), *wanted]
        subprocess.run(command, input="\n".join(map(str, direct)), text=True, check=True)


def lock(name: str, wanted: list[Requirement], *options: str, build: str | None = "cpu") -> None:
    """Write `name` in this folder, unless it would stay as it is: make installs what is newer than the environment."""
    committed = FOLDER / name
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / name
        if committed.exists():
            output.write_bytes(committed.read_bytes())
        header = ["--custom-compile-command", "make lock", "--no-annotate"]
        resolve(wanted, output, "--generate-hashes", *header, *options, build=build)
        if not committed.exists() or output.read_bytes() != committed.read_bytes():
            committed.write_bytes(output.read_bytes())


def main(upgrade: list[str]) -> None:
    options = [f"--upgrade-package={canonicalize_name(name)}" for name in upgrade]
    if "all" in upgrade:
        options = ["--upgrade"]
    oldest = [at_floor(r) for r in [*requirements("all"), *test_tools()]]
    lock("cpu.txt", requirements(*EXTRAS), "--universal", *options)
    lock("cuda.txt", requirements(*EXTRAS), "--universal", *options, build="cuda")
    lock("peers.txt", requirements("peers"), "--universal", *options)
    for build in ("cpu", "cuda"):
        constraint = ("--universal", "--constraint", str(FOLDER / f"{build}.txt"))
        lock(f"serve-{build}.txt", requirements("serve", *IMAGE_EXTRAS[build]), *constraint, *options, build=build)
    lock("build.txt", build_tools(), "--universal", "--constraint", str(FOLDER / "cpu.txt"), *options, build=None)
    lock("clients.txt", [Requirement(line) for line in CLIENTS], "--universal", "--no-deps", *options, build=None)
    lock("docs.txt", requirements("docs"), "--universal", "--constraint", str(FOLDER / "cpu.txt"), *options)
    lock("oldest.txt", oldest, *options)


if __name__ == "__main__":
    main(sys.argv[1:])
