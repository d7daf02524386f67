"""Looking at a cache from outside: what runs, what is there, and an end to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dask_batch.cache.store import Cache
from dask_batch.config import resolve
from dask_batch.errors import ConfigurationError, MissingEntryError
from dask_batch.overview import Overview, RunStatus

__all__ = ["CacheEntry", "RunStatus", "cancel", "explain", "get_cache_data", "status"]


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
    look = Overview(cache)
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
    look = Overview(cache)
    try:
        runs = [each for each in look.runs() if run in (None, each.id)]
        if run is not None and not runs:
            raise ConfigurationError(f"there is no run {run!r} in {cache.path}")
        return sum(look.cancel(each, key) for each in runs)
    finally:
        look.close()


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
