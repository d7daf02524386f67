"""The end of a hand-over that cannot work: what is left of it is not run."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dask_batch.cache import attempts
from dask_batch.cache.claims import Claims
from dask_batch.errors import GivenUpTaskError, TaskError
from dask_batch.following.entries import Entry
from dask_batch.verdicts.breaker import Breaker, Fall
from dask_batch.verdicts.follow import Verdict

if TYPE_CHECKING:
    from dask_batch.following.watch import Watch

__all__ = ["GivingUp"]

logger = logging.getLogger(__name__)

_NAMED = 10
"""So many jobs and nodes are named."""


class GivingUp:
    """Watches how the first jobs of each hand-over end.

    Parameters
    ----------
    watch
        What is under way.
    claims
        Where the runs are.
    """

    def __init__(self, watch: Watch, claims: Claims) -> None:
        self._watch = watch
        self._cache = watch.cache
        self._claims = claims
        self._breakers: dict[str, Breaker] = {}

    def worked(self, entry: Entry) -> None:
        """Note that a job has a result."""
        self._breaker(entry.standing.run_id).worked()

    def fell(self, entry: Entry, verdict: Verdict, end: dict[str, Any]) -> bool:
        """Note a final failure; return whether the rest of its run is to be given up.

        Only who handed a run over, or looks after it, judges it.
        """
        run_id = entry.standing.run_id
        breaker = self._breaker(run_id)
        if breaker.decided or not self._is_ours(entry):
            return False
        key, generation = entry.standing.key, entry.standing.generation
        start = attempts.read_start(self._cache, key, generation)
        began, ended = end.get("started"), end.get("ended")
        fall = Fall(
            key,
            verdict.outcome,
            cause=re.sub(r"\d+", "#", verdict.message),
            began=start is not None,
            lasted_s=ended - began if began and ended else None,
            host=str(end.get("host") or (start or {}).get("host") or ""),
            job_id=entry.standing.job_id or "",
        )
        if fall.of_the_surroundings and self._any_works(run_id):
            breaker.worked()
        return breaker.fell(fall)

    def _breaker(self, run_id: str) -> Breaker:
        return self._breakers.setdefault(run_id, Breaker())

    def _is_ours(self, entry: Entry) -> bool:
        return entry.ours or entry.standing.run_id in self._watch.guarded

    def _any_works(self, run_id: str) -> bool:
        """Whether a job of the run is at work, or has a result: perhaps seen by others alone."""
        at_work = any(
            attempts.read_start(self._cache, key, entry.standing.generation) is not None
            for key, entry in self._watch.entries.items()
            if entry.standing.run_id == run_id
        )
        return at_work or bool(self._cache.present(key for _, key in self._claims.run(run_id).jobs))

    def __call__(
        self, run_id: str, cause: BaseException, fail: Callable[[str, Entry, TaskError], None]
    ) -> None:
        """Fail what is left of a run.

        Parameters
        ----------
        run_id
            The run.
        cause
            What the last of its first jobs died of.
        fail
            Called with the key, the entry and the error of each task.
        """
        breaker = self._breaker(run_id)
        words = cause.message if isinstance(cause, TaskError) else str(cause)
        where = _where(breaker)
        left = {
            key: entry
            for key, entry in self._watch.entries.items()
            if self._is_ours(entry) and entry.standing.run_id == run_id
        }
        logger.error(
            "run %s is given up: its first %d jobs all died of one cause before they began%s; "
            "%d more are not run: %s",
            run_id, breaker.count, where, len(left), words,
        )  # fmt: skip
        for key, entry in left.items():
            error = GivenUpTaskError(
                f"{entry.function or 'a task'} was not run: the first {breaker.count} jobs of its "
                f"graph all died of one cause before they began{where}: {words}",
                key=key,
                function=entry.function,
                job_id=entry.standing.job_id,
                evidence=f"{breaker.count} jobs of run {run_id} that ended alike "
                f"({_listed(breaker.job_ids)}), and none that worked",
                advice=_advice(breaker),
            )
            error.__cause__ = cause
            fail(key, entry, error)


def _where(breaker: Breaker) -> str:
    return f", on {_listed(breaker.hosts)}" if breaker.hosts else ""


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _advice(breaker: Breaker) -> str:
    """Return what to try: a single node may be bad where the others are not."""
    if len(breaker.hosts) != 1:
        return ""
    return (
        f"All of them ran on {breaker.hosts[0]}: if only that node is out of order, keep away from "
        "it (for Slurm: resource_dict={'slurm_cmd_args': "
        f"['--exclude={breaker.hosts[0]}']}}); else mend the cause. Then compute again: what has "
        "finished is not repeated."
    )
