"""numba: the function that was compiled, and how; not what it was compiled for so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from dask_batch.graph.handlers.names import name_of
from dask_batch.graph.shape import Shape, attribute_labels

if TYPE_CHECKING:
    from dask_batch.graph.handlers.choice import Handler, Shaper

__all__ = ["choose"]

_WAYS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "Dispatcher": (("py_func",), ("targetoptions",), ("locals",)),
    "DUFunc": (("_dispatcher",), ("identity",), ("signature",)),
    "GUFunc": (("gufunc_builder", "py_func"), ("gufunc_builder", "signature"), ("_identity",)),
    "CFunc": (("_pyfunc",), ("_sig",), ("targetoptions",)),
}
"""For a class, the ways to what it is made of."""


def choose(cls: type) -> Handler | None:
    """Return the handler of a type of compiled functions."""
    for base in cls.__mro__:
        if base.__name__ in _WAYS and base.__module__.partition(".")[0] == "numba":
            return _compiled(_WAYS[base.__name__])
    return None


def _compiled(ways: tuple[tuple[str, ...], ...]) -> Callable[[Any, Shaper], Shape]:
    def handler(obj: Any, shaper: Shaper) -> Shape:
        offered = shaper.offered(obj, *name_of(obj))
        if offered is not None:
            return offered
        parts = [_at(obj, way) for way in ways]
        labels = attribute_labels(("", *(".".join(way) for way in ways)))
        return Shape("compiled", (type(obj).__name__,), (type(obj), *parts), labels)

    return handler


def _at(obj: Any, way: tuple[str, ...]) -> Any:
    for name in way:
        obj = getattr(obj, name, None)
    return obj
