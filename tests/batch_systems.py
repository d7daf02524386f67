"""Batch systems that are known by their commands, fakes and a real one, behind one face."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dask_batch.backends.base import Job, JobState, JobStatus
from dask_batch.backends.command import client_environment
from dask_batch.backends.commands.backend import CommandsBackend
from dask_batch.backends.commands.systems import SYSTEMS
from dask_batch.resources import for_dask_task
from dask_batch.testing import FakeBatch

PATIENCE_S = 120.0
NAMES = tuple(SYSTEMS)


class Batch:
    """A backend whose jobs run given shell lines, and what a test asks of it."""

    def __init__(self, system: str, logs: Path, fake: FakeBatch | None = None) -> None:
        self.system = system
        self.logs = logs
        self.fake = fake
        self.run = secrets.token_hex(4)
        self.lines: dict[int, str] = {}
        self.ids: dict[str, str] = {}
        self.backend = CommandsBackend(
            # Its books are not late: neither a fake's, nor those of a Grid Engine set up for tests.
            replace(SYSTEMS[system], forgets_after_s=min(SYSTEMS[system].forgets_after_s, 2.0)),
            command=lambda job: ["sh", "-c", self.lines[job.index]],
        )

    def job(
        self,
        line: str = "true",
        parents: Sequence[Job] = (),
        *,
        after: Sequence[str] = (),
        after_failure: Sequence[str] = (),
        after_end: Sequence[str] = (),
        repeatable: bool = False,
        function: str = "contract.job",
        **resources: object,
    ) -> Job:
        """Return a job that runs a shell line."""
        index = len(self.lines)
        self.lines[index] = line
        return Job(
            name=f"{function}-{self.run}_{index}",
            definition=Path("/none"),
            index=index,
            resources=for_dask_task(resources),
            parents=tuple(parent.name for parent in parents),
            after=tuple(after),
            after_failure=tuple(after_failure),
            after_end=tuple(after_end),
            repeatable=repeatable,
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

    def status(self, job: Job) -> JobStatus | None:
        """Return what is known of a job."""
        return self.backend.status([self.ids[job.name]]).get(self.ids[job.name])

    def wait_for(self, job: Job, *states: JobState) -> JobStatus:
        """Wait until a job is in one of some states."""
        seen: list[JobStatus | None] = []

        def there() -> bool:
            seen.append(self.status(job))
            return seen[-1] is not None and seen[-1].state in states

        until(there, lambda: f"{seen[-1]} is in none of {states}")
        assert seen[-1] is not None
        return seen[-1]

    def output(self, job: Job) -> str:
        """Return what a job printed."""
        return (self.logs / f"{job.index}.out").read_text()


def until(condition: Callable[[], object], why: Callable[[], str]) -> None:
    """Look again and again until a condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, why()
        time.sleep(0.05)


def why_no_grid_engine() -> str:
    """Return why tests on a real Grid Engine cannot run here; empty if they can."""
    missing = [name for name in ("qsub", "qstat", "qconf", "qacct") if shutil.which(name) is None]
    if missing:
        return f"there is no Grid Engine here (no {missing[0]})"
    try:
        done = subprocess.run(["qstat", "-f"], capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return "Grid Engine does not answer"
    if done.returncode or "BIP" not in done.stdout:
        return f"Grid Engine has no queue, or does not answer: {done.stderr.strip()[:200]}"
    return ""


def end_jobs_of(folder: Path) -> None:
    """End the jobs of a real Grid Engine that were submitted from within a folder."""
    done = subprocess.run(
        ["qstat", "-u", getpass.getuser()], capture_output=True, text=True, check=True
    )
    for row in done.stdout.splitlines()[2:]:
        job_id = row.split()[0]
        about = subprocess.run(["qstat", "-j", job_id], capture_output=True, text=True).stdout
        if f"{os.sep}{folder.name}{os.sep}" in about:
            subprocess.run(["qdel", job_id], capture_output=True, check=False)


def batch_of(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Batch]:
    """Yield a batch system: a fake one by its name, or ``"real sge"``."""
    if kind == "real sge":
        why = why_no_grid_engine()
        if why:
            pytest.skip(why)
        batch = Batch("sge", tmp_path / "logs")
        yield batch
        batch.backend.close()
        end_jobs_of(tmp_path)
        return
    with FakeBatch(tmp_path / "fake", kind, second_s=0.02) as fake:
        monkeypatch.setenv("PATH", fake.environment()["PATH"])
        batch = Batch(kind, tmp_path / "logs", fake)
        yield batch
        batch.backend.close()
