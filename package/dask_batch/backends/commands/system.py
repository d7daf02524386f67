"""A batch system as data: its commands, its words, and how its answers are read.

What PBS, Grid Engine, LSF, Torque and Moab have in common is done once, by the modules beside this
one; what each of them calls it is in one :class:`System`. Everything in a system is pure: argument
lists out, records in.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from dask_batch.backends.base import Job, JobState, JobStatus

__all__ = [
    "Argv",
    "Listing",
    "System",
    "Waits",
    "Words",
    "name_at",
    "name_of",
    "state_of",
    "waits_of",
]

logger = logging.getLogger(__name__)

Argv: TypeAlias = list[str]
Reader: TypeAlias = Callable[[str], dict[str, JobStatus]]

_MARK = "n-"
"""Before names that no batch system would take: PBS and Grid Engine want a letter first."""
_warned: set[tuple[str, str]] = set()


@dataclass(frozen=True, slots=True)
class Waits:
    """What a job waits for, as ids."""

    successes: tuple[str, ...] = ()
    """Jobs that must all succeed."""
    ends: tuple[str, ...] = ()
    """Jobs that must all end, however."""
    failures: tuple[str, ...] = ()
    """Jobs one of which must fail."""
    patient: bool = False
    """Whether it is to outlive the failure of one that must succeed: that one may be repeated."""

    def __bool__(self) -> bool:
        return bool(self.successes or self.ends or self.failures)


@dataclass(frozen=True, slots=True)
class Listing:
    """A question about jobs, and how its answer is read."""

    argv: Callable[[Sequence[str]], Argv]
    """From ids to the command; one that lists all of a user's jobs takes no notice of them."""
    read: Reader
    """From its answer to what it says, by id. Raises ValueError where it makes no sense."""


@dataclass(frozen=True, slots=True)
class Words:
    """What a failed command says, as patterns of its own words."""

    unknown: re.Pattern[str]
    """A job is not known, has ended, or is not in a state to which the command applies."""
    temporary: re.Pattern[str]
    """The system does not answer now."""
    full: re.Pattern[str]
    """It takes no more jobs of this user for now."""
    dependency: re.Pattern[str]
    """A job that was to be waited for is not known any more."""
    advice: tuple[tuple[str, str], ...] = ()
    """What to try after a refusal, by a pattern of its words."""


@dataclass(frozen=True, slots=True)
class System:
    """One batch system.

    Attributes
    ----------
    name, title
        As in ``backend=``; and what people call it.
    template
        The built-in template of its job scripts.
    directive
        What its lines in a job script begin with.
    submit
        The command that takes a job script; ``by_stdin``: on its standard input.
    by_stdin
        See there.
    job_id
        What that command prints; its first group is the id.
    describe
        The options that say who a job is: name, stdout and stderr, given the interpreter of its
        script. They are on the command line, which overrides the script.
    hold
        The options that submit a job held.
    waits
        The options for what a job waits for.
    options
        Resources that can be asked for on the command line where the script does not.
    listings
        How to ask about jobs that are queued, running or just over; where an answer cannot be read,
        the next one is tried.
    selection
        How to list the ids of all jobs of a user; None where ``listings`` do so themselves.
    provisional
        Words of an end of which the books say more.
    past
        How to ask about jobs that these do not know any more, ``past_at_a_time``; None where there
        is no way.
    past_at_a_time
        See there.
    past_by_name
        The same by name; of several, about all of a user's jobs.
    release, cancel
        The commands for that, given ids.
    repoint
        How to let a queued job wait for others than before; None where that cannot be done.
    words
        What its failures mean.
    ids_per_call
        How many jobs one command may be about.
    bad_in_paths
        Characters that mean something in the path of a log.
    reserved
        Options that would make of a submission something else: job arrays, interactive jobs, and
        submissions that do not return before the job ends.
    forgets_after_s
        For how long a job that nobody knows may still turn up in its books.
    """

    name: str
    title: str
    template: str
    directive: str
    submit: tuple[str, ...]
    job_id: re.Pattern[str]
    describe: Callable[[str, str, str, str], Argv]
    hold: tuple[str, ...]
    waits: Callable[[Waits], Argv]
    listings: tuple[Listing, ...]
    release: Callable[[Sequence[str]], Argv]
    cancel: Callable[[Sequence[str]], Argv]
    words: Words
    reserved: re.Pattern[str]
    by_stdin: bool = False
    options: Mapping[str, Callable[[Any], Argv]] = field(default_factory=dict)
    selection: Callable[[str], Argv] | None = None
    provisional: frozenset[str] = frozenset()
    past: Listing | None = None
    past_at_a_time: int = 1
    past_by_name: Callable[[Sequence[str]], Argv] | None = None
    repoint: Callable[[str, Waits], Argv] | None = None
    forgets_after_s: float = 0.0
    ids_per_call: int = 200
    bad_in_paths: str = ""

    @property
    def commands(self) -> tuple[str, ...]:
        """The programs without which nothing can be done."""
        asks = self.selection("x") if self.selection else self.listings[0].argv(["1"])
        said = (self.submit, asks, self.release(["1"]), self.cancel(["1"]))
        return tuple(dict.fromkeys(argv[0] for argv in said))


def state_of(system: str, table: Mapping[str, JobState], word: str) -> JobState:
    """Translate a system's word; one that is not in its table means *not finished*, and is said."""
    state = table.get(word)
    if state is not None:
        return state
    if (system, word) not in _warned:
        _warned.add((system, word))
        logger.warning(
            "%s reports the state %r, which is unknown here: taken as not finished", system, word
        )
    return JobState.UNKNOWN


def name_at(name: str) -> str:
    """Return what a job is called at a batch system that wants a letter first.

    >>> name_at("add-0a1b-0"), name_at("_add-0a1b-0")
    ('add-0a1b-0', 'n-_add-0a1b-0')
    """
    fine = name[:1].isalpha() and name.isascii() and not name.startswith(_MARK)
    return name if fine else f"{_MARK}{name}"


def name_of(name: str) -> str:
    """Return the name of a job from what it is called at its batch system."""
    bare = name.removeprefix(_MARK)
    return bare if name_at(bare) == name else name


def waits_of(job: Job, parents: Iterable[str] = (), *, patient: bool = False) -> Waits:
    """Return what a job waits for.

    Parameters
    ----------
    job
        The job.
    parents
        The ids of its parents.
    patient
        Whether one of them may be run again.
    """
    return Waits(
        successes=tuple(dict.fromkeys([*parents, *job.after])),
        ends=tuple(dict.fromkeys(job.after_end)),
        failures=tuple(dict.fromkeys(job.after_failure)),
        patient=patient or job.patient,
    )
