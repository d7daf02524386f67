"""A Slurm backend whose jobs run shell lines in place of tasks, and what tests ask of it."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dask_batch.backends.base import Job, JobState, JobStatus
from dask_batch.backends.command import client_environment
from dask_batch.backends.slurm.backend import SlurmBackend
from dask_batch.resources import for_dask_task

PATIENCE_S = 240.0
"""Long: a cluster may have jobs of others on all of its nodes."""

OWN_TEMPLATE = """\
#!/bin/bash
#SBATCH --output=time.out
#SBATCH --job-name={{job_name}}
#SBATCH --chdir={{working_directory}}
#SBATCH --get-user-env=L
#SBATCH --partition={{partition}}
{%- if run_time_max %}
#SBATCH --time={{ [1, run_time_max // 60]|max }}
{%- endif %}
{%- if dependency %}
#SBATCH --dependency=afterok:{{ dependency | join(',') }}
{%- endif %}
{%- if memory_max %}
#SBATCH --mem={{memory_max}}G
{%- endif %}
#SBATCH --ntasks={{cores}}

{{command}}
"""
"""A template as users of executorlib have it."""


@dataclass
class Cluster:
    """A backend whose jobs run given shell lines, and what a test asks of it."""

    logs: Path
    run: str = field(default_factory=lambda: secrets.token_hex(4))
    lines: dict[int, str] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.backend = SlurmBackend(command=lambda job: ["sh", "-c", self.lines[job.index]])

    def job(
        self,
        line: str = "true",
        parents: Sequence[Job] = (),
        after: Sequence[str] = (),
        *,
        repeatable: bool = False,
        **resources: object,
    ) -> Job:
        index = len(self.lines)
        self.lines[index] = line
        return Job(
            name=f"test.job-{self.run}_{index}",
            definition=Path("/none"),
            index=index,
            resources=for_dask_task(resources),
            parents=tuple(parent.name for parent in parents),
            after=tuple(after),
            log_directory=self.logs,
            working_directory=self.logs,
            environment=client_environment(),
            repeatable=repeatable,
        )

    def submit(self, *jobs: Job) -> None:
        self.backend.submit(jobs, self.ids.__setitem__)

    def go(self, *jobs: Job) -> None:
        """Check, submit and release."""
        self.backend.check(jobs)
        self.submit(*jobs)
        self.backend.release([self.ids[job.name] for job in jobs if not job.parents])

    def rerun(self, job: Job, dependents: Sequence[Job] = (), **resources: object) -> str:
        """Run a job once more, with other resources."""
        again = replace(job, resources={**job.resources, **resources})
        waiting = {self.ids[d.name]: [self.ids[name] for name in d.parents] for d in dependents}
        self.ids[job.name] = self.backend.rerun(again, self.ids[job.name], waiting)
        return self.ids[job.name]

    def status(self, job: Job) -> JobStatus | None:
        return self.backend.status([self.ids[job.name]]).get(self.ids[job.name])

    def state(self, job: Job) -> JobState | None:
        status = self.status(job)
        return status and status.state

    def wait_for(self, job: Job, *states: JobState) -> None:
        until(lambda: self.state(job) in states, lambda: f"{self.state(job)} is none of {states}")

    def output(self, job: Job) -> str:
        return (self.logs / f"{job.index}.out").read_text()

    def described(self, job: Job) -> dict[str, str]:
        """Return what slurmctld knows of a job."""
        argv = ["scontrol", "-o", "show", "job", self.ids[job.name]]
        out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        return dict(word.split("=", 1) for word in out.split() if "=" in word)


def until(condition: Callable[[], Any], why: Callable[[], str]) -> None:
    """Look again and again until a condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, why()
        time.sleep(0.05)
