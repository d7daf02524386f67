"""A backend whose jobs run shell lines in place of tasks: what contract suites have in common."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from dask_batch.backends.base import Backend, Job, JobState, JobStatus
from dask_batch.backends.command import client_environment
from dask_batch.configuration.resources import for_dask_task

PATIENCE_S = 240.0
"""Long: a real cluster may have jobs of others on all of its nodes."""


def until(condition: Callable[[], object], why: Callable[[], str] = lambda: "") -> None:
    """Look again and again until a condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, why()
        time.sleep(0.05)


class ContractSystem:
    """A backend, and what a test asks of it.

    Parameters
    ----------
    logs
        The folder of the jobs' logs.

    Attributes
    ----------
    backend
        Set by who inherits: its command for a job is :meth:`argv_of`.
    lines
        What each job runs, by its index.
    ids
        The jobs' ids, by their names.
    """

    function: ClassVar[str] = "contract.job"
    shell: ClassVar[str] = "sh"
    normal: Callable[[Mapping[str, Any]], dict[str, Any]] = staticmethod(for_dask_task)
    backend: Backend

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.run = secrets.token_hex(4)
        self.lines: dict[int, str] = {}
        self.ids: dict[str, str] = {}

    def argv_of(self, job: Job) -> list[str]:
        """Return what a job runs."""
        return [self.shell, "-c", self.lines[job.index]]

    def job(
        self,
        line: str = "true",
        parents: Sequence[Job] = (),
        *,
        after: Sequence[str] = (),
        after_failure: Sequence[str] = (),
        after_end: Sequence[str] = (),
        repeatable: bool = False,
        patient: bool = False,
        function: str = "",
        **resources: object,
    ) -> Job:
        """Return a job that runs a shell line."""
        index = len(self.lines)
        self.lines[index] = line
        return Job(
            name=f"{function or self.function}-{self.run}_{index}",
            definition=Path("/none"),
            index=index,
            resources=self.normal(resources),
            parents=tuple(parent.name for parent in parents),
            after=tuple(after),
            after_failure=tuple(after_failure),
            after_end=tuple(after_end),
            repeatable=repeatable,
            patient=patient,
            log_directory=self.logs,
            working_directory=self.logs,
            environment=client_environment(),
        )

    def submit(self, *jobs: Job) -> list[str]:
        """Hand jobs over; those without parents are held."""
        self.backend.submit(jobs, self.ids.__setitem__)
        return [self.ids[job.name] for job in jobs]

    def go(self, *jobs: Job) -> list[str]:
        """Check, hand over and release."""
        self.backend.check(jobs)
        ids = self.submit(*jobs)
        held = (job for job in jobs if not (job.parents or job.after_failure or job.after_end))
        self.backend.release([self.ids[job.name] for job in held])
        return ids

    def rerun(self, job: Job, dependents: Sequence[Job] = (), **resources: object) -> str:
        """Run a job once more, with other resources."""
        again = replace(job, resources={**job.resources, **resources})
        waiting = {self.ids[d.name]: [self.ids[name] for name in d.parents] for d in dependents}
        self.ids[job.name] = self.backend.rerun(again, self.ids[job.name], waiting)
        return self.ids[job.name]

    def status(self, job: Job, backend: Backend | None = None) -> JobStatus | None:
        """Return what is known of a job; of another client, if one is given."""
        job_id = self.ids[job.name]
        return (backend or self.backend).status([job_id]).get(job_id)

    def state(self, job: Job) -> JobState | None:
        """Return the state of a job."""
        status = self.status(job)
        return status and status.state

    def wait_for(self, job: Job, *states: JobState, backend: Backend | None = None) -> JobStatus:
        """Wait until a job is in one of some states."""
        seen: list[JobStatus | None] = []

        def there() -> bool:
            seen.append(self.status(job, backend))
            return seen[-1] is not None and seen[-1].state in states

        until(there, lambda: f"{seen[-1]} is in none of {states}")
        assert seen[-1] is not None
        return seen[-1]

    def output(self, job: Job) -> str:
        """Return what a job printed."""
        return (self.logs / f"{job.index}.out").read_text()
