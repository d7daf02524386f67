"""What executors have because those of executorlib have it."""

from __future__ import annotations

import concurrent.futures
import queue
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dask_batch.compat.batches import batched
from dask_batch.configuration.options import Options
from dask_batch.errors import ConfigurationError
from dask_batch.future import BatchFuture, when_ended

__all__ = ["FixedWorkersError", "Surface"]

_OF_EACH_CALL = ("cores", "threads_per_core", "gpus_per_core", "cwd", "openmpi_oversubscribe")
_DEFAULTS = {"cores": 1, "threads_per_core": 1, "gpus_per_core": 0, "openmpi_oversubscribe": False}


class FixedWorkersError(ConfigurationError, NotImplementedError):
    """The number of workers of this executor cannot be changed."""


class Surface(concurrent.futures.Executor):
    """The part of an executor's surface that executorlib has beyond the standard library's."""

    _options: Options
    _shut_down: bool
    _private: Any
    """A cache for the time of this executor, where nobody has named one."""
    max_workers: Any
    _calls: weakref.WeakSet[concurrent.futures.Future[Any]]
    """The futures of the calls that have not ended."""

    def _remember(self, future: BatchFuture) -> BatchFuture:
        """Count a call among those that have not ended."""
        if not future.done():
            self._calls.add(future)
            when_ended(future, self._calls.discard)
        return future

    def _waiting(self) -> list[concurrent.futures.Future[Any]]:
        return [future for future in self._calls if not (future.running() or future.done())]

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Any,
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[Any]:
        """Hand in a call for each item, and return an iterator over the values in their order.

        Parameters
        ----------
        fn
            As in ``submit``.
        *iterables
            As in the standard library; or futures of such, which are waited for at once.
        timeout
            Seconds, from now on, that all this may take; None: as long as it takes.
        chunksize
            Has no meaning here, as long as it is a positive number: each call is a task.

        Raises
        ------
        ValueError
            ``chunksize`` is not positive.
        TimeoutError
            An iterable, or while iterating a value, has not come in time. In the latter case, and
            with any other error, what has not started by then is cancelled.
        """
        if chunksize < 1:
            raise ValueError(f"chunksize must be >= 1, not {chunksize}")
        until = None if timeout is None else time.monotonic() + timeout
        found = [_value(iterable, until) for iterable in iterables]
        return super().map(fn, *found, timeout=_left_s(until), chunksize=chunksize)

    def batched(
        self, iterable: Sequence[concurrent.futures.Future[Any]], n: int
    ) -> list[BatchFuture]:
        """Gather futures in batches, in the order in which they finish.

        Parameters
        ----------
        iterable
            The futures.
        n
            How many make a batch; the last one may be smaller.

        Returns
        -------
        list of BatchFuture
            One for each batch, of the list of its values. They may be arguments of further calls,
            which are handed over when the batch is complete: this process must stay until then.

        Raises
        ------
        ValueError
            ``n`` is not a positive whole number.
        TypeError
            Something in ``iterable`` is no future.

        Notes
        -----
        What fails comes last, and fails the batch that it is in.
        """
        return batched(iterable, n)

    @property
    def info(self) -> dict[str, Any] | None:
        """What this executor was created with; None once it has been shut down."""
        if self._shut_down:
            return None
        options, asked = self._options, self._options.resource_dict
        return {
            "backend": options.backend,
            **{name: asked.get(name, _DEFAULTS.get(name)) for name in _OF_EACH_CALL},
            "cache_directory": None if self._private else str(options.cache_directory),
            "max_workers": self.max_workers,
            "max_cores": options.max_cores,
            "log_obj_size": options.log_obj_size,
        }

    @property
    def future_queue(self) -> queue.Queue[Any] | None:
        """The calls that wait to be run, as they stand now; None once it has been shut down.

        It is a copy, of ``{"future": future}`` each: what is taken out of it or put into it
        changes nothing. Cancel a future to take back its call.
        """
        if self._shut_down:
            return None
        copy: queue.Queue[Any] = queue.Queue()
        for future in self._waiting():
            copy.put({"future": future})
        return copy

    def __len__(self) -> int:
        """Return how many calls wait to be run."""
        return len(self._waiting())

    def __bool__(self) -> bool:
        return True


def _value(iterable: Any, until: float | None) -> Any:
    if isinstance(iterable, concurrent.futures.Future):
        return iterable.result(_left_s(until))
    return iterable


def _left_s(until: float | None) -> float | None:
    return None if until is None else max(0.0, until - time.monotonic())
