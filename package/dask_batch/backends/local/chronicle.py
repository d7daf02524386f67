"""What the journal says of earlier queues: which jobs there were, and what became of them.

The lines, as JSON lists (:mod:`.journal` writes them; ``job`` is an id):

================== ===============================================================================
``queue``          id: a queue begins, or goes on after it was killed
``incomplete``     queue: not all that is known of its ended jobs is on record any more
``environment``    digest, variables: for what follows
``taken``          queue, number of the first job, group, cap, the parts of a hand-over
``release``        queue, numbers
``again``          job, group, cap, the parts that say how it is run once more
``repoint``        job, numbers of the jobs that it waits for
``start``          job, name, pid and start time of the process that is to fork it, devices
``process``        job, pid and start time: written by the job itself, before its body
``stop``           job, state, reason: it is about to be ended for that
``orphaned``       pid and start time: this parent has lost its queue, and starts no more
``exit``           job, wait status, pid and start time: said by a parent that lost its queue
``end``            job, name, state, exit code, signal, reason
================== ===============================================================================
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from dask_batch.backends.base import JobState
from dask_batch.backends.local.identity import JobId, QueueId
from dask_batch.backends.local.outcomes import from_wait_status, under_verdict
from dask_batch.backends.local.processes import ProcessIdentity
from dask_batch.backends.local.records import Outcome

__all__ = ["EVENTS", "LOST", "RUNNING", "VANISHED", "FormerJob", "FormerJobs"]

RUNNING = Outcome(JobState.RUNNING, reason="it was started by a queue that is gone")
LOST = Outcome(JobState.LOST, reason="the queue it was handed to is gone; it was never started")
VANISHED = Outcome(
    JobState.FAILED, reason="it ended while nothing was left to see how; its result tells, if any"
)
REBOOTED = Outcome(JobState.NODE_FAILURE, reason="the machine was started anew while it ran")

EVENTS = frozenset({"environment", "taken", "release", "again", "repoint", "start", "end"})
"""What a queue that goes on repeats, to come to the state of the one that was killed."""


@dataclass(slots=True)
class FormerJob:
    """What is on record of one job, or of its last run."""

    name: str = ""
    parent: ProcessIdentity | None = None
    """The process that was to fork it: that one writes how it ended, if the queue cannot."""
    process: ProcessIdentity | None = None
    status: int | None = None
    """As ``waitpid`` said."""
    verdict: Outcome | None = None
    """Why it was being ended."""
    outcome: Outcome | None = None

    def now(self, alive: Callable[[ProcessIdentity], bool], reported: bool = False) -> Outcome:
        """Say how it ended, or that it runs, or that it never did.

        Parameters
        ----------
        reported
            Whether its parent has lost its queue, and started all that it ever will.
        """
        if self.outcome is not None:
            return self.outcome
        if self.status is not None:
            return under_verdict(from_wait_status(self.status), self.verdict)
        if self.process is None:
            waits = not reported and self.parent is not None and alive(self.parent)
            return RUNNING if waits else LOST
        # Of a process that has ended, a living parent is about to say how.
        if alive(self.process) or (self.parent is not None and alive(self.parent)):
            return RUNNING
        return VANISHED


@dataclass(slots=True)
class FormerJobs:
    """The journal, read.

    Attributes
    ----------
    jobs
        Those that were started or have ended, by id.
    queues
        Queues that are on record.
    incomplete
        Those of them of which no longer every started or ended job is.
    latest
        The last queue that began.
    events
        Everything that happened to the latest queue.
    unfinished
        The ids of its jobs that have not ended.
    orphaned
        Parents that have lost their queue and said so.
    """

    jobs: dict[str, FormerJob] = field(default_factory=dict)
    queues: set[str] = field(default_factory=set)
    incomplete: set[str] = field(default_factory=set)
    latest: str = ""
    events: list[list[Any]] = field(default_factory=list)
    unfinished: set[str] = field(default_factory=set)
    orphaned: set[ProcessIdentity] = field(default_factory=set)

    def now(
        self,
        job_id: str,
        here: QueueId,
        alive: Callable[[ProcessIdentity], bool] = ProcessIdentity.alive,
    ) -> Outcome | None:
        """Say what became of a job that the queue itself does not know; None if unknown.

        Parameters
        ----------
        here
            The queue that asks. It must hold the lock that every queue of this directory holds
            while it lives.
        """
        parsed = JobId.parse(job_id)
        if parsed is None:
            return None
        rebooted = here.before_reboot(parsed.queue)
        if (job := self.jobs.get(job_id)) is not None:
            how = job.now(_never if rebooted else alive, job.parent in self.orphaned)
            return REBOOTED if rebooted and how is VANISHED else how
        certain = str(parsed.queue) in self.queues - self.incomplete and parsed.queue != here
        return LOST if certain or rebooted else None

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
            self.begin(str(identifier))
        elif kind == "incomplete":
            self.incomplete.add(str(identifier))
        elif kind == "orphaned":
            self.orphaned.add(ProcessIdentity(int(identifier), str(rest[0])))
        elif kind == "taken":
            count = sum(len(part["jobs"]) for part in rest[3])
            self.unfinished.update(f"{identifier}-{rest[0] + i}" for i in range(count))
        elif kind not in ("environment", "release", "repoint"):
            self._read_job(kind, str(identifier), rest)
        if kind in EVENTS:
            self.events.append(entry)

    def begin(self, queue: str) -> None:
        """Note that a queue begins; one that was named before goes on."""
        self.queues.add(queue)
        if queue != self.latest:
            self.latest = queue
            self.events.clear()
            self.unfinished.clear()

    def _read_job(self, kind: str, job_id: str, rest: list[Any]) -> None:
        """Take in what is said of one job."""
        if kind == "again":
            self.unfinished.add(job_id)
            self.jobs[job_id] = FormerJob(self.jobs[job_id].name)
            return
        job = self.jobs.setdefault(job_id, FormerJob())
        if kind == "start":
            parent = ProcessIdentity(int(rest[1]), str(rest[2]))
            self.jobs[job_id] = FormerJob(str(rest[0]), parent)
        elif kind == "process":
            job.process = ProcessIdentity(int(rest[0]), str(rest[1]))
        elif kind == "stop":
            job.verdict = Outcome(JobState(rest[0]), reason=str(rest[1]))
        elif kind == "exit" and job.process == ProcessIdentity(int(rest[1]), str(rest[2])):
            job.status = int(rest[0])
        elif kind == "end":
            outcome = Outcome(JobState(rest[1]), rest[2], rest[3], str(rest[4]))
            self.jobs[job_id] = FormerJob(str(rest[0]), outcome=outcome)
            self.unfinished.discard(job_id)

    def entries(self, keep: int) -> list[list[Any]]:
        """Return what to write in a shorter journal; of the oldest ended jobs nothing is kept."""
        started = {job_id for job_id, job in self.jobs.items() if job.outcome is None}
        settled = [job_id for job_id in self.jobs if job_id not in started]
        dropped = settled[: max(0, len(settled) - keep)]
        incomplete = {job_id.rpartition("-")[0] for job_id in dropped}
        gone = set(dropped)
        kept = self._kept()
        lines: list[list[Any]] = []
        for job_id, job in self.jobs.items():
            if job_id not in gone and job_id not in kept:
                lines += _job_entries(job_id, job)
        queues = [["queue", queue] for queue in sorted(self.queues - {self.latest})]
        forgotten = [["incomplete", queue] for queue in sorted(self.incomplete | incomplete)]
        return [*lines, *queues, *forgotten, *self._living_entries(kept)]

    def _kept(self) -> set[str]:
        """Return the ids of the hand-overs with jobs that have not ended, or that those name."""
        taken = [(event, _taken_ids(event)) for event in self.events if event[0] == "taken"]
        needed = set(self.unfinished)
        for event, ids in taken:
            if not self.unfinished.isdisjoint(ids):
                needed.update(_named_ids(event))
        needed.update(
            f"{self.latest}-{number}"
            for event in self.events
            if event[0] == "repoint" and event[1] in self.unfinished
            for number in event[2]
        )
        return {job_id for _, ids in taken if not needed.isdisjoint(ids) for job_id in ids}

    def _living_entries(self, kept: set[str]) -> list[list[Any]]:
        """Return the lines of the latest queue from which another can go on."""
        if not self.latest:
            return []
        lines: list[list[Any]] = [["queue", self.latest]]
        lines += [["orphaned", parent.pid, parent.started] for parent in self.orphaned]
        for event in self.events:
            if event[0] == "taken":
                keep = not kept.isdisjoint(_taken_ids(event))
            else:
                keep = event[0] in ("environment", "release") or event[1] in kept
            if keep:
                lines.append(event)
        for job_id in kept & self.jobs.keys():
            lines += _run_entries(job_id, self.jobs[job_id])
        return lines


def _taken_ids(event: list[Any]) -> list[str]:
    """Return the ids of the jobs of a hand-over."""
    _, queue, first, _, _, parts = event
    return [f"{queue}-{first + i}" for i in range(sum(len(part["jobs"]) for part in parts))]


def _named_ids(event: list[Any]) -> Iterator[str]:
    """Yield the ids of earlier jobs that the jobs of a hand-over wait for."""
    for part in event[5]:
        for *_, after, more in part["jobs"]:
            yield from (*after, *more.get("after_failure", ()), *more.get("after_end", ()))


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
    return lines + _run_entries(job_id, job)


def _run_entries(job_id: str, job: FormerJob) -> list[list[Any]]:
    """Return the lines that say what is on record of a job's process."""
    if job.process is None:
        return []
    process = [job.process.pid, job.process.started]
    lines: list[list[Any]] = [["process", job_id, *process]]
    if job.verdict is not None:
        lines.append(["stop", job_id, job.verdict.state.value, job.verdict.reason])
    if job.status is not None:
        lines.append(["exit", job_id, job.status, *process])
    return lines


def end_entry(job_id: str, name: str, how: Outcome) -> list[Any]:
    """Return the line that says how a job ended."""
    return ["end", job_id, name, how.state.value, how.exit_code, how.signal, how.reason]
