"""One load of what travelled: which namespaces and which classes it meets.

With ``install`` (a job that loads its definition) namespaces are
the process's: they stand in ``sys.modules``, `__main__` included, so that imports in function
bodies and plain pickling by name meet what was hashed. Otherwise they live as long as the
functions that came along, and ``sys.modules`` is left alone: only in a job are modules added that
are not there at all, for the functions among its inputs that import them.

Which class
    Every class has an identity: a digest of its own code and attributes, and a number where
    several of equal content were alive. Installing, a class is the one of equal identity that an
    installing load of this process made, or new. Otherwise it is the class that ``sys.modules``
    has under its name (in a client its own, in a job the one that was installed), then one of
    equal identity, then a new one, which is remembered by its identity.
"""

from __future__ import annotations

import sys
import typing
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from dask_batch.code.namespaces import travelled

__all__ = ["Session", "current", "identity_of", "know_class", "look_up", "session"]


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


_session: ContextVar[Session | None] = ContextVar("session", default=None)


@contextmanager
def session(*, install: bool = False) -> Iterator[Session]:
    """Run a load in a session of its own."""
    token = _session.set(Session(install=install))
    try:
        yield typing.cast(Session, _session.get())
    finally:
        _session.reset(token)


def current() -> Session:
    """Return the session of the load that is under way."""
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
