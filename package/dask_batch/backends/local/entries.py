"""From jobs as they come over the wire to entries of the queue: ids become numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dask_batch.backends.local.identity import JobId, QueueId
from dask_batch.backends.local.records import Entry
from dask_batch.backends.local.submission import Member

__all__ = ["Entries"]

_NO_NUMBER = -1


class Entries:
    """Makes the entries of one queue."""

    def __init__(self, here: QueueId) -> None:
        self._here = here

    def entry(self, member: Member, group: str | None) -> Entry:
        """Return a job as the queue takes it."""
        return Entry(
            name=member.name,
            demand=member.profile.demand(group),
            parents=member.parents,
            after=tuple(self.numbers(member.after)),
            payload=(member.profile, member.index),
            repeatable=member.repeatable,
            patient=member.patient,
            after_failure=tuple(self._numbers_or_unknown(member.after_failure)),
            after_end=tuple(self.numbers(member.after_end)),
        )

    def numbers(self, job_ids: Iterable[str]) -> Iterator[int]:
        """Yield the numbers of those ids that are this queue's."""
        for text in job_ids:
            job_id = JobId.parse(text)
            if job_id is not None and job_id.queue == self._here:
                yield job_id.number

    def _numbers_or_unknown(self, job_ids: Iterable[str]) -> Iterator[int]:
        """Yield the numbers of ids; for those of other queues one that no job has."""
        for job_id in job_ids:
            yield next(self.numbers([job_id]), _NO_NUMBER)
