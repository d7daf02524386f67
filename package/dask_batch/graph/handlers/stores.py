"""HDF5, netCDF and zarr: open files and stores, by what they were when they were looked at."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from dask_batch.graph.handlers.files import directory_of
from dask_batch.graph.shape import Shape, unstable

if TYPE_CHECKING:
    from dask_batch.graph.handlers.choice import Handler, Shaper

__all__ = ["choose"]


def choose(cls: type) -> Handler | None:
    """Return the handler of an open file, a part of one, or a store."""
    for base in cls.__mro__:
        top = base.__module__.partition(".")[0]
        handler = _HANDLERS.get((top, base.__name__))
        if handler is not None:
            return handler
    return None


def _hdf5(obj: Any, shaper: Shaper) -> Shape:
    """An ``h5py`` file, group or dataset."""
    file = obj.file
    if file.mode != "r":
        return unstable("HDF5 file", f"{file.filename} is open for writing: open it with mode 'r'")
    if file.driver == "core":
        return unstable("HDF5 file", f"{file.filename} is in the memory of this process")
    records = [shaper.record(file.filename)]
    if getattr(obj, "is_virtual", False):
        below = os.path.dirname(os.path.abspath(file.filename))
        sources = sorted({source.file_name for source in obj.virtual_sources()} - {"."})
        records += [shaper.record(os.path.join(below, name)) for name in sources]
    return Shape("part of HDF5 file", (type(obj).__name__,), (obj.name, *records))


def _netcdf(obj: Any, shaper: Shaper) -> Shape:
    """A ``netCDF4`` dataset, group or variable."""
    group = obj.group() if hasattr(obj, "group") else obj
    name = obj.name if hasattr(obj, "group") else ""
    path = group.filepath()
    if "://" in path:
        return unstable("remote data", f"nothing tells whether {path} has changed")
    return Shape("part of netCDF file", (), (group.path, name, shaper.record(path)))


def _zarr(obj: Any, shaper: Shaper) -> Shape:
    """A zarr array or group: its place in its store, and all that lies there."""
    parts = (type(obj), obj.path, _stored(obj.store, obj.path, shaper))
    return Shape("part of zarr store", (), parts)


def _store(obj: Any, shaper: Shaper) -> Shape:
    return Shape("zarr store", (), (type(obj), _stored(obj, "", shaper)))


def _stored(store: Any, path: str, shaper: Shaper) -> Any:
    """Return what stands for the part of a store below a path."""
    inner = getattr(store, "_store", None)
    if inner is not None and type(store).__name__ != "KVStore":
        return _stored(inner, path, shaper)
    filesystem = getattr(store, "fs", None)
    if filesystem is not None:
        return directory_of(filesystem, os.path.join(str(store.path), path), shaper)
    memory = getattr(store, "_store_dict", None)
    if memory is not None:
        return sorted((key, value.to_bytes()) for key, value in memory.items() if _below(key, path))
    root = getattr(store, "root", None) or getattr(store, "path", None)
    if isinstance(root, str | os.PathLike):
        whole = os.path.isfile(root)  # a zip file
        return shaper.record(os.fspath(root) if whole else os.path.join(root, path))
    return store


def _below(key: str, path: str) -> bool:
    return not path or key.startswith(path.rstrip("/") + "/")


_HANDLERS: Final[dict[tuple[str, str], Handler]] = {
    ("h5py", "Dataset"): _hdf5,
    ("h5py", "Group"): _hdf5,
    ("netCDF4", "Dataset"): _netcdf,
    ("netCDF4", "Variable"): _netcdf,
    ("zarr", "Array"): _zarr,
    ("zarr", "AsyncArray"): _zarr,
    ("zarr", "AsyncGroup"): _zarr,
    ("zarr", "Group"): _zarr,
    ("zarr", "Store"): _store,
}
