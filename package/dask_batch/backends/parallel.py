"""Several submissions at a time, of which each one that was taken is reported whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from dask_batch.backends.base import Job

__all__ = ["levels", "submit_together"]


def levels(jobs: Sequence[Job]) -> list[list[Job]]:
    """Group jobs so that each one's parents are in an earlier group."""
    depth: dict[str, int] = {}
    grouped: list[list[Job]] = []
    for job in jobs:
        level = max((depth[parent] + 1 for parent in job.parents), default=0)
        depth[job.name] = level
        if level == len(grouped):
            grouped.append([])
        grouped[level].append(job)
    return grouped


def submit_together(
    jobs: Iterable[Job],
    submit: Callable[[Job], str],
    accepted: Callable[[str, str], None],
    *,
    pool: ThreadPoolExecutor,
    at_a_time: int,
) -> None:
    """Submit jobs that do not wait for each other; report them in the calling thread.

    After a refusal, an interrupt, or a report that failed no further job is begun. Those on their
    way are waited for and reported, so that the caller knows all that there is to cancel. The
    first failure is raised in the end.
    """
    todo = iter(jobs)
    running: dict[Future[str], Job] = {}
    failure: BaseException | None = None
    while True:
        if failure is None:
            for job in _next(todo, at_a_time - len(running)):
                running[pool.submit(submit, job)] = job
        if not running:
            break
        try:
            done = wait(running, return_when=FIRST_COMPLETED).done
        except BaseException as interrupt:
            failure = failure or interrupt
            continue
        for future in done:
            problem = _report(future, running.pop(future), accepted)
            failure = failure or problem
    if failure is not None:
        raise failure


def _next(todo: Iterator[Job], count: int) -> Iterator[Job]:
    for _ in range(count):
        job = next(todo, None)
        if job is None:
            return
        yield job


def _report(
    future: Future[str], job: Job, accepted: Callable[[str, str], None]
) -> BaseException | None:
    """Report a job that was taken; return what went wrong with it, if anything."""
    error = future.exception()
    if error is None:
        try:
            accepted(job.name, future.result())
        except Exception as unreported:
            return unreported
    return error
