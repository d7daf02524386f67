"""The submission of one run: its jobs, or as many of them as the queue takes, and its stewards.

Everything that the batch system has accepted is on record before anything of it may start, and
stewards are accepted before the roots are let go: whoever dies in between leaves either a graph
that nobody has let go, or one that is looked after.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from dask_batch.backends.base import Backend, Job
from dask_batch.cache.claims import Claims, Run
from dask_batch.errors import QueueFullError, SubmissionError
from dask_batch.submitting.lanes import Lanes

__all__ = ["Accepted", "Submission"]

logger = logging.getLogger(__name__)

_PAUSES_S: Final = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Before each try to get the stewards into a full queue: it may count what was just cancelled."""


@dataclass(slots=True)
class Accepted:
    """What the batch system has accepted.

    Attributes
    ----------
    ids
        The ids of the jobs, by name, in the order of the run.
    stewards
        Those of the stewards.
    heirs
        The ids of the stewards that hand over what was left: the first, and its second.
    """

    ids: dict[str, str] = field(default_factory=dict)
    stewards: dict[str, str] = field(default_factory=dict)
    heirs: tuple[str, ...] = ()


class Submission:
    """Submits one run.

    Parameters
    ----------
    backend, claims
        Where to, and where it is recorded.
    run
        The run, which has its claims and its definitions.
    jobs
        Its jobs, parents first.
    steward
        Whether stewards may be handed over.
    attended
        Whether a client is there: without one, nothing is handed over that has no steward.
    between
        Called after each job that was accepted: what else is to be done meanwhile.
    pause
        Sleeps.
    """

    def __init__(
        self,
        backend: Backend,
        claims: Claims,
        run: Run,
        jobs: Sequence[Job],
        *,
        steward: bool = True,
        attended: bool = True,
        between: Callable[[], None] = lambda: None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._backend = backend
        self._claims = claims
        self._run = run
        self._jobs = jobs
        self._steward = steward
        self._attended = attended
        self._between = between
        self._pause = pause
        self._ids: dict[str, str] = {}
        self._stewards: dict[str, str] = {}

    def __call__(self) -> Accepted:
        """Submit, record, release.

        Raises
        ------
        QueueFullError
            Not even one job was accepted, with whom it needs. Nothing is left of it.
        SubmissionError
            A job was refused. What had been accepted is cancelled.
        """
        try:
            self._submit()
            accepted = self._with_stewards()
            left = [job.name for job in self._jobs if job.name not in accepted.ids]
            if left:
                self._claims.record(self._run.id, {"event": "left", "names": left})
            self._claims.record(self._run.id, {"event": "accepted"})
            roots = [job for job in self._jobs if not job.parents]
            ids = accepted.ids
            self._backend.release([ids[job.name] for job in roots if job.name in ids])
        except BaseException:
            self._backend.cancel([*self._ids.values(), *self._stewards.values()])
            raise
        self._claims.record(self._run.id, {"event": "released"})
        return accepted

    # ---- jobs ------------------------------------------------------------------------------

    def _submit(self) -> None:
        """Submit the jobs, or as many of them as the queue takes."""
        try:
            self._backend.submit(self._jobs, self._accepted)
        except QueueFullError as full:
            if not self._ids:
                raise
            logger.info(
                "run %s: the queue is full: %d of %d job(s) were accepted (%s)",
                self._run.id, len(self._ids), len(self._jobs), str(full.output).strip(),
            )  # fmt: skip

    def _accepted(self, name: str, job_id: str) -> None:
        self._ids[name] = job_id
        self._claims.record_job(self._run.id, name, job_id)
        self._between()

    # ---- stewards --------------------------------------------------------------------------

    def _with_stewards(self) -> Accepted:
        """Submit the stewards, for which the last jobs make room where there is none."""
        if not self._steward:
            return Accepted(self._in_order())
        if len(self._ids) < len(self._jobs):
            self._shrink(len(self._ids))
        for pause_s in _PAUSES_S:
            self._pause(pause_s)
            wanted = self._lanes().stewards(self._run.id, self._jobs[0], self._in_order())
            try:
                self._backend.submit(wanted, self._steward_accepted)
            except QueueFullError as full:
                places = len(self._ids) + len(self._stewards)
                # The ones that were accepted may wait for a job that is now to make room.
                self._backend.cancel(list(self._stewards.values()))
                self._stewards.clear()
                self._shrink(places, because=full)
            except SubmissionError as refusal:
                logger.warning(
                    "run %s: its steward was refused, so what fails is repeated only while a "
                    "client is there: %s",
                    self._run.id, refusal,
                )  # fmt: skip
                break
            else:
                self._submit_seconds(wanted)
                break
        else:
            self._without_stewards()
        lanes = self._lanes()
        numbers = {job_id: int(n.rpartition("-")[2]) for n, job_id in self._stewards.items()}
        heirs = tuple(job_id for job_id, n in numbers.items() if lanes.hands_over(n))
        return Accepted(self._in_order(), dict(self._stewards), heirs)

    def _submit_seconds(self, stewards: Sequence[Job]) -> None:
        """Submit those who stand by for the stewards, as far as there is room."""
        try:
            seconds = self._lanes().seconds(self._run.id, stewards)
            self._backend.submit(seconds, self._steward_accepted)
        except SubmissionError as refusal:
            logger.info(
                "run %s: nobody stands by for its stewards: %s",
                self._run.id, str(refusal.output).strip(),
            )  # fmt: skip

    def _without_stewards(self) -> None:
        if not self._attended:
            raise QueueFullError(1, [], "there is no room for stewards, and no client is there")
        logger.warning(
            "run %s: there is no room for its stewards in the queue, so what fails is repeated, "
            "and the rest handed over, only while a client is there",
            self._run.id,
        )

    def _steward_accepted(self, name: str, job_id: str) -> None:
        self._stewards[name] = job_id
        self._claims.record(self._run.id, {"event": "steward", "name": name, "id": job_id})

    def _lanes(self, count: int | None = None) -> Lanes:
        """Return the lanes of what was accepted, or of so many jobs of that."""
        names = list(self._in_order())[:count]
        repeatable = tuple(job.name for job in self._jobs if job.repeatable)
        kept = tuple(name for name in repeatable if name in set(names))
        return Lanes(kept, left=len(names) < len(self._jobs), accepted=len(names))

    def _in_order(self) -> dict[str, str]:
        return {job.name: self._ids[job.name] for job in self._jobs if job.name in self._ids}

    def _shrink(self, places: int, *, because: QueueFullError | None = None) -> None:
        """Cancel the last jobs, for which nothing waits: the others fit with their stewards."""
        names = list(self._in_order())
        kept = len(names)
        while kept and (kept == len(names) or kept + self._lanes(kept).places > places):
            kept -= 1
        if not kept:
            raise because or QueueFullError(1, [], "there is no room for jobs and their steward")
        self._backend.cancel([self._ids.pop(name) for name in names[kept:]])
