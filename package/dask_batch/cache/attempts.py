"""What a job leaves behind beside a result: that it started, and that it ended without one.

All are written once, in ``attempts/<shard>/``.

``<key>.<generation>.start`` is made by the job that is first to start an attempt; a second job
finds it and waits for the first. Where the first is known to have died, or where the batch system
starts the *same* job again (requeued, or repeated by a controller that had lost its memory), the
later one succeeds it by ``<key>.<generation>.start.1``, ``.2``, and so on: the highest counts.
``<key>.<generation>.end`` tells how an attempt ended that has no result.
``<key>.<generation>.cut`` tells where it stood when its time was nearly over, or when it was told
to end.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dask_batch.cache.entries import listed
from dask_batch.cache.files import publish_bytes, read_owned
from dask_batch.cache.owner import Owner
from dask_batch.cache.records import read_record, seal
from dask_batch.cache.store import Cache
from dask_batch.errors import DamagedEntryError

__all__ = [
    "end",
    "ended",
    "read_cut",
    "read_end",
    "read_start",
    "record_cut",
    "start",
    "starter_alive",
]

_DAMAGED_START: Mapping[str, Any] = {
    "damaged": True, "job_id": None, "restart": 0, "time": 0.0,
    "host": "", "pid": 0, "boot_id": "", "process_started": "",
}  # fmt: skip
"""Somebody has started; nobody can tell who."""


# ---- the start -------------------------------------------------------------------------------


def start(
    cache: Cache, key: str, generation: int, record: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Record that a job starts an attempt, unless another one makes it.

    Parameters
    ----------
    cache, key, generation
        The attempt.
    record
        JSON: who starts it. ``host``, ``boot_id``, ``pid`` and ``process_started`` name its
        process, ``job_id`` and ``restart`` (how often the batch system has started this job
        again) tell whether a job succeeds itself.

    Returns
    -------
    dict or None
        None if the attempt is ours to make; else the record of the one that makes it.
    """
    while True:
        number, current = _last_start(cache, key, generation)
        if current is not None and not _succeeds(record, current):
            return current
        path = _start_path(cache, key, generation, number + 1)
        # Not forced to the disk: a start that a crash of the machine loses or empties is that of a
        # job that the crash has ended.
        if publish_bytes(path, seal(record), durable=False):
            return None


def _succeeds(record: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Tell whether a start takes the place of an earlier one.

    A batch system runs a job once at a time: its second start means that the first is over, with
    a number of the restart or without one, unless the first is seen to live. Of another job only
    its own host can tell that it is over. Whom a damaged record names can never be waited for.
    """
    if current.get("damaged"):
        return True
    alive = starter_alive(current)
    if alive is not None:
        return not alive
    job_id = record.get("job_id")
    same = bool(job_id) and current.get("job_id") == job_id
    return same and int(record.get("restart") or 0) >= int(current.get("restart") or 0)


def starter_alive(start: Mapping[str, Any]) -> bool | None:
    """Tell whether the process that recorded a start lives; None if that is not known here."""
    fields = ("host", "boot_id", "pid", "process_started")
    if any(not start.get(field) for field in fields):
        return None
    return Owner(*(start[field] for field in fields)).alive()


def read_start(cache: Cache, key: str, generation: int) -> dict[str, Any] | None:
    """Return the record of the job that makes an attempt; None if none has started."""
    return _last_start(cache, key, generation)[1]


def _last_start(cache: Cache, key: str, generation: int) -> tuple[int, dict[str, Any] | None]:
    """Return number and record of the last start; -1 and None if there is none."""
    last: dict[str, Any] | None = None
    for number in itertools.count():
        path = _start_path(cache, key, generation, number)
        try:
            last = read_record(path)
        except FileNotFoundError:
            return number - 1, last
        except DamagedEntryError:
            emptied = not read_owned(path).strip(b"\0")
            last = None if emptied else dict(_DAMAGED_START)
    raise AssertionError("starts have an end")


def _start_path(cache: Cache, key: str, generation: int, number: int) -> Path:
    return _base(cache, key, generation, f".start.{number}" if number else ".start")


# ---- the end ---------------------------------------------------------------------------------


def end(cache: Cache, key: str, generation: int, record: Mapping[str, Any]) -> bool:
    """Record how an attempt ended without a result; False if that was on record.

    The record is JSON: ``outcome``, ``message``, ``function``, ``job_id``, ``traceback``,
    ``exception`` (pickled, base64), and what else the reader is to know.
    """
    return publish_bytes(_base(cache, key, generation, ".end"), seal(record))


def read_end(cache: Cache, key: str, generation: int) -> dict[str, Any] | None:
    """Return how an attempt ended without a result; None if it did not.

    Of a damaged record only that much is left: it ended.
    """
    try:
        return read_record(_base(cache, key, generation, ".end"))
    except FileNotFoundError:
        return None
    except DamagedEntryError:
        message = "it ended without a result; the record that says how is damaged"
        return {"outcome": "unknown", "message": message, "damaged": True}


def ended(cache: Cache, generations: Mapping[str, int]) -> set[str]:
    """Return the keys whose attempts, of the given generations, ended without a result.

    Raises
    ------
    CacheError
        The file system does not say.
    """
    found: set[str] = set()
    by_shard = itertools.groupby(sorted(generations.items()), key=lambda item: item[0][:2])
    for _, members in by_shard:
        wanted = {f"{key}.{generation}.end": key for key, generation in members}
        some_key = next(iter(wanted.values()))
        there = listed(_base(cache, some_key, 0, "").parent)
        found.update(wanted[name] for name in there if name in wanted)
    return found


# ---- cut short -------------------------------------------------------------------------------


def record_cut(cache: Cache, key: str, generation: int, record: Mapping[str, Any]) -> bool:
    """Record where an attempt stood when it was warned of its end; False if that was on record.

    The record is JSON: ``time``, ``signal`` (of what it was warned by: ``SIGUSR1``, ``SIGTERM``,
    or ``clock``), ``left_s`` (until its time limit, None if that is not known), ``traceback`` (of
    its main thread, as text), ``job_id``, ``host``. An attempt with a cut may still succeed.
    """
    return publish_bytes(_base(cache, key, generation, ".cut"), seal(record))


def read_cut(cache: Cache, key: str, generation: int) -> dict[str, Any] | None:
    """Return where an attempt stood when it was warned; None if it was not, or nobody can tell."""
    try:
        return read_record(_base(cache, key, generation, ".cut"))
    except (FileNotFoundError, DamagedEntryError):
        return None


def _base(cache: Cache, key: str, generation: int, suffix: str) -> Path:
    cache.path_of(key)  # refuses what is no key
    return cache.path / "attempts" / key[:2] / f"{key}.{int(generation)}{suffix}"
