"""The log of a hand-over: JSON lines, each file with a single writer.

The owner of a run writes ``<id>.log``; the n-th heir, who finishes the hand-over of a dead owner
or looks after its jobs later on, writes ``<id>.log.<n>``. So no line is ever appended behind
another process's torn one, nor over one that a network file system shows late.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dask_batch.cache.files import publish_bytes
from dask_batch.cache.lines import append_line, read_lines
from dask_batch.cache.owner import Owner
from dask_batch.cache.records import read_record
from dask_batch.errors import DamagedEntryError

__all__ = ["NOBODY", "RunLog", "append_event", "heirs", "read_log"]

_ACCEPTED = frozenset({"job", "steward", "repeated"})
_SETTLING = frozenset({"released", "aborted", "closed"})


@dataclass(frozen=True, slots=True)
class RunLog:
    """What is known about the hand-over of a run."""

    events: tuple[Mapping[str, Any], ...] = ()
    """All that was recorded, in order."""
    ids: Mapping[str, str] = field(default_factory=dict)
    """The ids of the jobs that were accepted, by the jobs' names; those of stewards, too. Of a job
    that was run again the last one."""
    left: frozenset[str] = frozenset()
    """The names of the jobs that a full queue did not take: their claims are for the taking."""
    awaited: tuple[str, ...] = ()
    """The ids of later runs, with jobs that wait for jobs of this one."""
    accepted: bool = False
    """All jobs were."""
    released: bool = False
    aborted: bool = False
    closed: bool = False

    @property
    def length(self) -> int:
        """How many events were recorded: it grows while somebody is at work."""
        return len(self.events)

    @property
    def settled(self) -> bool:
        """Whether the hand-over came to an end."""
        return self.released or self.aborted or self.closed

    @property
    def errors(self) -> tuple[Mapping[str, Any], ...]:
        """The events that tell of errors."""
        return tuple(event for event in self.events if event["event"] == "error")


def append_event(run_path: Path, event: Mapping[str, Any], heir: int | None) -> None:
    """Record an event, as the owner of a run or as its heir of that number."""
    suffix = ".log" if heir is None else f".log.{heir}"
    append_line(run_path.with_suffix(suffix), event)
    if event.get("event") in _SETTLING:
        # Spares those who look for unsettled runs the reading of every log.
        publish_bytes(run_path.with_suffix(".settled"), b"", durable=False)


def read_log(run_path: Path) -> RunLog:
    """Read the log of a run: its owner's, then those of its heirs."""
    events: list[Mapping[str, Any]] = []
    events += read_lines(run_path.with_suffix(".log"))
    for number, holder in heirs(run_path):
        if holder is not None:
            events += read_lines(run_path.with_suffix(f".log.{number}"))
    events = [event for event in events if isinstance(event.get("event"), str)]
    said = {event["event"] for event in events}
    left = frozenset(
        str(name) for event in events if event["event"] == "left" for name in event.get("names", ())
    )
    ids: dict[str, str] = {}
    # Of several writers' repetitions of a job, that of the last attempt counts.
    for event in sorted(events, key=lambda event: int(event.get("generation", -1))):
        if event["event"] in _ACCEPTED and "name" in event and "id" in event:
            ids[str(event["name"])] = str(event["id"])
    awaited = dict.fromkeys(str(e["run"]) for e in events if e["event"] == "awaited" and "run" in e)
    return RunLog(
        tuple(events),
        {name: job_id for name, job_id in ids.items() if name not in left},
        left,
        tuple(awaited),
        accepted="accepted" in said,
        released="released" in said,
        aborted="aborted" in said,
        closed="closed" in said,
    )


NOBODY = Owner("", "", 0, "")
"""The heir whose record is damaged."""


def heirs(run_path: Path) -> Iterator[tuple[int, Owner | None]]:
    """Yield the heirs of a run by number, the last of them None: the place that is vacant.

    An heir whose record is damaged is ``NOBODY``.
    """
    for number in itertools.count():
        try:
            record = read_record(run_path.with_suffix(f".heir.{number}"))
        except FileNotFoundError:
            yield number, None
            return
        except DamagedEntryError:
            yield number, NOBODY
            continue
        yield number, Owner(**record)
