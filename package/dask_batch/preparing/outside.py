"""What stays outside a task's pickle: results that it needs, and large arguments.

A future in the arguments becomes the key of its result; a large array becomes an entry of the
cache of its own, stored once however many tasks have it among their arguments. The job loads both
from the cache.
"""

from __future__ import annotations

import concurrent.futures
import os
from pathlib import Path
from types import FunctionType, NoneType
from typing import Any, TypeAlias

from dask_batch.cache.store import Cache
from dask_batch.code import pickling
from dask_batch.code.pickling import Pickled
from dask_batch.future import BatchFuture, Home
from dask_batch.graph.content import ContentHasher
from dask_batch.graph.keys import Referenced
from dask_batch.items import whole_of
from dask_batch.spec import Build, Call, Let, Ref, Step

__all__ = ["LARGE_BYTES", "Barred", "NotYet", "Outside", "ParentFailed", "check_parent"]

LARGE_BYTES = 1 << 20
"""An array or a string of bytes at least this large becomes an entry of its own."""


_Reference: TypeAlias = tuple[str, str] | tuple[str, str, tuple[Any, ...]]
"""A result, or an item of one: ``("result", key)``, ``("item", key, way to the item)``."""

_INSIDE = frozenset(
    {NoneType, bool, int, float, str, tuple, list, dict, set, frozenset, type, FunctionType}
    | {Ref, Call, Build, Let, Step}
)
"""Types of what never stays outside by itself: asked for each object there is, this is quick."""


class NotYet(BaseException):
    """A future in the arguments has not ended: the call cannot be hashed before it has.

    Not an ``Exception``: the hash goes through users' ``__reduce__``, whose errors it explains.
    """

    def __init__(self, future: concurrent.futures.Future[Any]) -> None:
        super().__init__(future)
        self.future = future


class ParentFailed(BaseException):
    """A future in the arguments has failed or was cancelled."""

    def __init__(self, future: concurrent.futures.Future[Any], error: BaseException) -> None:
        super().__init__(future, error)
        self.future = future
        self.error = error


class Barred(BaseException):
    """There is a future in the arguments, and there may be none."""

    def __init__(self, future: concurrent.futures.Future[Any]) -> None:
        super().__init__(future)
        self.future = future


class Outside:
    """Finds what stays outside, while tasks are hashed and then pickled.

    Parameters
    ----------
    cache
        Where results and large arguments are.
    dependencies
        Whether there may be futures.
    home
        Whose futures are known without the cache; None: nobody's.

    Attributes
    ----------
    unknown : list of BatchFuture
        Futures of other sessions that have not handed over their tasks: nobody finds them yet.
    argument_bytes : int
        How large the arguments were that became entries.
    """

    def __init__(
        self, cache: Cache, *, dependencies: bool = True, home: Home | None = None
    ) -> None:
        self.cache = cache
        self.argument_bytes = 0
        self.unknown: list[BatchFuture] = []
        self._home = home
        self._dependencies = dependencies
        # What stands for an object in a pickle: by id; the object is kept, so ids stay true.
        self._references: dict[int, tuple[Any, _Reference]] = {}
        self._referenced: set[str] = set()

    # ---- while hashing -----------------------------------------------------------------------

    def reference(self, value: Any) -> Referenced | None:
        """Tell which result an object stands for: see :class:`~dask_batch.graph.keys.Keys`.

        Raises
        ------
        NotYet, ParentFailed, Barred
            About a future.
        """
        if not isinstance(value, concurrent.futures.Future):
            return None
        if not self._dependencies:
            raise Barred(value)
        whole, way = whole_of(value)
        if isinstance(whole, BatchFuture) and whole.key and whole.cache is not None:
            self._our_own(whole, whole.cache)
            if way:
                return self._item(value, whole, way)
            self._references[id(value)] = (value, ("result", whole.key))
            return Referenced(whole.key, whole.ephemeral)
        key = self._entry(_outcome(value))
        self._references[id(value)] = (value, ("result", key))
        return Referenced(key)

    def _our_own(self, future: BatchFuture, home: Cache) -> None:
        """Take a future of a task by its key, whether it has ended or not."""
        if future.done():
            check_parent(future)
        if home.path == self.cache.path:
            if not future.is_known_to(self._home):
                self.unknown.append(future)
        elif not self.cache.present((future.key,)):
            self.cache.publish(future.key, _outcome(future), home.attributes(future.key))

    def _item(self, value: Any, whole: BatchFuture, way: tuple[Any, ...]) -> Referenced:
        """Take an item of a task's result by the key of the task and the way to the item."""
        content = ContentHasher().content(way)
        self._references[id(value)] = (value, ("item", whole.key, way))
        key = ContentHasher.mix("item", whole.key, content.digest).hex()
        return Referenced(key, whole.ephemeral or bool(content.problems))

    # ---- while pickling ----------------------------------------------------------------------

    def dumps(
        self, value: Any, where: str, hasher: ContentHasher
    ) -> tuple[Pickled, frozenset[str]]:
        """Pickle; return the bytes, and the keys of the entries that they refer to."""
        self._referenced = set()

        def persistent_id(part: Any) -> _Reference | None:
            if type(part) in _INSIDE:
                return None
            known = self._references.get(id(part))
            if known is None:
                size = _plain_size(part)
                if size < LARGE_BYTES:
                    return None
                known = part, ("result", self._entry(part, hasher))
                self._references[id(part)] = known
                self.argument_bytes += size
            reference = known[1]
            self._referenced.add(reference[1])
            return reference

        pickled = pickling.dumps(value, persistent_id=persistent_id, where=where)
        # The buffers are views of the caller's memory, which the caller may change from now on.
        owned = tuple(memoryview(bytes(buffer)) for buffer in pickled.buffers)
        return Pickled(pickled.data, owned), frozenset(self._referenced)

    def _entry(self, value: Any, hasher: ContentHasher | None = None) -> str:
        """Make a value an entry of the cache, unless it is one; return its key."""
        content = (hasher or ContentHasher()).content(value)
        key = ContentHasher.mix("value", content.digest).hex()
        if not (self.cache.present((key,)) and _kept(self.cache.path_of(key))):
            self.cache.publish(key, value, {"kind": "value", "function": "an argument"})
        return key


def _kept(path: Path) -> bool:
    """Make an argument young again, which a clean-up then leaves; False if one has taken it."""
    try:
        os.utime(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError:
        # Another member's of a group, or a file system without times: as old as it was it is
        # still there, and a run that needs it keeps it.
        return True
    return True


def _outcome(future: concurrent.futures.Future[Any]) -> Any:
    if not future.done():
        raise NotYet(future)
    check_parent(future)
    return future.result()


def check_parent(future: concurrent.futures.Future[Any]) -> None:
    """Check one that has ended.

    Raises
    ------
    ParentFailed
        It has failed or was cancelled.
    """
    if future.cancelled():
        raise ParentFailed(future, concurrent.futures.CancelledError())
    error = future.exception()
    if error is not None:
        raise ParentFailed(future, error)


def _plain_size(value: Any) -> int:
    """Return the size in bytes of plain arrays and bytes; 0 for anything else."""
    kind = type(value)
    if kind is bytes:
        return len(value)
    if kind.__module__ == "numpy" and kind.__name__ == "ndarray" and not value.dtype.hasobject:
        return int(value.nbytes)
    return 0
