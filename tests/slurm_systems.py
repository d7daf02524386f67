"""A real Slurm and the fake one, behind one face: what the contract suite runs against."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from contract_system import PATIENCE_S, ContractSystem
from dask_batch.backends.base import Job
from dask_batch.backends.slurm import inquiry
from dask_batch.backends.slurm.backend import SlurmBackend
from dask_batch.testing import FakeSlurm

CI_CLUSTER = {
    "cpus": 4,
    "nodes": 4,
    "memory_mb": 5000,
    "gpus": 2,
    "accounts": ["test"],
    "requeue_wait_s": 20.0,
}
"""The fake as ``ci/slurm/slurm-up`` sets up the real one."""


class System(ContractSystem):
    """A backend whose jobs run given shell lines.

    Parameters
    ----------
    logs
        The folder of the jobs' logs.
    fake
        The fake that is on PATH; None: the real one.
    """

    def __init__(self, logs: Path, fake: FakeSlurm | None = None) -> None:
        super().__init__(logs)
        self.fake = fake
        self.backend = SlurmBackend(command=self.argv_of)

    @functools.cached_property
    def version(self) -> tuple[int, int]:
        """Which Slurm it is: year and month."""
        said = self.command("sbatch", "--version").stdout
        year, month = re.findall(r"\d+", said)[:2]
        return int(year), int(month)

    def go(self, *jobs: Job) -> list[str]:
        """Hand jobs over and release them, whatever there is to be said of them."""
        ids = self.submit(*jobs)
        held = (job for job in jobs if not (job.parents or job.after_failure or job.after_end))
        self.backend.release([self.ids[job.name] for job in held])
        return ids

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


NEWEST = "26.05.5"
REAL = pytest.param("real", marks=pytest.mark.slurm)
each_version = pytest.mark.parametrize("system", ["fake", NEWEST, REAL], indirect=True)
"""Where versions differ: the fake as the oldest and as the newest, and the real one as it is."""
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
    version = {} if request.param == "fake" else {"version": request.param}
    with FakeSlurm(tmp_path / "fake", **CI_CLUSTER, **version) as fake:
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
