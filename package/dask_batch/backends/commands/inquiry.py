"""What became of jobs: one question for all, and the books for what it no longer knows.

A job that is *known* has a status. One that the system answered without, and that its books do not
know either, is :attr:`~dask_batch.backends.base.JobState.LOST` once the books have had their time.
Until then, and where nobody answered, it is *missing* in ours.
"""

from __future__ import annotations

import getpass
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from dask_batch.backends.base import JobState, JobStatus
from dask_batch.backends.commands.asking import Asking, is_temporary
from dask_batch.backends.commands.system import Listing, System, name_at
from dask_batch.errors import BackendUnavailableError, CommandError

__all__ = ["Inquiry"]

logger = logging.getLogger(__name__)

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 300.0
"""Between two questions to the books about the same job, doubling each time."""
_SILENCE_S = 600.0
"""Books that have given no answer for so long count as having nothing to say."""


@dataclass(slots=True)
class _Gone:
    """A job that has ended, or that the queue does not know."""

    since: float
    ask_again_at: float
    pause_s: float = FIRST_PAUSE_S
    end: JobStatus | None = None
    """What the books say of its end."""
    unheard: bool = False
    """The books gave no answer when they were asked about it last."""


class Inquiry:
    """Asks a batch system about jobs.

    Parameters
    ----------
    system
        Which one.
    asking
        Runs its commands.
    clock
        Tells the time in seconds.
    """

    def __init__(
        self, system: System, asking: Asking, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._system = system
        self._asking = asking
        self._clock = clock
        self._gone: dict[str, _Gone] = {}
        self._bookless = system.past is None
        self._listing = 0
        """Which of the listings is in use: the first that could be read."""

    # ---- by id -----------------------------------------------------------------------------

    def status(self, job_ids: Collection[str]) -> dict[str, JobStatus]:
        """Return what is known of jobs; see the module for what is missing in the answer.

        Raises
        ------
        CommandError, BackendUnavailableError
            The system does not answer.
        """
        listed = self._list(sorted(job_ids))
        found = {}
        unsure: dict[str, JobStatus | None] = {}
        for job_id in job_ids:
            status = listed.get(job_id)
            if status is None or status.word in self._system.provisional:
                unsure[job_id] = status
            else:
                found[job_id] = status
                self._gone.pop(job_id, None)
        self._look_up(unsure)
        for job_id, status in unsure.items():
            end = self._end(job_id, status)
            if end is not None:
                found[job_id] = end
        return found

    def _list(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """Ask, in a way whose answer can be read."""
        last: Exception | None = None
        for number in range(self._listing, len(self._system.listings)):
            listing = self._system.listings[number]
            try:
                found = {}
                for chunk in self._chunks(job_ids):
                    found.update(listing.read(self._asking.ask(listing.argv(chunk))))
                return found
            except ValueError as error:
                logger.debug("an answer of %s cannot be read: %s", self._system.title, error)
                last = CommandError(tuple(listing.argv(["..."])), 0, "", f"unreadable: {error}")
            except CommandError as error:
                if is_temporary(self._asking.words, error):
                    raise
                last = error
                self._listing = min(number + 1, len(self._system.listings) - 1)
        assert last is not None  # there is a listing
        raise last

    def _chunks(self, job_ids: Sequence[str]) -> Iterator[Sequence[str]]:
        """Cut ids into what one question may be about; some list all that a user has."""
        size = 200 if self._system.selection is not None else max(len(job_ids), 1)
        for start in range(0, max(len(job_ids), 1), size):
            yield job_ids[start : start + size]

    def _look_up(self, unsure: Collection[str]) -> None:
        """Ask the books about jobs whose turn it is."""
        now = self._clock()
        due = []
        for job_id in sorted(unsure):
            gone = self._gone.setdefault(job_id, _Gone(now, now))
            if gone.end is None and now >= gone.ask_again_at:
                gone.ask_again_at = now + gone.pause_s
                gone.pause_s = min(gone.pause_s * 2, LONGEST_PAUSE_S)
                due.append(job_id)
        past = self._system.past
        if past is None or self._bookless:
            return
        size = self._system.past_at_a_time
        for start in range(0, len(due), size):
            chunk = due[start : start + size]
            known = self._books(past, past.argv(chunk))
            for job_id in chunk:
                self._gone[job_id].unheard = known is None
                status = (known or {}).get(job_id)
                if status is not None and status.state.ended:
                    self._gone[job_id].end = status

    def _books(self, past: Listing, argv: Sequence[str]) -> dict[str, JobStatus] | None:
        """Ask the books; None where there is no answer, or there are none."""
        try:
            return self._read(past, argv)
        except BackendUnavailableError:
            self._bookless = True
            logger.info("%s keeps no books here: %s is missing", self._system.title, argv[0])
        except CommandError as error:
            logger.info("%s gives no answer for now: %s", argv[0], error)
        return None

    def _read(self, listing: Listing, argv: Sequence[str]) -> dict[str, JobStatus]:
        """Ask; an answer that cannot be read is none."""
        said = self._asking.ask(argv)
        try:
            return listing.read(said)
        except ValueError as error:
            raise CommandError(tuple(argv), 0, "", f"unreadable: {error}") from error

    def _end(self, job_id: str, listed: JobStatus | None) -> JobStatus | None:
        """Return what is to be said of a job of which the listing said this, or nothing."""
        gone = self._gone[job_id]
        if gone.end is not None:
            return gone.end
        grace_s = max(self._system.forgets_after_s, _SILENCE_S if gone.unheard else 0.0)
        late = self._clock() - gone.since >= grace_s
        if listed is not None:
            return listed if late or self._bookless else None
        if not late and not self._bookless:
            return None
        return JobStatus(job_id, JobState.LOST, source=self._system.title)

    # ---- by name ---------------------------------------------------------------------------

    def find(self, names: Collection[str]) -> dict[str, str]:
        """Look up job ids by unique job names, also those of ended jobs as far as they are known.

        Raises
        ------
        CommandError, BackendUnavailableError
            There is no answer: a name that is missing would be no evidence.
        """
        if not names:
            return {}
        found = {name: status.job_id for name, status in self._by_name(names).items()}
        ask = self._system.past_by_name
        missing = sorted(set(names) - found.keys())
        if missing and ask is not None and self._system.past is not None and not self._bookless:
            argv = ask([name_at(name) for name in missing])
            past = _latest(self._read(self._system.past, argv).values())
            found.update({name: past[name].job_id for name in missing if name in past})
        return found

    def find_queued(self, names: Collection[str]) -> dict[str, str]:
        """Look up, by name, jobs that have not ended.

        Raises
        ------
        CommandError, BackendUnavailableError
            There is no answer.
        """
        known = self._by_name(names)
        return {name: s.job_id for name, s in known.items() if not s.state.ended}

    def _by_name(self, names: Collection[str]) -> dict[str, JobStatus]:
        """Return what is listed of jobs, by name."""
        ids: list[str] = []
        if self._system.selection is not None:
            ids = self._asking.ask(self._system.selection(getpass.getuser())).split()
            if not ids:
                return {}
        latest = _latest(self._list(ids).values())
        return {name: latest[name] for name in names if name in latest}


def _latest(statuses: Iterable[JobStatus]) -> dict[str, JobStatus]:
    """Return statuses by name; where one repeats, that of the highest id."""
    return {status.name: status for status in sorted(statuses, key=lambda s: _number(s.job_id))}


def _number(job_id: str) -> int:
    """Return the number in an id: ``123.server``, ``Moab.123``."""
    digits = "".join(c if c.isdecimal() else " " for c in job_id).split()
    return int(digits[0]) if digits else -1
