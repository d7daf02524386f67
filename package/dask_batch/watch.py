"""What is under way, and the looks that end it.

A *look* asks, in this order, the batch system (when that is due), the store and the end records;
:func:`dask_batch.follow.judge` concludes, and futures resolve or fail, with all that depends on
them. The watch belongs to the engine's thread; only :attr:`Watch.known` is read from others.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from dask_batch.backends.base import Backend, JobState, JobStatus
from dask_batch.cache import attempts
from dask_batch.cache.followers import Followers
from dask_batch.cache.store import Cache
from dask_batch.errors import BackendError
from dask_batch.failures import dependency_failure, failure_of
from dask_batch.follow import Evidence, Outcome, Verdict, judge, poll_interval_s
from dask_batch.future import BatchFuture
from dask_batch.standing import Standing

__all__ = ["Entry", "Observer", "Pace", "Watch"]

logger = logging.getLogger(__name__)

_LOOK_SHARE = 0.1
"""At most this share of the time goes into looks, however many jobs there are."""
_FIRST_LOOK_S = 0.02
_LONGEST_LOOK_S = 2.0

Observer: TypeAlias = Callable[[Literal["started", "finished"], str], None]
"""Called with ``"started"`` or ``"finished"`` and a key, in the engine's thread."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often to ask, and how long to wait for late files, in seconds."""

    shortest_poll_s: float = 5.0
    longest_poll_s: float = 120.0
    output_grace_s: float = 30.0
    """How long after a job ended well its result may take to be seen."""
    failure_grace_s: float = 5.0
    """How long after a job failed its end record may take to be seen."""


@dataclass(slots=True)
class Entry:
    """One key that is under way."""

    standing: Standing
    function: str
    parents: set[str] = field(default_factory=set)
    children: set[str] = field(default_factory=set)
    futures: list[BatchFuture] = field(default_factory=list)
    observers: list[Observer] = field(default_factory=list)
    status: JobStatus | None = None
    ended_at: float | None = None
    started: bool = False
    ours: bool = False
    since: float = field(default_factory=time.monotonic)


