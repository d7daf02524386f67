"""The load side: how code that travelled by value is put together again.

Wire format
-----------
A pickle (protocol 5) refers to the functions of this module by name. The names and their
parameters are part of the cache's format: results hold them for years. They may get more optional
parameters and company, but never another meaning.

==================  =============================================================================
``namespace``       the module with a name and a number (0: the one that ``sys.modules`` had)
``library``         a library's module, imported
``code``            a code object, with the Python that compiled it
``function``        a function without its state; ``fill_function`` gives it that, and binds in the
                    namespaces what it reaches
``cell``            an empty cell; ``same``, ``fill_cell``
``klass``           the process's own class of that name, or a new one; ``fill_class``
``whole``           a namespace in which everything travelled; ``fill_module``
``lru_cached``      what :func:`functools.lru_cache` makes, empty
``type_variable``   a TypeVar, ParamSpec or TypeVarTuple
``new_type``        a ``typing.NewType``
``singleton``       an object whose ``__reduce__`` names a global; ``fill_singleton``
``dict_view``       keys, values or items of a dict
==================  =============================================================================
"""

from __future__ import annotations

import builtins
import functools
import importlib
import sys
import typing
from collections.abc import Mapping
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

from dask_batch.code.namespaces import TravelledModule
from dask_batch.code.session import current, look_up

PYTHON = f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor}"
"""Bytecode means something to the minor version that compiled it, and to no other."""


def namespace(name: str, number: int, package: str | None, path: bool) -> ModuleType:
    """Return a namespace of the current load."""
    return current().namespace(name, number, package, path)


def library(name: str) -> ModuleType:
    """Import a library's module."""
    return importlib.import_module(name)


def cell() -> CellType:
    """Make an empty cell."""
    return CellType()


def same(target: CellType) -> CellType:
    """Return a cell that functions may share."""
    return target


def fill_cell(target: CellType, contents: tuple[Any]) -> None:
    """Give a cell its contents."""
    (target.cell_contents,) = contents


class _ForeignCode:
    """Code of another Python. Running it could crash the process; carrying it does not."""

    def __init__(self, python: str) -> None:
        self.python = python

    def function(self, name: str) -> FunctionType:
        """Make a function that says why it cannot be called."""

        def of_another_python(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError(
                f"{name} was compiled by {self.python} and cannot be called by {PYTHON}: "
                "import it, or compute it again with this Python"
            )

        return typing.cast(FunctionType, of_another_python)


def code(python: str, *parts: Any) -> Any:
    """Make a code object."""
    return CodeType(*parts) if python == PYTHON else _ForeignCode(python)


def function(
    code: CodeType | _ForeignCode, home: ModuleType, name: str, closure: tuple[CellType, ...] | None
) -> FunctionType:
    """Make a function in a namespace; its state comes later, since it may refer to itself."""
    if isinstance(code, _ForeignCode):
        return code.function(name)
    home.__dict__.setdefault("__builtins__", builtins)
    return FunctionType(code, home.__dict__, name, None, closure)


def fill_function(target: FunctionType, state: Mapping[str, Any]) -> None:
    """Give a function its attributes, its cells their contents, and bind what it reaches."""
    for holder, contents in state.get("cells", ()):
        holder.cell_contents = contents
    for name, module in state.get("modules", ()):
        current().publish(name, module)
    for home, names in state.get("bind", ()):
        home.__dict__.update(names)
    for name, value in state.get("attributes", {}).items():
        setattr(target, name, value)
    target.__dict__.update(state.get("dict", {}))


def klass(module: str, qualname: str, identity: str, kind: str, parts: tuple[Any, ...]) -> type:
    """Return the process's own class of that name and identity, or one without attributes."""
    load = current()
    found = load.find_class(module, qualname, identity)
    if found is None:
        from dask_batch.code.classes import make_class

        found = make_class(kind, parts)
        load.made(found, identity)
    return found


def fill_class(target: type, state: Mapping[str, Any]) -> None:
    """Give a class its attributes, unless it is one that the process had."""
    if current().wants_filling(target):
        from dask_batch.code.classes import set_attributes

        set_attributes(target, state)
    for home, names in state.get("bind", ()):
        if isinstance(home, TravelledModule):
            home.__dict__.update(names)


def whole(home: ModuleType) -> ModuleType:
    """Return a namespace in which everything travelled."""
    return home


def fill_module(target: ModuleType, attributes: Mapping[str, Any]) -> None:
    """Bind all attributes of a module."""
    target.__dict__.update(attributes)


def lru_cached(wrapped: Any, maxsize: int | None, typed: bool) -> Any:
    """Make an empty cache around a function."""
    return functools.lru_cache(maxsize=maxsize, typed=typed)(wrapped)


def type_variable(
    kind: str, name: str, constraints: tuple[Any, ...], options: dict[str, Any], module: str | None
) -> Any:
    """Make a TypeVar, a ParamSpec or a TypeVarTuple."""
    made = getattr(typing, kind)(name, *constraints, **options)
    made.__module__ = module
    return made


def new_type(name: str, supertype: Any, module: str | None) -> Any:
    """Make a ``typing.NewType``."""
    make: Any = typing.NewType
    made = make(name, supertype)
    made.__module__ = module
    return made


def singleton(module: str, name: str, cls: type) -> Any:
    """Return the process's own object of that name, or one that is still empty."""
    load = current()
    found = None if load.install else look_up(module, name)
    if type(found) is cls:
        return found
    made: Any = object.__new__(cls)
    load.unfilled(made)
    return made


def fill_singleton(target: Any, state: Any) -> None:
    """Give a singleton its state, unless it is one that the process had."""
    if not current().wants_filling(target) or state is None:
        return
    if hasattr(target, "__setstate__"):
        target.__setstate__(state)
        return
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    target.__dict__.update(attributes or {})
    for name, value in (slots or {}).items():
        setattr(target, name, value)


def dict_view(content: dict[Any, Any], kind: str) -> Any:
    """Return a view of a dict."""
    return getattr(content, kind)()
