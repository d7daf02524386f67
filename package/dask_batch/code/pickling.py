"""Pickle for what a task is made of: the user's code by value, everything else by reference.

``dumps`` gives a pickle of protocol 5 with its buffers out of band, ``loads`` reads one. What the
user's code is, :mod:`dask_batch.code.origin` says; which of its globals travel,
:mod:`dask_batch.code.reach`; what a load makes of it, :mod:`dask_batch.code.wire`, where the
format is written down.

In short
--------
* A function of the user's travels with the globals it names, and nothing else. Functions of one
  module share their globals after the journey, and these are the module's ``__dict__``.
* A module of the user's travels as a namespace of the names that were reached; all of it, where
  the module itself is passed on.
* A class of the user's travels by value and is the loader's own class of that name, if the
  loader has one.
* A function or class that a library made but does not offer by name travels by value, too.
* Locks, thread-locals and loggers travel as a fresh one, or the one of the same name.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import CellType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

from dask_batch.code.builtin_types import (
    REDUCERS,
    reduce_compiled,
    reduce_sentinel,
    reduce_stream,
    refuse_what_is_under_way,
)
from dask_batch.code.exceptions import reduce_exception
from dask_batch.code.origin import travels_by_value
from dask_batch.code.session import session
from dask_batch.errors import SerializationError
from dask_batch.inputs import portable
from dask_batch.spec import Build, Call, Let, Ref, Step

if TYPE_CHECKING:
    from dask_batch.code.reducers import Reducers

__all__ = ["Pickled", "dumps", "loads"]

PersistentId: TypeAlias = Callable[[Any], Any]
PersistentLoad: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Pickled:
    """A pickle and its buffers, each a flat view of bytes on the object's own memory."""

    data: bytes
    buffers: tuple[memoryview, ...] = ()
    own: bool = False
    """Whether reading it calls code of the user's: functions, classes, what those say to do."""

    @property
    def nbytes(self) -> int:
        """The size of both, in bytes."""
        return len(self.data) + sum(buffer.nbytes for buffer in self.buffers)


def dumps(
    obj: Any, *, persistent_id: PersistentId | None = None, where: str = "the object"
) -> Pickled:
    """Pickle an object.

    Parameters
    ----------
    obj
        Anything.
    persistent_id
        As :meth:`pickle.Pickler.persistent_id`: called with every object; what it returns, unless
        None, is written in the object's place.
    where
        What to call the object in an error.

    Raises
    ------
    SerializationError
        Something in it cannot be pickled. The message has the path to it; ``__cause__`` is the
        exception that said so.
    """
    try:
        return dump_part(obj, persistent_id)
    except Exception as refusal:
        from dask_batch.code.culprit import find

        path, reason = find(obj, refusal, lambda part: dump_part(part, persistent_id), where)
        raise SerializationError(f"{path} cannot be pickled: {_said(reason)}") from reason


def dump_part(obj: Any, persistent_id: PersistentId | None = None) -> Pickled:
    """Pickle an object, and raise what pickling it raises."""
    stream = io.BytesIO()
    buffers: list[memoryview] = []

    def out_of_band(buffer: pickle.PickleBuffer) -> None:
        buffers.append(buffer.raw())

    if persistent_id is None:
        pickler = _Pickler(stream, protocol=5, buffer_callback=out_of_band)
    else:
        pickler = _ReferringPickler(stream, out_of_band, persistent_id)
    pickler.dump(obj)
    return Pickled(stream.getvalue(), tuple(buffers), pickler.own)


def _said(reason: BaseException) -> str:
    if isinstance(reason, RecursionError):
        return "it is nested too deeply"
    return f"{type(reason).__name__}: {reason}"


