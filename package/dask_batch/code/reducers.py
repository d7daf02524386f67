"""The dump side: what pickle is told about functions, classes and modules of the user's.

Every function here returns a reduction (see :meth:`object.__reduce__`) that names functions of
:mod:`dask_batch.code.wire`. In a reduction of six parts the last sets the state, which is pickled
once the object is in pickle's memo: that is what makes cycles harmless.
"""

from __future__ import annotations

import sys
from types import CellType, FunctionType, ModuleType
from typing import Any, TypeAlias

from dask_batch.code import wire
from dask_batch.code.classes import class_parts, identity
from dask_batch.code.origin import is_user_module, library_of_namespace
from dask_batch.code.reach import resolve
from dask_batch.code.session import look_up

__all__ = ["Reducers", "Reduction"]

Reduction: TypeAlias = tuple[Any, ...]

_BOUND_ELSEWHERE = frozenset(
    {
        *("__builtins__", "__spec__", "__loader__", "__cached__", "__doc__", "__name__"),
        *("__package__", "__path__", "__warningregistry__", "__annotations__", "__annotate__"),
        *("__conditional_annotations__",),
    }
)


class _Space:
    """Stands for a namespace: a module's, or one that code was executed in."""

    __slots__ = ("facts", "namespace")

    def __init__(self, namespace: dict[str, Any], facts: tuple[Any, ...]) -> None:
        self.namespace = namespace  # keeps it alive, so that its id stays its own
        self.facts = facts

    def __reduce__(self) -> Reduction:
        return wire.namespace, self.facts


class _Cell:
    """Stands for a cell, so that a function can be made before its cells have contents."""

    __slots__ = ("cell",)

    def __init__(self, cell: CellType) -> None:
        self.cell = cell

    def __reduce__(self) -> Reduction:
        return wire.cell, ()


class Reducers:
    """The reductions of one pickle: namespaces and cells are shared within it."""

    def __init__(self) -> None:
        self._spaces: dict[int, _Space] = {}
        self._numbers: dict[str, int] = {}
        self._cells: dict[int, _Cell] = {}

    def function(self, function: FunctionType) -> Reduction:
        """Reduce a function to its code, its namespace, and the names that it reaches."""
        library = library_of_namespace(function.__globals__)
        home = self._space(function.__globals__) if library is None else sys.modules[library]
        cells = [self._cell(cell) for cell in function.__closure__ or ()]
        closure = None if function.__closure__ is None else tuple(cells)
        state = {
            "attributes": _function_attributes(function),
            "dict": dict(vars(function)),
            "cells": [(c, c.cell.cell_contents) for c in cells if _is_filled(c.cell)],
        }
        if library is None:
            state.update(self._reached(function))
        made_of = (function.__code__, home, function.__name__, closure)
        return wire.function, made_of, state, None, None, wire.fill_function

    def _reached(self, function: FunctionType) -> dict[str, Any]:
        """Gather what has to be bound, and where, for the function to find it."""
        resolved = resolve(function)
        bound: dict[int, tuple[_Space, dict[str, Any]]] = {}
        for binding in resolved.bindings:
            if binding.name not in _BOUND_ELSEWHERE:
                space = self._space(binding.namespace)
                names = bound.setdefault(id(space), (space, {}))[1]
                names[binding.name] = self._bare(binding.value)
        wholes = [v for _, v in resolved.values if _is_user_module_object(v)]
        own = self._own_name(function)
        return {
            "bind": [*bound.values(), *own],
            "modules": [(n, self._space(vars(m))) for n, m in resolved.modules.items()],
            "whole": wholes,
        }

    def _own_name(self, thing: FunctionType | type) -> list[tuple[_Space, dict[str, Any]]]:
        """Bind a function or a class under its own name, where it has one in its module.

        Plain pickling in a job (for a process pool, say) looks it up there.
        """
        module = sys.modules.get(thing.__module__ or "")
        top = thing.__qualname__.partition(".")[0]
        if module is None or not _is_user_module_object(module):
            return []
        if look_up(thing.__module__, thing.__qualname__) is not thing:
            return []
        return [(self._space(vars(module)), {top: vars(module)[top]})]

    def klass(self, cls: type) -> Reduction:
        """Reduce a class to what it is called, its identity, and its parts."""
        kind, parts, state = class_parts(cls)
        state["bind"] = self._own_name(cls)
        made_of = (cls.__module__, cls.__qualname__, identity(cls), kind, parts)
        return wire.klass, made_of, state, None, None, wire.fill_class

    def module(self, module: ModuleType) -> Reduction:
        """Reduce a module: a library's to its name, the user's to all that is in it."""
        if not is_user_module(module.__name__):
            return wire.library, (module.__name__,)
        attributes = {k: v for k, v in vars(module).items() if k not in _BOUND_ELSEWHERE}
        home = self._space(vars(module))
        return wire.whole, (home,), attributes, None, None, wire.fill_module

    def singleton(self, obj: Any, name: str) -> Reduction:
        """Reduce an object of the user's that says it is a global of its module."""
        made_of = (type(obj).__module__, name, type(obj))
        return wire.singleton, made_of, obj.__getstate__(), None, None, wire.fill_singleton

    def cell(self, cell: CellType) -> Reduction:
        """Reduce a cell that is met outside a function."""
        if not _is_filled(cell):
            return wire.same, (self._cell(cell),)
        state = (cell.cell_contents,)
        return wire.same, (self._cell(cell),), state, None, None, wire.fill_cell

    def _cell(self, cell: CellType) -> _Cell:
        return self._cells.setdefault(id(cell), _Cell(cell))

    def _bare(self, value: Any) -> Any:
        """Let a module of the user's travel as the namespace alone: its names are bound apart."""
        return self._space(vars(value)) if _is_user_module_object(value) else value

    def _space(self, namespace: dict[str, Any]) -> _Space:
        space = self._spaces.get(id(namespace))
        if space is None:
            space = self._spaces[id(namespace)] = _Space(namespace, self._facts(namespace))
        return space

    def _facts(self, namespace: dict[str, Any]) -> tuple[Any, ...]:
        """Return a namespace's name and number, and what relative imports in it go by."""
        name = namespace.get("__name__")
        package = namespace.get("__package__")
        if not isinstance(name, str):
            name = ""
        known = sys.modules.get(name)
        if known is not None and vars(known) is namespace:
            number = 0
        else:
            number = self._numbers[name] = self._numbers.get(name, 0) + 1
        return name, number, package, "__path__" in namespace


def _is_user_module_object(value: Any) -> bool:
    return isinstance(value, ModuleType) and is_user_module(value.__name__)


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - the question is whether it raises
    except ValueError:
        return False
    return True


def _function_attributes(function: FunctionType) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "__qualname__": function.__qualname__,
        "__module__": function.__module__,
        "__doc__": function.__doc__,
        "__defaults__": function.__defaults__,
        "__kwdefaults__": function.__kwdefaults__,
    }
    parameters = getattr(function, "__type_params__", ())
    if parameters:
        attributes["__type_params__"] = parameters
    annotate = getattr(function, "__annotate__", None)
    if annotate is not None:
        # Since 3.14 annotations may name what is not there, and are only made when asked for.
        attributes["__annotate__"] = annotate
    elif sys.version_info < (3, 14) and function.__annotations__:
        attributes["__annotations__"] = function.__annotations__
    return attributes
