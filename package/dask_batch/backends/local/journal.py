"""What a later queue must know of an earlier one: which jobs started, and how they ended.

A file of JSON lines, only ever appended to while queues come and go. The queue writes who it is,
each start (before it asks for the process) and each end. When a queue has been killed, the
parents of its workers write the rest: the pids of the jobs that still run, and how each ended.

From it the next queue tells apart what otherwise would look the same: a job that ended, one that
still runs, and one that is gone for certain. Where a record is missing the answer is none.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dask_batch.backends.base import JobState
from dask_batch.backends.local.identity import JobId, QueueId
from dask_batch.backends.local.outcomes import from_wait_status
from dask_batch.backends.local.processes import ProcessIdentity
from dask_batch.backends.local.records import Outcome

__all__ = ["FormerJob", "FormerJobs", "Journal", "append_exits", "append_pids"]

_LOG = logging.getLogger(__name__)
_COMPACT_ABOVE_BYTES = 32 * 2**20
_KEEP_JOBS = 50_000

RUNNING = Outcome(JobState.RUNNING, reason="it was started by a queue that is gone")
GONE = Outcome(
    JobState.NODE_FAILURE, reason="the queue it was handed to is gone, and no process of it is left"
)


@dataclass(slots=True)
class FormerJob:
    """What is on record of one job."""

    name: str = ""
    parent: ProcessIdentity | None = None
    """The process that forked it: that one writes down how it ended, if the queue cannot."""
    process: ProcessIdentity | None = None
    outcome: Outcome | None = None

    def now(self, alive: Callable[[ProcessIdentity], bool]) -> Outcome:
        """Say how it ended, or that it runs, or that it is gone."""
        if self.outcome is not None:
            return self.outcome
        if any(process is not None and alive(process) for process in (self.parent, self.process)):
            return RUNNING
        return GONE


@dataclass(slots=True)
class FormerJobs:
    """The journal, read.

    Attributes
    ----------
    jobs
        By job id.
    queues
        Queues of which every started or ended job is on record.
    """

    jobs: dict[str, FormerJob] = field(default_factory=dict)
    queues: set[str] = field(default_factory=set)

    def now(
        self,
        job_id: str,
        here: QueueId,
        alive: Callable[[ProcessIdentity], bool] = ProcessIdentity.alive,
    ) -> Outcome | None:
        """Say what became of a job of an earlier queue; None if that is not known.

        Parameters
        ----------
        here
            The queue that asks. It must hold the lock that every queue of this directory holds
            while it lives.
        """
        parsed = JobId.parse(job_id)
        if parsed is None or parsed.queue == here:
            return None
        if job_id in self.jobs:
            rebooted = here.before_reboot(parsed.queue)
            return self.jobs[job_id].now(_never if rebooted else alive)
        certain = str(parsed.queue) in self.queues or here.before_reboot(parsed.queue)
        return GONE if certain else None

    def find(self, names: Collection[str]) -> dict[str, str]:
        """Return the ids of jobs by name; of several the latest."""
        if not names:
            return {}
        wanted = set(names)
        return {job.name: job_id for job_id, job in self.jobs.items() if job.name in wanted}

    def read(self, lines: Iterable[bytes]) -> None:
        """Take in lines of the journal. A line that was cut short by a crash is left out."""
        for line in lines:
            try:
                self._read_entry(json.loads(line))
            except (ValueError, TypeError, KeyError, IndexError):
                continue

    def _read_entry(self, entry: list[Any]) -> None:
        kind, identifier, *rest = entry
        if kind == "queue":
            self.queues.add(str(identifier))
            return
        job = self.jobs.setdefault(str(identifier), FormerJob())
        if kind == "start":
            job.name, job.parent = str(rest[0]), ProcessIdentity(int(rest[1]), str(rest[2]))
        elif kind == "process":
            job.process = ProcessIdentity(int(rest[0]), str(rest[1]))
        elif kind == "exit" and job.outcome is None:
            job.outcome = from_wait_status(int(rest[0]))
        elif kind == "end":
            job.name = str(rest[0])
            job.outcome = Outcome(JobState(rest[1]), rest[2], rest[3], str(rest[4]))

    def entries(self, keep: int = _KEEP_JOBS) -> list[list[Any]]:
        """Return what to write in a shorter journal; of the oldest jobs nothing is kept."""
        known = list(self.jobs.items())
        dropped, kept = known[: max(0, len(known) - keep)], known[max(0, len(known) - keep) :]
        incomplete = {job_id.rpartition("-")[0] for job_id, _ in dropped}
        lines: list[list[Any]] = [["queue", queue] for queue in sorted(self.queues - incomplete)]
        for job_id, job in kept:
            lines += _job_entries(job_id, job)
        return lines


def _never(_: ProcessIdentity) -> bool:
    """No process lives across a reboot, even if another has its pid and start time."""
    return False


def _job_entries(job_id: str, job: FormerJob) -> list[list[Any]]:
    """Return the lines that say what is on record of a job."""
    if job.outcome is not None:
        return [end_entry(job_id, job.name, job.outcome)]
    lines: list[list[Any]] = []
    if job.parent is not None:
        lines.append(["start", job_id, job.name, job.parent.pid, job.parent.started])
    if job.process is not None:
        lines.append(["process", job_id, job.process.pid, job.process.started])
    return lines


def end_entry(job_id: str, name: str, how: Outcome) -> list[Any]:
    """Return the line that says how a job ended."""
    return ["end", job_id, name, how.state.value, how.exit_code, how.signal, how.reason]


class Journal:
    """The queue's own writing in the journal, and what it found there.

    Attributes
    ----------
    former
        What earlier queues left.
    """

    def __init__(self, path: Path, queue: QueueId) -> None:
        self.path = path
        self.former = FormerJobs()
        self._queue = queue
        self._unwritten: list[list[Any]] = []
        self._offset = 0
        self._descriptor = os.open(
            path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600
        )
        self.read_new()
        self.compact_if_large()
        self._note("queue", str(queue))
        self.write()

    def read_new(self) -> None:
        """Take in what worker parents of an earlier queue have added."""
        size = os.fstat(self._descriptor).st_size
        data = os.pread(self._descriptor, max(0, size - self._offset), self._offset)
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        own = str(self._queue).encode()
        self.former.read(line for line in data[:whole].splitlines() if own not in line)

    def started(self, number: int, name: str, parent: ProcessIdentity) -> None:
        """Note that a job is about to be started by ``parent``."""
        self._note("start", str(JobId(self._queue, number)), name, parent.pid, parent.started)

    def running(self, number: int, process: ProcessIdentity) -> None:
        """Note which process a job is."""
        self._note("process", str(JobId(self._queue, number)), process.pid, process.started)

    def ended(self, number: int, name: str, how: Outcome) -> None:
        """Note how a job ended."""
        self._unwritten.append(end_entry(str(JobId(self._queue, number)), name, how))

    def _note(self, *entry: Any) -> None:
        self._unwritten.append(list(entry))

    def write(self) -> None:
        """Write what was noted: before any process is started on the strength of it."""
        entries, self._unwritten = self._unwritten, []
        if not entries:
            return
        try:
            _append(self._descriptor, entries)
        except OSError as error:  # a full disk: jobs matter more than what is said of them later
            _LOG.warning("the journal cannot be written: %s", error)

    def compact_if_large(self, limit_bytes: int = _COMPACT_ABOVE_BYTES) -> None:
        """Write a shorter journal in place of one that has grown, unless somebody may append."""
        size = os.fstat(self._descriptor).st_size
        outcomes = (job.now(ProcessIdentity.alive) for job in self.former.jobs.values())
        if size <= limit_bytes or any(how is RUNNING for how in outcomes):
            return
        everything = FormerJobs()
        everything.read(os.pread(self._descriptor, size, 0).splitlines())
        fresh = self.path.with_suffix(".new")
        descriptor = os.open(fresh, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC, 0o600)
        _append(descriptor, everything.entries())
        os.rename(fresh, self.path)
        os.close(self._descriptor)
        self._descriptor, self._offset = descriptor, os.fstat(descriptor).st_size


def _append(descriptor: int, entries: Iterable[list[Any]]) -> None:
    """Append lines, whole: several processes may write at the same time.

    They begin with a line's end, as whoever wrote before may have been killed within a line.
    """
    data = b"\n" + b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)
    while data:
        data = data[os.write(descriptor, data) :]


def append_pids(path: Path, processes: dict[str, ProcessIdentity]) -> None:
    """Add, for a queue that is gone, which processes its jobs are."""
    _append_to(path, [["process", i, p.pid, p.started] for i, p in processes.items()])


def append_exits(path: Path, statuses: dict[str, int]) -> None:
    """Add, for a queue that is gone, how jobs ended (as ``waitpid`` said)."""
    _append_to(path, [["exit", job_id, status] for job_id, status in statuses.items()])


def _append_to(path: Path, entries: list[list[Any]]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        _append(descriptor, entries)
    finally:
        os.close(descriptor)
