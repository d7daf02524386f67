"""Jobs that are to end: gathered, and ended by one call for all of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from dask_batch.backends.base import Backend
from dask_batch.entries import Entry
from dask_batch.errors import BackendError

__all__ = ["Sweep"]

logger = logging.getLogger(__name__)


class Sweep:
    """Ends jobs of one batch system.

    Parameters
    ----------
    backend
        Whose jobs they are.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._ids: set[str] = set()

    def add(self, entry: Entry) -> None:
        """Let the job of an entry end, if it is this batch system's and may not have ended."""
        standing = entry.standing
        here = standing.backend == self._backend.name and standing.job_id is not None
        if here and (not entry.over or entry.never_starts):
            self._ids.add(standing.job_id or "")

    def add_ids(self, job_ids: Iterable[str]) -> None:
        """Let jobs end."""
        self._ids.update(job_ids)

    def now(self) -> None:
        """End what has been gathered.

        Raises
        ------
        BackendError
            It is kept for the next time.
        """
        if self._ids:
            self._backend.cancel(sorted(self._ids))
            self._ids.clear()

    def soon(self) -> None:
        """End what has been gathered, or try again the next time."""
        try:
            self.now()
        except BackendError as error:
            logger.warning("%d job(s) cannot be ended now: %s", len(self._ids), error)