class Watch:
    """The jobs under way of one engine.

    Parameters
    ----------
    cache, backend
        Where results appear, and whom to ask about jobs.
    pace
        How often to ask what.
    """

    def __init__(self, cache: Cache, backend: Backend, pace: Pace) -> None:
        self.cache = cache
        self.backend = backend
        self.entries: dict[str, Entry] = {}
        self.known: dict[str, Standing] = {}
        self.followers = Followers(cache)
        self.look_s = _FIRST_LOOK_S
        self._pace = pace
        self.not_before = 0.0
        self._next_poll = 0.0
        self._next_scan = 0.0

    # ---- coming in -------------------------------------------------------------------------

    def add(self, standing: Standing, function: str, *, ours: bool) -> None:
        """Watch a job."""
        if standing.key not in self.entries:
            self.entries[standing.key] = Entry(standing, function, ours=ours)
            self.known[standing.key] = standing
            self._next_poll = min(self._next_poll, time.monotonic() + self._pace.shortest_poll_s)
            self.look_s = _FIRST_LOOK_S
            self.not_before = 0.0

    def link(self, key: str, inputs: Iterable[str]) -> None:
        """Let a job depend on those of its inputs that are under way."""
        entry = self.entries.get(key)
        if entry is None:
            return
        entry.parents |= set(inputs) & self.entries.keys()
        for parent in entry.parents:
            self.entries[parent].children.add(key)

    def attach(self, future: BatchFuture) -> None:
        """Let a future resolve with its key: now, if that is not under way any more."""
        entry = self.entries.get(future.key)
        if entry is not None:
            entry.futures.append(future)
            if entry.started and not future.done():
                future.set_running_or_notify_cancel()
        else:
            self._succeed(future)

    def observe(self, key: str, observer: Observer) -> None:
        """Tell an observer of a key's start and end: now, if it has ended."""
        entry = self.entries.get(key)
        if entry is not None:
            entry.observers.append(observer)
        else:
            observer("finished", key)

    # ---- looking ---------------------------------------------------------------------------

    def look(self) -> None:
        """Gather evidence on all entries and act on the verdicts that it allows."""
        began = time.monotonic()
        if began >= self._next_poll:
            self.poll(began)
        keys = self._worth_a_look(began)
        published = self.cache.present(keys)
        generations = {
            key: self.entries[key].standing.generation for key in keys if key not in published
        }
        ended = attempts.ended(self.cache, generations)
        for key in keys:
            entry = self.entries.get(key)
            if entry is not None:
                self._conclude(key, entry, key in published, key in ended)
        ended_at = time.monotonic()
        # A look costs more the more jobs there are; its share of the time stays the same.
        rest_s = (ended_at - began) / _LOOK_SHARE
        self.not_before = ended_at + rest_s
        self.look_s = max(min(self.look_s * 1.1, _LONGEST_LOOK_S), rest_s)

    def _worth_a_look(self, now: float) -> list[str]:
        """Choose the keys to look for: all of them now and then, in between those of ended jobs.

        A batch system that is asked politely says late that a job has ended, so that the store
        knows first; one that tells its news at once spares the store all other looks.
        """
        if not self.backend.shared and now < self._next_scan:
            for key, entry in self.entries.items():
                if entry.status is not None and entry.status.state is JobState.RUNNING:
                    self._note_start(key, entry)
            return [
                key
                for key, entry in self.entries.items()
                if entry.status is not None and entry.status.state.ended
            ]
        self._next_scan = now + _LONGEST_LOOK_S
        return list(self.entries)

    def poll(self, now: float) -> None:
        """Ask the batch system once for all jobs."""
        age = now - min(entry.since for entry in self.entries.values())
        self._next_poll = now + poll_interval_s(
            age,
            shortest_s=self._pace.shortest_poll_s,
            longest_s=self._pace.longest_poll_s,
        )
        ids = {
            entry.standing.job_id: entry
            for entry in self.entries.values()
            if entry.standing.job_id is not None and entry.standing.backend == self.backend.name
        }
        if not ids:
            return
        try:
            statuses = self.backend.status(list(ids))
        except BackendError as error:
            # No answer is no evidence.
            logger.warning(
                "%s gives no answer now; asking again later: %s", self.backend.name, error
            )
            return
        for job_id, status in statuses.items():
            entry = ids.get(job_id)
            if entry is not None:
                entry.status = status
                if status.state.ended and entry.ended_at is None:
                    entry.ended_at = now
                elif not status.state.ended:
                    entry.ended_at = None

    def _conclude(self, key: str, entry: Entry, published: bool, has_ended: bool) -> None:
        if entry.status is not None and entry.status.state is JobState.RUNNING:
            self._note_start(key, entry)
        end = attempts.read_end(self.cache, key, entry.standing.generation) if has_ended else None
        graceful = entry.status is not None and entry.status.state is JobState.COMPLETED
        verdict = judge(
            Evidence(
                published=published,
                end=end,
                status=entry.status,
                ended_for_s=time.monotonic() - entry.ended_at if entry.ended_at else 0.0,
                grace_s=self._pace.output_grace_s if graceful else self._pace.failure_grace_s,
                parents_open=any(parent in self.entries for parent in entry.parents),
            )
        )
        if verdict is None:
            return
        if verdict.outcome is Outcome.DONE:
            self._finish(key, entry)
        else:
            self._fail(key, entry, verdict, end)

    def _note_start(self, key: str, entry: Entry) -> None:
        if entry.started:
            return
        entry.started = True
        for future in entry.futures:
            if not future.done() and not future.running():
                future.set_running_or_notify_cancel()
        for observe in entry.observers:
            observe("started", key)

    # ---- resolving -------------------------------------------------------------------------

    def _finish(self, key: str, entry: Entry) -> None:
        self._note_start(key, entry)
        self._drop(key, entry)
        for observe in entry.observers:
            observe("finished", key)
        for future in entry.futures:
            self._succeed(future)

    def _succeed(self, future: BatchFuture) -> None:
        future._resolve_from(functools.partial(self.cache.load, future.key, mode="copy"))

    def _fail(
        self, key: str, entry: Entry, verdict: Verdict, end: dict[str, object] | None
    ) -> None:
        """Fail the futures of a task, and everything here that depends on it."""
        standing = entry.standing
        if end is None:
            self._record_verdict(key, entry, verdict)
        error = failure_of(
            verdict,
            key=key,
            function=entry.function,
            job_id=standing.job_id,
            state=entry.status.word if entry.status is not None else "",
            log=standing.log_stem.with_suffix(".err"),
            end=end,
        )
        self._drop(key, entry)
        for future in entry.futures:
            future._fail(error)
        self._fail_children(key, entry, error)

    def _fail_children(self, root: str, failed: Entry, cause: BaseException) -> None:
        level = list(failed.children)
        while level:
            below: list[str] = []
            for key in level:
                entry = self.entries.get(key)
                if entry is None:
                    continue
                error = dependency_failure(
                    cause,
                    key=key,
                    function=entry.function,
                    root=root,
                    root_function=failed.function,
                )
                self._record_verdict(key, entry, Verdict(Outcome.DEPENDENCY, error.message), root)
                self._drop(key, entry)
                for future in entry.futures:
                    future._fail(error)
                below.extend(entry.children)
            level = below

    def _record_verdict(self, key: str, entry: Entry, verdict: Verdict, root: str = "") -> None:
        """Leave the verdict for the clients that come later, if the job itself left none."""
        record = {
            "outcome": verdict.outcome.value,
            "message": verdict.message,
            "function": entry.function,
            "job_id": entry.standing.job_id,
            "root": root,
            "concluded_by": "client",
        }
        attempts.end(self.cache, key, entry.standing.generation, record)

    def _drop(self, key: str, entry: Entry) -> None:
        del self.entries[key]
        self.followers.leave(key)
        for parent in entry.parents:
            above = self.entries.get(parent)
            if above is not None:
                above.children.discard(key)

    # ---- cancelling ------------------------------------------------------------------------

    def forget(self, future: BatchFuture) -> None:
        """Stop resolving a future that its caller has cancelled."""
        future._claim()  # tells those who wait with as_completed
        entry = self.entries.get(future.key)
        if entry is not None and future in entry.futures:
            entry.futures.remove(future)
            self._cancel_unwanted([future.key])

    def cancel(self, *, waiting_only: bool) -> None:
        """Cancel the futures of all jobs, or of those that have not started."""
        if waiting_only and self.entries:
            self.poll(time.monotonic())
        chosen = [
            entry
            for entry in self.entries.values()
            if not waiting_only
            or entry.status is None
            or entry.status.state in (JobState.HELD, JobState.WAITING)
        ]
        for entry in chosen:
            for future in entry.futures:
                future._cancel_running()
                future._claim()
            entry.futures.clear()
        self._cancel_unwanted([entry.standing.key for entry in chosen])

    def break_off(self, error: BaseException) -> None:
        """Fail every future there is."""
        entries, self.entries = self.entries, {}
        for entry in entries.values():
            for future in entry.futures:
                future._fail(error)

    def _cancel_unwanted(self, keys: Iterable[str]) -> None:
        """Let go of what no future and no other task here waits for; cancel it if it is ours."""
        dropped: dict[str, Entry] = {}
        stack = list(keys)
        while stack:
            key = stack.pop()
            entry = self.entries.get(key)
            if entry is None or entry.futures or entry.children:
                continue
            self._drop(key, entry)
            dropped[key] = entry
            stack.extend(entry.parents)
        ours = {k: e for k, e in dropped.items() if e.ours and e.standing.job_id is not None}
        unwanted: list[str] = []
        for key in ours.keys() - self._wanted_by_others(ours):
            unwanted.append(ours[key].standing.job_id or "")
            self._record_verdict(key, ours[key], Verdict(Outcome.CANCELLED, "it was cancelled"))
        if unwanted:
            self.backend.cancel(unwanted)

    def _wanted_by_others(self, ours: Mapping[str, Entry]) -> set[str]:
        """Return which of our jobs other clients wait for, and those that these depend on."""
        wanted: set[str] = set()
        for run_id in {entry.standing.run_id for entry in ours.values()}:
            wanted |= self.followers.wanted(run_id)
        stack = list(wanted & ours.keys())
        while stack:
            above = (ours[stack.pop()].parents & ours.keys()) - wanted
            wanted |= above
            stack.extend(above)
        return wanted
