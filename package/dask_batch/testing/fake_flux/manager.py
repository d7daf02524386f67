"""What decides in the fake instance: whose dependencies are met, who begins, who falls."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Final

from dask_batch.backends.flux.instance import HOLD, Event, Machine, Phase, Request, Row
from dask_batch.backends.flux.states import after
from dask_batch.testing.fake_flux.jobs import ENDINGS, Job, kill, start

__all__ = ["Manager"]

_KILL_S: Final = 2.0
"""From the polite signal to the other one."""
_NO_SUCH_PROGRAM: Final = 127 << 8


class Manager:
    """Keeps the jobs of an instance and runs them.

    Parameters
    ----------
    machine
        What there is.
    tell
        Called with every event, in order.
    """

    def __init__(self, machine: Machine, tell: Callable[[Event], None]) -> None:
        self._machine = machine
        self._tell = tell
        self._lock = threading.RLock()
        self._jobs: dict[str, Job] = {}
        self._numbers = itertools.count(1)

    # ---- looking -----------------------------------------------------------------------------

    def jobs(self) -> list[Job]:
        """Return all jobs that are remembered."""
        with self._lock:
            return list(self._jobs.values())

    def job(self, job_id: str) -> Job | None:
        """Return one job."""
        return self._jobs.get(job_id)

    def unended(self) -> list[Job]:
        """Return the jobs that have not ended."""
        return [job for job in self.jobs() if job.row.phase is not Phase.INACTIVE]

    # ---- from outside ------------------------------------------------------------------------

    def take(self, request: Request) -> str:
        """Take a job in and return its id."""
        with self._lock:
            job_id = f"f{next(self._numbers)}"
            row = Row(job_id, request.name, Phase.NEW, submitted=time.time())
            job = self._jobs[job_id] = Job(job_id, request, row)
            self._happen(job, "submit", urgency=request.urgency)
            for dependency in request.dependencies:
                told = replace(dependency, kind=ENDINGS[dependency.kind])
                self._happen(job, Event(job_id, "dependency-add", dependency=told))
            self._schedule()
            return job_id

    def set_urgency(self, urgencies: Mapping[str, int]) -> None:
        """Change urgencies of jobs that have not begun."""
        with self._lock:
            for job_id, urgency in urgencies.items():
                job = self._jobs.get(job_id)
                if job is not None and job.row.phase < Phase.RUN:
                    self._happen(job, "urgency", urgency=urgency)
            self._schedule()

    def end(self, job_ids: Collection[str], kind: str, note: str) -> None:
        """Raise a fatal exception on jobs."""
        with self._lock:
            for job_id in job_ids:
                job = self._jobs.get(job_id)
                if job is not None and job.row.phase < Phase.CLEANUP:
                    self._except(job, kind, note)
            self._schedule()

    def forget(self) -> None:
        """Forget what has ended."""
        with self._lock:
            over = [i for i, job in self._jobs.items() if job.row.phase is Phase.INACTIVE]
            for job_id in over:
                del self._jobs[job_id]

    # ---- events ------------------------------------------------------------------------------

    def _happen(self, job: Job, what: str | Event, **context: Any) -> None:
        event = what if isinstance(what, Event) else Event(job.id, what, context, timestamp=0.0)
        event = replace(event, job_name=job.row.name, timestamp=time.time())
        job.row = after(job.row, event)
        self._tell(event)

    def _except(self, job: Job, kind: str, note: str) -> None:
        began = job.row.phase is Phase.RUN
        self._happen(job, "exception", type=kind, severity=0, note=note)
        if not began:
            self._happen(job, "clean")
            return
        kill(job, signal.SIGALRM if kind == "timeout" else signal.SIGTERM)
        timer = threading.Timer(_KILL_S, kill, (job, signal.SIGKILL))
        timer.daemon = True
        timer.start()

    # ---- who is next -------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Let all begin, or fall, that can."""
        while any(self._advance(job) for job in list(self._jobs.values())):
            pass
        ready = [job for job in self._jobs.values() if job.row.phase is Phase.SCHED]
        for job in sorted(ready, key=lambda job: -job.row.urgency):
            if job.row.urgency != HOLD and self._has_room(job):
                self._begin(job)

    def _advance(self, job: Job) -> bool:
        """Take a job out of its wait for others, if that is over; return whether it is."""
        if job.row.phase > Phase.DEPEND:
            return False
        for dependency in job.request.dependencies:
            parent = self._jobs.get(dependency.job_id)
            if parent is None or (parent.row.phase is Phase.INACTIVE and _met(dependency, parent)):
                continue
            if parent.row.phase is Phase.INACTIVE:
                why = "can never be satisfied" if parent.began else "job never started"
                told = f"dependency {ENDINGS[dependency.kind]}={parent.id} {why}"
                self._except(job, "dependency", told)
                return True
            return False
        self._happen(job, "depend")
        self._happen(job, "priority")
        return True

    def _has_room(self, job: Job) -> bool:
        asked = job.request
        cpus, gpus = asked.slots * asked.cpus, asked.slots * asked.gpus
        if cpus > self._machine.cpus or gpus > self._machine.gpus:
            what = f"need {asked.slots} slot(s) of {asked.cpus} core(s)"
            self._except(job, "alloc", f"unsatisfiable request: {what}")
            return False
        running = [j for j in self._jobs.values() if Phase.RUN <= j.row.phase < Phase.INACTIVE]
        taken = {number for other in running for number in other.gpus}
        free = [number for number in range(self._machine.gpus) if number not in taken]
        used = sum(j.request.slots * j.request.cpus for j in running)
        if used + cpus > self._machine.cpus or gpus > len(free):
            return False
        job.gpus = tuple(free[:gpus])
        return True

    # ---- processes ---------------------------------------------------------------------------

    def _begin(self, job: Job) -> None:
        self._happen(job, "alloc")
        try:
            job.process = start(job)
        except OSError as error:
            self._happen(job, "exception", type="exec", severity=0, note=str(error))
            self._happen(job, "finish", status=_NO_SUCH_PROGRAM)
            self._happen(job, "clean")
            return
        job.began = True
        self._happen(job, "start")
        threading.Thread(target=self._watch, args=(job, job.process), daemon=True).start()
        limit_s = job.request.run_time_s
        if limit_s is not None:
            arguments = ([job.id], "timeout", "resource allocation expired")
            timer = threading.Timer(limit_s, self.end, arguments)
            timer.daemon = True
            timer.start()

    def _watch(self, job: Job, process: Any) -> None:
        code = process.wait()
        with self._lock:
            # Its shell tells of a signal as shells do.
            self._happen(job, "finish", status=(128 - code if code < 0 else code) << 8)
            self._happen(job, "clean")
            self._schedule()


def _met(dependency: Any, parent: Job) -> bool:
    return dependency.kind == "afterany" or parent.succeeded
