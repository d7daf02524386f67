"""Hand-overs that are not finished: waited for, or finished in the place of a client that died."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from dask_batch.backends.base import Backend
from dask_batch.cache.claims import Claims, Owner, Run, RunLog
from dask_batch.errors import BackendError

__all__ = ["IN_HAND", "Settling"]

logger = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

IN_HAND: set[str] = set()
"""The runs that this process is handing over."""
_LOOK_S = 0.05
_STEP_S = 0.5
_SAY_S = 30.0
_STALL_S = 120.0
"""A hand-over on another host that records nothing for so long counts as dead, in seconds."""
_DROPPED_S = 5.0
"""After so long one counts as given up that this process began, and is not at any more."""
_PATIENCE_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 30.0, 30.0, 60.0)
"""How long to wait between two questions to a batch system that gives no answer, in seconds."""


class Settling:
    """Sees to it that every run is released or aborted: a graph runs whole or not at all.

    Parameters
    ----------
    claims
        Where the runs are.
    backend_of
        Gives the backend that a run went to; None if this machine does not have it.
    between
        Called again and again while something is waited for: what else is to be done meanwhile.
    """

    def __init__(
        self,
        claims: Claims,
        backend_of: Callable[[Run], Backend | None],
        between: Callable[[], None],
    ) -> None:
        self.claims = claims
        self._backend_of = backend_of
        self._between = between

    def settled(self, run: Run) -> RunLog:
        """Wait until a run has been released or aborted, as its heir if its owner has died."""
        said = began = time.monotonic()
        length, changed = -1, began
        while True:
            log = self.claims.log(run.id)
            if log.released or log.aborted:
                return log
            now = time.monotonic()
            if log.length != length:
                length, changed = log.length, now
            stalled = now - changed > _STALL_S
            dead = functools.partial(_is_dead, stalled=stalled)
            dropped = now - changed > _DROPPED_S and _is_dropped(run)
            if (dropped or dead(run.owner)) and self.claims.heir(
                run.id, Owner.current(), dead=dead
            ):
                self._inherit(run, self.claims.log(run.id))
                continue
            if now - said > _SAY_S:
                said = now
                logger.warning(
                    "waiting for process %d on %s to finish handing over run %s of the same tasks",
                    run.owner.pid, run.owner.host, run.id,
                )  # fmt: skip
            time.sleep(_LOOK_S)
            self._between()

    def patiently(self, backend: Backend, ask: Callable[[], _Answer]) -> _Answer:
        """Ask a batch system that may be out of order for a while: its controller is restarted.

        Raises
        ------
        BackendError
            It gives no answer for minutes.
        """
        for wait_s in _PATIENCE_S if backend.shared else ():
            try:
                return ask()
            except BackendError as error:
                logger.warning("%s gives no answer; again in %g s: %s", backend.name, wait_s, error)
                until = time.monotonic() + wait_s
                while (left_s := until - time.monotonic()) > 0:
                    time.sleep(min(left_s, _STEP_S))
                    self._between()
        return ask()

    def _inherit(self, run: Run, log: RunLog) -> None:
        """Finish the hand-over of a dead client: the graph runs whole or not at all."""
        backend = self._backend_of(run)
        if backend is None:
            logger.warning(
                "run %s was left half handed over to %s, which cannot be asked from here: "
                "its tasks are handed over again",
                run.id, run.backend,
            )  # fmt: skip
            reason = "its backend cannot be asked from here"
            self.claims.record(run.id, {"event": "aborted", "reason": reason})
            return
        names = [name for name, _ in run.jobs]
        found = {**self.patiently(backend, lambda: backend.find(names)), **log.ids}
        for name, job_id in found.items():
            if name not in log.ids:
                self.claims.record_job(run.id, name, job_id)
        if log.accepted:
            logger.info("run %s: its client died before letting it go; it goes now", run.id)
            self.patiently(backend, lambda: backend.release(list(found.values())))
            self.claims.record(run.id, {"event": "released"})
        else:
            logger.info("run %s: its client died while handing it over; it is taken back", run.id)
            self.patiently(backend, lambda: backend.cancel(list(found.values())))
            self.claims.record(run.id, {"event": "aborted", "reason": "its client died"})


def _is_dropped(run: Run) -> bool:
    """Whether this process itself began a hand-over, and is not at it any more.

    Its end could not be recorded, or what recorded it is damaged.
    """
    return run.owner == Owner.current() and run.id not in IN_HAND


def _is_dead(owner: Owner, *, stalled: bool) -> bool:
    """Whether a process is dead; of one on another host, whether nothing has been heard of it."""
    alive = owner.alive()
    return alive is False or (alive is None and stalled)
