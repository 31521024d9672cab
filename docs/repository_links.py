"""Hook of MkDocs: let pages link to files of the repository outside `docs/`, and refuse links to missing files.

Pages are written for the repository, where `docs/benchmarks.md` links to `../benchmarks/results/cpu.json`. The site
has every file that is linked in this way under `repository/`, and links are changed accordingly.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PREFIX = "repository/"
LINK = re.compile(r"(\]\()([^)#\s]+)")
"""The target of a Markdown link or picture, without its anchor."""


def on_files(files: Any, config: Any) -> Any:
    """Add the linked files to the site's, and those that they link to."""
    from mkdocs.structure.files import File

    todo = [f"docs/{page.src_uri}" for page in files.documentation_pages()]
    todo += [name for entry in _names(config.nav) if (name := _repository_path(entry)) != f"docs/{entry}"]
    done: set[str] = set()
    while todo:
        name = todo.pop()
        if name in done:
            continue
        done.add(name)
        if not name.startswith("docs/"):
            files.append(File.generated(config, _site_path(name), abs_src_path=str(ROOT / name)))
        if name.endswith(".md"):
            links = re.findall(LINK, (ROOT / name).read_text())
            todo += [target for _, link in links if (target := resolve(name, link)) and not target.startswith("docs/")]
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Change links from places in the repository to places in the site."""
    name = _repository_path(page.file.src_uri)
    folder = posixpath.dirname(page.file.src_uri)

    def place(match: re.Match[str]) -> str:
        target = resolve(name, match[2])
        return match[0] if target is None else match[1] + posixpath.relpath(_site_path(target), folder or ".")

    return _outside_code(markdown, lambda text: LINK.sub(place, text))


def resolve(name: str, link: str) -> str | None:
    """Return the path in the repository that a page links to; None for an address or a place in the page.

    Args:
        name: the page's path in the repository.
        link: as it is written in the page, without an anchor.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if re.match(r"[a-z]+:|#|<", link):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(name), link))
    if not (ROOT / path).is_file():
        raise FileNotFoundError(f"{name}: expected a file of the repository, got a link to {link}")
    return path


def _repository_path(site_path: str) -> str:
    return site_path.removeprefix(PREFIX) if site_path.startswith(PREFIX) else f"docs/{site_path}"


def _site_path(name: str) -> str:
    return name.removeprefix("docs/") if name.startswith("docs/") else PREFIX + name


def _names(nav: Any) -> list[str]:
    """Return the pages that the navigation names."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [name for part in parts for name in _names(part)]


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Return a page with `change` applied to all but its blocks of code."""
    parts = re.split(r"(^ *```.*?^ *```)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))
