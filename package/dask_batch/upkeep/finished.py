"""Which runs of a cache are over, so that nobody needs their claims, definitions and logs again.

A run is over when its hand-over has come to an end, each of its jobs has a result or the record of
an end or is gone from the batch system, no living client waits for it, and all that has been so for
a while. Where the batch system cannot be asked from here, the while is a long one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dask_batch.backends.base import Backend, JobState, JobStatus
from dask_batch.cache import attempts
from dask_batch.cache.claims import Claims, Run, RunLog
from dask_batch.cache.entries import listed
from dask_batch.cache.owner import Owner
from dask_batch.cache.records import read_record
from dask_batch.cache.store import Cache
from dask_batch.errors import BackendError, DamagedEntryError, MissingEntryError
from dask_batch.evidence.standing import Standings
from dask_batch.evidence.whereabouts import Askable, Sight, sight_of

__all__ = ["Finished", "Stand"]

_OUT_OF_SIGHT_S = 30 * 24 * 3600.0
"""How long nothing must have been heard of jobs that nobody can be asked about, in seconds."""
_LAG_S = 3600.0
"""How long a job that the batch system does not know may be one that it does not know yet."""
_QUEUED = frozenset({JobState.HELD, JobState.WAITING, JobState.DEPENDENCY_FAILED, JobState.LOST})
"""What may be in the queue without being at work."""


@dataclass(frozen=True, slots=True)
class Stand:
    """How a run stands.

    Attributes
    ----------
    reason
        Why it is kept; empty if it is over and can go.
    unfinished
        Whether its jobs may still need something.
    """

    reason: str = ""
    unfinished: bool = False


@dataclass(frozen=True, slots=True)
class _Ends:
    """What the store knows of the ends of a run's jobs."""

    open_jobs: tuple[str, ...]
    """The names of those that have neither a result nor the record of an end."""
    failed_here: bool
    """Whether there are keys without a result that no later run has claimed."""
    last: float
    """When the last result or record was written."""


