"""Looking at a cache from outside: what runs, what is there, and an end to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dask_batch.backends import open_backend
from dask_batch.backends.base import Backend, JobState
from dask_batch.cache import attempts
from dask_batch.cache.claims import Claims, Run
from dask_batch.cache.store import Cache
from dask_batch.config import resolve
from dask_batch.errors import BackendError, ConfigurationError, MissingEntryError

__all__ = ["CacheEntry", "RunStatus", "cancel", "explain", "get_cache_data", "status"]


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How far a run has come.

    Attributes
    ----------
    run : str
        The run's id.
    backend : str
        The batch system that it was handed to.
    host : str
        The machine of the client that handed it over.
    created : float
        When, in seconds since the epoch.
    finished, failed, running, waiting, unknown : int
        How many of its jobs are in which state. A job that has ended but whose result was asked
        for by a later run counts as what it was.
    job_ids : mapping
        The batch system's ids, by job name.
    """

    run: str
    backend: str
    host: str
    created: float
    finished: int
    failed: int
    running: int
    waiting: int
    unknown: int
    job_ids: Mapping[str, str]


class CacheEntry(Mapping[str, Any]):
    """What the cache knows of one result; the value itself is read when it is asked for.

    Keys
    ----
    key, function, name, filename, queue_id, resource_dict, runtime, host, output
        The content key; the function's name; Dask's key as text; the file with the result; the
        job's id at the batch system; what it had asked for; how long the function took, in
        seconds; where it ran; and the value.
    """

    def __init__(self, cache: Cache, key: str) -> None:
        self._cache = cache
        attributes = cache.attributes(key)
        self._known = {
            "key": key,
            "function": attributes.get("function", ""),
            "name": attributes.get("name", ""),
            "filename": str(cache.path_of(key)),
            "queue_id": attributes.get("job_id"),
            "resource_dict": dict(attributes.get("resources") or {}),
            "runtime": attributes.get("runtime"),
            "host": attributes.get("host"),
        }

    def __getitem__(self, name: str) -> Any:
        if name == "output":
            return self._cache.load(self._known["key"])
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._known
        yield "output"

    def __len__(self) -> int:
        return len(self._known) + 1

    def __repr__(self) -> str:
        return f"<CacheEntry {self._known['function']} {self._known['key'][:12]}>"


def get_cache_data(cache_directory: str | Path) -> list[CacheEntry]:
    """Return what a cache knows of every result in it.

    Parameters
    ----------
    cache_directory
        The cache.

    Returns
    -------
    list of CacheEntry
        In the order of their keys. Values are not read before they are asked for.

    Examples
    --------
    >>> for entry in get_cache_data("cache"):  # doctest: +SKIP
    ...     print(entry["function"], entry["queue_id"], entry["runtime"])
    """
    cache = Cache(cache_directory, create=False)
    entries = []
    for key in sorted(cache.keys()):
        try:
            if cache.attributes(key).get("kind") == "result":
                entries.append(CacheEntry(cache, key))
        except MissingEntryError:
            continue  # set aside by another process since the listing
    return entries


def status(cache_directory: str | Path | None = None) -> list[RunStatus]:
    """Tell how far the runs of a cache have come.

    Parameters
    ----------
    cache_directory
        The cache; default as in the configuration.

    Returns
    -------
    list of RunStatus
        The oldest first; runs that were taken back are left out.
    """
    options = resolve(cache_directory=cache_directory)
    cache = Cache(options.cache_directory, create=False)
    look = _Look(cache)
    try:
        return [look.status(run) for run in look.runs()]
    finally:
        look.close()


def cancel(
    cache_directory: str | Path | None = None, *, run: str | None = None, key: str | None = None
) -> int:
    """End jobs, and free their tasks to be computed again.

    Parameters
    ----------
    cache_directory
        The cache; default as in the configuration.
    run
        Only the jobs of this run.
    key
        Only the job of this key.

    Returns
    -------
    int
        How many tasks were under way, and are not any more. Jobs that wait for one of them end
        with it.
    """
    options = resolve(cache_directory=cache_directory)
    cache = Cache(options.cache_directory, create=False)
    look = _Look(cache)
    try:
        runs = [each for each in look.runs() if run in (None, each.id)]
        if run is not None and not runs:
            raise ConfigurationError(f"there is no run {run!r} in {cache.path}")
        return sum(look.cancel(each, key) for each in runs)
    finally:
        look.close()


