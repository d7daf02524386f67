"""Workers as jobs of a batch system: a launcher that hands each to a backend."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from dask_batch.backends.base import Backend, Job, JobState, JobStatus
from dask_batch.backends.within.launcher import Ended, Room
from dask_batch.errors import BackendError

__all__ = ["BatchLauncher"]

logger = logging.getLogger(__name__)

_BETWEEN_S: Final = 5.0
"""So often the batch system is asked at most, for all workers together."""
_MISSES: Final = 3
"""So many answers must not know a job that is taken for gone."""


class BatchLauncher:
    """Starts jobs by a batch system: see :class:`~dask_batch.backends.within.launcher.Launcher`.

    Parameters
    ----------
    backend
        The batch system, for this launcher alone.
    """

    def __init__(self, backend: Backend) -> None:
        self.news: Callable[[], None] = lambda: None
        self._backend = backend
        self._open: dict[str, _BatchJob] = {}
        self._asked_at = float("-inf")

    def room(self) -> Room:
        """Return no bound: the batch system has its own."""
        return Room()

    def check(self, job: Job) -> None:
        """Refuse what the batch system would refuse."""
        self._backend.check([job])

    def script(self, job: Job) -> str:
        """Return the script that is submitted."""
        return self._backend.script(job)

    def start(self, job: Job, job_id: str) -> _BatchJob:
        """Submit a job and let it go.

        Raises
        ------
        BackendError
            The batch system refuses it, or gives no answer.
        """
        ids: list[str] = []
        try:
            self._backend.submit([job], lambda _, accepted: ids.append(accepted))
            self._backend.release(ids)
        except BackendError:
            if ids:
                self.cancel(ids[0])
            raise
        started = self._open[ids[0]] = _BatchJob(ids[0], self)
        return started

    def close(self) -> None:
        """Let go of the batch system. What has not been ended goes on."""
        self._backend.close()

    def look(self) -> None:
        """Ask what has become of the jobs, if it is time for that."""
        now = time.monotonic()
        if now - self._asked_at < _BETWEEN_S or not self._open:
            return
        self._asked_at = now
        try:
            answer = self._backend.status(list(self._open))
        except BackendError:
            return  # there is nothing to conclude from that
        for job_id, started in list(self._open.items()):
            started.take(answer.get(job_id))
            if started.how is not None:
                del self._open[job_id]

    def cancel(self, job_id: str) -> None:
        """End a job; if that cannot be done now, it ends by itself, as its client is gone."""
        try:
            self._backend.cancel([job_id])
        except BackendError as error:
            logger.warning("worker %s could not be cancelled: %s", job_id, error)


class _BatchJob:
    """A job that was started."""

    def __init__(self, job_id: str, launcher: BatchLauncher) -> None:
        self.how: Ended | None = None
        self._job_id = job_id
        self._launcher = launcher
        self._misses = 0

    def take(self, status: JobStatus | None) -> None:
        """Learn what the batch system says."""
        if status is None:
            self._misses += 1
            if self._misses >= _MISSES:
                self.how = Ended(JobState.LOST, reason="the batch system knows nothing of it")
        elif status.state.ended:
            said = f"job {self._job_id}: {status.word or status.state.value}"
            reason = f"{said} ({status.reason})" if status.reason else said
            self.how = Ended(status.state, status.exit_code, status.signal, reason)

    def ended(self) -> Ended | None:
        """Return how it has ended; None while it runs, or waits."""
        if self.how is None:
            self._launcher.look()
        return self.how

    def kill(self) -> None:
        """Cancel it."""
        if self.how is None:
            self._launcher.cancel(self._job_id)
