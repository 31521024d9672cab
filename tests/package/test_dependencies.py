"""This package uses only documented interfaces of others, so that their next release does not break it."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from helpers import ROOT

pytestmark = pytest.mark.versions


PACKAGE = sorted([*(ROOT / "jat_engine").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])

EXCEPTIONS = {
    # Meta-World has no public way to fix a goal or to read it; setup.py holds its version.
    "envs/metaworld.py": {"_set_task_called", "_partially_observable", "_freeze_rand_vec"},
    "envs/metaworld_v2.py": {"_set_obj_xyz", "_get_quat_objects"},
    "collect/experts/metaworld.py": {"_target_pos"},
    "bench/peers/torch_compile.py": {"_inductor"},  # PyTorch documents torch._inductor.config under this name
}
DOCUMENTED = {"_replace", "_asdict", "_fields", "_make", "_exit"}  # of named tuples, and os._exit


def is_private(name: str) -> bool:
    is_special = name.startswith("__") and name.endswith("__")
    return name.startswith("_") and not is_special and name not in DOCUMENTED


def own_names(tree: ast.AST) -> Iterator[str]:
    """Yield every name that a module defines, attributes of `self` and `cls` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                yield node.attr
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield from (alias.name for alias in node.names)


def foreign_private_names(tree: ast.AST, own: set[str]) -> Iterator[str]:
    """Yield private names that are imported, read, called or passed but not defined in this package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            module = node.module or ""
            parts = [*module.split("."), *(alias.name for alias in node.names)]
            yield from (part for part in parts if is_private(part))
            if module.startswith("transformers.models"):
                yield module
        elif isinstance(node, ast.Import):
            parts = [part for alias in node.names for part in alias.name.split(".")]
            yield from (part for part in parts if is_private(part) and part not in own)
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            yield node.attr
        elif isinstance(node, ast.keyword) and node.arg and is_private(node.arg) and node.arg not in own:
            yield node.arg


def test_no_private_name_of_another_package_is_used() -> None:
    trees = {path: ast.parse(path.read_text()) for path in PACKAGE}
    own = {name for tree in trees.values() for name in own_names(tree)} | {"_cpu", "_cuda"}
    used = {
        (path.relative_to(ROOT).as_posix(), name)
        for path, tree in trees.items()
        for name in foreign_private_names(tree, own)
    }
    allowed = {(f"jat_engine/{path}", name) for path, names in EXCEPTIONS.items() for name in names}
    assert used == allowed


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from transformers.models.gpt_neo import GPTNeoModel", {"transformers.models.gpt_neo"}),
        ("from transformers.utils import _LazyModule", {"_LazyModule"}),
        ("model = JatModel._from_config(config, _name=1)", {"_from_config", "_name"}),
        ("model.config._name_or_path = 'x'", {"_name_or_path"}),
        ("import torch._inductor", {"_inductor"}),
        ("class A:\n    def f(self): self._x = self.__class__", set()),
    ],
)
def test_private_names_are_found(code: str, found: set[str]) -> None:
    tree = ast.parse(code)
    assert set(foreign_private_names(tree, set(own_names(tree)))) == found


def test_pretrained_model_still_reads_the_class_attributes_that_jat_model_sets() -> None:
    """transformers documents these private attributes for subclasses; JatModel sets them in one place."""
    from transformers import PreTrainedModel

    from jat_engine import JatModel

    body = ast.parse((ROOT / "jat_engine/model/modeling.py").read_text()).body
    model = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == "JatModel")
    names = [node.targets[0].id for node in model.body if isinstance(node, ast.Assign)]  # type: ignore[attr-defined]
    private = [name for name in names if is_private(name)]
    assert len(private) >= 4
    assert [name for name in names if not hasattr(PreTrainedModel, name)] == []
    assert all(name in vars(JatModel) for name in names)
