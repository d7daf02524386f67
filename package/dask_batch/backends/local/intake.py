"""Changes of the queue that must be on record before they count: what is taken, and let go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dask_batch.backends.base import JobState
from dask_batch.backends.local.entries import Entries
from dask_batch.backends.local.journal import Journal
from dask_batch.backends.local.queue import WorkQueue
from dask_batch.backends.local.records import Cap
from dask_batch.backends.local.submission import Member, parts

__all__ = ["Intake"]


class Intake:
    """The queue and its journal, changed together: the journal first."""

    def __init__(self, queue: WorkQueue, journal: Journal, entries: Entries) -> None:
        self._queue, self._journal, self._entries = queue, journal, entries

    def hand_over(self, members: list[Member], group: str | None, cap: Cap) -> range:
        """Take a hand-over.

        Raises
        ------
        RefusedError, OSError
            It makes no sense, or cannot be put on record. Nothing was taken.
        """
        entries = [self._entries.entry(member, group) for member in members]
        self._queue.check(entries)
        self._journal.taken(self._queue.jobs.next_number, group, cap, [*parts(members)])
        return self._queue.hand_over(entries, cap=cap)

    def run_again(self, job_id: str, member: Member, group: str | None, cap: Cap) -> int:
        """Queue a job again, or anew if it is forgotten; one that has not ended is left alone.

        Returns
        -------
        int
            Its number, which is a new one if it was forgotten.

        Raises
        ------
        RefusedError, OSError
            As for a hand-over. Nothing was done.
        """
        member = self._without_ended(member)
        number = self._meant(job_id, member.name)
        if number is None:
            (number,) = self.hand_over([member], group, cap)
            self.release([number])
        elif self._queue.jobs[number].state.ended:
            entry = self._entries.entry(member, group)
            self._queue.check_rerun(number, entry)
            self.record_ends()
            self._journal.again(number, group, cap, [*parts([member])])
            self._queue.rerun(number, entry, cap=cap)
        return number

    def _without_ended(self, member: Member) -> Member:
        """Leave it to the job to find out how those ended that it should follow."""
        after = [
            job_id
            for job_id in member.after
            for job in self._queue.jobs.known(self._entries.numbers([job_id]))
            if not job.state.ended
        ]
        return replace(member, after=tuple(after), after_failure=(), after_end=())

    def _meant(self, job_id: str, name: str) -> int | None:
        """Return which job is to run again; None if it is forgotten."""
        there = self._queue.jobs.find(name)
        if there is not None and not self._queue.jobs[there].state.ended:
            return there  # it was run again before, perhaps as another job
        known = self._queue.jobs.known(self._entries.numbers([job_id]))
        return next((job.number for job in known), there)

    def repoint(self, numbers: Iterable[int], parents: list[int]) -> None:
        """Have queued jobs wait for other jobs than before."""
        for number in numbers:
            self._journal.repointed(number, parents)
            self._queue.repoint(number, parents)
        self._journal.write()

    def release(self, numbers: Iterable[int]) -> None:
        """Let jobs go that are held."""
        known = self._queue.jobs.known(numbers)
        held = [job.number for job in known if job.state is JobState.HELD]
        if held:
            self._journal.released(held)
            self._journal.write()
            self._queue.release(held)

    def record_ends(self) -> None:
        """Put on record how jobs have ended."""
        ended, self._queue.ended = self._queue.ended, []
        for job in ended:
            if job.outcome is not None:
                self._journal.ended(job.number, job.name, job.outcome)
        self._journal.write()
