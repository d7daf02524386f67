"""All jobs that the queue knows, by number and by name; of the ended ones only the latest."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

from dask_batch.backends.local.records import Entry, QueuedJob, RefusedError

__all__ = ["Register"]


class Register:
    """The jobs. Numbers are given once.

    Parameters
    ----------
    keep_ended
        How many ended jobs are remembered.

    Attributes
    ----------
    next_number
        What the next job is given.
    """

    def __init__(self, keep_ended: int) -> None:
        self.next_number = 0
        self._jobs: dict[int, QueuedJob] = {}
        self._names: dict[str, int] = {}
        self._ended: OrderedDict[int, None] = OrderedDict()
        self._keep_ended = keep_ended

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[QueuedJob]:
        return iter(self._jobs.values())

    def __getitem__(self, number: int) -> QueuedJob:
        return self._jobs[number]

    def get(self, number: int) -> QueuedJob | None:
        """Return a job; None if it never was or is forgotten."""
        return self._jobs.get(number)

    def known(self, numbers: Iterable[int]) -> list[QueuedJob]:
        """Return those of some jobs that are known."""
        return [job for number in numbers if (job := self._jobs.get(number)) is not None]

    def find(self, name: str) -> int | None:
        """Return the number of the job of that name."""
        return self._names.get(name)

    @property
    def unfinished(self) -> int:
        """How many jobs have not ended."""
        return len(self._jobs) - len(self._ended)

    def add(self, job: QueuedJob) -> None:
        """Take a job that has just been given its number."""
        self._jobs[job.number] = job
        self._names[job.name] = job.number

    def revive(self, job: QueuedJob) -> None:
        """Count a job as one that has not ended."""
        self._ended.pop(job.number, None)
        self._names[job.name] = job.number

    def settle(self, job: QueuedJob) -> None:
        """Count a job as one that has ended; the one that did so first may be forgotten."""
        self._ended[job.number] = None
        while len(self._ended) > self._keep_ended:
            oldest, _ = self._ended.popitem(last=False)
            forgotten = self._jobs.pop(oldest)
            if self._names.get(forgotten.name) == oldest:
                del self._names[forgotten.name]

    # ---- what is refused -------------------------------------------------------------------

    def check(self, entries: Sequence[Entry]) -> None:
        """Refuse a hand-over whose names are not unique, or whose parents come too late."""
        names: set[str] = set()
        for position, entry in enumerate(entries):
            self.check_name(entry, None)
            if entry.name in names:
                raise RefusedError(f"a job named {entry.name!r} is there already", entry.name)
            if any(not 0 <= parent < position for parent in entry.parents):
                raise RefusedError(f"a parent of {entry.name!r} does not precede it", entry.name)
            names.add(entry.name)

    def check_name(self, entry: Entry, number: int | None) -> None:
        """Refuse a name that a job other than ``number`` has which has not ended."""
        there = self._names.get(entry.name)
        if there is not None and there != number and not self._jobs[there].state.ended:
            raise RefusedError(f"a job named {entry.name!r} is there already", entry.name)
