"""The jobs and each change of their states: what slurmctld is."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import accounting, dependencies, launch, nodes, versions
from .dependencies import Outcome
from .records import JobRecord, exit_pair

__all__ = ["Queue"]

NEVER = "DependencyNeverSatisfied"
REQUEUED_HELD = "job requeued in held state"
_HELD = frozenset({"JobHeldUser", REQUEUED_HELD})
_SAID = {"TIMEOUT": " DUE TO TIME LIMIT", "PREEMPTED": " DUE TO PREEMPTION"}
_REASONS = {
    "TIMEOUT": "TimeLimit",
    "OUT_OF_MEMORY": "OutOfMemory",
    "NODE_FAIL": "NodeDown",
}


class Queue:
    """All jobs that the controller knows.

    Parameters
    ----------
    config
        As :class:`~dask_batch.testing.FakeSlurm` wrote it.
    folder
        Where jobs' folders and the accounts are.
    """

    def __init__(self, config: Mapping[str, Any], folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.jobs: dict[int, JobRecord] = {}
        self.next_id = 1
        self.changed = True
        """Whether anything happened since the last look that may let jobs start."""
        self.closed = False
        """Whether nothing starts any more: the controller is about to go."""

    # -- saved state ----------------------------------------------------------------------------

    def saved(self) -> dict[str, Any]:
        """Return all of it, as plain data."""
        jobs = [dataclasses.asdict(job) for job in self.jobs.values()]
        return {"next_id": self.next_id, "jobs": jobs}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take over what a controller before this one saved."""
        self.next_id = saved["next_id"]
        jobs = (JobRecord(**job) for job in saved["jobs"])
        # One without a script was forgotten after this had been saved.
        self.jobs = {job.job_id: job for job in jobs if Path(job.folder).is_dir()}

    # -- requests -------------------------------------------------------------------------------

    def free_id(self) -> int:
        """Return the id of the next job; after a loss one that was given out before."""
        while self.next_id in self.jobs:
            self.next_id += 1
        return self.next_id

    def dependency(self, text: str) -> str:
        """Read what a job is to wait for.

        Raises
        ------
        DependencyProblem
            Slurm would refuse it.
        """
        found = dependencies.normal_form(text)
        if versions.since(self.config, 23, 2):
            dependencies.refuse_unknown(found, self.jobs)
        return found

    def _failure(self, number: int) -> str:
        """Return the reason of a job that failed, by a signal or by itself."""
        if not number:
            return "NonZeroExitCode"
        if not versions.since(self.config, 24, 11):
            return "JobLaunchFailure"
        return f"RaisedSignal:{number}({signal.strsignal(number) or 'Unknown signal'})"

    def add(self, job: JobRecord) -> None:
        """Take in a new job."""
        self.jobs[job.job_id] = job
        self.next_id = job.job_id + 1
        self._look_at_parents(job)
        self.account(job)
        self.changed = True

    def account(self, job: JobRecord, **other: Any) -> None:
        """Write down a job's state in the accounts."""
        if not self.config["accounting"]:
            return
        row = {
            "id": job.job_id,
            "submitted": job.submitted,
            "name": job.name,
            "uid": job.uid,
            "account": job.account,
            "partition": job.partition,
            "state": job.state,
            "by": job.cancelled_by,
            "exit": exit_pair(job),
            "reason": job.reason,
            "started": job.started,
            "ended": job.ended,
            "nodes": ",".join(job.allocation),
            "cpus": job.cpus,
        }
        accounting.append(str(self.folder / "accounting.jsonl"), {**row, **other})

    def cancel(self, job: JobRecord, uid: int | None) -> None:
        """End a job that waits or runs; ``uid`` says who wants it."""
        if job.state == "PENDING":
            job.state, job.cancelled_by, job.ended = "CANCELLED", uid, time.time()
            self.account(job, started=job.ended)
        elif job.active and not job.ending:
            job.cancelled_by = uid
            self.terminate(job, "CANCELLED")
        self.changed = True

    def terminate(self, job: JobRecord, state: str) -> None:
        """Ask a running job's processes to end, and see to it later that they do."""
        job.ending = state
        job.kill_at = time.time() + self.config["kill_wait_s"]
        newer = versions.since(self.config, 25, 5)
        plain = " DUE to SIGNAL Terminated" if newer else ""
        launch.say(job, _SAID.get(state, plain), by_name=not newer)
        launch.send(job, signal.SIGCONT)
        launch.send(job, signal.SIGTERM)

    def requeue(self, job: JobRecord, *, hold: bool) -> None:
        """Put a job that has ended, or is no longer wanted where it runs, back to the queue."""
        job.state, job.ending, job.again = "PENDING", "", ""
        job.cancelled_by, job.warned = None, False
        job.held = hold
        job.reason = REQUEUED_HELD if hold else "BeginTime"
        job.begin = time.time() + self.config["requeue_wait_s"]
        job.started = job.ended = 0.0
        job.allocation = {}
        job.restarts += 1
        job.submitted = time.time()
        self.account(job)
        self.changed = True

    # -- time -----------------------------------------------------------------------------------

    def advance(self) -> None:
        """Do what is due."""
        now = time.time()
        for job in list(self.jobs.values()):
            if job.state == "RUNNING":
                self._look_at_running(job, now)
            elif not job.active and now - job.ended > self.config["min_job_age_s"]:
                self.forget(job)
            elif job.state == "PENDING" and 0 < job.begin <= now:
                job.begin = 0.0
                self.changed = True
        if self.changed and not self.closed:
            self.changed = False
            self._schedule(now)

    def forget(self, job: JobRecord) -> None:
        """Know nothing of a job any more."""
        del self.jobs[job.job_id]
        shutil.rmtree(job.folder, ignore_errors=True)
        self.changed = True

    def _look_at_running(self, job: JobRecord, now: float) -> None:
        status = launch.ended(job)
        if status is not None and job.ghost:
            # Its node knows nothing of it: whoever ends it has done so at once.
            status = int(signal.SIGTERM) if job.ending else None
        if status is not None:
            self._finish(job, status)
            return
        if job.ending:
            if now >= job.kill_at:
                launch.send(job, signal.SIGKILL)
            return
        left_s = job.started + job.limit_min * self.config["minute_s"] - now
        if left_s <= 0:
            self.terminate(job, "TIMEOUT")
        elif job.signal and not job.warned:
            self._warn(job, left_s)

    def _warn(self, job: JobRecord, left_s: float) -> None:
        """Send what ``--signal=[B:]NUMBER[@SECONDS]`` asked for; without B it is for steps."""
        what, _, seconds = job.signal.partition("@")
        if left_s > float(seconds or 60) * self.config["minute_s"] / 60:
            return
        job.warned = True
        pid = launch.leader(job)
        if pid is not None and what.startswith(("B:", "b:")):
            name = what[2:].upper().removeprefix("SIG")
            number = int(name) if name.isdecimal() else signal.Signals[f"SIG{name}"]
            launch.send_one(pid, number)

    def _finish(self, job: JobRecord, status: int) -> None:
        launch.sweep(job)
        job.status, job.ended, job.ghost = status, time.time(), False
        job.state = job.ending or ("FAILED" if status else "COMPLETED")
        job.ending = ""
        again = job.again
        self.account(job)
        job.reason = _REASONS.get(job.state, "None")
        if job.state == "FAILED":
            job.reason = self._failure(status & 0x7F)
        if again:
            self.requeue(job, hold=again == "hold")
        self.changed = True

    # -- what may start -------------------------------------------------------------------------

    def outcome(self, job_id: int) -> Outcome | None:
        """Return what those that wait for a job want to know of it."""
        job = self.jobs.get(job_id)
        if job is None:
            return None
        return Outcome(
            started=job.state not in ("PENDING", "CANCELLED") or bool(job.started),
            ended=not job.active,
            succeeded=job.state == "COMPLETED",
        )

    def _look_at_parents(self, job: JobRecord) -> bool:
        """Look whether a job may start as far as its parents go; set its reason if not."""
        job.dependency, never = dependencies.evaluate(job.dependency, self.outcome)
        if never and job.kill_on_invalid:
            job.state, job.reason, job.ended = "CANCELLED", NEVER, time.time()
            self.account(job, reason="Dependency", started=job.ended)
            self.changed = True
        elif job.dependency:
            self._because(job, NEVER if never else "Dependency")
        return not job.dependency

    def _because(self, job: JobRecord, reason: str) -> None:
        if job.reason != reason:
            job.reason = reason
            self.account(job)

    def _schedule(self, now: float) -> None:
        """Look at all that wait, and start what has room."""
        running = [job for job in self.jobs.values() if job.state == "RUNNING"]
        free = nodes.free(self.config, running)
        blocked = False
        for job in self._waiting():
            if job.held:
                if job.reason not in _HELD:
                    self._because(job, "JobHeldUser")
            elif not self._look_at_parents(job):
                continue
            elif job.begin > now:
                self._because(job, "BeginTime")
            else:
                share = nodes.allocate(job, free, self.config)
                if share is None:
                    self._because(job, "Priority" if blocked else "Resources")
                    blocked = True
                else:
                    self._start(job, share)
                    free = nodes.free({**self.config}, [*running, job])
                    running.append(job)

    def _waiting(self) -> list[JobRecord]:
        waiting = [job for job in self.jobs.values() if job.state == "PENDING"]
        return sorted(waiting, key=lambda job: (job.nice, job.job_id))

    def _start(self, job: JobRecord, share: dict[str, list[int]]) -> None:
        job.state, job.reason, job.started = "RUNNING", "None", time.time()
        job.allocation, job.status = share, 0
        launch.start(job)
        self.account(job)
        self.changed = True  # for those that wait for its start

    def each(self, wanted: Callable[[JobRecord], bool]) -> list[JobRecord]:
        """Return the jobs for which something holds, by id."""
        return sorted((job for job in self.jobs.values() if wanted(job)), key=lambda j: j.job_id)
