"""What running jobs may not exceed: a warning before the time is up, then an end to it."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from dask_batch.backends.base import JobState
from dask_batch.backends.local import processes
from dask_batch.backends.local.processes import ProcessIdentity
from dask_batch.backends.local.records import Outcome
from dask_batch.backends.local.submission import Profile

__all__ = ["Limits", "Run", "Signals", "warning_margin_s"]

GRACE_S = 3.0
"""Between SIGTERM and SIGKILL."""
MEMORY_POLL_S = 0.5
_LONGEST_MARGIN_S, _SHORTEST_MARGIN_S = 60.0, 1.0
_MARGIN = 0.1


@dataclass(slots=True)
class Run:
    """One running job."""

    number: int
    profile: Profile
    process: ProcessIdentity | None = None
    warn_at: float | None = None
    deadline: float | None = None
    kill_at: float | None = None
    verdict: Outcome | None = None
    """Why it is being killed: what its end will be called."""

    def count_from(self, started: float) -> None:
        """Set the times at which its limit is near and reached."""
        limit_s = self.profile.run_time_s
        if limit_s is None or self.verdict is not None:
            return
        self.deadline = started + limit_s
        margin_s = warning_margin_s(limit_s)
        self.warn_at = self.deadline - margin_s if margin_s < limit_s else None


class Signals(Protocol):
    """How running jobs are reached."""

    def signal(self, job_id: str, number: int, *, main: bool = False) -> None:
        """Signal a job's session, or its main process alone."""

    def abandon(self, job_id: str) -> None:
        """End what should start a job and does not get to it."""


def warning_margin_s(limit_s: float) -> float:
    """Return how long before its time limit a job is warned."""
    return min(_LONGEST_MARGIN_S, max(_SHORTEST_MARGIN_S, _MARGIN * limit_s))


class Limits:
    """Warns and ends what runs. Time comes in from outside (monotonic)."""

    def __init__(self, runs: Mapping[str, Run], signals: Signals) -> None:
        self._runs, self._signals = runs, signals
        self._memory_poll_at = 0.0

    def stop(self, job_id: str, verdict: Outcome, now: float) -> None:
        """End a running job: first kindly, then not."""
        run = self._runs[job_id]
        run.verdict, run.kill_at = verdict, now + GRACE_S
        run.deadline = run.warn_at = None
        self._signals.signal(job_id, signal.SIGTERM)

    def keep(self, now: float) -> Iterator[tuple[str, Outcome]]:
        """Do what is due; yield the jobs to stop, and why."""
        for job_id, run in self._runs.items():
            if run.warn_at is not None and now >= run.warn_at:
                run.warn_at = None
                self._signals.signal(job_id, signal.SIGUSR1, main=True)
            if run.deadline is not None and now >= run.deadline:
                reason = f"it ran longer than run_time_max = {run.profile.run_time_s:g} s"
                yield job_id, Outcome(JobState.TIMEOUT, reason=reason)
            if run.kill_at is not None and now >= run.kill_at:
                run.kill_at = now + GRACE_S
                if run.process is None:
                    self._signals.abandon(job_id)
                self._signals.signal(job_id, signal.SIGKILL)
        if now >= self._memory_poll_at and any(True for _ in self._limited()):
            self._memory_poll_at = now + MEMORY_POLL_S
            yield from self._too_large(now)

    def _limited(self) -> Iterator[tuple[str, Run, ProcessIdentity]]:
        """Yield the runs whose memory has to be looked at."""
        for job_id, run in self._runs.items():
            if run.profile.limit_memory and run.process is not None and run.verdict is None:
                yield job_id, run, run.process

    def _too_large(self, now: float) -> Iterator[tuple[str, Outcome]]:
        """Yield the runs that use more memory than they may; they are not ended kindly."""
        resident = processes.resident_memory_by_session()
        for job_id, run, process in list(self._limited()):
            session, limit = process.pid, run.profile.memory_bytes
            used = resident.get(session, 0)
            if used > limit:  # what it shares with others is its own only in part
                private = processes.private_memory_bytes(session)
                used = used if private is None else private
            if used > limit:
                reason = (
                    f"it used {used / 2**30:.3g} GB, more than memory_max = {limit / 2**30:.3g}"
                )
                yield job_id, Outcome(JobState.OUT_OF_MEMORY, reason=reason)
                run.kill_at = now

    def next_event(self) -> float | None:
        """Return when :meth:`keep` has to be called next."""
        times = [
            at
            for run in self._runs.values()
            for at in (run.warn_at, run.deadline, run.kill_at)
            if at is not None
        ]
        if any(True for _ in self._limited()):
            times.append(self._memory_poll_at)
        return min(times, default=None)
