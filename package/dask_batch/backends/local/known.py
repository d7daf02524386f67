"""What a client has been told of jobs: what need not be asked again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dask_batch.backends.base import JobState, JobStatus

__all__ = ["SOURCE", "Known", "status_of"]

SOURCE = "local queue"
_KEEP_ENDED = 20_000


class Known:
    """The latest word on jobs of which the queue tells every change.

    Of jobs that have ended only the latest are kept, so that a client that lives for months does
    not grow; the queue is asked about the others, should anyone want to know.

    Parameters
    ----------
    keep_ended
        How many ended jobs are kept.
    """

    def __init__(self, keep_ended: int = _KEEP_ENDED) -> None:
        self._statuses: dict[str, JobStatus] = {}
        self._ended: dict[str, None] = {}
        self._keep_ended = keep_ended

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._statuses

    def __len__(self) -> int:
        return len(self._statuses)

    def get(self, job_id: str) -> JobStatus | None:
        """Return the latest word on a job."""
        return self._statuses.get(job_id)

    def take(self, status: JobStatus) -> None:
        """Keep the latest word on a job."""
        self._statuses[status.job_id] = status
        self._ended.pop(status.job_id, None)
        if status.state.ended:
            self._ended[status.job_id] = None

    def forget(self, job_id: str) -> None:
        """Have the queue asked about a job."""
        self._statuses.pop(job_id, None)
        self._ended.pop(job_id, None)

    def shrink(self) -> None:
        """Let go of the jobs that ended first, if there are many."""
        surplus = len(self._ended) - self._keep_ended
        for job_id in list(self._ended)[: max(0, surplus)]:
            self.forget(job_id)

    def clear(self) -> None:
        """Forget everything: nobody tells changes any more."""
        self._statuses.clear()
        self._ended.clear()


def status_of(record: Sequence[Any]) -> JobStatus:
    """Read a record as the queue sends it."""
    job_id, state, exit_code, signal, reason, name = record[:6]
    try:
        known = JobState(state)
    except ValueError:
        known = JobState.UNKNOWN
    return JobStatus(
        job_id=job_id,
        state=known,
        word=state,
        exit_code=exit_code,
        signal=signal,
        reason=reason,
        source=SOURCE,
        name=name,
    )
