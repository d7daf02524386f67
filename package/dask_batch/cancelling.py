"""An end to jobs that nobody waits for any more: the last one interested turns off the light.

The client that handed a job over and cancels it while others wait for it leaves a mark; the last
of those others that cancels it, too, ends the job. A client that merely dies leaves no mark: what
it handed over goes on without it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping

from dask_batch.backends.base import Backend
from dask_batch.cache import attempts
from dask_batch.cache.claims import Claims
from dask_batch.cache.followers import Followers
from dask_batch.cache.store import Cache
from dask_batch.entries import Entry
from dask_batch.errors import BackendError, CacheError
from dask_batch.history import History

__all__ = ["Cancelling", "Sweep"]

logger = logging.getLogger(__name__)


class Sweep:
    """Jobs that are to end: gathered, and ended by one call for all of them.

    Parameters
    ----------
    backend
        Whose jobs they are.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._ids: set[str] = set()

    def add(self, entry: Entry) -> None:
        """Let the job of an entry end, if it is this batch system's and may not have ended."""
        standing = entry.standing
        here = standing.backend == self._backend.name and standing.job_id is not None
        if here and (not entry.over or entry.never_starts):
            self._ids.add(standing.job_id or "")

    def add_ids(self, job_ids: Iterable[str]) -> None:
        """Let jobs end."""
        self._ids.update(job_ids)

    def now(self) -> None:
        """End what has been gathered.

        Raises
        ------
        BackendError
            It is kept for the next time.
        """
        if self._ids:
            self._backend.cancel(sorted(self._ids))
            self._ids.clear()

    def soon(self) -> None:
        """End what has been gathered, or try again the next time."""
        try:
            self.now()
        except BackendError as error:
            logger.warning("%d job(s) cannot be ended now: %s", len(self._ids), error)


class Cancelling:
    """Ends the jobs of tasks that are wanted no more, by this client and by others.

    Parameters
    ----------
    cache, claims, history
        Where the records are.
    followers
        Who waits for what.
    sweep
        What ends jobs.
    """

    def __init__(
        self, cache: Cache, claims: Claims, history: History, followers: Followers, sweep: Sweep
    ) -> None:
        self.cache = cache
        self.claims = claims
        self.history = history
        self.followers = followers
        self.sweep = sweep

    def let_go(self, dropped: Mapping[str, Entry], kept: Mapping[str, Entry]) -> list[Entry]:
        """Let go of tasks; return those whose jobs nobody waits for, to be ended and recorded.

        Parameters
        ----------
        dropped
            What this client wants no more.
        kept
            What it still follows.
        """
        self.followers.withdraw(dropped)
        ended: list[Entry] = []
        for run_id in sorted({entry.standing.run_id for entry in dropped.values()}):
            members = {k: e for k, e in dropped.items() if e.standing.run_id == run_id}
            ours = {key: entry for key, entry in members.items() if entry.ours}
            unwanted = self._of_ours(run_id, ours) if ours else set()
            ended += [ours[key] for key in unwanted]
            if len(ours) < len(members):
                self._disowned(run_id, kept)
        return ended

    def _of_ours(self, run_id: str, ours: Mapping[str, Entry]) -> set[str]:
        """Of jobs that this client handed over, return those that no other client waits for."""
        wanted = self._with_ancestors(run_id, self.followers.wanted(run_id), ours)
        shared = wanted & ours.keys()
        if shared:
            # Of an owner and a follower that cancel together, at least one sees the other: each
            # leaves its sign before it looks for the other's.
            self.followers.disown(run_id, shared)
            wanted = self._with_ancestors(run_id, self.followers.wanted(run_id), ours)
        return ours.keys() - wanted

    def _with_ancestors(
        self, run_id: str, wanted: Collection[str], among: Mapping[str, Entry]
    ) -> set[str]:
        closed = set(wanted)
        stack = list(closed & among.keys())
        while stack:
            above = (among[stack.pop()].parents & among.keys()) - closed
            closed |= above
            stack.extend(above)
        return closed

    def _disowned(self, run_id: str, kept: Mapping[str, Entry]) -> None:
        """End what the owner of a run has cancelled before, if we were the last to want it."""
        marked = self.followers.disowned(run_id)
        if not marked:
            return
        run = self.claims.run(run_id)
        wanted = self.followers.wanted(run_id) | {
            key for key, entry in kept.items() if entry.standing.run_id == run_id
        }
        stack = list(wanted)
        while stack:
            above = set(self.history.inputs(run, stack.pop())) - wanted
            wanted |= above
            stack.extend(above)
        unwanted = marked - wanted
        unwanted -= self.cache.present(unwanted)
        names = {key: name for name, key in run.jobs}
        ids = self.claims.log(run_id).ids
        for key in sorted(unwanted):
            current = self.claims.current(key)
            if current is None or current.run.id != run_id:
                continue
            record = {
                "outcome": "cancelled",
                "message": "it was cancelled by all who had asked for it",
                "job_id": ids.get(names[key]),
                "concluded_by": "client",
            }
            if attempts.end(self.cache, key, current.generation, record) and names[key] in ids:
                self.sweep.add_ids([ids[names[key]]])

    def followed(self, run_id: str, keys: Collection[str]) -> None:
        """Record that this client waits for keys of another client's run."""
        try:
            self.followers.follow(run_id, keys)
        except CacheError as error:
            # Without the record its owner may cancel the job: then this is what we are told.
            logger.warning("nobody can know that this process waits for run %s: %s", run_id, error)
