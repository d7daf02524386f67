"""Futures of lists: what finishes first is first together."""

from __future__ import annotations

import concurrent.futures
import functools
import operator
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from dask_batch.future import BatchFuture, when_ended

__all__ = ["batched"]


def batched(futures: Iterable[concurrent.futures.Future[Any]], n: int) -> list[BatchFuture]:
    """Gather futures in batches of ``n``: see :meth:`dask_batch.BaseExecutor.batched`."""
    members = list(futures)
    for member in members:
        if not isinstance(member, concurrent.futures.Future):
            raise TypeError(f"batched takes futures, not {member!r}")
    size = _size(n)
    batches = [BatchFuture() for _ in range(-(-len(members) // size))]
    gathering = _Gathering(batches, size, len(members))
    for member in members:
        when_ended(member, gathering.take)
    return batches


def _size(n: Any) -> int:
    try:
        size = operator.index(n)
    except TypeError:
        size = 0
    if isinstance(n, bool) or size < 1:
        raise ValueError(f"a batch must have at least one future in it, not n={n!r}")
    return size


class _Gathering:
    """Fills batches, one after the other, as futures end in whatever thread."""

    def __init__(self, batches: Sequence[BatchFuture], size: int, total: int) -> None:
        self._batches = iter(batches)
        self._size = size
        self._left = total
        self._finished: list[concurrent.futures.Future[Any]] = []
        self._failed: list[concurrent.futures.Future[Any]] = []
        self._lock = threading.Lock()

    def take(self, future: concurrent.futures.Future[Any]) -> None:
        """Take a future that has ended."""
        with self._lock:
            self._left -= 1
            (self._failed if _fails(future) else self._finished).append(future)
            full = self._full()
        # Callbacks may take their time, and ask for more batches.
        for batch, members in full:
            _resolve(batch, members)

    def _full(self) -> list[tuple[BatchFuture, list[concurrent.futures.Future[Any]]]]:
        """Return the batches that are complete now, with what is in them."""
        full = []
        while len(self._finished) >= self._size:
            members, self._finished = self._finished[: self._size], self._finished[self._size :]
            full.append((next(self._batches), members))
        if not self._left:
            rest = [*self._finished, *self._failed]
            for start in range(0, len(rest), self._size):
                full.append((next(self._batches), rest[start : start + self._size]))
        return full


def _fails(future: concurrent.futures.Future[Any]) -> bool:
    return future.cancelled() or future.exception() is not None


def _resolve(batch: BatchFuture, members: Sequence[concurrent.futures.Future[Any]]) -> None:
    failed = next((member for member in members if _fails(member)), None)
    if failed is None:
        batch._resolve_from(functools.partial(_values, members))
    elif failed.cancelled():
        batch._fail(concurrent.futures.CancelledError("a future of this batch was cancelled"))
    else:
        error = failed.exception()
        assert error is not None  # see _fails
        batch._fail(error)


def _values(members: Sequence[concurrent.futures.Future[Any]]) -> list[Any]:
    return [member.result() for member in members]
