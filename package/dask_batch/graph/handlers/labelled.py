"""xarray: names, dimensions, attributes and data; of what is still in files, the files.

Encodings count, since they say what a task would write, but for ``source``, the file that a
variable came from.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from dask_batch.graph.shape import Shape, attribute_labels, unstable

if TYPE_CHECKING:
    from dask_batch.graph.handlers.choice import Handler, Shaper

__all__ = ["choose"]

_ADAPTERS: Final = {
    "CopyOnWriteArray": ("array",),
    "DaskIndexingAdapter": ("array",),
    "ImplicitToExplicitIndexingAdapter": ("array", "indexer_cls"),
    "LazilyIndexedArray": ("array", "key"),
    "LazilyVectorizedIndexedArray": ("array", "key"),
    "MemoryCachedArray": ("array",),
    "NumpyIndexingAdapter": ("array",),
    "PandasIndexingAdapter": ("array", "dtype"),
    "PandasMultiIndexingAdapter": ("array", "dtype", "level"),
}
"""Layers between a variable and its data, and what they are made of."""


def choose(cls: type) -> Handler | None:
    """Return the handler of an xarray type."""
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] != "xarray":
            continue
        handler = _HANDLERS.get(base.__name__)
        if handler is not None:
            return handler
        if base.__name__ in _ADAPTERS:
            return _adapter
    return None


def _variable(obj: Any, _: Shaper) -> Shape:
    parts = (type(obj), tuple(obj.dims), dict(obj.attrs), _encoding(obj), obj._data)
    return Shape("variable", (), parts, ("", ".dims", ".attrs", ".encoding", "").__getitem__)


def _encoding(obj: Any) -> dict[Any, Any]:
    return {name: value for name, value in obj.encoding.items() if name != "source"}


def _indexes(obj: Any) -> list[Any]:
    """Return the indexes: the ordinary ones follow from the coordinates, others have their own."""
    found = []
    for name, index in sorted(obj.xindexes.items(), key=lambda item: str(item[0])):
        ordinary = type(index).__name__ in ("PandasIndex", "PandasMultiIndex")
        found.append((name, type(index), None if ordinary else index))
    return found


def _data_array(obj: Any, _: Shaper) -> Shape:
    coords = {name: coord.variable for name, coord in obj.coords.items()}
    parts = (type(obj), obj.name, _indexes(obj), coords, obj.variable)
    return Shape("data array", (), parts, ("", ".name", ".xindexes", ".coords", "").__getitem__)


def _dataset(obj: Any, _: Shaper) -> Shape:
    names = list(obj.variables)
    variables = [obj.variables[name] for name in names]
    fixed = (type(obj), dict(obj.attrs), _encoding(obj), _indexes(obj), set(obj.coords), names)

    def label(position: int) -> str:
        if position < len(fixed):
            return ("", ".attrs", ".encoding", ".xindexes", "", "")[position]
        return f"[{names[position - len(fixed)]!r}]"

    return Shape("dataset", (), (*fixed, *variables), label)


def _tree(obj: Any, _: Shaper) -> Shape:
    parts: tuple[Any, ...] = (
        type(obj),
        obj.name,
        obj.to_dataset(inherit=False),
        dict(obj.children),
    )
    return Shape("data tree", (), parts, ("", "", "", ".children").__getitem__)


def _adapter(obj: Any, _: Shaper) -> Shape:
    names = next(_ADAPTERS[b.__name__] for b in type(obj).__mro__ if b.__name__ in _ADAPTERS)
    parts = tuple(getattr(obj, name) for name in names)
    return Shape("adapter", (type(obj).__name__,), parts, attribute_labels(names))


def _file_manager(obj: Any, shaper: Shaper) -> Shape:
    """Take what is opened, and how; not the name under which the open file is kept."""
    mode = obj._mode if isinstance(obj._mode, str) else ""
    if mode not in ("", "r"):
        return unstable("file", f"{obj._args[0]} is open for writing")
    file, *rest = obj._args or (None,)
    if isinstance(file, str | os.PathLike):
        name = os.fspath(file)
        if "://" in name and not name.startswith("file://"):
            return unstable("remote data", f"nothing tells whether {name} has changed")
        file = shaper.record(name.removeprefix("file://"))
    parts: tuple[Any, ...] = (obj._opener, file, rest, dict(obj._kwargs or {}))
    return Shape("file manager", (mode,), parts)


_HANDLERS: Final[dict[str, Handler]] = {
    "CachingFileManager": _file_manager,
    "DataArray": _data_array,
    "DataTree": _tree,
    "Dataset": _dataset,
    "PickleableFileManager": _file_manager,
    "Variable": _variable,
}
