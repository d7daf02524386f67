"""An end to jobs that nobody waits for any more: the last one interested turns off the light.

The client that handed a job over and cancels it while others wait for it leaves a mark; the last
of those others that cancels it, too, ends the job. A client that merely dies leaves no mark: what
it handed over goes on without it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from dask_batch.cache import attempts
from dask_batch.cache.claims import Claims
from dask_batch.errors import CacheError
from dask_batch.evidence.history import History
from dask_batch.following.entries import Entry
from dask_batch.following.resolving import Resolving
from dask_batch.following.sweep import Sweep
from dask_batch.future import BatchFuture
from dask_batch.verdicts.follow import Outcome, Verdict

if TYPE_CHECKING:
    from dask_batch.following.watch import Watch

__all__ = ["Cancelling"]

logger = logging.getLogger(__name__)


class Cancelling:
    """Ends the jobs of tasks that are wanted no more, by this client and by others.

    Parameters
    ----------
    watch
        Whose entries they are about.
    claims, history
        Where the records are.
    resolving
        Records verdicts.
    sweep
        What ends jobs.
    """

    def __init__(
        self,
        watch: Watch,
        claims: Claims,
        history: History,
        resolving: Resolving,
        sweep: Sweep,
    ) -> None:
        self._watch = watch
        self.cache = watch.cache
        self.followers = watch.followers
        self.claims = claims
        self.history = history
        self._resolving = resolving
        self.sweep = sweep

    def forget(self, future: BatchFuture) -> None:
        """Stop resolving a future that its caller has cancelled."""
        future._claim()  # tells those who wait with as_completed
        entry = self._watch.entries.get(future.key)
        if entry is not None and future in entry.futures:
            entry.futures.remove(future)
            self._unwanted([future.key])

    def cancel(self, chosen: Iterable[Entry]) -> None:
        """Cancel the futures of some tasks, and let go of what only they wanted."""
        keys = []
        for entry in chosen:
            for future in entry.futures:
                future._cancel_running()
                future._claim()
            entry.futures.clear()
            keys.append(entry.standing.key)
        self._unwanted(keys)

    def _unwanted(self, keys: Iterable[str]) -> None:
        """Let go of what no future and no other task here waits for, and end it if we may."""
        entries = self._watch.entries
        dropped: dict[str, Entry] = {}
        stack = list(keys)
        while stack:
            key = stack.pop()
            entry = entries.get(key)
            if entry is None or entry.futures or entry.children:
                continue
            del entries[key]
            for parent in entry.parents & entries.keys():
                entries[parent].children.discard(key)
            dropped[key] = entry
            stack.extend(entry.parents)
        verdict = Verdict(Outcome.CANCELLED, "it was cancelled")
        for entry in self._let_go(dropped, entries):
            self.sweep.add(entry)
            self._resolving.record(entry, verdict)
        self.sweep.soon()

    def _let_go(self, dropped: Mapping[str, Entry], kept: Mapping[str, Entry]) -> list[Entry]:
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
