"""What the end of one job means for another that waits for it."""

from __future__ import annotations

from collections.abc import Iterable

from dask_batch.backends.base import JobState
from dask_batch.backends.local.records import Entry, Outcome, QueuedJob

__all__ = ["await_ends", "await_success", "inform", "inform_of_unknown"]

_ALL_SUCCEEDED = Outcome(
    JobState.DEPENDENCY_FAILED, reason="it was for a failure, and everything has succeeded"
)
_FAILED_ITSELF = frozenset(
    {
        *(JobState.FAILED, JobState.TIMEOUT, JobState.OUT_OF_MEMORY),
        *(JobState.NODE_FAILURE, JobState.PREEMPTED, JobState.LOST),
    }
)
"""What may be followed by another run; a job that was cancelled is not run again."""


def await_ends(job: QueuedJob, entry: Entry, first: int) -> set[int]:
    """Have a new job wait as its entry says; return the numbers of all that it waits for.

    ``first`` is the number at which its hand-over begins.
    """
    job.unmet = {first + position for position in entry.parents} | set(entry.after)
    job.unended = set(entry.after_end) or None
    job.unfailed = set(entry.after_failure) or None
    return {*job.unmet, *entry.after_end, *entry.after_failure}


def await_success(job: QueuedJob, parents: Iterable[QueuedJob]) -> None:
    """Have a queued job wait for these jobs, as far as they have not completed."""
    open_ = [parent for parent in parents if parent.state is not JobState.COMPLETED]
    job.unmet = {parent.number for parent in open_}
    job.broken = frozenset(parent.number for parent in open_ if parent.state.ended)
    for parent in open_:
        if job.number not in parent.children:
            parent.children.append(job.number)


def inform_of_unknown(job: QueuedJob, number: int) -> None:
    """Let a job know that nothing is known of one that it waits for."""
    job.unmet.discard(number)
    if job.unended is not None:
        job.unended.discard(number)
    if job.unfailed is not None and number in job.unfailed:
        job.unfailed = None


def inform(job: QueuedJob, parent: QueuedJob) -> Outcome | None:
    """Let a job know that one that it waits for has ended; return its end if this ends it."""
    number, succeeded = parent.number, parent.state is JobState.COMPLETED
    if job.unended is not None:
        job.unended.discard(number)
    if job.unfailed is not None and number in job.unfailed:
        job.unfailed.discard(number)
        if not succeeded:
            job.unfailed = None
        elif not job.unfailed:
            return _ALL_SUCCEEDED
    if number not in job.unmet:
        return None
    if succeeded:
        job.unmet.discard(number)
        return None
    if parent.state in _FAILED_ITSELF and (parent.repeatable or job.patient):
        job.broken |= {number}
        return None
    return _dependency_failed(parent)


def _dependency_failed(parent: QueuedJob) -> Outcome:
    """Say which job a dependent could not follow."""
    reason = f"it depends on {parent.name}, which ended as {parent.state.value}"
    return Outcome(JobState.DEPENDENCY_FAILED, reason=reason)
