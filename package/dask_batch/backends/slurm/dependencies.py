"""What a job waits for, in Slurm's words. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
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
    ends: tuple[str, ...] = ()
    """Ids of jobs that must have ended."""
    failures: tuple[str, ...] = ()
    """Ids of jobs of which one must have failed; then there is nothing else."""
    patient: bool = False
    """Whether the job outlives a dependency that has failed."""

    @property
    def expression(self) -> str:
        """The value of ``--dependency``; empty without one."""
        if self.failures:
            # "?" means any of them, and cannot be mixed with ",", which means all.
            return "?".join(f"afternotok:{job_id}" for job_id in self.failures)
        parts = [afterok(self.successes)] if self.successes else []
        if self.ends:
            parts.append("afterany:" + ":".join(self.ends))
        return ",".join(parts)

    @property
    def job_ids(self) -> tuple[str, ...]:
        """All the jobs that it waits for."""
        return self.failures or (*self.successes, *self.ends)

    def without(self, forgotten: Collection[str]) -> Dependency:
        """Return what is left to wait for when Slurm has forgotten some of the jobs.

        They are over. Each counts as what was waited for, as it did for Slurm itself up to 22.05:
        whoever starts too early finds that out.
        """
        failures = self.failures if set(self.failures).isdisjoint(forgotten) else ()
        successes = tuple(job_id for job_id in self.successes if job_id not in forgotten)
        ends = tuple(job_id for job_id in self.ends if job_id not in forgotten)
        return Dependency(successes, ends, failures, self.patient)


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
    return Dependency(
        tuple(dict.fromkeys([*parents, *job.after])),
        tuple(dict.fromkeys(job.after_end)),
        tuple(dict.fromkeys(job.after_failure)),
        patient or job.patient,
    )


def afterok(job_ids: Sequence[str]) -> str:
    """Return the expression for jobs that must all succeed.

    >>> afterok(["1", "2"])
    'afterok:1:2'
    """
    return "afterok:" + ":".join(job_ids)
