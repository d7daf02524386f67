"""What one client knows of one key that is under way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from dask_batch.backends.base import JobState, JobStatus
from dask_batch.evidence.standing import Standing
from dask_batch.future import BatchFuture
from dask_batch.verdicts.course import Course
from dask_batch.verdicts.follow import Evidence

__all__ = ["Entry", "Observer", "Pace"]

_BEGAN = frozenset(
    {
        JobState.COMPLETED,
        JobState.FAILED,
        JobState.TIMEOUT,
        JobState.OUT_OF_MEMORY,
        JobState.NODE_FAILURE,
    }
)
"""Ends of what had begun: a repetition in place is one restart more."""

Observer: TypeAlias = Callable[[Literal["started", "finished"], str], None]
"""Called with ``"started"`` or ``"finished"`` and a key, in the engine's thread."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often to ask, and how long to wait for late files and late answers, in seconds."""

    shortest_poll_s: float = 5.0
    longest_poll_s: float = 120.0
    output_grace_s: float = 30.0
    """How long after a job ended well its result may take to be seen."""
    failure_grace_s: float = 5.0
    """How long after a job failed its end record may take to be seen."""
    lost_grace_s: float = 30.0
    """How long the batch system may not know a job before it counts as lost."""
    lease_s: float = 60.0
    """How long another process that began to repeat a job has to do it."""
    fixed_look_s: float | None = None
    """How long to rest between two looks at the store; None: as looks cost and changes are rare."""

    def grace_s(self, state: JobState) -> float:
        """Return how long a batch system's word for an end is not yet evidence."""
        if state is JobState.COMPLETED:
            return self.output_grace_s
        return self.lost_grace_s if state is JobState.LOST else self.failure_grace_s


@dataclass(slots=True)
class Entry:
    """One key that is under way.

    Attributes
    ----------
    standing
        The attempt and its job.
    ours
        Whether this client handed the job over.
    status, ended_at
        The batch system's last word on the job, and since when it has been saying that the job
        has ended.
    state_since
        Since when it has been saying that the job is in this state.
    unknown_at, misses
        Since when, and how many times in a row, a batch system that answered has not known it.
    course
        Where the evidence has led so far.
    act_at, sign_at
        When to see to a repetition that has been claimed and is not known to be under way, and
        when to look for a sign that it is.
    outdated
        Whether the batch system has fallen back to the attempt before, so that a record of the
        repetition is no sign of it.
    spent
        The job of the attempt before, and how many restarts it had at its end, if that was heard.
    refusals, unanswered, unanswered_at
        How often the batch system has refused to repeat the job; how often, and since when, it has
        not answered when it was to.
    troubles, troubled_at, quiet_until
        How often, and since when, looking at it has failed in unforeseen ways, and until when it
        is left alone.
    """

    standing: Standing
    function: str
    ours: bool = False
    parents: set[str] = field(default_factory=set)
    children: set[str] = field(default_factory=set)
    futures: list[BatchFuture] = field(default_factory=list)
    observers: list[Observer] = field(default_factory=list)
    status: JobStatus | None = None
    ended_at: float | None = None
    state_since: float = 0.0
    unknown_at: float = 0.0
    misses: int = 0
    started: bool = False
    since: float = field(default_factory=time.monotonic)
    course: Course = field(init=False)
    act_at: float = 0.0
    sign_at: float = 0.0
    outdated: bool = False
    spent: tuple[str, int] | None = None
    refusals: int = 0
    unanswered: int = 0
    unanswered_at: float = 0.0
    troubles: int = 0
    troubled_at: float = 0.0
    quiet_until: float = 0.0

    def __post_init__(self) -> None:
        self.course = Course(self.standing.generation)

    @property
    def running(self) -> bool:
        """Whether the batch system says that the job is at work."""
        return self.status is not None and self.status.state is JobState.RUNNING

    @property
    def held(self) -> bool:
        """Whether the batch system says that the job is held."""
        return self.status is not None and self.status.state is JobState.HELD

    @property
    def over(self) -> bool:
        """Whether the batch system says that the job has ended."""
        return self.status is not None and self.status.state.ended

    @property
    def never_starts(self) -> bool:
        """Whether the job may be queued still, waiting for what will never be."""
        return self.status is not None and self.status.state is JobState.DEPENDENCY_FAILED

    def hear(self, status: JobStatus, now: float) -> None:
        """Take the batch system's word."""
        known = self.standing.job_name
        if status.name and status.name != known:
            # The controller has lost its memory and given the id to another job.
            status = replace(status, state=JobState.LOST, reason=f"its id is that of {status.name}")
        before = self.status
        changed = before is None or before.state is not status.state
        self.status, self.misses = status, 0
        if changed:
            self.state_since = now
        if not status.state.ended:
            self.ended_at = None
        elif changed or self.ended_at is None:
            self.ended_at = now

    def miss(self, now: float, source: str) -> None:
        """Note that a batch system that answered does not know the job.

        Once is no evidence, nor does it change what was known of an end.
        """
        if self.over:
            return
        self.misses += 1
        if self.misses == 1:
            self.unknown_at = now
            return
        reason = "it does not know the job"
        job_id = self.standing.job_id or ""
        self.status = JobStatus(job_id, JobState.LOST, reason=reason, source=source)
        self.ended_at = self.unknown_at

    def evidence(
        self, *, published: bool, end: dict[str, object] | None, parents: list[Entry], pace: Pace
    ) -> Evidence:
        """Put together what is known now."""
        status = self.status
        return Evidence(
            published=published,
            end=end,
            status=status,
            ended_for_s=0.0 if self.ended_at is None else time.monotonic() - self.ended_at,
            grace_s=0.0 if status is None else pace.grace_s(status.state),
            parents_open=bool(parents),
            parents_alive=all(p.status is not None and not p.over for p in parents),
        )

    def advance(self, generation: int, *, act_at: float) -> None:
        """Follow the next attempt of the same job, of which no sign has been seen."""
        self.spent = self._spent()
        self.standing = replace(self.standing, generation=generation)
        self.course.advance(generation, sure=False)
        self.doubt(act_at=act_at)

    def _spent(self) -> tuple[str, int] | None:
        status = self.status
        if status is None or status.state not in _BEGAN or status.restarts is None:
            return None
        return status.job_id, status.restarts

    def doubt(self, *, act_at: float, outdated: bool = False) -> None:
        """Take what the batch system says for its word on the attempt before, until a sign.

        Parameters
        ----------
        act_at
            When to run the job again, if there has been none.
        outdated
            Whether its last word is known to be about the attempt before, although the job was
            run again.
        """
        self.outdated = outdated
        self.course.sure = False
        self.act_at, self.sign_at = act_at, 0.0
        self.refusals = self.unanswered = 0
        if not self.over and not outdated:
            # That it was queued or at work is older than the end which led here.
            self.status = None

    def under_way(self, job_id: str) -> None:
        """Take it that what the batch system says from now on is about this attempt."""
        self.standing = replace(self.standing, job_id=job_id)
        self.course.sure = True
        self._afresh()

    def move(self, standing: Standing) -> None:
        """Follow the job of another run, which has taken over."""
        self.course.advance(standing.generation, sure=True)
        self.standing = standing
        self.ours = False
        self._afresh()

    def _afresh(self) -> None:
        self.outdated = False
        self.status, self.ended_at = None, None
        self.misses = self.refusals = self.unanswered = 0
        self.since = time.monotonic()
