"""Public names can be imported, and each has a docstring that begins with a statement."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Iterator

import pytest

PUBLIC_MODULES = (
    "jat_engine",
    "jat_engine.auto",
    *(["jat_engine.client"] if importlib.util.find_spec("websockets") and importlib.util.find_spec("msgpack") else []),
    "jat_engine.collect",
    "jat_engine.collect.experts",
    "jat_engine.envs",
    "jat_engine.evaluation",
    *(["jat_engine.policy.sb3"] if importlib.util.find_spec("stable_baselines3") else []),
    "jat_engine.rate",
    "jat_engine.testing",
    "jat_engine.training",
)

NOT_A_STATEMENT = re.compile(r"(What|Who|Whether|How|Where|Which|Why|Those)\b")
"""Beginnings of docstrings that name a question instead of saying what the thing is or does."""


def public_names() -> Iterator[str]:
    """Yield the full name of every public module, class, function and constant."""
    for name in PUBLIC_MODULES:
        module = importlib.import_module(name)
        yield name
        defined = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == name]
        yield from (f"{name}.{key}" for key in getattr(module, "__all__", defined) if not key.startswith("_"))


@pytest.mark.parametrize("name", public_names())
def test_a_public_name_can_be_imported_and_has_a_docstring(name: str) -> None:
    if name in PUBLIC_MODULES:
        value = importlib.import_module(name)
    else:
        module, _, attribute = name.rpartition(".")
        value = getattr(importlib.import_module(module), attribute)
    if not (inspect.ismodule(value) or inspect.isclass(value) or inspect.isroutine(value)):
        return  # a constant

    text = value.__doc__  # of its own: inspect.getdoc would take that of a base class
    assert text, f"{name} has no docstring"
    first = text.strip().splitlines()[0]
    # A dataclass without a docstring gets its signature for one.
    assert not first.startswith(f"{name.rpartition('.')[2]}("), f"{name} has no docstring"
    assert not NOT_A_STATEMENT.match(first), f"{name}: {first}"
    assert first.endswith((".", "...", ":")), f"{name}: expected a sentence in the first line, got {first!r}"
