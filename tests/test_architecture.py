"""Imports run downward only, as docs/architecture.md has it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dask_batch

PACKAGE = Path(dask_batch.__file__).parent

FLOORS = (
    "errors spec inputs",
    "code",
    "cache",
    "job checkpoint",
    "graph",
    "backends verdicts future items",
    "configuration evidence progress",
    "preparing",
    "submitting",
    "following",
    "engine steward upkeep",
    "graphrun workforce private session sessions",
    "compat",
    "get executor executors api registration",
)
"""From the ground up. What stands on one floor may import from its own and from those below."""

HEIGHTS = {name: height for height, names in enumerate(FLOORS) for name in names.split()}


def imports(file: Path) -> Iterator[str]:
    """Yield what a file imports of this package, wherever in it: ``cache.store``, say."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("dask_batch.") for name in names if "dask_batch." in name)


def part(name: str) -> str:
    """Return the package or the module in the root that a dotted name is in."""
    return name.partition(".")[0]


ABOVE_ALL = {Path("__init__.py"), Path("compat/__init__.py")}
"""They have names from everywhere, and nothing imports them for anything else."""

MODULES = [
    module
    for module in (file.relative_to(PACKAGE) for file in sorted(PACKAGE.rglob("*.py")))
    if module.parts[0] != "testing" and module not in ABOVE_ALL
]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_run_downward(module: Path) -> None:
    height = HEIGHTS[part(module.with_suffix("").as_posix().replace("/", "."))]
    upward = [
        name
        for name in imports(PACKAGE / module)
        if HEIGHTS.get(part(name), 0 if part(name) == "__version__" else 99) > height
    ]
    assert upward == []


def test_a_job_imports_little() -> None:
    allowed = {"cache", "checkpoint", "code", "errors", "inputs", "job", "spec", "__version__"}
    parts = {part(name) for file in (PACKAGE / "job").rglob("*.py") for name in imports(file)}
    assert parts <= allowed


def test_what_is_private_in_dask_is_touched_in_one_place() -> None:
    dirty = [
        file.relative_to(PACKAGE).as_posix()
        for file in sorted(PACKAGE.rglob("*.py"))
        if "dask_spec" not in file.parts
        for line in file.read_text().splitlines()
        if line.strip().startswith(("from dask._", "import dask._"))
    ]
    assert dirty == []
