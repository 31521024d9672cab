"""Count what a reader of the code meets: imports, repeated definitions, one step's calls, prose.

    python benchmarks/code_counts.py --root CHECKOUT [OTHER] [--json FILE] [--list]

Prints a Markdown table; with two checkouts, a column each. A step is traced by `CHECKOUT/.venv/bin/python` if there is
one, else by this interpreter. `--no-steps` counts the text alone, `--list` also prints what was counted.

How each figure is made:

- *Rooms* are the package itself and the modules and packages directly in it; an *arrow* is one room that imports
  another, at any level of nesting and for type checking too.
- An import goes *up* if it leads to a storey above, or to another room of the same storey, in the `layers` contract of
  the checkout's pyproject.toml. A checkout without that contract is measured by this checkout's, after `MOVED` has
  named the storey of each of its rooms. Counted are pairs of modules, without the package's `__init__`.
- A *circle* is a set of modules that import each other (strongly connected), without the package's `__init__`.
- Imports *across the border* are files of the package that import benchmarks or tests, files of benchmarks that import
  tests, and files of tests that import benchmarks or another test.
- The *drop-in signature* is restated by every function with parameters for three or more kinds of observation but
  none for actions, which are arguments of a training.
- An *implementation of the layer* is a file with a layer norm, a softmax or fused attention, and a GELU, called or
  spelt out. `kernels/` counts as two, its Triton functions and its references, a folder of `csrc/` as one.
- A *writer of Markdown tables* is a file outside the tests with a string that draws the line below a table's head.
- The *page size* is a literal wherever a line of code has a name with "page" and the number 16.
- A *step* is one call of `get_next_action` with a continuous observation, reward given, window full; the median of 16
  steps on the CPU (jat-mini) and of 3 of the CUDA backend (a tiny model, Triton's interpreter in place of the graph).
  Counted are calls of Python functions in `jat_engine` but not in `kernels/`, comprehensions left out; a *change of
  file* is a call that is made in another file than the call before. The calls that launch the kernels of a CUDA graph
  are included, although a GPU replays a captured graph without them.
- *Docstrings* are those of modules, classes and functions outside the tests; the second figure adds the tests and the
  strings below an assignment. *Words* are counted in code and documents, without the change log and results.
- *Bodies* are those of functions in the package, 20 lines or more below the docstring; a *pause* is a blank line or a
  line that is a comment. *Public functions* are those of the package without a leading underscore.
- *Files* under 60 lines are those of the package, files over 600 all Python files.

Commit 4b1c1d6 was also counted by other means (in brackets, where they differ): 33 rooms, 132 arrows (131), 12 upward
imports (25, against a cruder order of storeys), 2 circles, 9 signatures, 9 implementations (10: JatModel took its
blocks from another package then), 11 writers of tables (5, of benchmarks alone), 10 literals (9), 111 of 984 docstrings
(112 of 982), words 88, 14 and 17 (82, 15 and 15), 56 of 115 bodies, 12 % of public functions, 41 short files (39).
Steps were 27 calls in 4 files with 13 changes on the CPU, and 61, 9 and 25 with a CUDA graph. This script finds 27, 6,
16 and 54, 11, 29 at 5dec837: two more files had come in between, of checks and of a counter of times, and launches of
kernels count for each layer, here two.
"""

from __future__ import annotations

import argparse
import ast
import io
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

PACKAGE = "jat_engine"
HERE = Path(__file__).resolve().parents[1]

MODULES_BEFORE = {
    "atomic_io": "files",
    "backends": "engine_options",
    "checkpoint": "weights",
    "cli": "demo",
    "collect": "data.chunks data.collector data.player data.players data.unfinished experts",
    "datasets": "data",
    "engine": "batch engine_arguments fork_lock kv_cache mission sampling session stats warm_up",
    "installation": "info",
    "model": "losses model_session modeling modules processing transformer",
    "recipes": "mini",
}
MOVED = {module: room for room, modules in MODULES_BEFORE.items() for module in modules.split()}
"""Module before there were storeys -> room whose storey it had. The longest name that fits counts."""

