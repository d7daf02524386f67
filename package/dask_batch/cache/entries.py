"""Finding and reading the files of results: late, stale, damaged, or whole.

What the file system does not say is not taken for an answer: an entry is absent only if its
directory could be opened and does not have it, and damaged only if its bytes could be read.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from dask_batch.cache.layout import Head, read_head, read_into, read_verified, verify_body
from dask_batch.cache.opening import open_owned
from dask_batch.errors import CacheError, DamagedEntryError

__all__ = ["copied", "in_shard", "listed", "mapped", "read_entry", "verified"]

_TRIES = 3
_MAPPED_FROM = 1 << 18  # smaller datasets are read: a map costs a page and one of 65,530 places
_LISTED_FROM = 8  # so many keys in a shard, and listing it is cheaper than asking for each

_T = TypeVar("_T")


# ---- finding ---------------------------------------------------------------------------------


def in_shard(shard: Path, keys: list[str]) -> Iterator[str]:
    """Yield the keys that have an entry in their shard.

    Raises
    ------
    CacheError
        The file system does not say.
    """
    yield from _fresh(shard, lambda: _found(shard, keys))


def listed(directory: Path) -> list[str]:
    """Return what is in a directory; nothing if there is none (any more), or it is none.

    Raises
    ------
    CacheError
        The file system does not say.
    """
    return _fresh(directory, lambda: _names(directory))


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _found(shard: Path, keys: list[str]) -> list[str]:
    """Look into a shard. To open it makes an NFS client ask its server whether it has changed."""
    try:
        fd = os.open(shard, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    try:
        if len(keys) >= _LISTED_FROM:
            there = set(os.listdir(fd))
            return [key for key in keys if f"{key}.h5" in there]
        return [key for key in keys if _is_in(fd, f"{key}.h5")]
    finally:
        os.close(fd)


def _is_in(fd: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _fresh(path: Path, look: Callable[[], _T]) -> _T:
    """Look, and look again where a network file system's handle was stale."""
    for _ in range(_TRIES):
        try:
            return look()
        except (CacheError, FileNotFoundError):
            raise
        except OSError as error:
            failure = error
        if failure.errno != errno.ESTALE:
            break
    explained = CacheError(
        f"{path} cannot be read: {failure.strerror}. Nothing is concluded from that; try again, "
        "and if it stays so, have the file system looked after or remove the file"
    )
    explained.errno = failure.errno
    raise explained from failure


# ---- reading ---------------------------------------------------------------------------------


def read_entry(path: Path, read: Callable[[int], _T], damaged: Callable[[str], None]) -> _T:
    """Open an entry and read from it.

    Parameters
    ----------
    path
        The entry.
    read
        Reads, given the file descriptor, and verifies what it read.
    damaged
        Called with the reason if it is damaged, as long as it still has its name: else it has been
        moved, and may have been replaced.

    Raises
    ------
    FileNotFoundError
        There is none.
    DamagedEntryError
        It is not what was written.
    CacheError
        It is not ours, others may write it, or it cannot be read.
    """

    def opened() -> _T:
        fd = open_owned(path)
        try:
            return read(fd)
        except DamagedEntryError as error:
            if _has_name(fd, path):
                damaged(str(error))
            raise
        finally:
            os.close(fd)

    return _fresh(path, opened)


def _has_name(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def verified(fd: int, key: str, *, whole_up_to: int | None = None) -> Head:
    """Verify the head, and all of an entry that is not larger than ``whole_up_to`` bytes."""
    head = read_head(fd)
    if head.content.get("key") != key:
        raise DamagedEntryError(f"it holds the key {head.content.get('key')}")
    if whole_up_to is None or head.size <= whole_up_to:
        verify_body(fd, head)
    return head


def copied(fd: int, key: str) -> tuple[Head, list[memoryview]]:
    """Read the value's datasets into memory of their own, verified."""
    head = verified(fd, key, whole_up_to=0)
    return head, read_verified(fd, head, _value_parts(head))


def mapped(fd: int, key: str) -> tuple[Head, list[memoryview]]:
    """Map the value's large datasets copy-on-write, and read the others; verified.

    Notes
    -----
    A file that is truncated later on, which only a damaged disk or a stranger does, kills a process
    that touches what was mapped behind its new end (SIGBUS). Jobs map, and are run again; clients
    copy.
    """
    head = verified(fd, key, whole_up_to=0)
    parts = _value_parts(head)
    if all(size < _MAPPED_FROM for _, size in parts):
        return head, read_verified(fd, head, parts)
    verify_body(fd, head)
    whole = memoryview(mmap.mmap(fd, head.size, access=mmap.ACCESS_COPY))
    return head, [
        whole[offset : offset + size] if size >= _MAPPED_FROM else _read(fd, offset, size)
        for offset, size in parts
    ]


def _value_parts(head: Head) -> list[tuple[int, int]]:
    return [(at, size) for name, at, size in head.parts if not name.startswith("attributes/")]


def _read(fd: int, offset: int, size: int) -> memoryview:
    buffer = np.empty(size, np.uint8).data
    if read_into(fd, buffer, offset) != size:
        raise DamagedEntryError("it became shorter while it was read")
    return buffer
