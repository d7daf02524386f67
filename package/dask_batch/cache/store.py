"""The cache: one directory that client and jobs share, with a file for each result."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar

from dask_batch.cache import directory, entries, names
from dask_batch.cache.aside import move_aside
from dask_batch.cache.files import publish_no_clobber
from dask_batch.cache.layout import write_container
from dask_batch.cache.opening import look_again
from dask_batch.cache.serialise import deserialise, serialise, try_out
from dask_batch.errors import DamagedEntryError, MissingEntryError, UnreadableResultError

__all__ = ["Cache"]

logger = logging.getLogger(__name__)

_KEY = re.compile(r"[0-9a-f]{64}")
_ATTRIBUTE = re.compile(r"(?!key$|format$|format_version$)[a-z][a-z0-9_]*(?<!_json)")
_CHECKED_WHOLE = 16 << 20  # up to this size, in bytes, check() reads all of an entry

_T = TypeVar("_T")


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
        for shard in entries.listed(self.path / "results"):
            for name in entries.listed(self.path / "results" / shard):
                if name.endswith(".h5") and _KEY.fullmatch(name[:-3]):
                    yield name[:-3]

    def present(self, keys: Iterable[str]) -> set[str]:
        """Return which of some keys have an entry, without looking into it.

        Raises
        ------
        CacheError
            The file system does not say: nothing may be concluded from that.
        """
        wanted = sorted(set(keys))
        found: set[str] = set()
        for _, group in itertools.groupby(wanted, key=lambda key: key[:2]):
            shard = list(group)
            found.update(entries.in_shard(self.path_of(shard[0]).parent, shard))
        return found

    def size(self, key: str) -> int:
        """Return the size of an entry's file in bytes."""
        path = self.path_of(key)
        try:
            return look_again(path, lambda: os.stat(path)).st_size
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
            The value cannot be pickled, or is of a class of the user's that cannot be unpickled.
        CacheError
            It cannot be written.
        """
        path = self.path_of(key)
        if os.path.lexists(path):
            return False
        serialised = serialise(value)
        try_out(serialised)
        files = {"files": [asdict(file) for file in serialised.files]} if serialised.files else {}
        noted = _checked_attributes({"created": time.time(), **attributes, **files})
        content = {"key": key, "attributes": noted, "value": serialised.form}
        shown = {"format": "dask-batch result", "format_version": 1, "key": key, **noted}

        def write(private: Path) -> None:
            write_container(private, content, serialised.parts, shown)

        size = sum(part.data.nbytes for part in serialised.parts)
        return publish_no_clobber(path, write, size=size)

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
        UnreadableResultError
            It is sound, and cannot be unpickled here.
        """
        read = entries.mapped if mode == "map" else entries.copied
        head, buffers = self._read(key, lambda fd: read(fd, key))
        try:
            return deserialise(head.content["value"], buffers)
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:  # SystemExit would end the client, silently
            raise self._unreadable(key, head.content["attributes"], error) from error

    def check(self, key: str) -> bool:
        """Tell whether a key has an entry that is whole: see :meth:`look`."""
        return self.look(key) is not None

    def look(self, key: str) -> dict[str, Any] | None:
        """Return what was noted about an entry that is whole; None if there is none.

        The head and the size are verified, and up to 16 MiB all bytes. A damaged entry is set
        aside with a warning.
        """
        try:
            head = self._read(key, lambda fd: entries.verified(fd, key, whole_up_to=_CHECKED_WHOLE))
        except (MissingEntryError, DamagedEntryError):
            return None
        return dict(head.content["attributes"])

    def attributes(self, key: str) -> dict[str, Any]:
        """Return what was noted when the entry of a key was published."""
        head = self._read(key, lambda fd: entries.verified(fd, key, whole_up_to=0))
        return dict(head.content["attributes"])

    def _read(self, key: str, read: Callable[[int], _T]) -> _T:
        """Read an entry; one that is damaged is set aside."""
        path = self.path_of(key)
        try:
            return entries.read_entry(path, read, lambda reason: self.set_aside(key, reason))
        except FileNotFoundError as error:
            raise _missing(key) from error
        except DamagedEntryError as error:
            raise DamagedEntryError(
                f"the result {key[:12]} in {self.path} was damaged, and is set aside: {error}"
            ) from error

    def _unreadable(
        self, key: str, attributes: Mapping[str, Any], error: BaseException
    ) -> UnreadableResultError:
        function = str(attributes.get("function") or "")
        return UnreadableResultError(
            f"the result of {function or 'a task'} cannot be unpickled here: {_said(error)}",
            key=key,
            function=function,
            job_id=str(attributes.get("job_id") or "") or None,
            state="done",
            evidence=f"its entry in {self.path}, which is whole",
        )

    # ---- out of the way --------------------------------------------------------------------

    def set_aside(self, key: str, reason: str) -> None:
        """Move a damaged entry to ``damaged/`` and warn; the key is absent from then on."""
        moved = move_aside(self.path, self.path_of(key), "damaged")
        if moved is not None:
            logger.warning(
                "the result %s in %s is damaged (%s): it is set aside as %s and will be "
                "computed again",
                key[:12], self.path, reason, moved.name,
            )  # fmt: skip

    def retire(self, key: str) -> bool:
        """Move an entry to ``retired/``, so that its key can be published anew."""
        return move_aside(self.path, self.path_of(key), "retired") is not None

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


def _checked_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as they will come back: what JSON does not know becomes its ``str``."""
    for name in attributes:
        if _ATTRIBUTE.fullmatch(name) is None:
            raise ValueError(f"not a name for an attribute of a result: {name!r}")
    noted: dict[str, Any] = json.loads(json.dumps(attributes, default=str))
    return noted


def _said(error: BaseException) -> str:
    """Return what an exception says; its words may be the user's code."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def _missing(key: str) -> MissingEntryError:
    return MissingEntryError(f"the cache has no result {key[:12]}")
