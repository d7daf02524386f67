"""What of some jobs has to be handed over, and what stands already."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from dask_batch.backends.reach import can_wait_for
from dask_batch.cache import attempts
from dask_batch.cache.claims import RunLog
from dask_batch.errors import MissingEntryError
from dask_batch.evidence.standing import Standing, Standings
from dask_batch.preparing.packing import PreparedJob
from dask_batch.submitting.defining import Plan

__all__ = ["Interrupted", "Planning", "VanishedError"]

_LOOK_S = 0.5


class Interrupted(BaseException):
    """A hand-over that waited for others has been interrupted: nothing of it is left."""


class VanishedError(MissingEntryError):
    """Results that jobs need are not there, and nobody makes them.

    Attributes
    ----------
    keys
        Their keys: of entries that have vanished, or of tasks that have failed.
    """

    keys: frozenset[str] = frozenset()


class Planning:
    """Plans hand-overs.

    Parameters
    ----------
    standings
        The cache, the claims and the backend.
    waiting
        Called again and again while others are waited for.
    """

    def __init__(self, standings: Standings, waiting: Callable[[], None]) -> None:
        self.standings = standings
        self.cache = standings.cache
        self.claims = standings.claims
        self._waiting = waiting

    def __call__(self, jobs: Sequence[PreparedJob], pending: Mapping[str, Standing]) -> Plan:
        """Go from the wanted jobs downwards and stop at what is there or under way.

        Parameters
        ----------
        jobs
            In an order in which parents come first.
        pending
            The jobs that this client follows already, by key.

        Raises
        ------
        VanishedError
            A result that a job needs is not in the cache any more, or has not come to be.
        """
        while True:
            plan = self._plan(jobs, pending)
            if self._await_strangers(plan):
                return plan
            followed = plan.under_way.keys() & pending.keys()
            if any(self.standings.gone(pending[key]) for key in followed):
                raise Interrupted  # whoever follows them sees to it first

    def _plan(self, jobs: Sequence[PreparedJob], pending: Mapping[str, Standing]) -> Plan:
        by_key = {job.key: job for job in jobs}
        plan = Plan([], {}, {})
        needed: set[str] = set()
        seen: set[str] = set()
        level = {job.key for job in jobs if job.wanted}
        while level:
            seen |= level
            plan.under_way.update((key, pending[key]) for key in level & pending.keys())
            open_keys = level - pending.keys()
            open_keys -= self.cache.present(open_keys)
            survey = self.standings.survey(open_keys)
            plan.under_way.update(survey.alive)
            plan.generations.update(survey.generations)
            open_keys -= survey.alive.keys()
            # A job may have published between the two looks.
            open_keys -= self.cache.present(open_keys)
            self._refuse_vanished(open_keys - by_key.keys())
            needed |= open_keys
            level = {key for k in open_keys for key in by_key[k].inputs} - seen
        plan.needed = _parents_first([job for job in jobs if job.key in needed])
        plan.under_way.update(self._above(plan, by_key, seen | pending.keys()))
        return plan

    def _above(
        self, plan: Plan, by_key: Mapping[str, PreparedJob], seen: set[str]
    ) -> dict[str, Standing]:
        """Return the jobs that those under way wait for, whatever has become of them.

        Their own client may have gone. If one of them has failed, it is to be repeated, or what
        waits for it is to be told: else that would wait for ever.
        """
        found: dict[str, Standing] = {}
        logs: dict[str, RunLog] = {}
        seen = set(seen)
        level = set(plan.under_way)
        while level:
            above = {key for k in level & by_key.keys() for key in by_key[k].inputs} - seen
            seen |= above
            level = above - self.cache.present(above)
            for claim in filter(None, map(self.claims.current, sorted(level))):
                log = logs.get(claim.run.id) or self.claims.log(claim.run.id)
                logs[claim.run.id] = log
                if claim.job_name in log.ids and not log.aborted:
                    found[claim.key] = self.standings.standing(claim, log.ids[claim.job_name])
        return found

    def _refuse_vanished(self, keys: set[str]) -> None:
        if keys:
            error = VanishedError(
                f"{len(keys)} result(s) that these tasks need have vanished from "
                f"{self.cache.path}, {min(keys)[:12]} among them: compute again"
            )
            error.keys = frozenset(keys)
            raise error

    def _await_strangers(self, plan: Plan) -> bool:
        """Wait for results of jobs that our batch system cannot wait for.

        A job on another backend has no id that ours could depend on, so what needs its result is
        handed over once it is there. False if some of them have ended with their client meanwhile.
        """
        strangers = {
            key: standing
            for key, standing in plan.under_way.items()
            if standing.backend != self.standings.backend.name
            or not can_wait_for(self.standings.backend, standing.job_id)
        }
        needed = {key for job in plan.needed for key in job.inputs}
        waiting = strangers.keys() & needed
        while waiting:
            time.sleep(_LOOK_S)
            self._waiting()
            done = self.cache.present(waiting)
            ended = attempts.ended(self.cache, {k: strangers[k].generation for k in waiting})
            for key in done | ended:
                del plan.under_way[key]
            waiting -= done | ended
            if any(self.standings.gone(strangers[key]) for key in waiting):
                return False
        return True


def _parents_first(jobs: Sequence[PreparedJob]) -> list[PreparedJob]:
    """Return jobs so that parents come first, else in their order.

    They do in each request. But of two requests the first may need what only the second has: a call
    of which another executor made the future.
    """
    by_key = {job.key: job for job in jobs}
    ordered: dict[str, PreparedJob] = {}
    for job in jobs:
        stack = [job]
        while stack:
            above = stack[-1].inputs & by_key.keys() - ordered.keys()
            if above:
                stack.extend(by_key[key] for key in sorted(above))
            else:
                done = stack.pop()
                ordered[done.key] = done
    return list(ordered.values())
