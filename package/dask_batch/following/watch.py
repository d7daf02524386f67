"""What is under way, and the looks that end it.

A *look* asks, in this order, the batch system (when that is due), the store and the end records;
:mod:`dask_batch.verdicts.course` concludes, and futures resolve or fail, with all that depends on
them, or a failed attempt is repeated. The watch belongs to the engine's thread; only
:attr:`Watch.known` is read from others. Nothing that goes wrong with one entry touches another.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from dask_batch.backends.base import Backend, JobState, tells_at_once
from dask_batch.cache import attempts
from dask_batch.cache.claims import Claims
from dask_batch.cache.followers import Followers
from dask_batch.cache.store import Cache
from dask_batch.errors import BatchError
from dask_batch.evidence.history import History
from dask_batch.evidence.sighting import Sighting
from dask_batch.evidence.standing import Standing, Standings
from dask_batch.following.aftermath import Aftermath
from dask_batch.following.attending import Attending
from dask_batch.following.cancelling import Cancelling
from dask_batch.following.entries import Entry, Observer, Pace
from dask_batch.following.ghosts import Ghosts
from dask_batch.following.giving_up import GivingUp
from dask_batch.following.polling import Polling, Rhythm
from dask_batch.following.repeating import Repeating
from dask_batch.following.resolving import Resolving
from dask_batch.following.sweep import Sweep
from dask_batch.following.tending import Tending
from dask_batch.future import BatchFuture
from dask_batch.verdicts.failures import Fallen
from dask_batch.verdicts.follow import Outcome

__all__ = ["Entry", "Observer", "Pace", "Watch"]

logger = logging.getLogger(__name__)

_FULL_SCAN_S = 2.0
"""How often even an unshared queue, which tells its news at once, is not relied on."""
_PATIENCE_S = 600.0
"""For how long a file system may go on failing before what became of a task is not found out."""
_MISTAKES = 5
"""So often in a row may looking at one entry fail for a reason that waiting does not mend."""


class Watch:
    """The jobs under way of one engine.

    Parameters
    ----------
    cache, backend
        Where results appear, and whom to ask about jobs.
    pace
        How often to ask what.
    standings
        Finds the jobs of claims; by default one that knows no backend but this.

    Attributes
    ----------
    entries
        What is under way, by key.
    known
        The last standing of every key that ever was.
    guarded
        The ids of the runs that are looked after as if this client had handed them over.
    given_up
        Called with the id of a run and the error when the rest of the run is given up.
    """

    def __init__(
        self, cache: Cache, backend: Backend, pace: Pace, standings: Standings | None = None
    ) -> None:
        if standings is None:
            standings = Standings(cache, Claims(cache), backend, lambda name: None)
        self.cache = cache
        self.backend = backend
        self.entries: dict[str, Entry] = {}
        self.known: dict[str, Standing] = {}
        self.guarded: set[str] = set()
        self.given_up: Callable[[str, BaseException], None] | None = None
        self.followers = Followers(cache)
        self._pace = pace
        self._sighting = Sighting(cache)
        self._polling = Polling(backend, pace)
        self._rhythm = Rhythm(time.monotonic(), pace.fixed_look_s)
        self._next_scan = 0.0
        history = History(cache, standings.claims)
        self._sweep = Sweep(backend)
        tending = Tending(cache, standings.claims, backend, history)
        self._resolving = Resolving(self, GivingUp(self, standings.claims), self._sweep)
        self._aftermath = Aftermath(self, history, tending, self._resolving, self._sweep)
        self._cancelling = Cancelling(self, standings.claims, history, self._resolving, self._sweep)
        self._repeating = Repeating(self, standings, history, tending, self._resolving)
        self._attend = Attending(
            self, standings.claims, history, tending, self._repeating, self._resolving
        )

    @property
    def look_s(self) -> float:
        """How long to wait for news before the next look, in seconds."""
        return self._rhythm.look_s

    @property
    def not_before(self) -> float:
        """Until when not to look, whatever the news, on the monotonic clock."""
        return self._rhythm.not_before

    @property
    def ghosts(self) -> Ghosts:
        """The jobs that are over and may be in the way of others."""
        return self._aftermath.ghosts

    @property
    def pace(self) -> Pace:
        """How often to ask what."""
        return self._pace

    # ---- coming in -------------------------------------------------------------------------

    def add(self, standing: Standing, function: str, *, ours: bool) -> None:
        """Watch a job."""
        if standing.key not in self.entries:
            entry = self.entries[standing.key] = Entry(standing, function, ours)
            if not ours and standing.generation > 0:
                # Whoever claimed this attempt may not have come to run the job again.
                entry.doubt(act_at=time.monotonic() + self._pace.lease_s)
            self.take_note(standing)
            self.hasten()

    def take_note(self, standing: Standing) -> None:
        """Know a job by its key, and whose its id is."""
        self.known[standing.key] = standing
        self._sweep.given(standing)

    def hasten(self) -> None:
        """Ask and look soon: something has come in."""
        now = time.monotonic()
        self._polling.hasten(now)
        self._rhythm.hasten(now)
        self._next_scan = 0.0

    def link(self, key: str, inputs: Iterable[str]) -> None:
        """Let a job depend on those of its inputs that are under way."""
        entry = self.entries.get(key)
        if entry is None:
            return
        entry.parents |= set(inputs) & self.entries.keys()
        for parent in entry.parents & self.entries.keys():
            self.entries[parent].children.add(key)

    def attach(self, future: BatchFuture) -> None:
        """Let a future resolve with its key: now, if that is not under way any more."""
        future._recorded()
        entry = self.entries.get(future.key)
        if entry is not None:
            entry.futures.append(future)
            if entry.started and not future.done():
                future.set_running_or_notify_cancel()
        else:
            self._resolving.succeed(future)

    def observe(self, key: str, observer: Observer) -> None:
        """Tell an observer of a key's start and end: now, if it has ended."""
        entry = self.entries.get(key)
        if entry is not None:
            entry.observers.append(observer)
        else:
            self._resolving.tell([observer], "finished", key)

    def follow(self, standing: Standing, function: str) -> None:
        """Watch a job of another client, so that it is not cancelled under us."""
        if standing.key not in self.entries:
            self.add(standing, function, ours=False)
            self._cancelling.followed(standing.run_id, [standing.key])

    def taken_over(self, standing: Standing) -> None:
        """Go on waiting for a key that another run makes now."""
        self.followers.leave(standing.key)
        self._cancelling.followed(standing.run_id, [standing.key])

    # ---- looking ---------------------------------------------------------------------------

    def look(self) -> None:
        """Gather evidence on all entries and act on the verdicts that it allows."""
        began = time.monotonic()
        try:
            if self._polling.due(began):
                self.poll(began)
                began = time.monotonic()  # how long an answer took says nothing of the store
            changed = self._look(began)
        except Exception:
            # A mistake here: the jobs go on, and so does the watch over them.
            logger.exception("a look at what is under way failed; it is taken again")
            changed = False
        ended = time.monotonic()
        if changed:
            self._rhythm.changed(ended)
        soon = any(entry.over or not entry.course.sure for entry in self.entries.values())
        self._rhythm.looked(began, ended, soon=soon)

    def _look(self, now: float) -> bool:
        """Look once; return whether anything has changed."""
        changed = False
        keys = self._worth_a_look(now)
        while keys:
            before = set(self.entries)
            self._examine(keys, now)
            gone = before - self.entries.keys()
            changed = changed or bool(gone)
            # What waited for those that have ended may have ended in the meantime.
            keys = self._exposed(keys, gone)
        self._attend(now)
        self._aftermath.tend(now)
        self._sweep.soon()
        return changed

    def poll(self, now: float) -> None:
        """Ask the batch system once for all jobs."""
        told = self._polling.poll(self.entries.values(), now, self.ghosts.ids())
        self._aftermath.heard(told, self._polling.outages, now)
        self._next_scan = 0.0
        for key, entry in list(self.entries.items()):
            if entry.running:
                self._resolving.note_start(key, entry)

    def _worth_a_look(self, now: float) -> list[str]:
        """Choose the keys to look for: all of them now and then, else what may have ended.

        A batch system that is asked politely says late that a job has ended, so that the store
        knows first; one that tells its news at once spares the store most looks. What waits for
        another job has not begun.
        """
        awake = [key for key, entry in self.entries.items() if entry.quiet_until <= now]
        if now >= self._next_scan:
            rest_s = self.look_s if tells_at_once(self.backend) else self._pace.longest_poll_s
            self._next_scan = now + max(rest_s, _FULL_SCAN_S)
            return awake
        entries = self.entries
        if tells_at_once(self.backend):
            return [key for key in awake if entries[key].over]
        return [key for key in awake if entries[key].over or not self._parents(entries[key])]

    def _parents(self, entry: Entry) -> list[Entry]:
        """Return the entries of those of a task's inputs that are under way."""
        return [self.entries[key] for key in entry.parents if key in self.entries]

    def _exposed(self, looked_at: list[str], gone: set[str]) -> list[str]:
        seen = set(looked_at)
        waiting = self.entries.items()
        return [k for k, e in waiting if k not in seen and e.parents & gone] if gone else []

    def _examine(self, keys: list[str], now: float) -> None:
        seen = self._sighting({key: self.entries[key].standing.generation for key in keys}, now)
        for key in keys:
            entry = self.entries.get(key)
            if entry is None or not (key in seen.read or key in seen.unread):
                continue
            try:
                if key in seen.unread:
                    raise seen.unread[key]
                self._conclude(key, entry, key in seen.published, key in seen.ended)
            except Exception as error:
                self._trouble(key, entry, error, now)
            else:
                entry.troubles = 0

    def _conclude(self, key: str, entry: Entry, published: bool, has_ended: bool) -> None:
        generation = entry.standing.generation
        end = attempts.read_end(self.cache, key, generation) if has_ended else None
        evidence = entry.evidence(
            published=published, end=end, parents=self._parents(entry), pace=self._pace
        )
        verdict = entry.course.consider(generation, evidence)
        if verdict is None:
            return
        if verdict.outcome is Outcome.DONE:
            self._resolving.finish(key, entry)
        else:
            self._repeating.failed(key, entry, verdict, end)

    def _trouble(self, key: str, entry: Entry, error: Exception, now: float) -> None:
        """Look at an entry again later; give it up if that does not mend it."""
        entry.troubles += 1
        if entry.troubles == 1:
            entry.troubled_at = now
            logger.exception("looking at %s (%s) failed; again later", entry.function, key[:12])
        entry.quiet_until = now + min(0.5 * 2.0**entry.troubles, 30.0)
        # What an error of our own says of a file does not change; what the system says may.
        own = isinstance(error, BatchError)
        transient = isinstance(error, OSError) and (error.errno is not None or not own)
        enough = now - entry.troubled_at > _PATIENCE_S if transient else entry.troubles >= _MISTAKES
        if enough:
            self._resolving.not_found_out(key, entry, error)

    def fallen(self, key: str) -> Fallen | None:
        """Return why the result of a key will not come, if its failure is on record."""
        return self._repeating.on_record(key)

    def inherit(self, key: str, standing: Standing, *, ours: bool) -> None:
        """Go on waiting for a key that was handed over anew, since its job has gone."""
        entry = self.entries[key]
        entry.move(standing)
        entry.ours = ours
        self.take_note(standing)
        if ours:
            self.followers.leave(key)
        else:
            self.taken_over(standing)
        self.hasten()

    def lose(self, key: str, error: BaseException) -> None:
        """Give up a key whose job has gone and cannot be handed over anew."""
        entry = self.entries[key]
        self.drop(key, entry)
        self._resolving.fail_all(entry, error)

    # ---- cancelling ------------------------------------------------------------------------

    def drop(self, key: str, entry: Entry) -> None:
        """Watch a key no more."""
        del self.entries[key]
        self.followers.leave(key)
        for parent in entry.parents:
            above = self.entries.get(parent)
            if above is not None:
                above.children.discard(key)

    def forget(self, future: BatchFuture) -> None:
        """Stop resolving a future that its caller has cancelled."""
        self._cancelling.forget(future)

    def cancel(self, *, waiting_only: bool) -> None:
        """Cancel the futures of all jobs, or of those that have not started."""
        if waiting_only and self.entries:
            self.poll(time.monotonic())
        waiting = (JobState.HELD, JobState.WAITING)
        self._cancelling.cancel(
            entry
            for entry in list(self.entries.values())
            if not waiting_only or entry.status is None or entry.status.state in waiting
        )

    def break_off(self, error: BaseException) -> None:
        """Fail every future there is."""
        entries, self.entries = self.entries, {}
        for entry in entries.values():
            self._resolving.fail_all(entry, error)
