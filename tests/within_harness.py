"""A queue in this process whose jobs are shell lines, run as real processes."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dask_batch.backends.base import Job, JobState, JobStatus
from dask_batch.backends.command import client_environment
from dask_batch.backends.within.backend import WithinBackend
from dask_batch.backends.within.launcher import Room
from dask_batch.backends.within.processes import ProcessLauncher
from dask_batch.configuration.resources import for_dask_task

PATIENCE_S = 60.0


def until(condition: Callable[[], Any], what: str = "") -> Any:
    """Look again and again until a condition holds; return what it returned."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never came true: {what or condition}"
        time.sleep(0.01)
    return value


def shell_job(folder: Path, index: int, line: str, **more: Any) -> Job:
    """Return a job that runs a shell line: its interpreter is a shell."""
    known = {name: more.pop(name) for name in list(more) if name in Job.__dataclass_fields__}
    resources = {**for_dask_task(more), "python": f"sh -c {shlex.quote(line)} sh"}
    if more.get("cores"):
        resources["threads_per_core"] = more["cores"]
        resources["cores"] = 1
    job = Job(
        name=f"job-{folder.name}-{index}",
        definition=folder / "none",
        index=index,
        resources=resources,
        log_directory=folder,
        working_directory=folder,
        environment=client_environment(),
    )
    return replace(job, **known)


class Bench:
    """A queue, and shorthands to hand jobs to it and to ask after them."""

    def __init__(self, folder: Path, room: Room, **caps: int) -> None:
        self.folder = folder
        self.launcher = ProcessLauncher(room)
        self.backend = WithinBackend(self.launcher, name="workers", **caps)
        self.ids: dict[str, str] = {}
        self._count = 0

    def job(self, line: str = "true", parents: Sequence[Job] = (), **more: Any) -> Job:
        """Return a job that runs a shell line."""
        names = tuple(parent.name for parent in parents)
        job = shell_job(self.folder, self._count, line, parents=names, **more)
        self._count += 1
        return job

    def submit(self, *jobs: Job) -> list[str]:
        """Hand jobs over: those without parents are held."""
        self.backend.check(jobs)
        self.backend.submit(jobs, self.ids.__setitem__)
        return [self.ids[job.name] for job in jobs]

    def go(self, *jobs: Job) -> list[str]:
        """Hand jobs over and let them go."""
        ids = self.submit(*jobs)
        self.backend.release(ids)
        return ids

    def status(self, job: Job) -> JobStatus:
        """Return what is known of a job."""
        job_id = self.ids[job.name]
        return self.backend.status([job_id])[job_id]

    def wait_for(self, job: Job, *states: JobState) -> JobStatus:
        """Wait until a job is in one of some states."""
        until(lambda: self.status(job).state in states, f"{job.name} in {states}")
        return self.status(job)

    def ended(self, *jobs: Job) -> list[JobState]:
        """Wait until jobs have ended; return how."""
        until(lambda: all(self.status(job).state.ended for job in jobs), "the ends")
        return [self.status(job).state for job in jobs]

    def said(self, job: Job) -> str:
        """Return what a job has printed."""
        out = self.folder / f"{job.index}.out"
        return out.read_text() if out.exists() else ""

    def at_once(self, count: int, **more: Any) -> int:
        """Run so many jobs; return how many of them were at work at the same time, at most."""
        marks = self.folder / "marks"
        line = f"mkdir {marks}/$$; ls {marks} | wc -l; sleep 0.2; rmdir {marks}/$$"
        marks.mkdir()
        jobs = [self.job(line, **more) for _ in range(count)]
        self.go(*jobs)
        assert set(self.ended(*jobs)) == {JobState.COMPLETED}
        marks.rmdir()
        return max(int(self.said(job)) for job in jobs)
