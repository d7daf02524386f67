"""Running jobs: started when the queue says so, ended at their limits, their ends told to it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterable, Sequence

from dask_batch.backends.base import JobState
from dask_batch.backends.local import outcomes, processes
from dask_batch.backends.local.adoption import Orphans
from dask_batch.backends.local.identity import JobId, QueueId
from dask_batch.backends.local.journal import Journal
from dask_batch.backends.local.limits import Limits, Run
from dask_batch.backends.local.processes import ProcessIdentity
from dask_batch.backends.local.protocol import Channel, Message, ProtocolError
from dask_batch.backends.local.queue import WorkQueue
from dask_batch.backends.local.records import Outcome, QueuedJob
from dask_batch.backends.local.submission import Profile
from dask_batch.backends.local.workers import WorkerParent, Workers

__all__ = ["Supervisor"]

_LOG = logging.getLogger(__name__)


class Supervisor:
    """Starts what is due, keeps limits, notes ends. Time comes in from outside (monotonic)."""

    def __init__(self, queue: WorkQueue, workers: Workers, journal: Journal, here: QueueId) -> None:
        self._queue, self._workers, self._journal, self._here = queue, workers, journal, here
        self._runs: dict[str, Run] = {}
        self._limits = Limits(self._runs, self)
        self._orphans = Orphans(journal)

    def start_due(self) -> None:
        """Start what the queue lets start."""
        due = self._queue.start_due()
        for job in due:
            self._runs[self._id(job)] = Run(job.number, job.payload[0])
        self._launch(due)

    def expect(self, profiles: Iterable[Profile]) -> None:
        """Get ready for jobs that may soon be let go."""
        for profile in profiles:
            try:
                self._workers.prepare(profile)
            except OSError as error:  # said again, and acted on, when a job is to start
                _LOG.warning("%s", error)

    def _id(self, job: QueuedJob) -> str:
        return str(JobId(self._here, job.number))

    def _launch(self, jobs: Sequence[QueuedJob]) -> None:
        """Have jobs started, all on record before any can run."""
        placed = []
        for job in jobs:
            try:
                parent = self._workers.prepare(job.payload[0])
            except OSError as error:
                self._end(self._id(job), Outcome(JobState.NODE_FAILURE, reason=str(error)))
                continue
            self._journal.started(job.number, job.name, parent.identity, job.devices)
            placed.append((parent, job))
        self._journal.write()
        for parent, job in placed:
            profile, index = job.payload
            self._workers.start(parent, self._id(job), profile, index, job.devices)

    # ---- what an earlier life of this queue has started ------------------------------------

    def adopt(self, now: float) -> None:
        """Take over the jobs that are marked as running."""
        for number in self._queue.running:
            job = self._queue.jobs.get(number)
            if job is None:
                continue
            job_id = self._id(job)
            run = self._runs[job_id] = Run(number, job.payload[0])
            run.verdict = self._journal.former.jobs[job_id].verdict
            if run.verdict is not None:
                run.kill_at = now
            self._orphans.adopt(job_id)
        self.hear_of_orphans(now)

    def hear_of_orphans(self, now: float) -> None:
        """Note what has become of the jobs that were taken over."""
        for job_id, how in self._orphans.news(now):
            run = self._runs.pop(job_id)
            if how is not None:
                self._queue.end(run.number, outcomes.under_verdict(how, run.verdict))
            elif run.verdict is not None:
                self._queue.end(run.number, run.verdict)
            else:
                self._queue.put_back(run.number)
        for job_id, run in self._runs.items():
            if run.process is None and job_id in self._orphans:
                run.process = self._orphans.process(job_id)
                if run.process is not None:
                    run.count_from(now - run.process.age_s())

    # ---- what worker parents tell ----------------------------------------------------------

    def hear(self, channel: Channel, now: float) -> None:
        """Take in what a worker parent has to tell, its own death included."""
        parent = next((parent for parent in self._workers if parent.channel is channel), None)
        if parent is None:
            return
        try:
            for message in channel.receive():
                self._workers.note(parent, message)
                self._take(message, now)
        except (EOFError, ProtocolError, KeyError):  # gone, or out of its mind
            self._bury(parent)

    def _take(self, message: Message, now: float) -> None:
        run = self._runs.get(message.get("job", ""))
        if run is None:
            return
        if message["type"] == "started":
            run.process = ProcessIdentity(message["pid"], message["started"])
            run.count_from(now)
        elif message["type"] == "failed":
            self._end(message["job"], Outcome(JobState.NODE_FAILURE, reason=message["reason"]))
        elif message["type"] == "declined":
            self._again(message["job"])
        elif message["type"] == "ended":
            outcome = outcomes.from_wait_status(message["status"])
            self._end(message["job"], outcomes.under_verdict(outcome, run.verdict))

    def _bury(self, parent: WorkerParent) -> None:
        """Deal with the jobs of a worker parent that is gone."""
        started = dict(parent.jobs)
        unstarted = self._workers.lose(parent)
        for job_id in unstarted:
            self._again(job_id)
        reason = "the process that had started it was killed; how it ended is not known"
        self._journal.read_new()
        for job_id in started.keys() - unstarted:
            # A job that has begun says so itself, its parent perhaps no more.
            noted = self._journal.former.jobs.get(job_id)
            process = started[job_id] or (noted.process if noted is not None else None)
            if process is not None and process.alive():
                processes.signal_session(process.pid, signal.SIGKILL)
            _LOG.warning("%s: %s", job_id, reason)
            self._end(job_id, Outcome(JobState.NODE_FAILURE, reason=reason))

    def _again(self, job_id: str) -> None:
        """Have a job started that was certainly not started, unless it has been stopped."""
        run = self._runs[job_id]
        job = self._queue.jobs.get(run.number)
        if run.verdict is not None:
            self._end(job_id, run.verdict)
        elif job is not None:
            self._launch([job])

    def _end(self, job_id: str, outcome: Outcome) -> None:
        run = self._runs.pop(job_id)
        self._queue.end(run.number, outcome)

    # ---- limits ----------------------------------------------------------------------------

    def stop(self, number: int, verdict: Outcome, now: float) -> None:
        """End a running job: first kindly, then not."""
        self._stop(str(JobId(self._here, number)), verdict, now)

    def _stop(self, job_id: str, verdict: Outcome, now: float) -> None:
        run = self._runs.get(job_id)
        if run is not None and run.verdict is None:
            self._journal.stopped(job_id, verdict)
            self._journal.write()
            self._limits.stop(job_id, verdict, now)

    def keep_limits(self, now: float) -> None:
        """Warn what is about to reach its limits, end what is over them."""
        self.hear_of_orphans(now)
        for job_id, verdict in self._limits.keep(now):
            self._stop(job_id, verdict, now)

    def next_event(self) -> float | None:
        """Return when :meth:`keep_limits` has to be called next."""
        times = (self._limits.next_event(), self._orphans.next_event())
        return min((at for at in times if at is not None), default=None)

    def signal(self, job_id: str, number: int, *, main: bool = False) -> None:
        """Signal a job's session, or its main process alone."""
        if job_id in self._orphans:
            self._orphans.signal(job_id, number, main=main)
        else:
            self._workers.signal(job_id, number, main=main)

    def abandon(self, job_id: str) -> None:
        """End the parent that should start a job and does not get to it."""
        if job_id in self._orphans:
            self._orphans.abandon(job_id)
        else:
            self._workers.abandon(job_id)
