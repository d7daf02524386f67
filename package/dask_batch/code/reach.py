"""What a function reaches in the user's world: the input of its content key and of its pickle.

Two steps, both cheap enough to be taken anew for every hand-over, since globals change:

* :func:`reach` reads the function's code and says which names it loads (no value is looked at);
* :func:`resolve` looks the names up and says what they are now.

``reached(function)`` is the short form for the hash: an iterator of ``(label, value)`` pairs in
an order that depends on names alone. A value is

* whatever object a global name or an attribute chain through the user's modules leads to, with
  the dotted path as its label (``"helper.sub.g"``); the walk goes on through modules only;
* a module of the user's, where the module object itself is used (``getattr(helper, name)``): all
  of it counts;
* an object of a library that a chain leads to (``np.linalg.svd``), or the library's module where
  it is used whole;
* :class:`LibraryReference` for what an import statement in the body takes from a library. It is
  not imported here: a module that only jobs can import (``mpi4py.MPI`` on a login node) must not
  be touched, and the label must not depend on whether somebody else has imported it;
* :class:`Missing` where running the function would meet a NameError, an ImportError or an
  AttributeError.

Labels of import statements start with ``"import "``. Builtins are left out. A function whose
globals are those of a library (a wrapper made by a library's decorator) reaches nothing here but
the :class:`LibraryReference` to that library; its closure is the caller's business.

Modules of the user's that a body imports are imported here, as running the function would.
"""

from __future__ import annotations

import builtins
import importlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import resolve_name
from types import FunctionType, ModuleType
from typing import Any

from dask_batch.code.bytecode import Chain, GlobalUse, RawImport, read
from dask_batch.code.origin import find_spec, is_user_module, library_of_namespace

__all__ = [
    "Binding",
    "GlobalUse",
    "ImportUse",
    "LibraryReference",
    "Missing",
    "Reach",
    "Resolved",
    "reach",
    "reached",
    "resolve",
]


@dataclass(frozen=True, slots=True, order=True)
class ImportUse:
    """An import statement in a function's body.

    Attributes
    ----------
    module
        The absolute name of the module that is imported.
    root
        The module that the chains start from: ``"a"`` for ``import a.b``, which binds ``a``,
        else ``module``.
    names
        What ``from module import ...`` takes.
    chains
        What is used, seen from ``root``, as far as the code shows it; sorted.
    whole
        Whether the root itself is used: passed on, stored, or out of sight.
    """

    module: str
    root: str
    names: tuple[str, ...]
    chains: tuple[Chain, ...]
    whole: bool


@dataclass(frozen=True, slots=True)
class Reach:
    """What a function's code refers to, by name; in the order of the names."""

    globals: tuple[GlobalUse, ...]
    imports: tuple[ImportUse, ...]


@dataclass(frozen=True, slots=True)
class Missing:
    """Stands for what is not there: running the code would raise for this name."""

    name: str


@dataclass(frozen=True, slots=True)
class LibraryReference:
    """Something of a library, by name, whether or not the library has been imported."""

    module: str
    chain: Chain = ()


@dataclass(frozen=True, slots=True)
class Binding:
    """A name in a namespace of the user's that the function's way leads through."""

    namespace: dict[str, Any]
    name: str
    value: Any


@dataclass(slots=True)
class Resolved:
    """What the names of a :class:`Reach` are now.

    Attributes
    ----------
    values
        Labels and values, as :func:`reached` yields them.
    bindings
        All that must be bound, and where, for the code to find those values again: the function's
        globals, and attributes of the user's modules.
    modules
        The user's modules that must be importable by name, as import statements name them.
    """

    values: list[tuple[str, Any]] = field(default_factory=list)
    bindings: list[Binding] = field(default_factory=list)
    modules: dict[str, ModuleType] = field(default_factory=dict)


def reach(function: FunctionType) -> Reach:
    """Read what a function's code refers to, without looking at any value."""
    use = read(function.__code__)
    namespace = function.__globals__
    names = (g for g in use.globals if g.name in namespace or not hasattr(builtins, g.name))
    imports = {_absolute(raw, namespace) for raw in use.imports}
    return Reach(tuple(names), tuple(sorted(imports)))


