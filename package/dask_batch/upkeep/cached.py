"""What the cache knows of one task: its result, and what it was called with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from dask_batch.cache.claims import Claims
from dask_batch.cache.definitions import read_definition
from dask_batch.cache.store import Cache
from dask_batch.code import pickling
from dask_batch.errors import MissingEntryError
from dask_batch.spec import Call, Step, item
from dask_batch.submitting.reread import definition_path

__all__ = ["CacheEntry", "Calls", "Unfinished", "result_entry"]

_ALSO: Final[Mapping[str, str]] = {"args": "input_args", "kwargs": "input_kwargs"}
"""Names that stand for others, and are not counted twice."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Stands among the arguments of a call for the result of another one that is not there (yet).

    Attributes
    ----------
    key : str
        Of that result.
    way : tuple
        Which item of it is the argument: () for all of it.
    """

    key: str
    way: tuple[Any, ...] = ()


class CacheEntry(Mapping[str, Any]):
    """What the cache knows of one task; values are read when they are asked for.

    Keys
    ----
    key, function, name, filename, queue_id, resource_dict, runtime, host
        The content key; the function's name; Dask's key as text; the file that holds the result;
        the job's id at the batch system; what it had asked for; how long the function took, in
        seconds; where it ran.
    output
        The value. Not there if there is none; then ``runtime`` and ``host`` are not, either.
    input_args, input_kwargs
        Of a plain call its arguments, also as ``args`` and ``kwargs``; an :class:`Unfinished`
        among them is the result of a call that has none. Not there once the definitions of its run
        have been cleaned away.
    error
        What went wrong. Not there if nothing did.
    status
        How far it is: in :func:`dask_batch.get_cache_data_queue` only.

    Parameters
    ----------
    known
        What is known without reading more.
    unread
        For other names what reads them.
    """

    def __init__(
        self, known: Mapping[str, Any], unread: Mapping[str, Callable[[], Any]] | None = None
    ) -> None:
        self._known = dict(known)
        self._unread = dict(unread or {})

    def __getitem__(self, name: str) -> Any:
        name = _ALSO.get(name, name)
        if name in self._unread:
            return self._unread[name]()
        return self._known[name]

    def __contains__(self, name: object) -> bool:
        known = _ALSO.get(name, name) if isinstance(name, str) else name
        return known in self._known or known in self._unread

    def __iter__(self) -> Iterator[str]:
        yield from self._known
        yield from self._unread

    def __len__(self) -> int:
        return len(self._known) + len(self._unread)

    def __or__(self, more: Mapping[str, Any]) -> CacheEntry:
        return CacheEntry({**self._known, **more}, self._unread)

    def with_unread(self, more: Mapping[str, Callable[[], Any]]) -> CacheEntry:
        """Return an entry that has more to read."""
        return CacheEntry(self._known, {**self._unread, **more})

    def __repr__(self) -> str:
        return f"<CacheEntry {self._known['function']} {self._known['key'][:12]}>"


def result_entry(cache: Cache, key: str, calls: Calls) -> CacheEntry | None:
    """Return what is known of a result; None of what is an argument, and no task's result.

    Raises
    ------
    MissingEntryError
        There is none of that key.
    """
    attributes = cache.attributes(key)
    if attributes.get("kind") != "result":
        return None
    known = {
        "key": key,
        "function": attributes.get("function", ""),
        "name": attributes.get("name", ""),
        "filename": str(cache.path_of(key)),
        "queue_id": attributes.get("job_id"),
        "resource_dict": dict(attributes.get("resources") or {}),
        "runtime": attributes.get("runtime"),
        "host": attributes.get("host"),
    }
    unread: dict[str, Callable[[], Any]] = {"output": lambda: cache.load(key)}
    if not known["name"]:
        unread.update(calls.unread(str(attributes.get("run", "")), key))
    return CacheEntry(known, unread)


class Calls:
    """Finds what plain calls were called with, in the definitions of their runs.

    Parameters
    ----------
    cache
        Where they are.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._claims = Claims(cache)
        self._there: dict[str, bool] = {}
        self._places: dict[str, dict[str, int]] = {}

    def unread(self, run_id: str, key: str) -> dict[str, Callable[[], Any]]:
        """Return what reads the arguments of a call; nothing where they are not kept any more."""
        if run_id not in self._there:
            self._there[run_id] = bool(run_id) and definition_path(self._cache, run_id).exists()
        if not self._there[run_id]:
            return {}
        return {
            "input_args": lambda: self._call(run_id, key).args,
            "input_kwargs": lambda: dict(self._call(run_id, key).kwargs),
        }

    def _call(self, run_id: str, key: str) -> Call:
        path = definition_path(self._cache, run_id)
        definition = read_definition(path, self._place(run_id, key))
        steps: tuple[Step, ...] = pickling.loads(
            definition.data, definition.buffers, persistent_load=self._referenced
        )
        call = steps[-1].expression
        if not isinstance(call, Call):
            raise MissingEntryError(f"the task {key[:12]} is no plain call")
        return call

    def _referenced(self, reference: Any) -> Any:
        """Resolve what a definition does not hold itself."""
        kind, key, *way = reference
        try:
            whole = self._cache.load(key)
        except MissingEntryError:
            return Unfinished(key, tuple(way[0]) if way else ())
        return item(whole, way[0]) if kind == "item" else whole

    def _place(self, run_id: str, key: str) -> int:
        if run_id not in self._places:
            jobs = self._claims.run(run_id).jobs
            self._places[run_id] = {each: index for index, (_, each) in enumerate(jobs)}
        try:
            return self._places[run_id][key]
        except KeyError:
            raise MissingEntryError(f"run {run_id} has no task {key[:12]}") from None
