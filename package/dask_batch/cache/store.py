"""The cache: one directory that client and jobs share, with a file for each result."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import mmap
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dask_batch.cache import directory, names
from dask_batch.cache.files import fsync_directory, make_directory, open_owned, publish_no_clobber
from dask_batch.cache.layout import Head, read_head, read_into, verify_body, write_container
from dask_batch.cache.serialise import deserialise, serialise
from dask_batch.errors import CacheError, DamagedEntryError, MissingEntryError

__all__ = ["Cache"]

logger = logging.getLogger(__name__)

_KEY = re.compile(r"[0-9a-f]{64}")
_ATTRIBUTE = re.compile(r"(?!key$|format$|format_version$)[a-z][a-z0-9_]*(?<!_json)")
_CHECKED_WHOLE = 16 << 20  # up to this size, in bytes, check() reads all of an entry
_MAPPED_FROM = 1 << 18  # smaller datasets are read: a map costs a page and one of 65,530 places
_LISTED_FROM = 8  # so many keys in a shard, and listing it is cheaper than asking for each


class Cache:
    """A cache directory.

    Parameters
    ----------
    directory
        Where it is; a relative path is taken from the working directory now.
    create
        Whether to make it if it is missing.

    Attributes
    ----------
    path : Path
        The directory, absolute. Symbolic links in it are kept: what they resolve to may differ
        between machines.

    Raises
    ------
    CacheError
        The directory cannot be used: says why, and what to do.

    Notes
    -----
    Entries are verified as they are loaded, which reads all of them even where they are mapped.
    A damaged entry is set aside with a warning and counts as absent from then on.
    """

    path: Path

    def __init__(self, directory_: str | os.PathLike[str], *, create: bool = True) -> None:
        self.path = directory.prepare(Path(directory_), create=create)

    def __repr__(self) -> str:
        return f"Cache({str(self.path)!r})"

    # ---- where entries are -----------------------------------------------------------------

    def path_of(self, key: str) -> Path:
        """Return the path that the entry of a key has or would have."""
        if not isinstance(key, str) or _KEY.fullmatch(key) is None:
            raise ValueError(f"not a key (64 lower-case hex digits): {key!r}")
        return self.path / "results" / key[:2] / f"{key}.h5"

    def keys(self) -> Iterator[str]:
        """Yield the keys of all entries, in no order."""
        try:
            shards = os.listdir(self.path / "results")
        except FileNotFoundError:
            return
        for shard in shards:
            for name in os.listdir(self.path / "results" / shard):
                if name.endswith(".h5") and _KEY.fullmatch(name[:-3]):
                    yield name[:-3]

    def present(self, keys: Iterable[str]) -> set[str]:
        """Return which of some keys have an entry, without looking into it."""
        wanted = sorted(set(keys))
        found: set[str] = set()
        for _, group in itertools.groupby(wanted, key=lambda key: key[:2]):
            shard = list(group)
            found.update(_in_shard(self.path_of(shard[0]).parent, shard))
        return found

    def size(self, key: str) -> int:
        """Return the size of an entry's file in bytes."""
        try:
            return os.stat(self.path_of(key)).st_size
        except FileNotFoundError as error:
            raise _missing(key) from error

    # ---- publishing and loading ------------------------------------------------------------

    def publish(self, key: str, value: Any, attributes: Mapping[str, Any]) -> bool:
        """Store a value under a key, once and for ever.

        Parameters
        ----------
        key
            64 hex digits.
        value
            Anything that can be pickled.
        attributes
            What to note about it: JSON, under names of lower-case letters, digits and ``_``.
            Added are the time, as ``created``, and what the files in it are now, as ``files``.

        Returns
        -------
        bool
            False if there was an entry: it stays as it is.

        Raises
        ------
        SerializationError
            The value cannot be pickled.
        CacheError
            It cannot be written.
        """
        path = self.path_of(key)
        if os.path.lexists(path):
            return False
        serialised = serialise(value)
        files = {"files": [asdict(file) for file in serialised.files]} if serialised.files else {}
        noted = _checked_attributes({"created": time.time(), **attributes, **files})
        content = {"key": key, "attributes": noted, "value": serialised.form}
        shown = {"format": "dask-batch result", "format_version": 1, "key": key, **noted}

        def write(private: Path) -> None:
            write_container(private, content, serialised.parts, shown)

        return publish_no_clobber(path, write)

    def load(self, key: str, *, mode: Literal["copy", "map"] = "copy") -> Any:
        """Return the value of a key, verified.

        Parameters
        ----------
        key
            64 hex digits.
        mode
            ``"map"``: large arrays are mapped from the file, copy-on-write, and share pages with
            other processes. ``"copy"``: they are in memory of their own.

        Raises
        ------
        MissingEntryError
            There is none.
        DamagedEntryError
            It was damaged; it has been set aside.
        """
        with self._opened(key) as (fd, head):
            buffers = _mapped(fd, head) if mode == "map" else _copied(fd, head)
        try:
            return deserialise(head.content["value"], buffers)
        except Exception as error:
            error.add_note(f"(while the result {key[:12]} was loaded from {self.path})")
            raise

    def check(self, key: str) -> bool:
        """Tell whether a key has an entry that is whole: see :meth:`look`."""
        return self.look(key) is not None

    def look(self, key: str) -> dict[str, Any] | None:
        """Return what was noted about an entry that is whole; None if there is none.

        The head and the size are verified, and up to 16 MiB all bytes. A damaged entry is set
        aside with a warning.
        """
        try:
            with self._opened(key, whole_up_to=_CHECKED_WHOLE) as (_, head):
                return dict(head.content["attributes"])
        except (MissingEntryError, DamagedEntryError):
            return None

    def attributes(self, key: str) -> dict[str, Any]:
        """Return what was noted when the entry of a key was published."""
        with self._opened(key, whole_up_to=0) as (_, head):
            return dict(head.content["attributes"])

    @contextlib.contextmanager
    def _opened(self, key: str, *, whole_up_to: int | None = None) -> Iterator[tuple[int, Head]]:
        """Open an entry, verified, all of it if it is not larger than ``whole_up_to`` bytes."""
        path = self.path_of(key)
        try:
            fd = open_owned(path)
        except FileNotFoundError as error:
            raise _missing(key) from error
        try:
            try:
                head = _verified(fd, key, whole_up_to)
            except DamagedEntryError as error:
                if _has_name(fd, path):  # else it has been moved, and may have been replaced
                    self.set_aside(key, str(error))
                raise DamagedEntryError(
                    f"the result {key[:12]} in {self.path} was damaged, and is set aside: {error}"
                ) from error
            except CacheError:
                raise
            except OSError as error:
                raise CacheError(f"{path} cannot be read: {error.strerror}") from error
            yield fd, head
        finally:
            os.close(fd)

    # ---- out of the way --------------------------------------------------------------------

    def set_aside(self, key: str, reason: str) -> None:
        """Move a damaged entry to ``damaged/`` and warn; the key is absent from then on."""
        moved = self._move(key, "damaged")
        if moved is not None:
            logger.warning(
                "the result %s in %s is damaged (%s): it is set aside as %s and will be "
                "computed again",
                key[:12], self.path, reason, moved.name,
            )  # fmt: skip

    def retire(self, key: str) -> bool:
        """Move an entry to ``retired/``, so that its key can be published anew."""
        return self._move(key, "retired") is not None

    def _move(self, key: str, where: str) -> Path | None:
        """Move an entry; None if there was none (any more)."""
        source = self.path_of(key)
        make_directory(self.path / where)
        target = self.path / where / f"{key}.{time.time_ns()}.{secrets.token_hex(4)}.h5"
        try:
            os.rename(source, target)
            fsync_directory(source.parent)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CacheError(f"{source} cannot be moved away: {error.strerror}") from error
        return target

    # ---- names -----------------------------------------------------------------------------

    def bind_name(self, name: str, key: str) -> str | None:
        """Give a key a name of the user's (``cache_key=``), once.

        Returns
        -------
        str or None
            The key that the name already stands for; None if it stands for this one from now on.
        """
        self.path_of(key)  # refuses what is no key
        return names.bind(self.path, name, key)

    def resolve_name(self, name: str) -> str | None:
        """Return the key that a name stands for."""
        return names.resolve(self.path, name)

    def unbind_name(self, name: str) -> None:
        """Let a name stand for nothing."""
        names.unbind(self.path, name)


