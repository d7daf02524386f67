"""What callers ask of an engine: jobs, and the futures that wait for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dask_batch.errors import SubmissionError
from dask_batch.following.entries import Observer
from dask_batch.future import BatchFuture
from dask_batch.preparing.packing import PreparedJob
from dask_batch.submitting.handover import Handed
from dask_batch.verdicts.failures import dependency_failure

__all__ = ["Request", "refused", "still_wanted"]


@dataclass(slots=True)
class Request:
    """Jobs that a caller wants to be run, and the futures that wait for them.

    Attributes
    ----------
    jobs
        In an order in which parents come first.
    futures
        Each with its key.
    observe
        Called in the engine's thread with ``"started"`` or ``"finished"`` and a key.
    told
        Called in the engine's thread with what the hand-over came to.
    gather
        Whether to wait a moment for more requests.
    """

    jobs: Sequence[PreparedJob]
    futures: Sequence[BatchFuture]
    observe: Observer | None = None
    told: Callable[[Handed], None] | None = None
    gather: bool = False

    @property
    def keys(self) -> set[str]:
        """The keys of its jobs and of its futures."""
        jobs = {job.key for job in self.jobs}
        return jobs | {future.key for future in self.futures}

    def part(self, keys: set[str]) -> Request:
        """Return the part of it that is about some keys."""
        return replace(
            self,
            jobs=[job for job in self.jobs if job.key in keys],
            futures=[future for future in self.futures if future.key in keys],
            told=None,
            gather=False,
        )

    def fail(self, error: BaseException) -> None:
        """Fail all its futures."""
        for future in self.futures:
            future._fail(error)

    def cancel(self) -> None:
        """Cancel all its futures."""
        for future in self.futures:
            future._cancel_running()
            future._claim()


def still_wanted(requests: Sequence[Request]) -> list[Request]:
    """Leave out requests whose futures have all been cancelled, unless a later one needs them."""
    needed: set[str] = set()
    kept: list[Request] = []
    for request in reversed(requests):
        wanted = not request.futures or not all(f.done() for f in request.futures)
        if wanted or any(job.key in needed for job in request.jobs):
            needed.update(key for job in request.jobs for key in job.inputs)
            kept.append(request)
    return kept[::-1]


def refused(requests: Sequence[Request], error: SubmissionError) -> list[Request]:
    """Fail the request whose job was refused and those that need it; return the others."""
    culprit = next((r for r in requests if any(job.key == error.key for job in r.jobs)), None)
    if culprit is None:
        for request in requests:
            request.fail(error)
        return []
    culprit.fail(error)
    failed = {job.key for job in culprit.jobs}
    kept = []
    for request in requests:
        if request is culprit:
            continue
        if any(job.inputs & failed for job in request.jobs):
            failed |= {job.key for job in request.jobs}
            _fail_dependents(request, error, next(iter(culprit.jobs)))
        else:
            kept.append(request)
    return kept


def _fail_dependents(request: Request, error: BaseException, culprit: PreparedJob) -> None:
    for future in request.futures:
        failure = dependency_failure(
            error, key=future.key, function="", root=culprit.key, root_function=culprit.function
        )
        future._fail(failure)
