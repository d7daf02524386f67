"""What is known of jobs: one journal of the instance, read by a thread, tells of all of them.

Of a job that was handed over since the journal began every event is known. Of an earlier one, what
the instance says when it is asked once is the beginning, and events lead on from there.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Collection
from typing import Final

from dask_batch.backends.flux.instance import Event, Instance, Phase, Row
from dask_batch.backends.flux.states import after
from dask_batch.errors import BackendUnavailableError

__all__ = ["Journal"]

logger = logging.getLogger(__name__)

_BEGIN_S: Final = 60.0
_KEPT: Final = 50_000
"""So many jobs are remembered; the first ones that have ended, and were not asked about, go."""
_NEWS: Final = frozenset({"start", "finish", "clean", "exception"})


class Journal:
    """Follows the jobs of an instance.

    Parameters
    ----------
    instance
        Whose jobs they are.
    news
        Set when something has become of a job that was asked about, or when nothing more will be
        told.

    Notes
    -----
    Only the owner of an instance may read its journal. For others, and once the journal has ended,
    every question goes to the instance.
    """

    def __init__(self, instance: Instance, news: threading.Event) -> None:
        self._instance = instance
        self._news = news
        self._lock = threading.Lock()
        self._rows: dict[str, Row] = {}
        self._whole: set[str] = set()
        """The ids of jobs of which nothing was missed."""
        self._followed: set[str] = set()
        self._begun = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._reading = False
        self._pid = os.getpid()

    # ---- the thread --------------------------------------------------------------------------

    def ensure(self) -> None:
        """Begin to read, or begin again after the instance did not answer."""
        if self._pid != os.getpid():
            self._after_a_fork()
        if self._reading or not self._instance.owned or self._stop.is_set():
            return
        with self._lock:
            # What happened in between was missed.
            self._rows.clear()
            self._whole.clear()
            self._reading = True
        self._begun.clear()
        self._thread = threading.Thread(target=self._read, name="flux-journal", daemon=True)
        self._thread.start()
        self._begun.wait(_BEGIN_S)

    def _after_a_fork(self) -> None:
        """Begin anew: the thread, and whoever held the lock, stayed in the other process."""
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._begun, self._stop = threading.Event(), threading.Event()
        self._reading = False

    def close(self) -> None:
        """Read no more."""
        self._stop.set()

    def _read(self) -> None:
        try:
            for event in self._instance.events(self._stop.is_set):
                self._begun.set()
                if event is not None:
                    self._take(event)
        except BackendUnavailableError as error:
            logger.info("no news from Flux: %s", error)
        except Exception:
            logger.exception("the journal of Flux cannot be read; jobs are asked about instead")
        finally:
            self._reading = False
            self._begun.set()
            self._news.set()
            self._instance.close()

    def _take(self, event: Event) -> None:
        job_id = event.job_id
        with self._lock:
            self._rows[job_id] = after(self._rows.get(job_id), event)
            if event.name == "submit":
                self._whole.add(job_id)
                if len(self._rows) > _KEPT:
                    self._shrink()
            told = event.name in _NEWS and job_id in self._followed
        if told:
            self._news.set()

    def _shrink(self) -> None:
        """Forget the older half of what has ended and was not asked about."""
        over = [
            job_id
            for job_id, row in self._rows.items()
            if row.phase is Phase.INACTIVE and job_id not in self._followed
        ]
        for job_id in over[: len(over) // 2 + 1]:
            del self._rows[job_id]
            self._whole.discard(job_id)

    # ---- questions ---------------------------------------------------------------------------

    def rows(self, job_ids: Collection[str], *, follow: bool = True) -> dict[str, Row]:
        """Return what is known of jobs; the instance is asked about those that are not.

        Raises
        ------
        BackendUnavailableError
            It does not answer.
        """
        self.ensure()
        with self._lock:
            if follow:
                self._followed.update(job_ids)
            found = {i: self._rows[i] for i in job_ids if self._reading and i in self._whole}
        unknown = [job_id for job_id in job_ids if job_id not in found]
        if unknown or not self._reading:
            for row in self._instance.rows(unknown):
                found[row.job_id] = self._learn(row)
        return found

    def newest(self, rows: Collection[Row]) -> list[Row]:
        """Return what is known of jobs that were listed: either may lag behind the other."""
        return [self._learn(row) for row in rows]

    def _learn(self, row: Row) -> Row:
        """Take what the instance says of a job for the beginning of what is known of it."""
        with self._lock:
            known = self._rows.get(row.job_id)
            if known is not None and row.job_id in self._whole and self._reading:
                return row if row.phase > known.phase else known
            if not self._reading:
                return row
            if known is None or row.phase >= known.phase:
                # Or events have told more already, and part of them was missed.
                self._rows[row.job_id] = row
                self._whole.add(row.job_id)
            return row