# ---- pieces ----------------------------------------------------------------------------------


def _in_shard(shard: Path, keys: list[str]) -> Iterator[str]:
    """Yield the keys that have an entry in their shard.

    Opening the directory makes an NFS client ask its server whether it has changed.
    """
    try:
        fd = os.open(shard, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if len(keys) >= _LISTED_FROM:
            there = set(os.listdir(fd))
            yield from (key for key in keys if f"{key}.h5" in there)
            return
        for key in keys:
            try:
                os.stat(f"{key}.h5", dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            yield key
    finally:
        os.close(fd)


def _verified(fd: int, key: str, whole_up_to: int | None) -> Head:
    head = read_head(fd)
    if head.content.get("key") != key:
        raise DamagedEntryError(f"it holds the key {head.content.get('key')}")
    if whole_up_to is None or head.size <= whole_up_to:
        verify_body(fd, head)
    return head


def _has_name(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _value_parts(head: Head) -> list[tuple[int, int]]:
    return [(at, size) for name, at, size in head.parts if not name.startswith("attributes/")]


def _copied(fd: int, head: Head) -> list[memoryview]:
    return [_read(fd, offset, size) for offset, size in _value_parts(head)]


def _mapped(fd: int, head: Head) -> list[memoryview]:
    parts = _value_parts(head)
    if all(size < _MAPPED_FROM for _, size in parts):
        return _copied(fd, head)
    whole = memoryview(mmap.mmap(fd, head.size, access=mmap.ACCESS_COPY))
    return [
        whole[offset : offset + size] if size >= _MAPPED_FROM else _read(fd, offset, size)
        for offset, size in parts
    ]


def _read(fd: int, offset: int, size: int) -> memoryview:
    buffer = np.empty(size, np.uint8).data  # aligned, and not filled first
    if read_into(fd, buffer, offset) != size:
        raise CacheError("a result became shorter while it was read")
    return buffer


def _checked_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as they will come back: what JSON does not know becomes its ``str``."""
    for name in attributes:
        if _ATTRIBUTE.fullmatch(name) is None:
            raise ValueError(f"not a name for an attribute of a result: {name!r}")
    noted: dict[str, Any] = json.loads(json.dumps(attributes, default=str))
    return noted


def _missing(key: str) -> MissingEntryError:
    return MissingEntryError(f"the cache has no result {key[:12]}")
