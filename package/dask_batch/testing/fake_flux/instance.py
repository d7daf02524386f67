"""The fake instance: what it answers, as flux-core 0.88 does."""

from __future__ import annotations

import queue
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from dask_batch.backends.flux.instance import (
    Dependency,
    Event,
    Machine,
    Phase,
    Refused,
    Request,
    Row,
)
from dask_batch.errors import BackendUnavailableError
from dask_batch.testing.fake_flux.command import Listener
from dask_batch.testing.fake_flux.jobs import Job
from dask_batch.testing.fake_flux.manager import Manager

__all__ = ["FakeFlux"]

_POLL_S = 0.1


class FakeFlux:
    """A stand-in for a Flux instance, to be used as ``Bindings`` is.

    Parameters
    ----------
    directory
        Where its command ``flux`` is; made if it is not there.
    cpus, gpus, nodes
        What each node has, and how many there are. Jobs run on this machine, whatever they ask for.
    queues
        The names of its queues; none: a job that names one is refused.
    max_jobs
        How many jobs that have not ended it takes; None: any number.

    Notes
    -----
    Its jobs end with it. Other processes than this one can only raise exceptions on jobs, and ask
    for an event, through the command ``flux`` that jobs find.
    """

    owned = True

    def __init__(
        self,
        directory: str | Path,
        *,
        cpus: int = 8,
        gpus: int = 0,
        nodes: int = 1,
        queues: Collection[str] = (),
        max_jobs: int | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.place = f"fake{self.directory}"
        self.queues = queues
        self.max_jobs = max_jobs
        self._machine = Machine(((cpus, gpus),) * nodes)
        self._readers: list[queue.Queue[Event | None]] = []
        self._manager = Manager(self._machine, self._tell)
        self._listener = Listener(self.directory, self.end, self._began)
        self.command = str(self._listener.command)
        self._down = False

    def __enter__(self) -> FakeFlux:
        self._listener.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.break_down()
        self._listener.stop()

    # ---- what can go wrong -------------------------------------------------------------------

    def break_down(self) -> None:
        """Let the broker be gone: its jobs are killed, nothing is answered any more."""
        self._down = True
        self._manager.end([job.id for job in self._manager.unended()], "cancel", "shut down")
        for reader in self._readers:
            reader.put(None)

    def purge(self) -> None:
        """Forget all jobs that have ended."""
        self._manager.forget()

    def _answer(self) -> None:
        if self._down:
            raise BackendUnavailableError("the Flux instance does not answer: [Errno 32] EPIPE")

    # ---- jobs --------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request]) -> list[str | Refused]:
        """Take jobs in."""
        self._answer()
        return [self._take(request) for request in requests]

    def _take(self, request: Request) -> str | Refused:
        if request.queue is not None and request.queue not in self.queues:
            return Refused(f"'{request.queue}' is not a valid queue")
        if self.max_jobs is not None and len(self._manager.unended()) >= self.max_jobs:
            return Refused("user has max number of jobs submitted")
        for dependency in request.dependencies:
            problem = self._unmet(dependency)
            if problem:
                return Refused(f"dependency: {dependency.kind}: {problem}")
        return self._manager.take(request)

    def _unmet(self, dependency: Dependency) -> str:
        parent = self._manager.job(dependency.job_id)
        if parent is None:
            return f"id {dependency.job_id}: job not found"
        failed = parent.row.phase is Phase.INACTIVE and not parent.succeeded
        return f"job {parent.id} failed or was canceled" if failed and _needs(dependency) else ""

    def set_urgency(self, urgencies: Mapping[str, int]) -> None:
        """Change urgencies of jobs that wait."""
        self._answer()
        self._manager.set_urgency(urgencies)

    def end(self, job_ids: Collection[str], kind: str, note: str) -> None:
        """Raise a fatal exception on jobs."""
        self._answer()
        self._manager.end(job_ids, kind, note)

    # ---- looking -----------------------------------------------------------------------------

    def rows(self, job_ids: Collection[str]) -> list[Row]:
        """Return what is known of jobs by their ids."""
        self._answer()
        return [job.row for job in self._manager.jobs() if job.id in set(job_ids)]

    def named(self, names: Collection[str]) -> list[Row]:
        """Return the jobs of these names."""
        self._answer()
        return [job.row for job in self._manager.jobs() if job.row.name in set(names)]

    def active(self) -> list[Row]:
        """Return the jobs that have not ended."""
        self._answer()
        return [job.row for job in self._manager.unended()]

    def note(self, job_id: str) -> Mapping[str, Any]:
        """Return what was kept with a job."""
        self._answer()
        job = self._manager.job(job_id)
        return {} if job is None else job.request.note

    def machine(self) -> Machine:
        """Return what there is."""
        self._answer()
        return self._machine

    def _began(self, job_id: str) -> bool | None:
        """Return whether a job has begun; None: that is not decided."""
        job: Job | None = self._manager.job(job_id)
        if job is None or job.row.phase is Phase.INACTIVE or job.began:
            return job is not None and job.began
        return None

    # ---- news --------------------------------------------------------------------------------

    def _tell(self, event: Event) -> None:
        for reader in list(self._readers):
            reader.put(replace(event))

    def events(self, stopped: Callable[[], bool]) -> Iterator[Event | None]:
        """Yield what happens from now on."""
        self._answer()
        news: queue.Queue[Event | None] = queue.Queue()
        self._readers.append(news)
        yield None
        while not stopped():
            try:
                event = news.get(timeout=_POLL_S)
            except queue.Empty:
                yield None
                continue
            if event is None:
                raise BackendUnavailableError("the Flux instance has ended its journal")
            yield event

    def close(self) -> None:
        """Do nothing: there are no connections."""


def _needs(dependency: Dependency) -> bool:
    return dependency.kind == "afterok"
