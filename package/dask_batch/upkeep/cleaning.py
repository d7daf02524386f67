"""The order of a clean-up: what is over goes first, then what nobody refers to any more.

A run that is over loses its claims from the highest generation downwards, each with its attempts;
then its definitions and logs; then what was recorded of its hand-over; then its record; and last
the mark that it was settled, so that a clean-up that is killed leaves no run that seems half handed
over.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from dask_batch.cache.claims import Claims
from dask_batch.cache.definitions import read_headers
from dask_batch.cache.entries import listed
from dask_batch.cache.housekeeping import dead_files
from dask_batch.cache.sweeping import Sweep
from dask_batch.cache.unclaiming import fill_gaps, removable, unclaim
from dask_batch.errors import CacheError, DamagedEntryError, MissingEntryError
from dask_batch.upkeep.finished import Finished

__all__ = ["Choice", "Cleaning"]

_YOUNG_S = 3600.0
"""What was written less long ago may belong to a hand-over that is being prepared, in seconds."""
_ENVIRONMENT = re.compile(r"environment-[0-9a-f]{16}\.(sh|[0-9]+-[0-9]+)")
"""Beside a run's logs, where its batch system is handed no environment: its jobs read it first."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which results are to go: those that meet all that was said, and none if nothing was."""

    older_than_s: float | None = None
    functions: frozenset[str] | None = None
    keys: frozenset[str] | None = None

    def meets(self, key: str, function: str, age_s: float) -> bool:
        """Whether a result is to go."""
        said = (self.older_than_s, self.functions, self.keys) != (None, None, None)
        return (
            said
            and (self.keys is None or key in self.keys)
            and (self.functions is None or function in self.functions)
            and (self.older_than_s is None or age_s > self.older_than_s)
        )


@dataclass(frozen=True, slots=True)
class _Needs:
    """What the runs that are kept need."""

    keys: frozenset[str]
    """Of their tasks, and of all that these refer to."""
    complete: bool
    """Whether all of that is known."""


