"""One job of the fake instance, and its process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dask_batch.backends.flux.instance import Phase, Request, Row
from dask_batch.testing.fake_slurm.processes import signal_all

__all__ = ["ENDINGS", "Job", "kill", "start"]

ENDINGS: Final = {
    "afterok": "after-success",
    "afterany": "after-finish",
}
"""The dependencies that it knows, and what Flux calls them once they are taken."""


@dataclass
class Job:
    """A job.

    Attributes
    ----------
    id, request, row
        Its id, what was asked for, and what is known of it.
    began
        Whether its process was started.
    gpus
        The numbers of the GPUs that it has.
    process
        Its process, once there is one.
    """

    id: str
    request: Request
    row: Row
    began: bool = False
    gpus: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def succeeded(self) -> bool:
        """Whether it has ended well."""
        row = self.row
        return row.phase is Phase.INACTIVE and not row.exception and row.wait_status == 0


def start(job: Job) -> subprocess.Popen[bytes]:
    """Start the process of a job, as Flux's shell does.

    Raises
    ------
    OSError
        The program, or a folder, is not there.
    """
    asked = job.request
    expanded = {n: v.replace("{{id.f58plain}}", job.id) for n, v in asked.expanded.items()}
    # As Flux writes it.
    environment = {**asked.environment, **expanded, "FLUX_JOB_ID": f"\u0192{job.id[1:]}"}
    if job.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, job.gpus))
    program = shutil.which(asked.command[0], path=environment.get("PATH"))
    if program is None:
        raise FileNotFoundError(f"start failed: {asked.command[0]}: No such file or directory")
    there = asked.directory is not None and os.path.isdir(asked.directory)
    with open(_appended(asked.stdout), "ab") as out, open(_appended(asked.stderr), "ab") as err:
        return subprocess.Popen(
            [program, *asked.command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment,
            cwd=asked.directory if there else "/tmp",
            start_new_session=True,
        )


def _appended(path: str | None) -> Path:
    return Path(os.devnull if path is None else path)


def kill(job: Job, number: signal.Signals) -> None:
    """Signal all processes of a job."""
    if job.process is not None and job.process.poll() is None:
        signal_all(job.process.pid, number)
