"""Running jobs: started when the queue says so, ended at their limits, their ends told to it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dask_batch.backends.base import JobState
from dask_batch.backends.local import outcomes, processes
from dask_batch.backends.local.identity import JobId, QueueId
from dask_batch.backends.local.journal import Journal
from dask_batch.backends.local.processes import ProcessIdentity
from dask_batch.backends.local.protocol import Channel, Message, ProtocolError
from dask_batch.backends.local.queue import WorkQueue
from dask_batch.backends.local.records import Outcome, QueuedJob
from dask_batch.backends.local.submission import Profile
from dask_batch.backends.local.workers import WorkerParent, Workers

__all__ = ["Supervisor"]

_LOG = logging.getLogger(__name__)
GRACE_S = 3.0
"""Between SIGTERM and SIGKILL."""
MEMORY_POLL_S = 0.5


@dataclass(slots=True)
class _Run:
    """One running job."""

    number: int
    profile: Profile
    process: ProcessIdentity | None = None
    deadline: float | None = None
    kill_at: float | None = None
    verdict: Outcome | None = None
    """Why it is being killed: what its end will be called."""


class Supervisor:
    """Starts what is due, keeps limits, notes ends. Time comes in from outside (monotonic)."""

    def __init__(self, queue: WorkQueue, workers: Workers, journal: Journal, here: QueueId) -> None:
        self._queue, self._workers, self._journal, self._here = queue, workers, journal, here
        self._runs: dict[str, _Run] = {}
        self._memory_poll_at = 0.0

    def start_due(self) -> None:
        """Start what the queue lets start."""
        due = self._queue.start_due()
        for job in due:
            self._runs[self._id(job)] = _Run(job.number, job.payload[0])
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
            self._journal.started(job.number, job.name, parent.identity)
            placed.append((parent, job))
        self._journal.write()
        for parent, job in placed:
            self._workers.start(parent, self._id(job), *job.payload)

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
            self._journal.running(run.number, run.process)
            if run.profile.run_time_s is not None:
                run.deadline = now + run.profile.run_time_s
        elif message["type"] == "failed":
            self._end(message["job"], Outcome(JobState.NODE_FAILURE, reason=message["reason"]))
        elif message["type"] == "declined":
            self._again(message["job"])
        elif message["type"] == "ended":
            outcome = outcomes.from_wait_status(message["status"])
            if run.verdict is not None and outcome.state is not JobState.COMPLETED:
                outcome = Outcome(
                    run.verdict.state, outcome.exit_code, outcome.signal, run.verdict.reason
                )
            self._end(message["job"], outcome)

    def _bury(self, parent: WorkerParent) -> None:
        """Deal with the jobs of a worker parent that is gone."""
        started = dict(parent.jobs)
        unstarted = self._workers.lose(parent)
        for job_id in unstarted:
            self._again(job_id)
        reason = "the process that had started it was killed; how it ended is not known"
        for job_id in started.keys() - unstarted:
            process = started[job_id]
            if process is not None and process.alive():
                processes.signal_session(process.pid, signal.SIGKILL)
            _LOG.warning("%s: %s", job_id, reason)
            self._end(job_id, Outcome(JobState.NODE_FAILURE, reason=reason))

    def _again(self, job_id: str) -> None:
        """Have a job started that was certainly not started, unless it has been stopped."""
        run = self._runs[job_id]
        job = self._queue.get(run.number)
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
        job_id = str(JobId(self._here, number))
        run = self._runs.get(job_id)
        if run is not None and run.verdict is None:
            run.verdict, run.kill_at, run.deadline = verdict, now + GRACE_S, None
            self._workers.signal(job_id, signal.SIGTERM)

    def keep_limits(self, now: float) -> None:
        """End what is over its limits by now."""
        for job_id, run in self._runs.items():
            if run.deadline is not None and now >= run.deadline:
                reason = f"it ran longer than run_time_max = {run.profile.run_time_s:g} s"
                self.stop(run.number, Outcome(JobState.TIMEOUT, reason=reason), now)
            if run.kill_at is not None and now >= run.kill_at:
                run.kill_at = now + GRACE_S
                if run.process is None:
                    self._workers.abandon(job_id)
                self._workers.signal(job_id, signal.SIGKILL)
        if now >= self._memory_poll_at and any(True for _ in self._limited()):
            self._memory_poll_at = now + MEMORY_POLL_S
            self._keep_memory_limits(now)

    def _limited(self) -> Iterator[_Run]:
        """Yield the runs whose memory has to be looked at."""
        for run in self._runs.values():
            if run.profile.limit_memory and run.process is not None and run.verdict is None:
                yield run

    def _keep_memory_limits(self, now: float) -> None:
        resident = processes.resident_memory_by_session()
        for run in list(self._limited()):
            session, limit = run.process.pid if run.process else 0, run.profile.memory_bytes
            used = resident.get(session, 0)
            if used > limit:  # what it shares with others is its own only in part
                private = processes.private_memory_bytes(session)
                used = used if private is None else private
            if used > limit:
                reason = (
                    f"it used {used / 2**30:.3g} GB, more than memory_max = {limit / 2**30:.3g}"
                )
                self.stop(run.number, Outcome(JobState.OUT_OF_MEMORY, reason=reason), now)
                self._workers.signal(str(JobId(self._here, run.number)), signal.SIGKILL)

    def next_event(self) -> float | None:
        """Return when :meth:`keep_limits` has to be called next."""
        times = [t for run in self._runs.values() for t in (run.deadline, run.kill_at) if t]
        if any(True for _ in self._limited()):
            times.append(self._memory_poll_at)
        return min(times, default=None)