class Finished:
    """Finds out which runs are over.

    Parameters
    ----------
    cache
        Where the runs are.
    now
        The time by the file system's clock.
    keep_s
        How long a run that is over is kept, in seconds.
    open_backend
        Gives the backend of a name.
    inherit
        Whether to finish, or take back, what a dead client left half handed over, and to end jobs
        that are queued although their tasks have results.
    """

    def __init__(
        self,
        cache: Cache,
        now: float,
        keep_s: float,
        open_backend: Callable[[str], Backend],
        *,
        inherit: bool,
    ) -> None:
        self.cache = cache
        self.claims = Claims(cache)
        self._now = now
        self._keep_s = keep_s
        self._open_backend = open_backend
        self._inherit = inherit
        self._askable = Askable(open_backend)

    def stand(self, run_id: str) -> Stand:
        """Return whether a run is over."""
        try:
            return self._stand(self.claims.run(run_id))
        except DamagedEntryError as error:
            return Stand(f"a record that tells of it is damaged: {error}", unfinished=True)

    def _stand(self, run: Run) -> Stand:
        log = self.claims.log(run.id)
        quiet_s = self._now - self._last_sign(run)
        unfinished = (
            self._settle(run, log, quiet_s)
            or self._followed(run, quiet_s)
            or self._going_on(run, self.claims.log(run.id), quiet_s)
        )
        if unfinished:
            return Stand(unfinished, unfinished=True)
        quiet_s = min(quiet_s, self._now - self._ends(run).last)
        return Stand("it ended a short while ago" if quiet_s <= self._keep_s else "")

    def _going_on(self, run: Run, log: RunLog, quiet_s: float) -> str:
        """Return why jobs of a run whose hand-over is over may not be; empty if they are."""
        ends = self._ends(run)
        quiet_s = min(quiet_s, self._now - ends.last)
        open_jobs = () if log.aborted else ends.open_jobs
        # A job outlives its result by little: who has published is not asked after for ever.
        if open_jobs or quiet_s <= _LAG_S:
            working = self._working(run, log, open_jobs, quiet_s)
            if working:
                return working
        if log.aborted or not run.owner.alive():
            return ""
        if any(name in log.left for name in open_jobs):
            return "its client lives, and is to hand over what a full queue did not take"
        if ends.failed_here and quiet_s <= _LAG_S:
            return "its client lives, and may repeat what has failed"
        return ""

    # ---- the hand-over ---------------------------------------------------------------------

    def _settle(self, run: Run, log: RunLog, quiet_s: float) -> str:
        """See to a hand-over that has not come to an end; return why it must be waited for."""
        # The mark outlives the log, where a clean-up was killed.
        if log.settled or (self.cache.path / "runs" / f"{run.id}.settled").exists():
            return ""
        alive = run.owner.alive()
        if alive or (alive is None and quiet_s <= max(self._keep_s, _LAG_S)):
            return "it is being handed over"
        backend = self._backend(run)
        if alive is False and backend is not None:
            if not self._inherit:
                return "its client died while handing it over, which is to be finished first"
            try:
                Standings(self.cache, self.claims, backend, self._open_backend).settled(run)
            except BackendError as error:
                return f"what its dead client left cannot be finished now: {error}"
        return ""

    def _last_sign(self, run: Run) -> float:
        """Return when something was last written about a run, by the file system's clock."""
        runs = self.cache.path / "runs"
        own = (name for name in listed(runs) if name.startswith(f"{run.id}."))
        return max((_written(runs / name) for name in own), default=0.0)

    def _followed(self, run: Run, quiet_s: float) -> str:
        followed = any(
            alive or (alive is None and quiet_s <= max(self._keep_s, _LAG_S))
            for alive, _ in self.followers(run.id)
        )
        return "a client waits for results of it" if followed else ""

    def followers(self, run_id: str) -> Iterator[tuple[bool | None, Path]]:
        """Yield the records of clients that wait for a run, and whether each client lives."""
        runs = self.cache.path / "runs"
        for name in listed(runs):
            if name.startswith(f"{run_id}.wanted."):
                try:
                    owner = Owner(**read_record(runs / name)["owner"])
                except (FileNotFoundError, DamagedEntryError):
                    continue
                yield owner.alive(), runs / name

    # ---- the jobs --------------------------------------------------------------------------

    def _ends(self, run: Run) -> _Ends:
        keys = {key for _, key in run.jobs}
        published = self.cache.present(keys)
        latest = {key: self.claims.latest(key, run.id) for key in keys - published}
        # What a later run has claimed since is that run's to finish.
        ours = {key: generation for key, (generation, mine) in latest.items() if mine}
        ended = attempts.ended(self.cache, ours)
        places = [self.cache.path_of(key) for key in published]
        shards = self.cache.path / "attempts"
        places += [shards / key[:2] / f"{key}.{ours[key]}.end" for key in ended]
        return _Ends(
            tuple(name for name, key in run.jobs if key in ours.keys() - ended),
            bool(ours),
            max(map(_written, places), default=0.0),
        )

    def _working(self, run: Run, log: RunLog, open_jobs: tuple[str, ...], quiet_s: float) -> str:
        """Return why jobs of a run may still be at work; empty if they are not."""
        if sight_of(run) is Sight.GONE:
            return ""
        ids = {str(event["id"]) for event in log.events if "id" in event}
        backend = self._backend(run)
        if backend is None:
            if open_jobs and quiet_s <= max(self._keep_s, _OUT_OF_SIGHT_S):
                return f"{len(open_jobs)} job(s) of it may run where they cannot be asked after"
            return ""
        nameless = [name for name in open_jobs if name not in log.ids]
        complete = self._is_complete(run, log)  # before it is asked what is queued still
        try:
            ids |= set(backend.find(nameless).values()) if nameless else set()
            states = backend.status(ids) if ids else {}
            dropped = self._drop(run, backend, states) if complete else set()
        except BackendError as error:
            return f"{run.backend} gives no answer now: {error}"
        working = sum(not s.state.ended for i, s in states.items() if i not in dropped)
        if working:
            return f"{working} job(s) of it are queued or running"
        if open_jobs and quiet_s <= max(self._keep_s, _LAG_S):
            return f"{len(open_jobs)} job(s) of it have not been seen to end"
        return ""

    def _is_complete(self, run: Run, log: RunLog) -> bool:
        """Whether nobody needs the jobs of a run, nor those that wait for them."""
        keys = {key for _, key in run.jobs}
        for run_id in log.awaited:
            try:
                keys.update(key for _, key in self.claims.run(run_id).jobs)
            except MissingEntryError:
                continue  # it was over, and has been cleaned away
            except DamagedEntryError:
                return False
        return self.cache.present(keys) == keys

    def _drop(self, run: Run, backend: Backend, states: Mapping[str, JobStatus]) -> set[str]:
        """End what is queued of a run that is complete, and return the ids.

        A controller that was killed brings such jobs back, and they may wait for ever.
        """
        if not self._inherit:
            return set()
        queued = {
            job_id
            for job_id, status in states.items()
            if status.state in _QUEUED and _is_ours(status, run)
        }
        if queued:
            backend.cancel(sorted(queued))
        return queued

    def _backend(self, run: Run) -> Backend | None:
        """Return the backend that a run went to; None if it cannot be asked from here."""
        return self._askable.of(run)

    def close(self) -> None:
        """Close the backends that were opened."""
        self._askable.close()


def _is_ours(status: JobStatus, run: Run) -> bool:
    """Whether an id has not been given to another job since: all names hold the run's id."""
    return not status.name or f"-{run.id}-" in status.name


def _written(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0
