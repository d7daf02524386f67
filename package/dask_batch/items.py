"""Futures of parts of a result: one item of the tuple, the list or the dictionary of a call."""

from __future__ import annotations

import concurrent.futures
from typing import Any

from dask_batch.future import BatchFuture, when_ended
from dask_batch.spec import item

__all__ = ["ItemFuture", "whole_of"]


class ItemFuture(BatchFuture):
    """One item of what another future will have.

    It ends when the whole does. Among the arguments of another call it depends on the whole's job,
    and the item is taken in the job of that call: nothing is loaded here.

    Parameters
    ----------
    whole
        The future of a tuple, a list or a dictionary; of the item of another one, too.
    selector
        The index or the key of the item.

    Notes
    -----
    Where the whole is None, so is every item.
    """

    def __init__(self, whole: concurrent.futures.Future[Any], selector: Any) -> None:
        super().__init__()
        self.whole = whole
        self.selector = selector
        when_ended(whole, self._follow)

    def _follow(self, whole: concurrent.futures.Future[Any]) -> None:
        """End as the whole has ended."""
        if whole.cancelled():
            self._cancel_running()
            self._claim()
            return
        # Of an item only whether its whole has failed: its value is left unread.
        error = BatchFuture.exception(whole) if isinstance(whole, ItemFuture) else whole.exception()
        if error is not None:
            self._fail(error)
        else:
            self._resolve_from(self._load)

    def _load(self) -> Any:
        return item(self.whole.result(), (self.selector,))

    def cancel(self) -> bool:
        """Cancel the whole, and so every item of it."""
        return self.whole.cancel()

    def running(self) -> bool:
        """Whether the whole is being computed."""
        return not self.done() and self.whole.running()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what went wrong with the whole, or that it has no such item."""
        error = super().exception(timeout)
        if error is not None:
            return error
        try:
            self.result(0)
        except Exception as missing:
            return missing
        return None

    @property
    def job_id(self) -> str | None:
        """The id of the whole's job; None before that is known or if there is none."""
        return self.whole.job_id if isinstance(self.whole, BatchFuture) else None

    def stdout(self) -> str:
        """Return what the whole's job has printed so far."""
        return self.whole.stdout() if isinstance(self.whole, BatchFuture) else ""

    def stderr(self) -> str:
        """Return what the whole's job has written to stderr so far."""
        return self.whole.stderr() if isinstance(self.whole, BatchFuture) else ""


def whole_of(
    future: concurrent.futures.Future[Any],
) -> tuple[concurrent.futures.Future[Any], tuple[Any, ...]]:
    """Return the future that another one is an item of, and the way to it: () for itself."""
    way: list[Any] = []
    while isinstance(future, ItemFuture):
        way.append(future.selector)
        future = future.whole
    return future, tuple(reversed(way))
