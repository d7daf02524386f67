"""A batch system that says what a test wants it to say, and a clock that can be put forward."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from dask_batch.backends.base import Job, JobState, JobStatus
from dask_batch.session import Session


class Scripted:
    """A batch system whose jobs do nothing, and are said to be what the test says."""

    name = "scripted"
    shared = True
    default_max_jobs: int | None = None

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.states: dict[str, JobState] = {}
        self.answers = 0
        self._news = threading.Event()

    def check(self, jobs: Sequence[Job]) -> None:
        pass

    def script(self, job: Job, dependency: Sequence[str] = ()) -> str:
        return ""

    def submit(self, jobs: Sequence[Job], accepted: Callable[[str, str], None]) -> None:
        for job in jobs:
            job_id = str(len(self.jobs) + 1)
            self.jobs[job_id] = job
            self.states[job_id] = JobState.WAITING
            accepted(job.name, job_id)

    def release(self, job_ids: Sequence[str]) -> None:
        pass

    def rerun(self, job: Job, job_id: str, dependents: Mapping[str, Sequence[str]]) -> str:
        return job_id

    def status(self, job_ids: Collection[str]) -> dict[str, JobStatus]:
        self.answers += 1
        return {i: JobStatus(i, self.states[i], source="scripted") for i in job_ids}

    def find(self, names: Collection[str]) -> dict[str, str]:
        return {}

    def cancel(self, job_ids: Collection[str]) -> None:
        for job_id in job_ids:
            self.states[job_id] = JobState.CANCELLED

    def wait(self, timeout_s: float) -> None:
        self._news.wait(min(timeout_s, 0.01))
        self._news.clear()

    def wake(self) -> None:
        self._news.set()

    def close(self) -> None:
        pass

    def say(self, job_id: str, state: JobState) -> None:
        """Let all answers from now on say so, and return when the client has heard it."""
        self.states[job_id] = state
        self.heard()

    def heard(self) -> None:
        """Return when the client has asked three times more: it has looked in between."""
        before = self.answers
        awaited(lambda: self.answers >= before + 3, "three answers")


class Clock:
    """The monotonic clock, which can be put forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self._true = time.monotonic

    def __call__(self) -> float:
        return self._true() + self.ahead_s


def awaited(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition, by a clock that nobody puts forward."""
    deadline = time.perf_counter() + 60
    while not condition():
        assert time.perf_counter() < deadline, f"{what}: not within a minute"
        time.sleep(0.01)


def handed_over(session: Session, future: Any) -> str:
    """Return the id of a future's job, once it is under way."""
    session.engine.flush()
    awaited(lambda: session.engine.job_id(future.key) is not None, "the submission")
    return session.engine.job_id(future.key) or ""