def loads(
    data: Any,
    buffers: Iterable[Any] = (),
    *,
    persistent_load: PersistentLoad | None = None,
    install: bool = False,
) -> Any:
    """Read a pickle.

    Parameters
    ----------
    data, buffers
        What :func:`dumps` gave.
    persistent_load
        As :meth:`pickle.Unpickler.persistent_load`.
    install
        For a job and its definition: put the user's modules that travelled into ``sys.modules``,
        ``__main__`` included, in place of what is there. Without it ``sys.modules`` is not
        touched; only in a process that has installed, modules that are not there at all are
        added for the functions that import them.
    """
    with session(install=install):
        if persistent_load is None:
            return pickle.loads(data, buffers=buffers)
        return _ReferringUnpickler(io.BytesIO(data), buffers, persistent_load).load()


_SAY_HOW = frozenset({Ref, Call, Build, Let, Step})
"""What tasks are made of, and there is much of it."""


class _Pickler(pickle.Pickler):
    """Asks, for whatever pickle has no built-in way for, whether it is the user's."""

    _reducers: Reducers | None = None
    own = False

    @property
    def by_value(self) -> Reducers:
        """What reduces the user's code; made when the first of it is met."""
        self.own = True
        if self._reducers is None:
            from dask_batch.code.reducers import Reducers

            self._reducers = Reducers()
        return self._reducers

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is FunctionType:
            return self.by_value.function(obj) if travels_by_value(obj) else NotImplemented
        if issubclass(kind, type):
            return self._class(obj)
        if issubclass(kind, ModuleType):
            return self.by_value.module(obj)
        if kind is CellType:
            return self.by_value.cell(obj)
        return self._instance(obj, kind)

    def _instance(self, obj: Any, kind: type) -> Any:
        """Reduce what is neither function, class nor module, where pickle would not do."""
        if kind in _SAY_HOW:
            return NotImplemented
        reducer = REDUCERS.get(kind)
        if reducer is not None:
            return reducer(obj)
        if isinstance(obj, io.TextIOBase):
            return reduce_stream(obj)
        if isinstance(obj, BaseException):
            reduced = reduce_exception(obj)
            if reduced is not NotImplemented:
                return reduced
        if kind.__module__ == "dataclasses":
            return reduce_sentinel(obj)
        if kind.__module__ == "numba.core.serialize" and hasattr(obj, "ctor"):
            return reduce_compiled(obj)
        stand_in = portable(obj)
        if stand_in is not obj:
            return stand_in.__reduce__()
        refuse_what_is_under_way(obj)
        says_how = isinstance(kind.__reduce__, FunctionType) or isinstance(
            kind.__reduce_ex__, FunctionType
        )
        if not says_how or kind in copyreg.dispatch_table or not travels_by_value(kind):
            return NotImplemented
        self.own = True
        reduction = obj.__reduce_ex__(5)
        is_name = isinstance(reduction, str)
        return self.by_value.singleton(obj, reduction) if is_name else reduction

    def _class(self, cls: type) -> Any:
        if travels_by_value(cls):
            return self.by_value.klass(cls)
        return _unnamed_builtin(cls) if cls.__module__ == "builtins" else NotImplemented


class _ReferringPickler(_Pickler):
    """Writes references in the place of what somebody else keeps."""

    def __init__(
        self, stream: io.BytesIO, buffer_callback: Any, persistent_id: PersistentId
    ) -> None:
        self._refer = persistent_id
        super().__init__(stream, protocol=5, buffer_callback=buffer_callback)

    def persistent_id(self, obj: Any) -> Any:
        return self._refer(obj)


class _ReferringUnpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, buffers: Any, load: PersistentLoad) -> None:
        self._load = load
        super().__init__(stream, buffers=buffers)

    def persistent_load(self, pid: Any) -> Any:
        return self._load(pid)


def _unnamed_builtin(cls: type) -> Any:
    """Find the name of a built-in type that builtins does not offer (a function's, a cell's)."""
    import builtins
    import types

    if getattr(builtins, cls.__qualname__, None) is cls or cls in (type(None), type(...)):
        return NotImplemented
    for name, value in vars(types).items():
        if value is cls:
            return getattr, (types, name)
    return NotImplemented
