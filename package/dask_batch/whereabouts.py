"""Can be asked what became of a run's jobs, and if not, do they live?"""

from __future__ import annotations

import enum

from dask_batch.backends.reach import Reach, reach_of
from dask_batch.backends.within.place import is_over
from dask_batch.cache.owner import Owner
from dask_batch.cache.run import Run

__all__ = ["Sight", "sight_of"]


class Sight(enum.Enum):
    """What this process can find out about the jobs of a run."""

    SEEN = "seen"
    """Their batch system can be asked."""
    HIDDEN = "hidden"
    """Nobody can be asked from here: only the store tells what became of them."""
    GONE = "gone"
    """They have ended with the process that handed them over."""


def sight_of(run: Run) -> Sight:
    """Return what can be found out from here about the jobs of a run."""
    reach = reach_of(run.backend)
    here = Owner.current()
    if reach is Reach.HOST:
        return Sight.SEEN if run.owner.host == here.host else Sight.HIDDEN
    if reach is Reach.CLIENT and run.owner != here:
        return Sight.GONE if _is_gone(run) else Sight.HIDDEN
    return Sight.SEEN


def _is_gone(run: Run) -> bool:
    """Whether a client is known to have ended: by its machine, or with the job that it was in."""
    alive = run.owner.alive()
    return alive is False or (alive is None and bool(is_over(run.place)))
