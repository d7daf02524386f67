"""Files outside the graph: by what they were when they were looked at."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from dask_batch.graph.shape import Facts, Shape, unstable
from dask_batch.inputs import File, InputFile

if TYPE_CHECKING:
    from dask_batch.graph.handlers.choice import Handler, Shaper

__all__ = ["RemoteFile", "choose", "directory_of", "file_of", "local_path"]

_VALIDATORS: Final = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "checksum",
    "crc32c",
    "generation",
    "VersionId",
    "version_id",
    "sha",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "modified",
)
"""What file systems call that by which two states of a file are told apart, the best first."""


class RemoteFile:
    """A file of a file system that is not mounted: where it is, and what tells its states apart.

    It cannot be checked again in a job, where the credentials may be others: it counts in keys
    alone.
    """

    __slots__ = ("filesystem", "path", "validator")

    def __init__(self, filesystem: str, path: str, validator: tuple[Any, ...] | None) -> None:
        self.filesystem = filesystem
        self.path = path
        self.validator = validator


def choose(cls: type) -> Handler | None:
    """Return the handler of a type that stands for files."""
    if issubclass(cls, File):
        return _file
    if cls is InputFile:
        return _record
    if cls is RemoteFile:
        return _remote
    for base in cls.__mro__:
        handler = _FSSPEC.get(f"{base.__module__}.{base.__qualname__}")
        if handler is not None:
            return handler
    return None


def _file(obj: File, shaper: Shaper) -> Shape:
    return Shape("file", (), (shaper.record(obj.path, digest=obj.digest),))


def _record(obj: InputFile, _: Shaper) -> Shape:
    facts = Facts(inputs=frozenset({obj}))
    if obj.portable:
        return Shape("content of file", (obj.digest,), facts=facts)
    data = (obj.path, str(obj.size), str(obj.mtime_ns), obj.digest)
    return Shape("state of file", tuple(os.fsencode(part) for part in data), facts=facts)


def _remote(obj: RemoteFile, _: Shaper) -> Shape:
    if obj.validator is None:
        return unstable("remote file", f"nothing tells whether {obj.path} has changed")
    return Shape("remote file", (obj.filesystem, obj.path), obj.validator)


def local_path(filesystem: Any, path: str) -> str | None:
    """Return the path of a file on a mounted file system; None for all others."""
    kind = type(filesystem)
    name = f"{kind.__module__}.{kind.__name__}"
    if name == "fsspec.implementations.local.LocalFileSystem":
        return str(filesystem._strip_protocol(path))
    if kind.__name__ == "LocalFileSystem":  # pyarrow's
        return path
    if name in ("fsspec.implementations.arrow.ArrowFSWrapper", "pyarrow._fs.SubTreeFileSystem"):
        inner = getattr(filesystem, "fs", None) or filesystem.base_fs
        return local_path(inner, getattr(filesystem, "base_path", "") + path)
    if name == "fsspec.implementations.asyn_wrapper.AsyncFileSystemWrapper":
        return local_path(filesystem.sync_fs, path)
    if name == "fsspec.implementations.dirfs.DirFileSystem":
        return local_path(filesystem.fs, filesystem._join(path))
    return None


def file_of(filesystem: Any, path: str, shaper: Shaper) -> Any:
    """Return what stands for a file of a file system, as a child of a shape."""
    local = local_path(filesystem, path)
    if local is not None:
        return shaper.record(local)
    kind = type(filesystem)
    return RemoteFile(f"{kind.__module__}.{kind.__name__}", path, _validator(filesystem, path))


def directory_of(filesystem: Any, path: str, shaper: Shaper) -> Any:
    """Return what stands for all files below a directory."""
    if local_path(filesystem, path) is not None:
        return file_of(filesystem, path, shaper)
    kind = type(filesystem)
    states: tuple[Any, ...] | None = None
    if kind.__name__ != "MemoryFileSystem":
        found = filesystem.find(path, detail=True)
        each = [(name, _state(info)) for name, info in sorted(found.items())]
        states = None if any(state is None for _, state in each) else tuple(each)
    return RemoteFile(f"{kind.__module__}.{kind.__name__}", path, states)


def _validator(filesystem: Any, path: str) -> tuple[Any, ...] | None:
    """Return what identifies the state of a file elsewhere; None if nothing does."""
    if not hasattr(filesystem, "info") or type(filesystem).__name__ == "MemoryFileSystem":
        return None  # memory of this process, which no job sees
    try:
        return _state(filesystem.info(path))
    except FileNotFoundError:
        return ("absent",)


def _state(info: Mapping[str, Any]) -> tuple[Any, ...] | None:
    for name in _VALIDATORS:
        if info.get(name):
            return (name, str(info[name]), info.get("size"))
    return None


def _open_file(obj: Any, shaper: Shaper) -> Shape:
    reads = "r" in obj.mode and "+" not in obj.mode
    file = file_of(obj.fs, obj.path, shaper) if reads else obj.path
    how = (obj.mode, obj.compression, obj.encoding, obj.errors, obj.newline)
    return Shape("open file", (), (type(obj.fs), file, *how))


def _open_files(obj: Any, _: Shaper) -> Shape:
    return Shape("open files", (), (obj.mode, *obj))


def _opened(obj: Any, shaper: Shaper) -> Shape:
    """Files that fsspec has opened: they can be opened again elsewhere, at the same place."""
    if "r" not in obj.mode or "+" in obj.mode:
        return unstable("file", f"{obj.path} is open for writing")
    return Shape("opened file", (), (file_of(obj.fs, obj.path, shaper), obj.mode, obj.tell()))


def _file_system(obj: Any, _: Shaper) -> Shape:
    """Take what it was made from. (Its own token is of this process and thread.)"""
    return Shape("file system", (), (type(obj), obj.storage_args, obj.storage_options))


_FSSPEC: Final[dict[str, Handler]] = {
    "fsspec.core.OpenFile": _open_file,
    "fsspec.core.OpenFiles": _open_files,
    "fsspec.spec.AbstractBufferedFile": _opened,
    "fsspec.spec.AbstractFileSystem": _file_system,
    "fsspec.implementations.local.LocalFileOpener": _opened,
}
