"""The task-definition file of a run: what each of its jobs is to do.

It is written whole before the first submission and never touched again. All tasks lie in a few
long datasets with a table of where each begins, so that a job reads the head, one row of the
table and its own bytes, however many tasks there are. Each slice has a checksum of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash

from dask_batch.cache.files import open_owned, publish_no_clobber
from dask_batch.cache.hdf5 import Part
from dask_batch.cache.layout import Head, read_head, read_into, write_container
from dask_batch.cache.serialise import flat
from dask_batch.cache.store import Cache
from dask_batch.errors import CacheError, DamagedEntryError, MissingEntryError

__all__ = ["Definition", "DefinitionDraft", "read_definition", "read_headers", "write_definitions"]

_SLICE = np.dtype([("offset", "<u8"), ("size", "<u8"), ("xxh3_64", "<u8")])
"""A stretch of the dataset ``content``."""
_ROW = np.dtype([("header", _SLICE), ("data", _SLICE), ("buffers", _SLICE), ("xxh3_64", "<u8")])
"""A task; ``buffers`` is a stretch of ``content`` that holds the slices of its buffers."""


class PickledLike(Protocol):
    """What :func:`dask_batch.code.pickling.dumps` returns."""

    @property
    def data(self) -> bytes:
        """The pickle."""

    @property
    def buffers(self) -> Sequence[Any]:
        """Its buffers out of band."""


@dataclass(frozen=True, slots=True)
class DefinitionDraft:
    """A task to be written."""

    header: Mapping[str, Any]
    """JSON."""
    payload: PickledLike


@dataclass(frozen=True, slots=True)
class Definition:
    """A task as read."""

    common: Mapping[str, Any]
    """What all tasks of the run share."""
    header: Mapping[str, Any]
    data: bytes
    """The payload's pickle ..."""
    buffers: tuple[memoryview, ...]
    """... and its buffers."""
    path: Path = Path()
    """The file ..."""
    index: int = 0
    """... and which of its tasks this is."""


def write_definitions(
    cache: Cache,
    run_id: str,
    common: Mapping[str, Any],
    tasks: Sequence[DefinitionDraft],
    *,
    section: str = "definitions",
) -> Path:
    """Write the definitions of a run's tasks, on the disk when this returns.

    Parameters
    ----------
    cache
        Where.
    run_id
        The run: there is one file for each.
    common
        What all tasks share: JSON.
    tasks
        In the order of their indices.
    section
        The part of the cache that it belongs to.

    Raises
    ------
    CacheError
        It cannot be written, or the run has one.
    """
    path = cache.path / section / f"{run_id}.h5"
    content = _Content()
    shared = content.add(_json(common))
    table = np.zeros(len(tasks), _ROW)
    for row, task in zip(table, tasks, strict=True):
        buffers = np.array([content.add(flat(b)) for b in task.payload.buffers], _SLICE)
        row["header"] = content.add(_json(task.header))
        row["data"] = content.add(memoryview(task.payload.data))
        row["buffers"] = content.add(buffers.view("u1").data)
        row["xxh3_64"] = xxhash.xxh3_64_intdigest(row.tobytes())
    parts = [
        Part("content", content.joined()),
        Part("tasks", table.view("u1").data, _ROW, table.shape),
    ]
    head = {"run": run_id, "tasks": len(tasks), "common": [int(n) for n in shared]}
    shown = {"format": "dask-batch definitions", "format_version": 1, "run": run_id}

    def write(private: Path) -> None:
        write_container(private, head, parts, shown)

    if not publish_no_clobber(path, write, size=parts[0].data.nbytes):
        raise CacheError(f"the run {run_id} has its definitions already: {path}")
    return path


def read_definition(path: Path, index: int) -> Definition:
    """Read one task, in a time that does not depend on how many there are.

    Raises
    ------
    MissingEntryError
        There is no such file, or no such task in it.
    DamagedEntryError
        What was read is not what was written.
    CacheError
        The file is not ours, or others may write it.
    """
    with _opened(path) as (fd, head):
        row = _row(fd, head, index)

        def piece(where: Any) -> memoryview:
            return _piece(fd, head, where)

        return Definition(
            json.loads(bytes(piece(head.content["common"]))),
            json.loads(bytes(piece(row["header"]))),
            bytes(piece(row["data"])),
            tuple(piece(where) for where in np.frombuffer(piece(row["buffers"]), _SLICE)),
            path,
            index,
        )


def read_headers(path: Path) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """Read what all tasks of a run share, and the header of each, but no pickles.

    Raises
    ------
    MissingEntryError, DamagedEntryError, CacheError
        As :func:`read_definition`.
    """
    with _opened(path) as (fd, head):
        rows = (_row(fd, head, index) for index in range(head.content["tasks"]))
        headers = [json.loads(bytes(_piece(fd, head, row["header"]))) for row in rows]
        return json.loads(bytes(_piece(fd, head, head.content["common"]))), headers


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[int, Head]]:
    """Open a file of definitions; what is wrong with it is told with its name."""
    try:
        fd = open_owned(path)
    except FileNotFoundError as error:
        raise MissingEntryError(f"there are no task definitions {path}") from error
    try:
        yield fd, read_head(fd)
    except (DamagedEntryError, MissingEntryError) as error:
        raise type(error)(f"the task definitions {path} cannot be used: {error}") from error
    except CacheError:
        raise
    except OSError as error:
        raise CacheError(f"{path} cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)


def _row(fd: int, head: Head, index: int) -> Any:
    count = head.content["tasks"]
    if not 0 <= index < count:
        raise MissingEntryError(f"it has {count} tasks, and no task {index}")
    at = _place(head, "tasks") + index * _ROW.itemsize
    row = np.frombuffer(_bytes(fd, at, _ROW.itemsize), _ROW)[0].copy()
    digest, row["xxh3_64"] = int(row["xxh3_64"]), 0
    if xxhash.xxh3_64_intdigest(row.tobytes()) != digest:
        raise DamagedEntryError("a row of its table does not match its checksum")
    return row


def _piece(fd: int, head: Head, where: Any) -> memoryview:
    offset, size, checksum = (int(number) for number in where)
    data = _bytes(fd, _place(head, "content") + offset, size)
    if xxhash.xxh3_64_intdigest(data) != checksum:
        raise DamagedEntryError("a slice of it does not match its checksum")
    return data


def _place(head: Head, name: str) -> int:
    return next(offset for part, offset, _ in head.parts if part == name)


class _Content:
    """The dataset ``content`` as it grows: an array of bytes, its pieces aligned to 64."""

    def __init__(self) -> None:
        self._pieces: list[memoryview] = []
        self._size = 0

    def add(self, data: memoryview) -> tuple[int, int, int]:
        """Append a piece; return its slice."""
        place = (self._size, data.nbytes, xxhash.xxh3_64_intdigest(data))
        padding = -data.nbytes % 64
        self._pieces += [data, memoryview(bytes(padding))]
        self._size += data.nbytes + padding
        return place

    def joined(self) -> memoryview:
        return memoryview(b"".join(self._pieces))


def _json(value: Mapping[str, Any]) -> memoryview:
    return memoryview(json.dumps(value).encode("ascii"))


def _bytes(fd: int, offset: int, size: int) -> memoryview:
    buffer = np.empty(size, np.uint8).data
    if read_into(fd, buffer, offset) != size:
        raise DamagedEntryError("it is truncated")
    return buffer
