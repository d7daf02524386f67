"""Running jobs of a queue that was killed: watched, signalled and buried by the one that goes on.

They are nobody's children here. How they end is read in the journal, where their worker parents
write it; while there are any, this is looked up at short intervals.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

from dask_batch.backends.base import JobState
from dask_batch.backends.local import processes
from dask_batch.backends.local.chronicle import RUNNING, VANISHED
from dask_batch.backends.local.journal import Journal
from dask_batch.backends.local.processes import ProcessIdentity
from dask_batch.backends.local.records import Outcome

__all__ = ["Orphans"]

POLL_S = 0.1


class Orphans:
    """The jobs that an earlier life of this queue has started."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._job_ids: set[str] = set()
        self._poll_at = 0.0

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._job_ids

    def adopt(self, job_id: str) -> None:
        """Watch a job from now on."""
        self._job_ids.add(job_id)

    def process(self, job_id: str) -> ProcessIdentity | None:
        """Return which process a job is, if that is on record."""
        return self._journal.former.jobs[job_id].process

    def signal(self, job_id: str, number: int, *, main: bool = False) -> None:
        """Signal a job's session, or its main process alone, if that lives."""
        process = self.process(job_id)
        if process is None or not process.alive():
            return
        if main:
            _kill(process.pid, number)
        else:
            processes.signal_session(process.pid, number)

    def abandon(self, job_id: str) -> None:
        """Kill the parent that should have started a job, if it does nothing else."""
        jobs = self._journal.former.jobs
        parent = jobs[job_id].parent
        busy = any(jobs[i].parent == parent and jobs[i].process for i in self._job_ids)
        if parent is not None and parent.alive() and not busy:
            _kill(parent.pid, signal.SIGKILL)

    def next_event(self) -> float | None:
        """Return when :meth:`news` has to be asked next."""
        return self._poll_at if self._job_ids else None

    def news(self, now: float) -> Iterator[tuple[str, Outcome | None]]:
        """Yield the jobs that have ended, and how; None: it was never started."""
        if not self._job_ids or now < self._poll_at:
            return
        self._poll_at = now + POLL_S
        # Looked at before the journal is read: who is dead by then has written all that he will.
        living = {p for job_id in self._job_ids for p in self._identities(job_id) if p.alive()}
        self._journal.read_new()
        former = self._journal.former
        for job_id in list(self._job_ids):
            job = former.jobs[job_id]
            living.update(p for p in self._identities(job_id) if p not in living and p.alive())
            how = job.now(living.__contains__, job.parent in former.orphaned)
            if how is RUNNING:
                continue
            self._job_ids.discard(job_id)
            if how is VANISHED and job.process is not None:
                _kill_leftovers(job.process)
            yield job_id, None if how.state is JobState.LOST else how

    def _identities(self, job_id: str) -> Iterator[ProcessIdentity]:
        job = self._journal.former.jobs[job_id]
        yield from (identity for identity in (job.process, job.parent) if identity is not None)


def _kill_leftovers(process: ProcessIdentity) -> None:
    """Kill what is left of a dead job's session, unless its number is another's by now."""
    if ProcessIdentity.of(process.pid) is None:
        processes.kill_session(process.pid)


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return
