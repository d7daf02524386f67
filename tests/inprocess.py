"""A Dask scheduler that does all that jobs do but for the queue, in this process.

A graph is ingested, gets keys, is planned and pickled, and each job's bytes are read and evaluated,
with inputs that went through the cache. It is fast enough for whole test suites.
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import dask

from dask_batch.cache.store import Cache
from dask_batch.code import pickling
from dask_batch.configuration.options import Options
from dask_batch.graph.content import ContentHasher
from dask_batch.graph.dask_spec import ingest, values
from dask_batch.preparing.preparation import PreparedJob, Preparer
from dask_batch.preparing.surroundings import Surroundings
from dask_batch.spec import Step, evaluate

__all__ = ["FalseHit", "InProcess"]


class FalseHit(AssertionError):
    """A result is there under the key of a task that computes another one."""


class _Unlimited:
    """The one thing about a backend that preparation asks for."""

    default_max_jobs = None


class _Unseeing(Cache):
    """Does not say that it has a result, so that every task runs; stores and loads all the same."""

    def look(self, key: str) -> None:
        """Tell nothing about an entry."""
        return


class InProcess:
    """Computes graphs as jobs would, one after the other.

    Parameters
    ----------
    directory
        Of the cache.
    verify
        Compute also what is there already, and compare.
    """

    def __init__(self, directory: str, *, verify: bool = False) -> None:
        self._results = _Unseeing(directory) if verify else Cache(directory)
        self._options = Options("local", Path(directory))
        self._producers: dict[str, str] = {}

    def get(self, dsk: Any, keys: Any, **_: Any) -> Any:
        """Compute as a Dask scheduler."""
        graph = ingest(dsk, keys, annotations=dask.get_annotations())
        preparer = Preparer(self._results, _Unlimited(), self._options)  # type: ignore[arg-type]
        prepared = preparer.graph(graph, Surroundings.current({}))
        for job in prepared.jobs:
            self._run(job)
        wanted = {name: self._results.load(prepared.keys[name]) for name in graph.required}
        return values(graph, wanted)

    def _run(self, job: PreparedJob) -> None:
        try:
            value = self._evaluate(job)
        except Exception as error:
            pickled = pickling.dumps(error)
            raise pickling.loads(pickled.data, pickled.buffers) from error
        if not self._results.publish(job.key, value, {}):
            self._compare(job, value)
        self._producers[job.key] = os.environ.get("PYTEST_CURRENT_TEST", "")

    def _evaluate(self, job: PreparedJob) -> Any:
        steps: tuple[Step, ...] = pickling.loads(
            job.payload.data, job.payload.buffers, persistent_load=self._referenced
        )
        value: Any = None
        before: dict[Hashable, Any] = {}
        for step in steps:
            inputs = {name: self._results.load(key) for name, key in step.inputs.items()}
            value = evaluate(step.expression, {**before, **inputs})
            before = {step.name: value}
        return value

    def _referenced(self, reference: Any) -> Any:
        return self._results.load(reference[1])

    def _compare(self, job: PreparedJob, value: Any) -> None:
        hasher = ContentHasher()
        copied = pickling.dumps(value)
        new = hasher.content(pickling.loads(copied.data, copied.buffers))
        old = hasher.content(self._results.load(job.key))
        if new.digest != old.digest and not (new.problems or old.problems):
            raise FalseHit(
                f"{job.names} found the result of {self._producers.get(job.key)}: "
                f"{self._results.load(job.key)!r} instead of {value!r}"
            )