class Cleaning:
    """One clean-up.

    Parameters
    ----------
    sweep
        Removes, or reckons.
    finished
        Tells which runs are over.
    keep_s
        How long what is over is kept, in seconds.
    """

    def __init__(self, sweep: Sweep, finished: Finished, keep_s: float) -> None:
        self._sweep = sweep
        self._cache = sweep.cache
        self._finished = finished
        self._keep_s = keep_s

    def run(self, choice: Choice) -> dict[str, str]:
        """Clean; return the runs that were kept, and why."""
        for path in dead_files(self._cache, self._sweep.now):
            self._sweep.remove(path, "temporary")
        claims = self._finished.claims
        stands = {run_id: self._finished.stand(run_id) for run_id in claims.run_ids()}
        needs = self._needs(run_id for run_id, stand in stands.items() if stand.unfinished)
        kept = {run_id: stand.reason for run_id, stand in stands.items() if stand.reason}
        kept.update(self._awaited(stands.keys() - kept.keys(), needs))
        kept.update(self._remove_runs(stands.keys() - kept.keys()))
        for run_id in kept:
            self._remove_dead_followers(run_id)
            if not stands[run_id].unfinished:
                self._remove_environments(run_id)
        self._remove_results(choice, needs)
        self._sweep_sections(needs)
        return dict(sorted(kept.items()))

    def _sweep_sections(self, needs: _Needs) -> None:
        keep_s = max(self._keep_s, _YOUNG_S)
        self._sweep.attempts_without_claims(keep_s)
        self._sweep.without_a_run(self._finished.claims.run_ids(), keep_s)
        if needs.complete:
            self._sweep.names(needs.keys, keep_s)
        self._sweep.checkpoints()
        self._sweep.ranks()
        self._sweep.workers(keep_s)
        self._sweep.out_of_the_way(self._keep_s)
        self._sweep.empty_shards()

    # ---- runs ------------------------------------------------------------------------------

    def _awaited(self, over: Collection[str], needs: _Needs) -> dict[str, str]:
        """Return the runs whose failures other runs are still to hear of."""
        awaited = {}
        for run_id in over:
            keys = {key for _, key in self._finished.claims.run(run_id).jobs}
            if not needs.complete or (keys - self._cache.present(keys)) & needs.keys:
                awaited[run_id] = "another run needs to know what became of its tasks"
        return awaited

    def _remove_runs(self, over: Collection[str]) -> dict[str, str]:
        """Remove runs that are over; return those that cannot go yet, and why."""
        runs, standing = removable(self._finished.claims, over)
        for generations in standing.values():
            unclaim(self._sweep, generations, runs)
        for run_id in sorted(runs):
            self._remove_run(run_id)
        if not self._sweep.dry_run:
            fill_gaps(self._cache, standing.keys())
        return dict.fromkeys(set(over) - runs, "a later run has taken over from it")

    def _remove_run(self, run_id: str) -> None:
        folder = self._cache.path / "runs"
        record = folder / f"{run_id}.json"
        if not self._sweep.dry_run and self._claimed(run_id):
            return
        self._sweep.remove(self._cache.path / "definitions" / f"{run_id}.h5", "definitions")
        self._sweep.remove_tree(self._cache.path / "logs" / run_id, "logs")
        settled = folder / f"{run_id}.settled"
        for name in sorted(listed(folder)):
            if name.startswith(f"{run_id}.") and folder / name not in (record, settled):
                self._sweep.remove(folder / name, "runs")
        self._sweep.remove(record, "runs")
        self._sweep.remove(settled, "runs")

    def _claimed(self, run_id: str) -> bool:
        """Whether a claim of a run is left, since somebody has claimed behind it meanwhile."""
        claims = Claims(self._cache)
        try:
            keys = {key for _, key in claims.run(run_id).jobs}
            return any(c.run.id == run_id for key in keys for c in claims.generations(key))
        except DamagedEntryError:
            return True  # for all that can be told

    def _remove_dead_followers(self, run_id: str) -> None:
        for alive, path in self._finished.followers(run_id):
            if alive is False:
                self._sweep.remove(path, "runs")

    def _remove_environments(self, run_id: str) -> None:
        """Remove what no job will read again, and may hold secrets: it need not last as logs do."""
        logs = self._cache.path / "logs" / run_id
        for name in listed(logs):
            if _ENVIRONMENT.fullmatch(name):
                self._sweep.remove(logs / name, "environments")

    def _needs(self, run_ids: Iterable[str]) -> _Needs:
        """Return what runs that are kept need: a run without definitions may be writing them."""
        keys: set[str] = set()
        complete = True
        for run_id in run_ids:
            try:
                _, headers = read_headers(self._cache.path / "definitions" / f"{run_id}.h5")
            except MissingEntryError:
                complete = complete and self._finished.claims.log(run_id).settled
                continue
            except CacheError:
                complete = False
                continue
            for header in headers:
                keys.update((header["key"], *header["inputs"]))
        return _Needs(frozenset(keys), complete)

    # ---- results ---------------------------------------------------------------------------

    def _remove_results(self, choice: Choice, needs: _Needs) -> None:
        """Remove the results that were chosen, and arguments that nobody refers to."""
        if not needs.complete:
            return  # what somebody is about to need is not known
        for key in sorted(set(self._cache.keys()) - needs.keys):
            path = self._cache.path_of(key)
            try:
                noted = self._cache.attributes(key)
            except MissingEntryError:
                continue
            except CacheError:
                # What cannot be read, or is not ours, goes if it is asked for by its key.
                if choice.keys is not None and key in choice.keys:
                    self._sweep.remove(path, "results")
                continue
            age_s = self._sweep.age_s(path)
            if noted.get("kind") == "value":
                if age_s > max(self._keep_s, _YOUNG_S):
                    self._sweep.remove(path, "arguments")
            elif choice.meets(key, str(noted.get("function", "")), age_s):
                self._sweep.remove(path, "results")
