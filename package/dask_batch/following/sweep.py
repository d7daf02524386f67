"""Jobs that are to end: gathered, and ended by one call for all of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from dask_batch.backends.base import Backend
from dask_batch.errors import BackendError
from dask_batch.evidence.standing import Standing
from dask_batch.following.entries import Entry

__all__ = ["Sweep"]

logger = logging.getLogger(__name__)

_FIRST_WAIT_S = 5.0
_LONGEST_WAIT_S = 300.0
"""Between two tries, doubling each time."""
_SHARE = 0.2
"""At most this share of the time goes into tries that find nobody who answers."""


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
        self._names: dict[str, str] = {}
        self._fruitless = 0
        self._not_before = 0.0

    def given(self, standing: Standing) -> None:
        """Take note whose job an id is from now on.

        A controller that has lost its memory gives ids a second time: whoever had one before is
        gone, and must not take the job down that has it now.
        """
        if standing.job_id is not None and standing.backend == self._backend.name:
            if self._names.get(standing.job_id, standing.job_name) != standing.job_name:
                self._ids.discard(standing.job_id)
            self._names[standing.job_id] = standing.job_name

    def add(self, entry: Entry) -> None:
        """Let the job of an entry end, if it is this batch system's and may not have ended."""
        standing = entry.standing
        if standing.job_id is None or standing.backend != self._backend.name:
            return
        its_own = self._names.get(standing.job_id, standing.job_name) == standing.job_name
        if its_own and (not entry.over or entry.never_starts):
            self._ids.add(standing.job_id)

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
        """End what has been gathered, or try again later."""
        began = time.monotonic()
        if not self._ids or began < self._not_before:
            return
        try:
            self.now()
        except BackendError as error:
            ended = time.monotonic()
            wait_s = min(_FIRST_WAIT_S * 2.0 ** min(self._fruitless, 10), _LONGEST_WAIT_S)
            self._fruitless += 1
            self._not_before = ended + max(wait_s, (ended - began) * (1 / _SHARE - 1))
            logger.warning(
                "%d job(s) cannot be ended now; again in %.0f s: %s",
                len(self._ids), self._not_before - ended, error,
            )  # fmt: skip
        else:
            self._fruitless = 0