ODD_WORDS = ("What", "Who", "Whether", "How", "Where", "Which", "Those")
ODD_PROSE = ("beside", "anew", "nobody")
OBSERVATIONS = ("continuous", "discrete", "text", "image")
LONG_BODY = 20
SHORT_FILE, LONG_FILE = 60, 600
NATIVE = (".h", ".cpp", ".inl", ".cu", ".cuh")

NORM = re.compile(r"layer_?norm|\brsqrtf?\b|\bnorm\w*\(|\bln_\w+\(|\bepsilon\b|\beps\b", re.IGNORECASE)
ATTENTION = re.compile(r"softmax|scaled_dot_product|\bexp2?f?\(|\.exp2?\(|soften", re.IGNORECASE)
MLP = re.compile(r"gelu|\btanhf?\(|\berff?\(", re.IGNORECASE)


# ---- files -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """One Python file.

    Attributes:
        path: relative to the checkout.
        module: dotted name below `jat_engine` for the package's own files, "" for others and for its `__init__`.
    """

    path: Path
    text: str

    @property
    def in_package(self) -> bool:
        return self.path.parts[0] in (PACKAGE, "kernels")

    @property
    def num_lines(self) -> int:
        """Lines of the file."""
        return len(self.text.splitlines())

    @cached_property
    def module(self) -> str:
        if not self.in_package:
            return ""
        parts = self.path.with_suffix("").parts
        parts = parts[1:] if parts[0] == PACKAGE else parts
        return ".".join(part for part in parts if part != "__init__")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def tokens(self) -> list[tokenize.TokenInfo]:
        return list(tokenize.generate_tokens(io.StringIO(self.text).readline))

    @cached_property
    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


class Checkout:
    """The files of a checkout that git tracks; without git, those outside hidden folders and `build`."""

    def __init__(self, root: Path) -> None:
        if not (root / PACKAGE).is_dir():
            raise SystemExit(f"--root {root}: expected a checkout with the folder {PACKAGE}, got none")
        self.root = root
        self.paths = [path for path in _tracked(root) if (root / path).is_file()]
        self.sources = [
            Source(path, (root / path).read_text(encoding="utf-8")) for path in self.paths if path.suffix == ".py"
        ]
        self.package = [source for source in self.sources if source.in_package]
        self.no_tests = [source for source in self.sources if source.path.parts[0] != "tests"]

    def texts(self, *suffixes: str) -> Iterator[tuple[Path, str]]:
        """Yield path and text of the files with one of these suffixes."""
        for path in self.paths:
            if path.suffix in suffixes:
                yield path, (self.root / path).read_text(encoding="utf-8")


def _tracked(root: Path) -> list[Path]:
    if (root / ".git").exists():
        listed = subprocess.run(
            ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard"],
            capture_output=True,
            text=True,
            check=True,
        )
        return sorted({Path(line) for line in listed.stdout.splitlines()})
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file() and not path.parent.is_symlink())
    return sorted(path for path in found if not any(part[0] == "." or part == "build" for part in path.parts))


# ---- imports ---------------------------------------------------------------------------------------------------------


@dataclass
class Imports:
    """The package's imports, as pairs of modules (importer, imported) below `jat_engine`."""

    checkout: Checkout
    modules: dict[str, Source] = field(init=False)
    pairs: set[tuple[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        self.modules = {source.module: source for source in self.checkout.package}
        self.pairs = set()
        for name, source in self.modules.items():
            is_package = source.path.name == "__init__.py"
            targets = self._targets(source, name if is_package else name.rpartition(".")[0])
            self.pairs |= {(name, target) for target in targets if target != name}

    def _targets(self, source: Source, package: str) -> Iterator[str]:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == PACKAGE:
                        yield self._known(alias.name.removeprefix(PACKAGE).lstrip("."))
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                if node.level:
                    above = [part for part in package.split(".") if part]
                    base = ".".join([*above[: len(above) - node.level + 1], *filter(None, [module])])
                elif module.split(".")[0] == PACKAGE:
                    base = module.removeprefix(PACKAGE).lstrip(".")
                else:
                    continue
                for alias in node.names:
                    yield self._known(f"{base}.{alias.name}".lstrip("."))

    def _known(self, name: str) -> str:
        """Return the longest part of a dotted name that is a module; "" for the package's `__init__`."""
        while name and name not in self.modules:
            name = name.rpartition(".")[0]
        return name

    @property
    def rooms(self) -> set[str]:
        """The package itself, and everything directly in it."""
        return {name.split(".")[0] or PACKAGE for name in self.modules}

    @property
    def arrows(self) -> set[tuple[str, str]]:
        """Pairs of rooms, of which the first imports the second."""
        pairs = {(a.split(".")[0] or PACKAGE, b.split(".")[0] or PACKAGE) for a, b in self.pairs}
        return {(a, b) for a, b in pairs if a != b}

    def upward(self) -> list[tuple[str, str]]:
        """Return the imports that the layers contract forbids."""
        layers = read_layers(self.checkout.root)
        moved = MOVED if layers is None else {}
        storeys = layers or read_layers(HERE)
        if storeys is None:
            raise SystemExit(f"{HERE / 'pyproject.toml'}: expected a contract of type layers, got none")
        found = []
        for importer, imported in sorted(self.pairs):
            a, b = _room(importer, moved), _room(imported, moved)
            if a != b and a in storeys and b in storeys and storeys[a] <= storeys[b]:
                found.append((importer, imported))
        return found

    def circles(self) -> list[list[str]]:
        """Return the sets of two and more modules that import each other."""
        graph: dict[str, list[str]] = {name: [] for name in self.modules}
        for importer, imported in self.pairs:
            if importer and imported:
                graph[importer].append(imported)
        reach = {name: _reachable(graph, name) for name in graph}
        circles = {frozenset({name, *(o for o in reach[name] if name in reach[o])}) for name in graph}
        return sorted(sorted(circle) for circle in circles if len(circle) > 1)


def _room(module: str, moved: dict[str, str]) -> str:
    name = module
    while name:
        if name in moved:
            return moved[name]
        name = name.rpartition(".")[0]
    return module.split(".")[0]


def _reachable(graph: dict[str, list[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = list(graph[start])
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += graph[name]
    return seen


def read_layers(root: Path) -> dict[str, int] | None:
    """Return room -> storey, 0 the lowest, from the layers contract in `root/pyproject.toml`; None without one."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings.get("tool", {}).get("importlinter", {}).get("contracts", [])
    for contract in contracts:
        if contract.get("type") == "layers":
            rows = [re.findall(r"\w+", layer) for layer in reversed(contract["layers"])]
            return {room: storey for storey, row in enumerate(rows) for room in row}
    return None


def across_border(checkout: Checkout) -> list[str]:
    """Return "file imports folder" for files that reach outside what their folder may import."""
    tests = {source.path.stem for source in checkout.sources if source.path.name.startswith("test_")}
    found = set()
    for source in checkout.sources:
        folder = PACKAGE if source.in_package else source.path.parts[0]
        forbidden = {PACKAGE: {"benchmarks", "tests", "golden"}, "benchmarks": {"tests", "golden"}}.get(folder, set())
        if folder == "tests":
            forbidden = {"benchmarks"} | tests
        for node in ast.walk(source.tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            found |= {f"{source.path} imports {name}" for name in names if name.split(".")[0] in forbidden}
    return sorted(found)


# ---- repeated definitions --------------------------------------------------------------------------------------------


def drop_in_signatures(checkout: Checkout) -> list[str]:
    """Return the functions that restate the fields of an observation."""
    found = []
    for source in checkout.package:
        for function in source.functions:
            names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
            names += [argument.arg for argument in function.args.kwonlyargs]
            kinds = {kind for kind in OBSERVATIONS if any(re.fullmatch(f"{kind}(_observations?)?", n) for n in names)}
            if len(kinds) >= 3 and not any(name.endswith("_actions") for name in names):
                found.append(f"{source.path}:{function.lineno} {function.name}")
    return found


def layer_implementations(checkout: Checkout) -> list[str]:
    """Return the files, and folders of native code, that compute layer norm, attention and MLP of a block."""
    units: dict[str, str] = {}
    for source in checkout.sources:
        lines = _lines_of_code(source.tokens)
        if source.path.parts[0] == "kernels":
            for node in source.tree.body:
                if isinstance(node, ast.FunctionDef):
                    is_kernel = any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
                    unit = "kernels/ (Triton)" if is_kernel else "kernels/ (references)"
                    if is_kernel or node.name.endswith("_reference"):
                        units[unit] = units.get(unit, "") + " ".join(lines[n] for n in _span(node) if n in lines)
        else:
            units[str(source.path)] = " ".join(lines.values())
    for path, text in checkout.texts(*NATIVE):
        unit = "/".join(path.parts[:2]) + "/"
        units[unit] = units.get(unit, "") + re.sub(r"//.*", "", text)
    return sorted(
        name for name, code in units.items() if NORM.search(code) and ATTENTION.search(code) and MLP.search(code)
    )


def _lines_of_code(tokens: Iterable[tokenize.TokenInfo]) -> dict[int, str]:
    """Return line number -> its code without comments and strings, names and numbers separated by spaces."""
    lines: dict[int, str] = {}
    for token in tokens:
        if token.type in (tokenize.NAME, tokenize.NUMBER, tokenize.OP):
            gap = "" if token.type == tokenize.OP else " "
            lines[token.start[0]] = lines.get(token.start[0], "") + gap + token.string
    return lines


def _span(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def markdown_writers(checkout: Checkout) -> list[str]:
    """Return the files that draw Markdown tables."""
    head = re.compile(r"\|\s*:?-{3}|-{3}:?\s*\||^:?-{3,}:?$")
    found = []
    for source in checkout.no_tests:
        documented = {id(node) for node, _ in docstrings(source)}
        strings = (node for node in ast.walk(source.tree) if isinstance(node, ast.Constant))
        if any(isinstance(s.value, str) and id(s) not in documented and head.search(s.value) for s in strings):
            found.append(str(source.path))
    return found


def page_size_literals(checkout: Checkout) -> list[str]:
    """Return the lines of code that state the page size as a number."""
    found = []
    for source in checkout.no_tests:
        lines = _lines_of_code(source.tokens)
        found += [f"{source.path}:{number}" for number, code in lines.items() if _names_page_and_16(code)]
    for path, text in checkout.texts(*NATIVE):
        lines = {number: line.split("//")[0] for number, line in enumerate(text.splitlines(), 1)}
        found += [f"{path}:{number}" for number, code in lines.items() if _names_page_and_16(code)]
    return found


def _names_page_and_16(code: str) -> bool:
    return bool(re.search(r"\b16\b", code) and re.search("page", code, re.IGNORECASE))


# ---- prose -----------------------------------------------------------------------------------------------------------


def docstrings(source: Source) -> Iterator[tuple[ast.Constant, bool]]:
    """Yield the node of every docstring with True, and of every string below an assignment with False."""
    for node in ast.walk(source.tree):
        body: list[ast.stmt] = getattr(node, "body", None) or []
        if not isinstance(body, list):  # a lambda's or a conditional expression's
            continue
        documents = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for before, statement in zip([None, *body], body, strict=False):
            value = statement.value if isinstance(statement, ast.Expr) else None
            if not (isinstance(value, ast.Constant) and isinstance(value.value, str)):
                continue
            if (before is None and documents) or isinstance(before, ast.Assign | ast.AnnAssign):
                yield value, before is None


def odd_docstrings(sources: Iterable[Source], *, assignments: bool) -> tuple[list[str], int]:
    """Return where docstrings open with one of `ODD_WORDS`, and how many docstrings there are.

    Args:
        sources: the files.
        assignments: count strings below an assignment too.
    """
    odd, total = [], 0
    for source in sources:
        for node, is_docstring in docstrings(source):
            if not (is_docstring or assignments):
                continue
            total += 1
            text = str(node.value).strip()
            if (text.split() or [""])[0].rstrip(",.:;") in ODD_WORDS:
                odd.append(f"{source.path}:{node.lineno} {text.splitlines()[0]}")
    return odd, total


def odd_prose(checkout: Checkout) -> dict[str, int]:
    """Return how often each of `ODD_PROSE` is written in code and documents (this script's own list left out)."""
    counts: Counter[str] = Counter()
    for path, text in checkout.texts(".py", ".pyi", ".md", ".toml", *NATIVE):
        if path.name != Path(__file__).name and path.name != "CHANGELOG.md" and "results" not in path.parts:
            counts.update(word.lower() for word in re.findall(rf"\b(?:{'|'.join(ODD_PROSE)})\b", text, re.IGNORECASE))
    return {word: counts[word] for word in ODD_PROSE}


def dense_bodies(checkout: Checkout) -> tuple[list[str], int]:
    """Return functions of `LONG_BODY` lines or more without a pause, and how many are that long."""
    dense, total = [], 0
    for source in checkout.package:
        lines = source.text.splitlines()
        starts = [token.start for token in source.tokens if token.type == tokenize.COMMENT]
        comments = {row for row, column in starts if not lines[row - 1][:column].strip()}
        for function in source.functions:
            body = function.body[1:] if ast.get_docstring(function) is not None else function.body
            if not body:
                continue
            first, last = body[0].lineno, function.end_lineno or body[-1].lineno
            if last - first + 1 < LONG_BODY:
                continue
            total += 1
            numbers = range(first, last + 1)
            if not any(number in comments or not lines[number - 1].strip() for number in numbers):
                dense.append(f"{source.path}:{function.lineno} {function.name} ({last - first + 1} lines)")
    return dense, total


def documented_functions(checkout: Checkout) -> tuple[list[str], int]:
    """Return the public functions with Args, Returns or Raises, and how many public functions there are."""
    documented, total = [], 0
    for source in checkout.package:
        for owner, function in _public_functions(source.tree):
            total += 1
            if re.search(r"^\s*(Args|Returns|Raises|Yields):", ast.get_docstring(function) or "", re.MULTILINE):
                documented.append(f"{source.path} {owner}{function.name}")
    return documented, total


def _public_functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield "", node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for member in node.body:
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and not member.name.startswith("_"):
                    yield f"{node.name}.", member


# ---- one step --------------------------------------------------------------------------------------------------------


def count_step(root: Path, backend: str) -> tuple[dict[str, int], list[str]]:
    """Return calls, files and changes of file of a step, from the checkout's own interpreter, and the calls in order.

    Raises:
        SystemExit: the checkout cannot take a step, with the interpreter's last words.
    """
    own = root / ".venv" / "bin" / "python"
    python = str(own) if own.exists() else sys.executable
    command = [python, str(Path(__file__).with_name("step_calls.py")), str(root), backend]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if backend == "cuda":
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    steps = json.loads(done.stdout.splitlines()[-1])
    files = [[call[1] for call in calls] for calls in steps]
    counts = {
        "calls": [len(calls) for calls in files],
        "files": [len(set(calls)) for calls in files],
        "changes of file": [sum(a != b for a, b in itertools.pairwise(calls)) for calls in files],
    }
    shown = [f"{'  ' * depth}{file} {name}" for depth, file, name in steps[-1]]
    return {name: int(statistics.median(values)) for name, values in counts.items()}, shown


# ---- the report ------------------------------------------------------------------------------------------------------


@dataclass
class Counts:
    """Figures of a checkout by name, in the order they are shown, and what some of them counted.

    A figure is a number, or a number and the total that it is part of.
    """

    values: dict[str, int | tuple[int, int]] = field(default_factory=dict)
    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, found: Iterable[Any], total: int | None = None) -> None:
        """Add a figure that is the number of `found`, with its share of `total` if that is given."""
        listed = [item if isinstance(item, str) else " -> ".join(item) for item in found]
        self.found[name] = listed
        self.values[name] = len(listed) if total is None else (len(listed), total)

    def shown(self, name: str) -> str:
        """Return a figure as a cell of the table; empty if this checkout has none."""
        value = self.values.get(name, "")
        if not isinstance(value, tuple):
            return str(value)
        part, total = value
        return f"{part} of {total} ({part / max(total, 1):.1%})"


def count_text(root: Path) -> Counts:
    """Count everything that needs no running."""
    checkout, counts = Checkout(root), Counts()
    imports = Imports(checkout)
    counts.add("rooms", sorted(imports.rooms))
    counts.add("arrows between rooms", sorted(imports.arrows))
    counts.add("upward imports", imports.upward())
    counts.add("circles of modules", imports.circles())
    counts.add("imports across the border", across_border(checkout))

    counts.add("definitions of the drop-in signature", drop_in_signatures(checkout))
    counts.add("implementations of the layer", layer_implementations(checkout))
    counts.add("writers of Markdown tables", markdown_writers(checkout))
    counts.add("literals of the page size", page_size_literals(checkout))

    counts.add("docstrings that open oddly", *odd_docstrings(checkout.no_tests, assignments=False))
    counts.add("the same with tests and assignments", *odd_docstrings(checkout.sources, assignments=True))
    for word, number in odd_prose(checkout).items():
        counts.values[f'"{word}"'] = number
    counts.add(f"bodies of {LONG_BODY} lines without a pause", *dense_bodies(checkout))
    counts.add("public functions with Args, Returns or Raises", *documented_functions(checkout))

    short = [source for source in checkout.package if source.num_lines < SHORT_FILE]
    long = [source for source in checkout.sources if source.num_lines > LONG_FILE]
    counts.add(f"files under {SHORT_FILE} lines in the package", [str(source.path) for source in short])
    counts.add(f"Python files over {LONG_FILE} lines", [str(source.path) for source in long])
    return counts


def count(root: Path, *, steps: bool) -> Counts:
    """Count a checkout; with `steps`, run one step on each backend too."""
    counts = count_text(root)
    for backend, words in (("cpu", "CPU step"), ("cuda", "CUDA graph step")) if steps else ():
        values, calls = count_step(root, backend)
        counts.values |= {f"{words}: {name}": value for name, value in values.items()}
        counts.found[words] = calls
    return counts


def table(columns: dict[str, Counts]) -> str:
    """Return a Markdown table, one row a figure and one column a checkout."""
    rows = [["", *columns], ["---"] * (len(columns) + 1)]
    names = dict.fromkeys(name for counts in columns.values() for name in counts.values)
    rows += [[name, *(counts.shown(name) for counts in columns.values())] for name in names]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Count what a reader of the code meets.")
    parser.add_argument("--root", type=Path, nargs="+", default=[HERE], help="one checkout, or two: before and after")
    parser.add_argument("--json", type=Path, help="also write the figures, and what they counted, to this file")
    parser.add_argument("--list", action="store_true", help="print what was counted")
    parser.add_argument("--no-steps", action="store_true", help="run nothing")
    options = parser.parse_args()
    roots = [root.resolve() for root in options.root]
    labels = ["before", "after"] if len(roots) == 2 else [root.name for root in roots]
    columns = {label: count(root, steps=not options.no_steps) for label, root in zip(labels, roots, strict=True)}
    print(table(columns))
    if options.list:
        for label, counts in columns.items():
            for name, found in counts.found.items():
                print(f"\n## {label}: {name}\n")
                print("\n".join(found) or "none")
    if options.json is not None:
        kept = {label: {"values": counts.values, "found": counts.found} for label, counts in columns.items()}
        options.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
