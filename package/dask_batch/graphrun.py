"""One graph under way: the futures of its results, and what Dask's callbacks are told."""

from __future__ import annotations

import concurrent.futures
import logging
import queue
import threading
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from dask_batch.backends.reach import ends_with_client
from dask_batch.engine.engine import Engine
from dask_batch.engine.request import Request
from dask_batch.errors import DependencyFailedError, RemoteTraceback
from dask_batch.future import BatchFuture, when_ended
from dask_batch.graph.dask_spec import Graph, values
from dask_batch.preparing.preparation import PreparedGraph
from dask_batch.progress import CallbackRun, Event
from dask_batch.spec import references
from dask_batch.submitting.handover import Handed

__all__ = ["CollectionFuture", "GraphRun"]

logger = logging.getLogger("dask_batch")


class CollectionFuture(BatchFuture):
    """The future of something that is put together from several results."""

    def __init__(self, engine: Engine, graph: Graph, parts: dict[Hashable, BatchFuture]) -> None:
        super().__init__(engine)
        self._graph = graph
        self._parts = parts
        self._open = len(parts)
        self._guard = threading.Lock()
        if not parts:
            self._resolve(values(graph, {}))
        for part in set(parts.values()):
            when_ended(part, self._part_done)

    def _part_done(self, part: concurrent.futures.Future[Any]) -> None:
        if part.cancelled():
            self._cancel_running()
            self._claim()
        elif (error := part.exception()) is not None:
            self._fail(_root(error))
        else:
            with self._guard:
                self._open -= 1
                last = self._open == 0
            if last:
                self._resolve_from(self._put_together)

    def _put_together(self) -> Any:
        return values(self._graph, {name: part.result() for name, part in self._parts.items()})

    def cancel(self) -> bool:
        """Cancel all of its tasks that nothing else wants."""
        cancelled = super().cancel()
        if cancelled:
            for part in self._parts.values():
                part.cancel()
        return cancelled


def _root(error: BaseException) -> BaseException:
    """Return the failure that a chain of failed dependencies began with."""
    while isinstance(error, DependencyFailedError):
        cause = error.__cause__
        if cause is None or isinstance(cause, RemoteTraceback):
            break
        error = cause
    return error


class GraphRun:
    """A graph that has been handed to an engine.

    Attributes
    ----------
    future : CollectionFuture
        Of everything that was asked for, in its shape.
    events : queue.SimpleQueue
        What :attr:`progress` is to be told, in the thread that waits; None says: look again.
    progress : CallbackRun
        Dask's callbacks.
    """

    def __init__(
        self, engine: Engine, graph: Graph, prepared: PreparedGraph, *, callbacks: bool
    ) -> None:
        self._engine = engine
        self._graph = graph
        self._prepared = prepared
        self._handed: Handed | None = None
        self._parts = {name: BatchFuture(engine, prepared.keys[name]) for name in graph.required}
        self._names = {job.key: job.names for job in prepared.jobs}
        self.events: queue.SimpleQueue[tuple[Event, Sequence[Hashable]] | None] = (
            queue.SimpleQueue()
        )
        self.progress = CallbackRun(graph)
        self.future = CollectionFuture(engine, graph, self._parts)
        when_ended(self.future, lambda _: self.events.put(None))
        running = {name for names in self._names.values() for name in names}
        self.events.put(("finished", [name for name in graph.tasks if name not in running]))
        engine.request(
            Request(
                prepared.jobs,
                tuple(self._parts.values()),
                observe=self._observe if callbacks else None,
                told=self._told,
            )
        )

    def futures(self) -> list[CollectionFuture]:
        """Return a future for each of the things that were asked for."""
        return [self._future_of(wanted) for wanted in self._graph.wanted]

    def _future_of(self, wanted: Any) -> CollectionFuture:
        names = dict.fromkeys(self._needed(wanted))
        graph = replace(self._graph, wanted=wanted)
        return CollectionFuture(self._engine, graph, {n: self._parts[n] for n in names})

    def _needed(self, wanted: Any) -> Iterable[Hashable]:
        if isinstance(wanted, list):
            for item in wanted:
                yield from self._needed(item)
        elif wanted in self._graph.finalizers:
            yield from references(self._graph.finalizers[wanted])
        elif wanted not in self._graph.literals:
            yield wanted

    # ---- called in the engine's thread -------------------------------------------------------

    def _observe(self, event: Event, key: str) -> None:
        self.events.put((event, self._names[key]))

    def _told(self, handed: Handed) -> None:
        self._handed = handed
        logger.info("%s", self._summary())

    # ---- for people --------------------------------------------------------------------------

    def _summary(self) -> str:
        tasks = len(self._graph.tasks)
        said = f"{tasks} task(s): {self._prepared.hits} in the cache"
        handed = self._handed
        if handed is None:
            return (
                f"{said}, nothing handed over: another client is handing over the same tasks. Run "
                "the same again to come back to them."
            )
        submitted = handed.submitted
        joined = len(handed.under_way) - len(submitted)
        if joined > 0:
            said += f", {joined} job(s) under way already"
        if not submitted and not handed.left:
            return f"{said}, nothing to submit"
        if submitted:
            span = submitted[0] if len(submitted) == 1 else f"{submitted[0]} .. {submitted[-1]}"
            backend = self._engine.backend.name
            said += (
                f", {len(submitted)} job(s) submitted to {backend} ({span}) as run {handed.run_id}"
            )
        if handed.left:
            said += f", {len(handed.left)} job(s) wait for room in its queue"
        if handed.left and not handed.heirs:
            return f"{said}. What waits is handed over while this process lives."
        if ends_with_client(self._engine.backend.name):
            return f"{said}. They end with this process."
        return f"{said}. They go on without this process; run the same again to come back to them."

    def farewell(self) -> str:
        """Return what to say when the one who waits leaves."""
        if self._handed is None:
            self._engine.leave()
        if ends_with_client(self._engine.backend.name):
            for part in self._parts.values():
                if part._cancel_running():
                    self._engine.forget(part)
            return "no longer waiting: what was under way is ended, what has finished is kept"
        return f"no longer waiting. {self._summary()}"
