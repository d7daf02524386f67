"""What a job waits for, in Slurm's words. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dask_batch.backends.base import Job

__all__ = ["LONGEST", "Dependency", "afterok", "dependency_of"]

LONGEST = 120_000
"""Bytes: slurmctld takes less than 128 KiB ("Pathname of a file, directory or other parameter too
long"), and an argument of a command may not be longer than that either."""


@dataclass(frozen=True, slots=True)
class Dependency:
    """What a job waits for."""

    successes: tuple[str, ...] = ()
    """Ids of jobs that must succeed: what a template sees."""
    expression: str = ""
    """The value of ``--dependency``; empty without one."""
    patient: bool = False
    """Whether the job outlives a dependency that has failed."""


def dependency_of(job: Job, parents: Iterable[str] = (), *, patient: bool = False) -> Dependency:
    """Return what a job waits for.

    Parameters
    ----------
    job
        The job.
    parents
        The ids of its parents.
    patient
        Whether one of them may be run again.
    """
    successes = tuple(dict.fromkeys([*parents, *job.after]))
    parts = [afterok(successes)] if successes else []
    if job.after_end:
        parts.append("afterany:" + ":".join(dict.fromkeys(job.after_end)))
    if job.after_failure:
        # "?" means any of them, and cannot be mixed with ",", which means all.
        parts = ["?".join(f"afternotok:{job_id}" for job_id in dict.fromkeys(job.after_failure))]
    return Dependency(successes, ",".join(parts), patient or job.patient)


def afterok(job_ids: Sequence[str]) -> str:
    """Return the expression for jobs that must all succeed.

    >>> afterok(["1", "2"])
    'afterok:1:2'
    """
    return "afterok:" + ":".join(job_ids)