class _Look:
    """Looks at the runs of a cache, with one backend of each kind."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.claims = Claims(cache)
        self._backends: dict[str, Backend | None] = {}

    def runs(self) -> list[Run]:
        found = (self.claims.run(run_id) for run_id in self.claims.run_ids())
        runs = [run for run in found if not self.claims.log(run.id).aborted]
        return sorted(runs, key=lambda run: (run.created, run.id))

    def status(self, run: Run) -> RunStatus:
        log = self.claims.log(run.id)
        counts = dict.fromkeys(("finished", "failed", "running", "waiting", "unknown"), 0)
        open_ids: dict[str, str] = {}
        for name, where in self._where(run).items():
            if where is None:
                open_ids[name] = log.ids.get(name, "")
            else:
                counts[where] += 1
        states = self._states(run, [job_id for job_id in open_ids.values() if job_id])
        for job_id in open_ids.values():
            counts[_counted(states.get(job_id))] += 1
        return RunStatus(
            run.id, run.backend, run.owner.host, run.created, **counts, job_ids=dict(log.ids)
        )

    def cancel(self, run: Run, key: str | None) -> int:
        log = self.claims.log(run.id)
        chosen = {
            name: each
            for name, each in run.jobs
            if key in (None, each) and self._where(run)[name] is None
        }
        backend = self._backend(run)
        if backend is not None:
            backend.cancel([log.ids[name] for name in chosen if name in log.ids])
        for name, each in chosen.items():
            current = self.claims.current(each)
            if current is None or current.run.id != run.id:
                continue
            record = {
                "outcome": "cancelled",
                "message": "it was cancelled",
                "job_id": log.ids.get(name),
                "concluded_by": "client",
            }
            attempts.end(self.cache, each, current.generation, record)
        return len(chosen)

    def _where(self, run: Run) -> dict[str, str | None]:
        """Tell of each job whether the store knows its end."""
        keys = [key for _, key in run.jobs]
        published = self.cache.present(keys)
        generations = {}
        for key in keys:
            for claim in self.claims.generations(key):
                if claim.run.id == run.id:
                    generations[key] = claim.generation
        ended = attempts.ended(self.cache, generations)
        return {
            name: "failed" if key in ended else "finished" if key in published else None
            for name, key in run.jobs
        }

    def _states(self, run: Run, job_ids: list[str]) -> dict[str, JobState]:
        backend = self._backend(run)
        if backend is None or not job_ids:
            return {}
        return {job_id: found.state for job_id, found in backend.status(job_ids).items()}

    def _backend(self, run: Run) -> Backend | None:
        if run.backend not in self._backends:
            try:
                self._backends[run.backend] = open_backend(run.backend)
            except BackendError:
                self._backends[run.backend] = None
        return self._backends[run.backend]

    def close(self) -> None:
        for backend in self._backends.values():
            if backend is not None:
                backend.close()


def _counted(state: JobState | None) -> str:
    if state is None or state is JobState.UNKNOWN:
        return "unknown"
    if state in (JobState.HELD, JobState.WAITING):
        return "waiting"
    if state is JobState.COMPLETED:
        return "finished"
    return "failed" if state.ended else "running"


def explain(cache_directory: str | Path, key: str) -> dict[str, str]:
    """Say which parts of a key differ from the last result of the same function.

    Parameters
    ----------
    cache_directory
        The cache.
    key
        The key of a result, as in ``future.key`` or ``entry["key"]``.

    Returns
    -------
    dict
        For each part of the key that is new or other, what it was: ``"changed"``, ``"new"`` or
        ``"gone"``. Empty if no other result of that function is there.
    """
    cache = Cache(cache_directory, create=False)
    attributes = cache.attributes(key)
    before: Mapping[str, Any] | None = None
    for other in list(cache.keys()):
        if other == key:
            continue
        found = cache.attributes(other)
        same = found.get("function") == attributes.get("function")
        earlier = found.get("started", 0) < attributes.get("started", 0)
        if same and earlier and (before is None or found["started"] > before["started"]):
            before = found
    if before is None:
        return {}
    old, new = before.get("parts") or {}, attributes.get("parts") or {}
    differences = {part: "changed" for part in new if part in old and old[part] != new[part]}
    differences.update({part: "new" for part in new if part not in old})
    differences.update({part: "gone" for part in old if part not in new})
    return differences
