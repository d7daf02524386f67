"""Exceptions in a pickle: with their type, arguments and attributes, however they are constructed.

Pickle makes an exception again by calling its class with ``args``. These are what reached
``Exception.__init__``, which need not be what the class is called with: a class of two parameters
that passes on one message would fail to be made, or be made with another message.

Where tblib is installed, Dask's multiprocessing scheduler has it register a reduction of its own
for every exception. That loses what C keeps of an exception, and needs tblib to be read: it is
passed by.
"""

from __future__ import annotations

import contextlib
import copyreg
import pickle
from typing import Any

__all__ = ["reduce_exception", "restore"]

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class that a class statement made


def reduce_exception(error: BaseException) -> Any:
    """Return the reduction of an exception whose class leaves that to Python."""
    kind = type(error)
    own = kind.__reduce__ is not BaseException.__reduce__
    if own or kind.__reduce_ex__ is not object.__reduce_ex__ or not _has_constructor(kind):
        registered = copyreg.dispatch_table.get(kind)
        if getattr(registered, "__module__", "") == "tblib.pickling_support":
            return error.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        return NotImplemented
    return restore, (kind, error.args), vars(error) or None


def restore(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """Make an exception that has these ``args``; its attributes are set afterwards."""
    error: BaseException | None = None
    with contextlib.suppress(Exception):
        error = kind(*args)
    if type(error) is not kind:
        error = _unconstructed(kind, args)
    assert error is not None
    error.args = args
    return error


def _unconstructed(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """Make an exception by what Python itself has for it, past the constructor of its class."""
    base = next(cls for cls in kind.__mro__ if not cls.__flags__ & _HEAP_TYPE)
    error: BaseException = base.__new__(kind, *args)
    with contextlib.suppress(Exception):
        base.__init__(error, *args)  # type: ignore[misc]  # it is one of the error's own bases
    return error


def _has_constructor(kind: type[BaseException]) -> bool:
    """Whether a class statement gave an exception its own way to be made."""
    return any(
        cls.__flags__ & _HEAP_TYPE and {"__init__", "__new__"} & vars(cls).keys()
        for cls in kind.__mro__
    )
