"""Objects without content: locks, loggers, caches.

They serve the process they are in. Their type counts, and the name of those that have one; that
a task reaches one does not keep it from being found again.
"""

from __future__ import annotations

import _thread
import contextvars
import logging
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

from dask_batch.graph.shape import Shape

if TYPE_CHECKING:
    from dask_batch.graph.handlers.choice import Handler, Shaper

__all__ = ["choose"]

_NAMED: Final = (logging.Logger, contextvars.ContextVar)

_TYPES: Final[tuple[type, ...]] = (
    *_NAMED,
    _thread.LockType,
    type(threading.RLock()),
    logging.LoggerAdapter,
    logging.Handler,
    logging.Manager,
    threading.Condition,
    threading.Event,
    threading.Semaphore,
    threading.Barrier,
    threading.local,
    weakref.WeakKeyDictionary,
    weakref.WeakValueDictionary,
    weakref.WeakSet,
)


_BY_NAME: Final = frozenset(
    {
        "asyncio.locks.Condition",
        "asyncio.locks.Event",
        "asyncio.locks.Lock",
        "asyncio.locks.Semaphore",
        "dask.utils.SerializableLock",
        "xarray.backends.locks.CombinedLock",
        "xarray.backends.locks.DummyLock",
        "xarray.backends.locks.SerializableLock",
        "multiprocessing.synchronize.SemLock",
        "multiprocessing.synchronize.Event",
        "multiprocessing.synchronize.Condition",
        "multiprocessing.synchronize.Barrier",
        "filelock._api.BaseFileLock",
        "_abc._abc_data",
    }
)


def choose(cls: type) -> Handler | None:
    """Return the handler of a type that has no content of its own."""
    # Identity along the way of inheritance: issubclass() would ask abstract classes, and those
    # ask the class, which may answer anything.
    if any(base is known for base in cls.__mro__ for known in _TYPES):
        return _placeless
    if any(f"{base.__module__}.{base.__qualname__}" in _BY_NAME for base in cls.__mro__):
        return _placeless
    return None


def _placeless(obj: Any, _: Shaper) -> Shape:
    cls = type(obj)
    name = obj.name if isinstance(obj, _NAMED) else ""
    return Shape("placeless", (cls.__qualname__, name))
