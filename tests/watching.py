"""Jobs that were handed over to a batch system in memory, and clients that watch them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dask_batch.backends.base import Job, JobState, JobStatus
from dask_batch.cache import attempts
from dask_batch.cache.claims import Claims
from dask_batch.cache.store import Cache
from dask_batch.code.pickling import Pickled
from dask_batch.errors import BackendError
from dask_batch.evidence.standing import Standings
from dask_batch.following.watch import Entry, Pace, Watch
from dask_batch.future import BatchFuture
from dask_batch.preparing.preparation import PreparedJob
from dask_batch.preparing.surroundings import Surroundings
from dask_batch.submitting.handover import HandOver
from dask_batch.verdicts.retry import RetryPolicy

__all__ = ["AT_ONCE", "Client", "Queue", "key_of", "prepared"]

AT_ONCE = Pace(0.0, 0.0, 0.0, 0.0, 0.0, 60.0)


class Queue:
    """A batch system in memory that runs nothing; what becomes of jobs is for a test to say."""

    default_max_jobs = None
    name = "local"

    def __init__(self, *, shared: bool = True) -> None:
        self.shared = shared
        self.jobs: dict[str, Job] = {}
        self.states: dict[str, JobStatus] = {}
        self.reruns: list[tuple[str, Mapping[str, Any], Mapping[str, Sequence[str]]]] = []
        self.cancels: list[list[str]] = []
        self.releases: list[list[str]] = []
        self.polls = 0
        self.outage: Exception | None = None
        self.refusal: Exception | None = None
        self.purged: set[str] = set()

    def check(self, jobs: Sequence[Job]) -> None: ...

    def script(self, job: Job, dependency: Sequence[str] = ()) -> str:
        return ""

    def submit(self, jobs: Sequence[Job], accepted: Callable[[str, str], None]) -> None:
        for job in jobs:
            job_id = str(100 + len(self.jobs))
            self.jobs[job_id] = job
            self.states[job_id] = JobStatus(job_id, JobState.WAITING)
            accepted(job.name, job_id)

    def release(self, job_ids: Sequence[str]) -> None:
        self.releases.append(list(job_ids))

    def rerun(self, job: Job, job_id: str, dependents: Mapping[str, Sequence[str]]) -> str:
        if self.refusal is not None:
            raise self.refusal
        self.reruns.append((job_id, job.resources, dict(dependents)))
        if job_id in self.purged:
            self.submit([job], lambda name, new: None)
            return str(99 + len(self.jobs))
        if self.states[job_id].state.ended:
            self.states[job_id] = JobStatus(job_id, JobState.WAITING)
        return job_id

    def status(self, job_ids: Collection[str]) -> dict[str, JobStatus]:
        self.polls += 1
        if self.outage is not None:
            raise self.outage
        return {i: self.states[i] for i in job_ids if i in self.states and i not in self.purged}

    def find(self, names: Collection[str]) -> dict[str, str]:
        return {job.name: i for i, job in self.jobs.items() if job.name in names}

    def cancel(self, job_ids: Collection[str]) -> None:
        self.cancels.append(sorted(job_ids))
        for job_id in job_ids:
            if not self.states[job_id].state.ended:
                self.states[job_id] = JobStatus(job_id, JobState.CANCELLED)

    def wait(self, timeout_s: float) -> None: ...

    def wake(self) -> None: ...

    def close(self) -> None: ...

    def say(self, task: str, state: JobState, **more: Any) -> None:
        """Let the jobs of a task be in a state."""
        for job_id, job in self.jobs.items():
            if job.name.startswith(f"{task}-") and job_id not in self.purged:
                self.states[job_id] = JobStatus(job_id, state, **more)

    def id_of(self, name: str) -> str:
        """Return the id of a task's last job."""
        return [i for i, job in self.jobs.items() if job.name.startswith(f"{name}-")][-1]


def key_of(name: str) -> str:
    """Return the key of a task."""
    return hashlib.sha256(name.encode()).hexdigest()


def prepared(
    name: str,
    *parents: str,
    retry: RetryPolicy | None = None,
    resources: Mapping[str, Any] | None = None,
) -> PreparedJob:
    """Return a job that is ready to be handed over."""
    return PreparedJob(
        key=key_of(name),
        function=name,
        names=(name,),
        payload=Pickled(b"", ()),
        inputs=frozenset(map(key_of, parents)),
        resources=dict(resources or {}),
        header={
            "attributes": {"function": name},
            "libraries": {},
            "files": [],
            "retry": (retry or RetryPolicy()).record(),
        },
        surroundings=Surroundings(Path("/"), os.umask(0o022) and 0o022, (), {}),
    )


class Client:
    """One client of a queue: hands over, and watches.

    Parameters
    ----------
    folder
        Where the cache is.
    queue
        The batch system.
    pace
        Of its looks.
    """

    def __init__(self, folder: Path, queue: Queue, *, pace: Pace = AT_ONCE) -> None:
        self.cache = Cache(folder / "cache")
        self.claims = Claims(self.cache)
        self.queue = queue
        self.standings = Standings(self.cache, self.claims, queue, lambda name: None)
        self.hand_over = HandOver(self.standings, common={}, steward=False)
        self.watch = Watch(self.cache, queue, pace, self.standings)

    def run(self, *jobs: PreparedJob) -> dict[str, BatchFuture]:
        """Hand jobs over and follow them; return a future for each, by the task's name."""
        handed = self.hand_over(jobs, {})
        submitted = set(handed.submitted)
        functions = {job.key: job.function for job in jobs}
        for key, standing in handed.under_way.items():
            ours = standing.job_id in submitted
            if ours:
                self.watch.add(standing, functions[key], ours=True)
            else:
                self.watch.follow(standing, functions.get(key, ""))
        for job in jobs:
            self.watch.link(job.key, job.inputs)
        futures = {}
        for job in jobs:
            futures[job.function] = BatchFuture(None, job.key)
            self.watch.attach(futures[job.function])
        return futures

    def look(self, times: int = 1) -> None:
        """Look some times, polling each time."""
        for _ in range(times):
            self.watch.look()

    def entry(self, name: str) -> Entry:
        """Return what is known of a task that is under way."""
        return self.watch.entries[key_of(name)]

    def publish(self, name: str) -> None:
        """Publish a task's result, as its job would."""
        self.cache.publish(key_of(name), name, {})

    def end(self, name: str, generation: int, **record: Any) -> None:
        """Record the end of an attempt, as its job would."""
        assert attempts.end(self.cache, key_of(name), generation, record)

    def ended(self, name: str, generation: int = 0) -> dict[str, Any]:
        """Return the end record of an attempt."""
        end = attempts.read_end(self.cache, key_of(name), generation)
        assert end is not None
        return end


OUTAGE = BackendError("Unable to contact slurm controller")
