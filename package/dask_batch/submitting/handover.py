"""The hand-over of prepared jobs: claim, define, submit, record, release.

The order is what makes it safe to die anywhere in between:

1. The **run** is written: who hands over, under which job names.
2. Each key is **claimed**, in the order of the keys: of two clients with the same graph one gets
   all claims, the other loses at the first one they share, gives up its own and waits. (Those who
   claim in one common order cannot wait for each other in a circle.)
3. The **definitions** are written, whole.
4. The jobs are **submitted**, roots held, and their ids recorded. A client that dies here leaves
   jobs that nobody lets go; the next client that needs one of the keys becomes the *heir* of the
   run, finds by the unique names what was accepted, and releases or cancels it.
5. When all are accepted, and the stewards that look after them when nobody is there, that is
   recorded, and the roots are **released** together.

A queue may be full before all are accepted. Then what it took is one *window*: the rest is left,
which is recorded, so that nobody waits for it. It is defined, and claimed until somebody hands it
over as a run of its own: this client, a steward, or another client that needs it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dask_batch.backends.base import Backend
from dask_batch.cache.claims import Claim, Run
from dask_batch.errors import QueueFullError, SubmissionError
from dask_batch.evidence.settling import IN_HAND
from dask_batch.evidence.standing import Standing, Standings, log_stem
from dask_batch.preparing.packing import PreparedJob
from dask_batch.submitting.defining import Plan, define, jobs_of, run_of
from dask_batch.submitting.planning import Interrupted, Planning
from dask_batch.submitting.reread import definition_path
from dask_batch.submitting.submission import Submission

__all__ = ["HandOver", "Handed", "Interrupted"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(slots=True)
class Handed:
    """What a hand-over came to.

    Attributes
    ----------
    under_way
        The job of each key that is not in the store yet: submitted now, or found alive.
    run_id
        The run that was submitted; None if nothing had to be.
    submitted
        The ids of the jobs that were submitted.
    left
        The keys that a full queue did not take, in the order of the jobs.
    stewards
        The ids of the stewards.
    heirs
        The ids of the stewards that hand over what was left.
    """

    under_way: dict[str, Standing] = field(default_factory=dict)
    run_id: str | None = None
    submitted: list[str] = field(default_factory=list)
    left: tuple[str, ...] = ()
    stewards: tuple[str, ...] = ()
    heirs: tuple[str, ...] = ()


class HandOver:
    """Hands prepared jobs to a batch system.

    Parameters
    ----------
    standings
        The cache, the claims and the backend.
    common
        What all jobs of all runs share, as JSON data.
    steward
        Whether stewards are handed over with jobs that may need one.
    attended
        Whether a client is there who looks after what it hands over.

    Attributes
    ----------
    between
        Called after each job that was accepted: what else is to be done meanwhile.
    meanwhile
        Called again and again while others are waited for; may raise :class:`Interrupted`.
    waiting
        Whether others are waited for.
    """

    def __init__(
        self,
        standings: Standings,
        *,
        common: Mapping[str, Any],
        steward: bool = True,
        attended: bool = True,
    ) -> None:
        self.standings = standings
        self.cache = standings.cache
        self.claims = standings.claims
        self.backend: Backend = standings.backend
        self.between: Callable[[], None] = lambda: None
        self.meanwhile: Callable[[], None] = lambda: None
        self.waiting = False
        self._planning = False
        standings.between = self._waits
        self._plan = Planning(standings, self._waits)
        self._common = common
        self._steward = steward
        self._attended = attended

    def __call__(self, jobs: Sequence[PreparedJob], pending: Mapping[str, Standing]) -> Handed:
        """Hand over what has to run.

        Parameters
        ----------
        jobs
            In an order in which parents come first.
        pending
            The jobs that this client follows already, by key.

        Raises
        ------
        SubmissionError
            A job was refused. Nothing of this hand-over runs.
        VanishedError
            A result that a job needs is not in the cache any more, or has not come to be.
        """
        while True:
            plan = self._awaited(functools.partial(self._plan, jobs, pending))
            if not plan.needed:
                return Handed(plan.under_way)
            run = run_of(plan.needed, self.backend.name)
            IN_HAND.add(run.id)
            try:
                handed = self._begin(run, plan)
            finally:
                IN_HAND.discard(run.id)
            if isinstance(handed, Handed):
                return handed
            self._awaited(functools.partial(self.standings.settled, handed))

    def _begin(self, run: Run, plan: Plan) -> Handed | Run:
        """Claim the jobs of a run and submit them; return the run that was first, if one was."""
        self.claims.begin(run)
        try:
            other = self._claim(run, plan)
            if other is None:
                return self._submit(run, plan)
        except QueueFullError as full:
            self._abort(run, "the queue is full")
            definition_path(self.cache, run.id).unlink(missing_ok=True)
            logger.info("%d job(s) wait: %s", len(plan.needed), str(full.output).strip())
            return Handed(plan.under_way, left=tuple(job.key for job in plan.needed))
        except BaseException:
            # Nobody must take the claims for live ones, as long as this process is.
            self._abort(run, "it could not be handed over")
            raise
        self._abort(run, f"run {other.run.id} was first")
        return other.run

    def _awaited(self, look: Callable[[], _T]) -> _T:
        """Return what a look finds that may wait for others, and may be interrupted."""
        self._planning = True
        try:
            return look()
        finally:
            self._planning = self.waiting = False

    def _waits(self) -> None:
        """Do what is to be done while others are waited for; nothing is half handed over then."""
        if self._planning:
            self.waiting = True
            self.meanwhile()

    # ---- claims ----------------------------------------------------------------------------

    def _claim(self, run: Run, plan: Plan) -> Claim | None:
        """Claim every key; return the claim of another run that was first, if any."""
        for key in sorted(job.key for job in plan.needed):
            mine, claim = self.claims.claim(key, run, after=plan.generations.get(key, -1))
            if not mine:
                return claim
            plan.generations[key] = claim.generation
        return None

    # ---- submission ------------------------------------------------------------------------

    def _submit(self, run: Run, plan: Plan) -> Handed:
        definition = define(self.cache, run, plan, self._common)
        # Whoever runs one of those again is to know who else waits for it.
        for other in sorted(self._waited_for(plan)):
            self.claims.record(other, {"event": "awaited", "run": run.id})
        submission = Submission(
            self.backend,
            self.claims,
            run,
            jobs_of(self.cache, run, plan, definition, may_be_repeated=self._is_repeated),
            steward=self._steward,
            attended=self._attended,
            between=self.between,
        )
        try:
            accepted = submission()
        except SubmissionError as error:
            error.key = dict(run.jobs).get(error.job_name, "")
            raise
        under_way = dict(plan.under_way)
        for index, (name, key) in enumerate(run.jobs):
            if name in accepted.ids:
                under_way[key] = Standing(
                    key,
                    plan.generations[key],
                    run.id,
                    name,
                    accepted.ids[name],
                    self.backend.name,
                    log_stem(self.cache, run.id, index),
                )
        return Handed(
            under_way,
            run.id,
            list(accepted.ids.values()),
            left=tuple(key for name, key in run.jobs if name not in accepted.ids),
            stewards=tuple(accepted.stewards.values()),
            heirs=accepted.heirs,
        )

    def _waited_for(self, plan: Plan) -> set[str]:
        """Return the runs for whose jobs some of these wait."""
        needed = {key for job in plan.needed for key in job.inputs}
        return {plan.under_way[key].run_id for key in needed & plan.under_way.keys()}

    def _abort(self, run: Run, reason: str) -> None:
        """Give up the claims of a run."""
        if not self.claims.log(run.id).aborted:
            self.claims.record(run.id, {"event": "aborted", "reason": reason})

    def _is_repeated(self, standing: Standing) -> bool:
        """Whether a job of an earlier hand-over may be run again after a failure."""
        run = self.claims.run(standing.run_id)
        return self.standings.history.policy(run, standing.key).repeats
