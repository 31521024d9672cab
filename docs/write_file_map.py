"""Write the maps of files in the documentation, from the docstrings of modules and the first comments of C++ files.

    python docs/write_file_map.py            # writes docs/file_map.md, and the packages in docs/architecture.md
    python docs/write_file_map.py --check    # writes nothing; exits with 1 if they are not up to date

A folder is described by its `__init__.py`.
"""

from __future__ import annotations

import argparse
import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAP, ARCHITECTURE = ROOT / "docs/file_map.md", ROOT / "docs/architecture.md"
BEGIN, END = "<!-- packages: written by docs/write_file_map.py -->", "<!-- end of packages -->"
PACKAGE, FOLDERS = "jat_engine", ("kernels", "csrc", "benchmarks")
SOURCES = (".h", ".cuh", ".inl", ".cpp", ".cu")
"""Endings of C++ and CUDA files; of files with one name, the first that begins with a comment describes all."""


def main() -> int:
    """Write the maps, or check them, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 if a map is out of date")
    arguments = parser.parse_args()

    stale = {path: text for path, text in documents().items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        name = path.relative_to(ROOT)
        if arguments.check:
            print(f"{name} is out of date: run python docs/write_file_map.py")
        else:
            path.write_text(text)
            print(f"wrote {name}")
    return int(arguments.check and bool(stale))


def documents() -> dict[Path, str]:
    """Return each file that this script writes with the text that it should have."""
    return {MAP: file_map(), ARCHITECTURE: with_packages(ARCHITECTURE.read_text())}


# ---- every file ------------------------------------------------------------------------------------------------------


def file_map() -> str:
    """Return the page that lists every file: a section for each folder."""
    parts = [
        "# Map of files",
        "Written by `docs/write_file_map.py` from the first sentence of each file. "
        "[architecture.md](architecture.md) says how the parts work together.",
    ]
    roots = [ROOT / PACKAGE, *(ROOT / name for name in FOLDERS)]
    for folder in [folder for root in roots for folder in (root, *subfolders(root))]:
        rows = describe_folder(folder)
        if not rows:
            continue
        parts.append(f"## `{folder.relative_to(ROOT)}/`")
        init = folder / "__init__.py"
        if init.exists() and init.read_text():
            parts.append(first_sentence(init))
        parts.append("\n".join(["| file | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows)]))
    return "\n\n".join(parts) + "\n"


def subfolders(root: Path) -> list[Path]:
    """Return all folders below `root`, without links and hidden ones, in the order of their paths."""
    found = [path for path in root.rglob("*") if path.is_dir() and not path.is_symlink()]
    return sorted(path for path in found if not any(part[0] in "._" for part in path.relative_to(root).parts))


def describe_folder(folder: Path) -> list[tuple[str, str]]:
    """Return the names of a folder's files, those that belong together in one row, and the first sentence of each."""
    rows = [(f"`{path.name}`", first_sentence(path)) for path in folder.glob("*.py") if path.name != "__init__.py"]
    by_stem: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir(), key=lambda path: SOURCES.index(path.suffix) if path.suffix in SOURCES else 0):
        if path.suffix in SOURCES:
            by_stem.setdefault(path.stem, []).append(path)
    for paths in by_stem.values():
        texts = [text for text in map(first_comment, paths) if text]
        rows.append((", ".join(f"`{path.name}`" for path in paths), texts[0] if texts else ""))
    return sorted(rows)


def first_sentence(path: Path) -> str:
    """Return the first sentence of a Python file's docstring.

    Raises:
        ValueError: the file has no docstring.
    """
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    if not docstring:
        raise ValueError(f"{path.relative_to(ROOT)}: expected a docstring, found none; say in a sentence what it does")
    return sentence(docstring.partition("\n\n")[0])


def first_comment(path: Path) -> str:
    """Return the first sentence of the comment that a C++ or CUDA file begins with; "" without one."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("//"):
            break
        lines.append(line.removeprefix("//").strip())
    return sentence(" ".join(lines).strip())


def sentence(text: str) -> str:
    """Return the first sentence of a paragraph, on one line and as it may stand in a table."""
    line = " ".join(text.split())
    return (re.match(r".+?\.(?= [A-Z`(])", line + " ") or re.match(r".*", line))[0].strip().replace("|", "\\|")  # type: ignore[index]


# ---- the package's parts, by layer -----------------------------------------------------------------------------------


def with_packages(page: str) -> str:
    """Return the page on the architecture with the table of packages, uppermost layer first.

    Raises:
        ValueError: the page has not the two marks, once each.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"{ARCHITECTURE.name}: expected {BEGIN} and {END} once each")
    before, _, rest = page.partition(BEGIN)
    rows = ["| layer, from the top | |", "|---|---|"]
    for layer in layers():
        names = [name.strip(" ()") for name in re.split("[|:]", layer)]
        rows += [f"| `{name}` | {describe_package(name)} |" for name in names]
    return f"{before}{BEGIN}\n" + "\n".join(rows) + f"\n{END}{rest.partition(END)[2]}"


def layers() -> list[str]:
    """Return the layers that import-linter holds, uppermost first; modules of one layer are separated by | or :."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return next(contract["layers"] for contract in contracts if contract["type"] == "layers")


def describe_package(name: str) -> str:
    """Return the first sentence of a module or package of jat_engine."""
    if name == "kernels":  # the folder of that name has no __init__.py
        return "Triton kernels, one concept a file: reference, kernel, checking wrapper."
    file = ROOT / PACKAGE / f"{name}.py"
    return first_sentence(file if file.exists() else ROOT / PACKAGE / name / "__init__.py")


if __name__ == "__main__":
    raise SystemExit(main())
