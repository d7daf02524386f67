"""Tasks that were followed in another process, whose queue has ended with it: run here instead.

Where jobs end with their client nobody is left to repeat them, and no batch system tells that they
are gone: only that the process is. So it is looked whether it lives, and what it leaves is handed
over anew, as a run of this client.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Final

from dask_batch.cache import attempts
from dask_batch.evidence.standing import Standing, Standings
from dask_batch.following.watch import Watch
from dask_batch.preparing.packing import PreparedJob
from dask_batch.submitting.handover import HandOver, Interrupted
from dask_batch.submitting.reread import reread_jobs

__all__ = ["Orphans"]

logger = logging.getLogger(__name__)

_LOOK_S: Final = 1.0


class Orphans:
    """Finds and takes over such tasks; belongs to the engine's thread.

    Parameters
    ----------
    watch
        What is followed.
    standings
        Where claims and their runs are.
    hand_over
        Hands jobs over.
    clock
        Tells the time in seconds.
    """

    def __init__(
        self,
        watch: Watch,
        standings: Standings,
        hand_over: HandOver,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watch = watch
        self._standings = standings
        self._hand_over = hand_over
        self._clock = clock
        self._next = 0.0

    def __call__(self) -> None:
        """Take over what has lost its client, if there is any."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + _LOOK_S
        keys = self._found()
        for run_id in sorted({self._watch.entries[key].standing.run_id for key in keys}):
            self._take_over(
                run_id, {k for k in keys if self._watch.entries[k].standing.run_id == run_id}
            )

    def _found(self) -> set[str]:
        """Return the keys whose job has gone, and left neither a result nor a record."""
        gone = {
            key: entry.standing.generation
            for key, entry in self._watch.entries.items()
            if not entry.ours and entry.standing.job_id is None
            and self._standings.gone(entry.standing)
        }  # fmt: skip
        if not gone:
            return set()
        cache = self._watch.cache
        return gone.keys() - cache.present(gone) - attempts.ended(cache, gone)

    def _take_over(self, run_id: str, keys: Collection[str]) -> None:
        logger.info(
            "run %s: its client has died, and its jobs with it; %d task(s) are handed over here",
            run_id, len(keys),
        )  # fmt: skip
        pending = {k: e.standing for k, e in self._watch.entries.items() if k not in keys}
        try:
            run = self._standings.claims.run(run_id)
            jobs = [
                replace(job, wanted=job.key in keys) for job in reread_jobs(self._watch.cache, run)
            ]
            handed = self._hand_over(jobs, pending)
        except Interrupted:
            return
        except Exception as error:
            logger.warning("what run %s has left cannot be handed over: %s", run_id, error)
            for key in keys:
                self._watch.lose(key, error)
            return
        self._follow(jobs, handed.under_way.items(), set(handed.submitted))

    def _follow(
        self,
        jobs: Collection[PreparedJob],
        under_way: Iterable[tuple[str, Standing]],
        submitted: set[str],
    ) -> None:
        functions = {job.key: job.function for job in jobs}
        for key, standing in under_way:
            ours = standing.job_id in submitted
            entry = self._watch.entries.get(key)
            if entry is None:
                self._watch.add(standing, functions.get(key, ""), ours=ours)
            elif entry.standing != standing:
                self._watch.inherit(key, standing, ours=ours)
        for job in jobs:
            self._watch.link(job.key, job.inputs)
