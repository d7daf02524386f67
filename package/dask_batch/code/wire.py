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

A load has a :class:`Session`. With ``install`` (a job that loads its definition) namespaces are
the process's: they stand in ``sys.modules``, `__main__` included, so that imports in function
bodies and plain pickling by name meet what was hashed. Otherwise they live as long as the
functions that came along, and ``sys.modules`` is never touched.

Which class
    Every class has an identity: a digest of its own code and attributes, and a number where
    several of equal content were alive. Installing, a class is the one of equal identity that an
    installing load of this process made, or new. Otherwise it is the class that ``sys.modules``
    has under its name (in a client its own, in a job the one that was installed), then one of
    equal identity, then a new one, which is remembered by its identity.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import sys
import typing
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

from dask_batch.code.namespaces import TravelledModule, travelled


class _Process:
    """What this process is: one that has installed is a job, and never a client."""

    installs = False


_process = _Process()
_installed: dict[str, ModuleType] = {}
_displaced: list[ModuleType | None] = []
"""Modules that installed ones replaced; kept, since their functions may be on the stack."""

_installed_classes: weakref.WeakValueDictionary[str, type] = weakref.WeakValueDictionary()
_known_classes: weakref.WeakValueDictionary[str, type] = weakref.WeakValueDictionary()
_identities: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()


class Session:
    """What belongs together in one load."""

    def __init__(self, *, install: bool = False) -> None:
        self.install = install
        _process.installs = _process.installs or install
        self._namespaces: dict[tuple[str, int], ModuleType] = {}
        self._unfilled: dict[int, Any] = {}
        """What this load has made and not yet given its state, by id."""

    def namespace(self, name: str, number: int, package: str | None, path: bool) -> ModuleType:
        """Return the namespace with this name and number, made at first asking."""
        module = self._namespaces.get((name, number))
        if module is None:
            shared = self.install and number == 0
            module = _installed.get(name) if shared else None
            if module is None:
                module = travelled(name, package=package, is_package=path)
            if shared:
                self.publish(name, module)
            self._namespaces[name, number] = module
        return module

    def publish(self, name: str, module: ModuleType) -> None:
        """Make a namespace importable by its name: if this load installs, or fills a gap.

        A job's inputs may hold functions that import modules of which its definition knows
        nothing.
        """
        gap = _process.installs and name not in sys.modules
        if sys.modules.get(name) is module or not (self.install or gap):
            return
        _displaced.append(sys.modules.get(name))
        sys.modules[name] = _installed[name] = module
        parent, _, own = name.rpartition(".")
        if parent in _installed:
            setattr(_installed[parent], own, module)

    def find_class(self, module: str, qualname: str, identity: str) -> type | None:
        """Find the class that the process has already."""
        if self.install:
            return _installed_classes.get(identity)
        return (
            _class_by_name(module, qualname)
            or _installed_classes.get(identity)
            or _known_classes.get(identity)
        )

    def made(self, cls: type, identity: str) -> None:
        """Remember a class that had to be made."""
        if self.install:
            _installed_classes[identity] = cls
        know_class(cls, identity)
        _identities[cls] = identity
        self.unfilled(cls)

    def unfilled(self, made: Any) -> None:
        """Note that an object waits for its state."""
        self._unfilled[id(made)] = made

    def wants_filling(self, thing: Any) -> bool:
        """Whether this load has made an object that waits for its state. Asked once."""
        return self._unfilled.pop(id(thing), None) is not None


PYTHON = f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor}"
"""Bytecode means something to the minor version that compiled it, and to no other."""

_session: ContextVar[Session | None] = ContextVar("session", default=None)


@contextmanager
def session(*, install: bool = False) -> Iterator[Session]:
    """Run a load in a session of its own."""
    token = _session.set(Session(install=install))
    try:
        yield typing.cast(Session, _session.get())
    finally:
        _session.reset(token)


def _current() -> Session:
    return _session.get() or Session()


def know_class(cls: type, identity: str) -> None:
    """Let later loads find a class by its identity."""
    _known_classes[identity] = cls


def identity_of(cls: type) -> str | None:
    """Return the identity with which a class was loaded, if it was: it keeps that for good."""
    return _identities.get(cls)


def look_up(module: str | None, qualname: str) -> Any:
    """Find what stands under a name in a module that is loaded; None if nothing does."""
    found: Any = sys.modules.get(module or "")
    for part in qualname.split("."):
        found = vars(found).get(part) if isinstance(found, type | ModuleType) else None
    return found


def _class_by_name(module: str, qualname: str) -> type | None:
    found = look_up(module, qualname)
    if isinstance(found, type) and (found.__module__, found.__qualname__) == (module, qualname):
        return found
    return None


def namespace(name: str, number: int, package: str | None, path: bool) -> ModuleType:
    """Return a namespace of the current load."""
    return _current().namespace(name, number, package, path)


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

        return of_another_python


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
        _current().publish(name, module)
    for home, names in state.get("bind", ()):
        home.__dict__.update(names)
    for name, value in state.get("attributes", {}).items():
        setattr(target, name, value)
    target.__dict__.update(state.get("dict", {}))


def klass(module: str, qualname: str, identity: str, kind: str, parts: tuple[Any, ...]) -> type:
    """Return the process's own class of that name and identity, or one without attributes."""
    current = _current()
    found = current.find_class(module, qualname, identity)
    if found is None:
        from dask_batch.code.classes import make_class

        found = make_class(kind, parts)
        current.made(found, identity)
    return found


def fill_class(target: type, state: Mapping[str, Any]) -> None:
    """Give a class its attributes, unless it is one that the process had."""
    if _current().wants_filling(target):
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
    current = _current()
    found = None if current.install else look_up(module, name)
    if type(found) is cls:
        return found
    made: Any = object.__new__(cls)
    current.unfilled(made)
    return made


def fill_singleton(target: Any, state: Any) -> None:
    """Give a singleton its state, unless it is one that the process had."""
    if not _current().wants_filling(target) or state is None:
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
