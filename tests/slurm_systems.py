"""A real Slurm and the fake one, behind one face: what the contract suite runs against."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from dask_batch.backends.base import Job, JobState, JobStatus
from dask_batch.backends.command import client_environment
from dask_batch.backends.slurm import inquiry
from dask_batch.backends.slurm.backend import SlurmBackend
from dask_batch.resources import for_dask_task
from dask_batch.testing import FakeSlurm

PATIENCE_S = 240.0
"""Long: a real cluster may have jobs of others on all of its nodes."""

CI_CLUSTER = {
    "cpus": 4,
    "nodes": 4,
    "memory_mb": 5000,
    "gpus": 2,
    "accounts": ["test"],
    "requeue_wait_s": 20.0,
}
"""The fake as ``ci/slurm/slurm-up`` sets up the real one."""


class System:
    """A backend whose jobs run given shell lines.

    Parameters
    ----------
    logs
        The folder of the jobs' logs.
    fake
        The fake that is on PATH; None: the real one.
    """

    def __init__(self, logs: Path, fake: FakeSlurm | None = None) -> None:
        self.logs = logs
        self.fake = fake
        self.run = secrets.token_hex(4)
        self.lines: dict[int, str] = {}
        self.ids: dict[str, str] = {}
        self.backend = SlurmBackend(command=lambda job: ["sh", "-c", self.lines[job.index]])

    def job(
        self,
        line: str = "true",
        parents: Sequence[Job] = (),
        *,
        after: Sequence[str] = (),
        after_failure: Sequence[str] = (),
        after_end: Sequence[str] = (),
        repeatable: bool = False,
        **resources: object,
    ) -> Job:
        """Return a job that runs a shell line."""
        index = len(self.lines)
        self.lines[index] = line
        return Job(
            name=f"contract.job-{self.run}_{index}",
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
        """Hand jobs over and release them."""
        ids = self.submit(*jobs)
        held = (job for job in jobs if not (job.parents or job.after_failure or job.after_end))
        self.backend.release([self.ids[job.name] for job in held])
        return ids

    def status(self, job: Job) -> JobStatus | None:
        """Return what is known of a job."""
        return self.backend.status([self.ids[job.name]]).get(self.ids[job.name])

    def wait_for(self, job: Job, *states: JobState) -> JobStatus:
        """Wait until a job is in one of some states."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            status = self.status(job)
            if status is not None and status.state in states:
                return status
            assert time.monotonic() < deadline, f"{status} is in none of {states}"
            time.sleep(0.05)

    def output(self, job: Job) -> str:
        """Return what a job printed."""
        return (self.logs / f"{job.index}.out").read_text()

    def command(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's commands, where the test's jobs are looked for to be cancelled."""
        here = self.logs.parent
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=here)

    def row(self, job_id: str, fields: str = "%T|%r|%E") -> str:
        """Return a job's line of squeue."""
        return self.command("squeue", "-h", "-t", "all", "-j", job_id, "-o", fields).stdout.strip()

    def wait_for_row(self, job_id: str, row: str, fields: str = "%T|%r|%E") -> None:
        """Wait until squeue prints just this of a job."""
        deadline = time.monotonic() + PATIENCE_S
        while (seen := self.row(job_id, fields)) != row:
            assert time.monotonic() < deadline, f"{seen!r} is not {row!r}"
            time.sleep(0.05)


REAL = pytest.param("real", marks=pytest.mark.slurm)
UID = str(os.getuid())


@pytest.fixture(params=["fake", REAL])
def system(request, tmp_path, monkeypatch):
    """Yield the fake and the real one in turn."""
    monkeypatch.setattr(inquiry, "LONGEST_PAUSE_S", 0.2)
    if request.param == "real":
        request.getfixturevalue("slurm")  # which cancels what a test leaves behind
        system = System(tmp_path / "logs")
        yield system
        system.backend.close()
        return
    with FakeSlurm(tmp_path / "fake", **CI_CLUSTER) as fake:
        monkeypatch.setenv("PATH", fake.environment()["PATH"])
        system = System(tmp_path / "logs", fake)
        yield system
        system.backend.close()


def only_fake(why):
    """Run a test against the fake alone, for a reason."""
    return pytest.mark.parametrize("system", ["fake"], indirect=True, ids=[f"fake, {why}"])


def forget(system, monkeypatch):
    """Let squeue know nothing of the jobs: others' are asked about instead."""
    ask = system.backend._ask

    def forgetful(argv):
        return ask([*argv, "-u", "nobody"] if argv[0] == "squeue" else argv)

    monkeypatch.setattr(system.backend, "_ask", forgetful)


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def sacct(job_id, fields):
    return ["sacct", "-X", "-n", "-P", "-j", job_id, "--format", fields]


def sbatch(system, *arguments):
    system.logs.mkdir(exist_ok=True)
    argv = ["sbatch", "--parsable", f"--output={system.logs}/%j.out", *arguments, "--wrap=true"]
    return system.command(*argv)
