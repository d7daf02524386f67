"""Sparse matrices of SciPy and of pydata: what is stored, without what has been found out since."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from dask_batch.graph.shape import Shape, attribute_labels

if TYPE_CHECKING:
    from dask_batch.graph.handlers.choice import Handler, Shaper

__all__ = ["choose"]

_PARTS: Final = {
    "bsr": ("data", "indices", "indptr"),
    "coo": ("data", "coords"),
    "csc": ("data", "indices", "indptr"),
    "csr": ("data", "indices", "indptr"),
    "dia": ("data", "offsets"),
    "lil": ("data", "rows"),
}
"""Attributes of SciPy's matrices, by format. (A ``dok`` is a mapping.)"""

_PYDATA: Final = {
    "COO": ("coords", "data", "fill_value"),
    "DOK": ("data", "dtype", "fill_value"),
    "GCXS": ("data", "indices", "indptr", "compressed_axes", "fill_value"),
}


def choose(cls: type) -> Handler | None:
    """Return the handler of a type of sparse matrices."""
    matrices = sys.modules.get("scipy.sparse")
    bases = tuple(
        getattr(matrices, name) for name in ("spmatrix", "sparray") if hasattr(matrices, name)
    )
    if bases and issubclass(cls, bases):
        return _scipy
    for base in cls.__mro__:
        if base.__name__ in _PYDATA and base.__module__.partition(".")[0] == "sparse":
            return _pydata(_PYDATA[base.__name__])
    return None


def _scipy(obj: Any, _: Shaper) -> Shape:
    if obj.format == "dok":
        parts: list[Any] = [obj.dtype, list(obj.items())]
        return Shape("sparse dok", (repr(obj.shape),), (type(obj), *parts))
    names = _PARTS[obj.format]
    parts = [getattr(obj, name) for name in names]
    labels = attribute_labels(("", *names))
    return Shape(f"sparse {obj.format}", (repr(obj.shape),), (type(obj), *parts), labels)


def _pydata(names: tuple[str, ...]) -> Callable[[Any, Shaper], Shape]:
    def handler(obj: Any, _: Shaper) -> Shape:
        parts = [getattr(obj, name) for name in names]
        labels = attribute_labels(("", *names))
        return Shape("sparse", (repr(obj.shape), *names), (type(obj), *parts), labels)

    return handler
