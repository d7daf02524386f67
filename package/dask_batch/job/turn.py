"""Whose turn it is: which attempt a job makes, and which of several jobs makes it.

A job that failed may be run again under the same id, as the next generation of its key's claim. So
its definition tells only with which generation it began, and the claims tell which it is now.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dask_batch.cache import attempts
from dask_batch.cache.claims import Claims
from dask_batch.cache.owner import Owner
from dask_batch.cache.store import Cache

__all__ = ["Turn"]

_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Turn:
    """One job's claim to an attempt.

    Attributes
    ----------
    cache, key, run_id
        What is attempted, and the run that the job belongs to.
    first
        The generation that the job was handed over with.
    """

    cache: Cache
    key: str
    run_id: str
    first: int

    def generation(self) -> int | None:
        """Return the generation that this job attempts now; None if another run has taken over."""
        latest, ours = Claims(self.cache).latest(self.key, self.run_id)
        if latest <= self.first:
            return self.first
        return latest if ours else None

    def take(self, generation: int, job_id: str, began: float) -> bool:
        """Record the start of an attempt, once no other job makes it.

        Returns
        -------
        bool
            Whether it is this job's to make; False once another one has made it, or if it is not
            the latest attempt any more.
        """
        record = _record(job_id, began)
        while attempts.start(self.cache, self.key, generation, record) is not None:
            if self.cache.check(self.key) or self._over(generation):
                return False
            time.sleep(_POLL_S)
        return True

    def _over(self, generation: int) -> bool:
        ended = attempts.read_end(self.cache, self.key, generation)
        return ended is not None or self.generation() != generation


def _record(job_id: str, began: float) -> Mapping[str, Any]:
    owner = Owner.current()
    return {
        "job_id": job_id,
        "host": owner.host,
        "pid": owner.pid,
        "boot_id": owner.boot_id,
        "process_started": owner.started,
        "restart": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        "time": began,
    }
