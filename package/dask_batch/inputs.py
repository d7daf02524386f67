"""Inputs outside the graph: files that a task reads, and whether they are still what they were.

A path in an argument is a string, and a string is all that enters a task's key: it may as well
be where the task is to write. :class:`File` says that the function *reads* the file, so that a
changed file is other work. What Dask, xarray, h5py and zarr open is recorded without being asked.

Jobs import this module: it knows nothing of graphs, and imports nothing but the standard library
before it must.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import IO, Any

__all__ = [
    "File",
    "H5Dataset",
    "InputFile",
    "files_pickled",
    "input_file",
    "named_files",
    "portable",
]

_ABSENT = -1
_MOST_NAMES = 1_000
_DEEPEST_NAME = 4


@dataclass(frozen=True, slots=True)
class InputFile:
    """What a file, or a directory that a store keeps its chunks in, was when it was hashed.

    Attributes
    ----------
    path
        Absolute.
    size
        In bytes, of a directory the sum; -1 if there was nothing.
    mtime_ns
        When it was last written, of a directory the latest; -1 if there was nothing.
    digest
        Empty if size and time are all that counts. ``sha256:…`` of a file's content (of a
        directory, of the names and contents below it), or ``tree:…`` of the names, sizes and
        times below a directory.
    """

    path: str
    size: int
    mtime_ns: int
    digest: str = ""

    def check(self) -> str | None:
        """Look again, and say what has changed; None if nothing has."""
        try:
            now = input_file(self.path, digest=self.digest.startswith("sha256:"))
        except OSError as error:
            return f"{self.path} cannot be read any more: {error.strerror or error}"
        return _difference(self, now)

    @property
    def portable(self) -> bool:
        """Whether the content alone counts, wherever the file lies and whenever it was written."""
        return self.digest.startswith("sha256:")


def _difference(before: InputFile, now: InputFile) -> str | None:
    path = before.path
    if before.portable and now.portable:
        return None if before.digest == now.digest else f"{path} has other content than before"
    if before == now:
        return None
    if now.size == _ABSENT:
        return f"{path} is gone"
    if before.size == _ABSENT:
        return f"{path} was not there before"
    if before.size != now.size:
        return f"{path} had {before.size} bytes and has {now.size}"
    return f"{path} was written again"


def input_file(path: str | os.PathLike[str], *, digest: bool = False) -> InputFile:
    """Record what a file or directory is now.

    Parameters
    ----------
    path
        Made absolute, symbolic links kept.
    digest
        Read the whole file, and let its content count instead of its name and time.

    Raises
    ------
    OSError
        It is there but cannot be read. What is not there is recorded as absent.
    """
    absolute = os.path.abspath(path)
    try:
        found = os.stat(absolute)
    except (FileNotFoundError, NotADirectoryError):
        return InputFile(absolute, _ABSENT, _ABSENT)
    if stat.S_ISDIR(found.st_mode):
        return _directory(absolute, digest=digest)
    content = _content_digest(absolute) if digest else ""
    return InputFile(absolute, found.st_size, found.st_mtime_ns, content)


def _content_digest(path: str) -> str:
    with open(path, "rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def _directory(root: str, *, digest: bool) -> InputFile:
    """Sum up a tree. Directories count by the files in them: their own times tell less."""
    entries = sorted(_tree(root))
    seen = hashlib.sha256()
    for name, size, mtime_ns in entries:
        what = _content_digest(os.path.join(root, name)) if digest else f"{size}\0{mtime_ns}"
        seen.update(f"{name}\0{what}\0".encode("utf-8", "surrogateescape"))
    size = sum(entry[1] for entry in entries)
    latest = max((entry[2] for entry in entries), default=0)
    return InputFile(root, size, latest, ("sha256:" if digest else "tree:") + seen.hexdigest())


def _tree(root: str) -> Iterator[tuple[str, int, int]]:
    """Yield the relative name, size and time of each file below a directory."""
    todo = [""]
    while todo:
        below = todo.pop()
        with os.scandir(os.path.join(root, below)) as entries:
            for entry in entries:
                name = os.path.join(below, entry.name)
                if entry.is_dir(follow_symlinks=True) and not entry.is_symlink():
                    todo.append(name)
                    continue
                try:
                    found = entry.stat()
                except FileNotFoundError:
                    continue  # a dangling link, or removed since: not there either way
                yield name, found.st_size, found.st_mtime_ns


class File(os.PathLike[str]):
    """A file that a task reads: its key changes when the file does.

    The function receives this object, which every function that takes a path accepts.

    Parameters
    ----------
    path
        Of a file or a directory; made absolute when the object is made.
    digest
        Let the content count, and neither name, place nor time: the same key on every machine
        that has a copy. The file is read once for every compute, and once more in the job.

    Notes
    -----
    By default the absolute path, the size and the time of the last change count. Neither sees
    a change that keeps the size and sets the time back.

    Examples
    --------
    >>> from dask_batch import File
    >>> load(File("observations/march.csv"))  # doctest: +SKIP
    """

    __slots__ = ("_digest", "_path")

    def __init__(self, path: str | os.PathLike[str], *, digest: bool = False) -> None:
        self._path = os.path.abspath(os.fspath(path))
        self._digest = digest

    @property
    def path(self) -> str:
        """The absolute path."""
        return self._path

    @property
    def digest(self) -> bool:
        """Whether the content counts, not the name and time."""
        return self._digest

    def open(self, mode: str = "r", **options: Any) -> IO[Any]:
        """Open the file, as the built-in :func:`open` does."""
        return open(self._path, mode, **options)

    def record(self) -> InputFile:
        """Return what the file is now."""
        return input_file(self._path, digest=self._digest)

    def __fspath__(self) -> str:
        return self._path

    def __str__(self) -> str:
        return self._path

    def __repr__(self) -> str:
        return f"File({self._path!r}{', digest=True' if self._digest else ''})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, File):
            return NotImplemented
        return (self._path, self._digest) == (other._path, other._digest)

    def __hash__(self) -> int:
        return hash((self._path, self._digest))

    def __reduce__(self) -> tuple[Any, ...]:
        noticed = _noticed.get()
        if noticed is not None:
            noticed.add(self)
        return _file, (self._path, self._digest)


def _file(path: str, digest: bool) -> File:
    return File(path, digest=digest)


_noticed: ContextVar[set[File] | None] = ContextVar("noticed", default=None)


@contextmanager
def files_pickled() -> Iterator[set[File]]:
    """Collect the files that are pickled meanwhile, however deep in an object they are."""
    noticed: set[File] = set()
    token = _noticed.set(noticed)
    try:
        yield noticed
    finally:
        _noticed.reset(token)


class H5Dataset:
    """An HDF5 dataset that is opened where it is used, for each read.

    Stands for an ``h5py.Dataset``, which cannot be sent anywhere. It has what Dask's arrays ask
    of an array: ``shape``, ``dtype``, ``ndim``, ``chunks`` and slicing.
    """

    __slots__ = ("chunks", "dtype", "filename", "name", "shape")

    def __init__(
        self,
        filename: str,
        name: str,
        shape: tuple[int, ...],
        dtype: Any,
        chunks: tuple[int, ...] | None = None,
    ) -> None:
        self.filename = filename
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self.chunks = chunks

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        size = 1
        for length in self.shape:
            size *= length
        return size

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, selection: Any) -> Any:
        import h5py

        # Without a lock on the file: read-only file systems of nodes often have none.
        with h5py.File(self.filename, "r", locking=False) as file:
            return file[self.name][selection]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        import numpy as np

        return np.asarray(self[()], dtype=dtype)

    def __repr__(self) -> str:
        return f"H5Dataset({self.filename!r}, {self.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return H5Dataset, (self.filename, self.name, self.shape, self.dtype, self.chunks)


class _Reopened:
    """Stands for an HDF5 file or group; what is unpickled from it is that file or group."""

    __slots__ = ("filename", "name")

    def __init__(self, filename: str, name: str | None) -> None:
        self.filename = filename
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.filename, self.name)


def _reopen(filename: str, name: str | None) -> Any:
    import h5py

    file = h5py.File(filename, "r", locking=False)
    return file if name is None else file[name]


def portable(obj: Any) -> Any:
    """Return what can be sent in an object's place; the object itself if it is fit to be sent.

    The pickler asks for every object. Replaced are those of h5py that belong to a file: a
    dataset by an :class:`H5Dataset`, a file or group by something that is unpickled as the same
    file or group, opened for reading.

    Raises
    ------
    TypeError
        It is part of a file that nobody else can open.
    """
    kind = type(obj)
    if kind.__module__.partition(".")[0] != "h5py":
        return obj
    if kind.__name__ == "Dataset":
        return H5Dataset(_path_of(obj.file), obj.name, obj.shape, obj.dtype, obj.chunks)
    if kind.__name__ == "File":
        return _Reopened(_path_of(obj), None)
    if kind.__name__ == "Group":
        return _Reopened(_path_of(obj.file), obj.name)
    return obj


def _path_of(file: Any) -> str:
    """Return the path of an open HDF5 file, in which is by then what was written to it so far."""
    path: str = os.path.abspath(file.filename)
    if not os.path.isfile(path):
        raise TypeError(
            f"the HDF5 file {file.filename!r} is not on disk, where a job could open it: close it "
            "first, or pass an array"
        )
    if file.mode != "r":
        file.flush()
    return path


def named_files(arguments: Any) -> Iterator[str]:
    """Yield the paths of existing files that strings and paths in arguments name.

    Cheap rather than complete: plain containers are looked into a few levels deep, and only so
    many strings are tried, those first that come first.

    Parameters
    ----------
    arguments
        Any object: usually ``(args, kwargs)``.
    """
    tried: set[str] = set()
    for name in _names(arguments, 0):
        if name in tried:
            continue
        tried.add(name)
        if len(tried) > _MOST_NAMES:
            return
        try:
            found = os.stat(name)
        except (OSError, ValueError):
            continue  # not the name of anything: an ordinary string
        if stat.S_ISREG(found.st_mode):
            yield name


def _names(obj: Any, depth: int) -> Iterator[str]:
    if isinstance(obj, str):
        if 0 < len(obj) < 4096 and "\n" not in obj and "://" not in obj:
            yield obj
    elif isinstance(obj, os.PathLike) and not isinstance(obj, File):
        name = os.fspath(obj)
        if isinstance(name, str):
            yield name
    elif depth < _DEEPEST_NAME:
        members: Iterable[Any] = ()
        if isinstance(obj, Mapping):
            members = obj.values()
        elif type(obj) in (list, tuple, set, frozenset):
            members = obj
        for position, member in enumerate(members):
            if position >= _MOST_NAMES:
                return
            yield from _names(member, depth + 1)