def reached(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield label and value of all that a function reaches outside itself and its closure."""
    yield from resolve(function).values


def resolve(function: FunctionType) -> Resolved:
    """Look up all that a function refers to."""
    resolved = Resolved()
    library = library_of_namespace(function.__globals__)
    if library is not None:
        resolved.values.append((library, LibraryReference(library)))
        return resolved
    found = reach(function)
    for use in found.globals:
        _resolve_global(resolved, use, function.__globals__)
    for statement in found.imports:
        _resolve_import(resolved, statement)
    resolved.values = list(dict(resolved.values).items())  # several statements may say the same
    return resolved


def _absolute(raw: RawImport, namespace: Mapping[str, Any]) -> ImportUse:
    """Make an import's name absolute, as the import system would."""
    module = raw.module
    if raw.level:
        try:
            module = resolve_name("." * raw.level + module, _package(namespace))
        except ImportError:
            module = "." * raw.level + module  # resolves nowhere: reported as missing
    root = module.partition(".")[0] if raw.from_top else module
    return ImportUse(module, root, raw.names, raw.chains, raw.whole)


def _package(namespace: Mapping[str, Any]) -> str | None:
    package = namespace.get("__package__")
    if isinstance(package, str):
        return package
    name = namespace.get("__name__")
    if not isinstance(name, str):
        return None
    return name if "__path__" in namespace else name.rpartition(".")[0]


def _resolve_global(resolved: Resolved, use: GlobalUse, namespace: dict[str, Any]) -> None:
    if use.name not in namespace:
        resolved.values.append((use.name, Missing(use.name)))
        return
    value = namespace[use.name]
    resolved.bindings.append(Binding(namespace, use.name, value))
    _follow(resolved, use.name, value, use.chains, use.whole)


def _follow(
    resolved: Resolved, label: str, value: Any, chains: tuple[Chain, ...], whole: bool
) -> None:
    """Follow chains from a value through modules; what is no module is reached as it is."""
    if whole or not isinstance(value, ModuleType):
        resolved.values.append((label, value))
    if not isinstance(value, ModuleType):
        return
    seen: set[str] = set()
    for chain in chains:
        for path, leaf in _walk(resolved, label, value, chain):
            if path not in seen:
                seen.add(path)
                resolved.values.append((path, leaf))


def _walk(
    resolved: Resolved, label: str, module: ModuleType, chain: Chain
) -> Iterator[tuple[str, Any]]:
    """Walk one chain as far as it leads through modules, and yield where it ends."""
    value: Any = module
    for name in chain:
        if not isinstance(value, ModuleType):
            break
        owner, value = value, attribute(value, name)
        if isinstance(value, Missing) and not is_user_module(owner.__name__):
            value = owner
            break
        label = f"{label}.{name}"
        if is_user_module(owner.__name__) and not isinstance(value, Missing):
            resolved.bindings.append(Binding(owner.__dict__, name, value))
    yield label, value


def attribute(module: ModuleType, name: str) -> Any:
    """Take an attribute of a module; :class:`Missing` if it has none, or fails to make it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return getattr(module, name)
        except Exception:  # a module's own __getattr__ may raise anything
            return Missing(f"{module.__name__}.{name}")


def _resolve_import(resolved: Resolved, statement: ImportUse) -> None:
    label = f"import {statement.module}"
    if not _is_users(statement.module):
        wholes = ((),) if statement.whole or not statement.chains else ()
        start = statement.root
        for chain in (*wholes, *statement.chains):
            path = ".".join((f"import {start}", *chain))
            resolved.values.append((path, LibraryReference(start, chain)))
        return
    module = import_user_module(statement.module)
    if module is None:
        resolved.values.append((label, Missing(statement.module)))
        return
    for name in statement.names:
        if isinstance(attribute(module, name), Missing) and hasattr(module, "__path__"):
            import_user_module(f"{statement.module}.{name}")
    _need(resolved, statement.module)
    for name in statement.names:
        if f"{statement.module}.{name}" in sys.modules:
            _need(resolved, f"{statement.module}.{name}")
    root = sys.modules[statement.root]
    _follow(resolved, f"import {statement.root}", root, statement.chains, statement.whole)


def _is_users(name: str) -> bool:
    """Whether an import that may fail concerns the user's code (what is nowhere is Missing)."""
    return name.startswith(".") or is_user_module(name)


def _need(resolved: Resolved, name: str) -> None:
    """Note a module, and the packages it lies in, as needed by name."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        ancestor = sys.modules.get(".".join(parts[:end]))
        if isinstance(ancestor, ModuleType):
            resolved.modules[".".join(parts[:end])] = ancestor


def import_user_module(name: str) -> ModuleType | None:
    """Import a module of the user's as the function's body would; None if that fails."""
    if name.startswith("."):
        return None
    found = sys.modules.get(name)
    if found is not None:
        return found
    try:
        if find_spec(name) is None:
            return None
        return importlib.import_module(name)
    except (Exception, SystemExit):  # what a module does when it is imported is the user's
        return None
