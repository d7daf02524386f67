"""Can be asked what became of a run's jobs, whom, and if nobody, do they live?"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable

from dask_batch.backends.base import Backend
from dask_batch.backends.reach import Reach, ends_with_client, reach_of
from dask_batch.backends.within.backend import queue_here
from dask_batch.backends.within.place import is_over
from dask_batch.cache.owner import Owner
from dask_batch.cache.run import Run
from dask_batch.errors import BackendError, ConfigurationError

__all__ = ["Askable", "Sight", "client_lives", "sight_of"]

logger = logging.getLogger(__name__)


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
        return Sight.GONE if client_lives(run) is False else Sight.HIDDEN
    return Sight.SEEN


def client_lives(run: Run) -> bool | None:
    """Whether a run's client lives, by its machine or the job that it is in; None: unknown."""
    alive = run.owner.alive()
    if alive is not None:
        return alive
    over = is_over(run.place)
    return None if over is None else not over


class Askable:
    """The backends that runs went to, as far as they can be asked from here; one of each kind.

    Parameters
    ----------
    open_backend
        Opens the backend of a name.
    own
        A backend that is open already, and somebody else's to close.
    """

    def __init__(
        self, open_backend: Callable[[str], Backend | None], own: Backend | None = None
    ) -> None:
        self._open_backend = open_backend
        self._own = own
        self._opened: dict[str, Backend | None] = {}

    def of(self, run: Run) -> Backend | None:
        """Return the backend that a run went to; None if it cannot be asked from here."""
        if sight_of(run) is not Sight.SEEN:
            return None
        if self._own is not None and run.backend == self._own.name:
            return self._own
        if ends_with_client(run.backend):
            return queue_here(run.backend)  # of this process: there is nothing to open
        if run.backend not in self._opened:
            self._opened[run.backend] = self._open(run.backend)
        return self._opened[run.backend]

    def _open(self, name: str) -> Backend | None:
        try:
            return self._open_backend(name)
        except (BackendError, ConfigurationError) as error:
            # Not here, or of another version of this package: its jobs are out of sight.
            logger.debug("backend %s: %s", name, error)
            return None

    def close(self) -> None:
        """Let go of the backends that were opened."""
        for backend in self._opened.values():
            if backend is not None:
                backend.close()
        self._opened.clear()
