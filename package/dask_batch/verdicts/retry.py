"""Whether a failed attempt is repeated, and with what resources: pure.

A retry is the next generation of the claim, by the same run. All that the decision rests on is on
record, so whoever looks, any client and any steward, decides the same.

=================================  ==============================================================
how the attempt ended              what follows
=================================  ==============================================================
node failure, preempted            the same again
out of memory                      again, with more memory
timeout                            again, with more time
killed from outside                the same again
exception, crash, its own exit     again only if that was asked for (``retry_exceptions``)
lost by the batch system           again, free of charge
fell with an input that is not     again, free of charge
failed after all
its worker died                    again, as often as workers are replaced (``restart_limit``)
anything else                      it stays as it is: the next attempt would end alike
=================================  ==============================================================
"""

from __future__ import annotations

import builtins
import math
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dask_batch.verdicts.follow import Outcome

__all__ = ["FREE_REPEATS", "Ending", "Repeat", "RetryPolicy", "decide", "resources_of_attempt"]

FREE_REPEATS: Final = 3
"""How often a run repeats a task for reasons that are not the task's."""

_AGAIN: Final = {
    Outcome.NODE_FAILURE: "its node failed",
    Outcome.PREEMPTED: "it was preempted",
    Outcome.OUT_OF_MEMORY: "it ran out of memory",
    Outcome.TIMEOUT: "it ran out of time",
    Outcome.DIED: "it was killed",
}
_FREE: Final = {
    Outcome.LOST: "the batch system had lost it",
    Outcome.DEPENDENCY: "what it depends on has not failed after all",
}
_DEATHS: Final = frozenset(_AGAIN)
_CRASHES: Final = frozenset(
    {signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV, signal.SIGTRAP}
)
"""Signals that a process brings upon itself: like an exception, and not like a kill."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """What a user said about repeating one task.

    Attributes
    ----------
    retries
        How often what failed is repeated.
    exceptions
        Which exceptions of the function are repeated: all, none, or those of these class names.
    memory_factor, time_factor
        By what memory and time limit grow after an attempt that ran out of them.
    deaths
        How often it is repeated, if not by ``retries``, after its process ended, however: where
        tasks run on long-lived workers, that is a worker's end.
    """

    retries: int = 0
    exceptions: bool | tuple[str, ...] = False
    memory_factor: float = 2.0
    time_factor: float = 2.0
    deaths: int = 0

    def record(self) -> dict[str, Any]:
        """Return the policy as JSON data: ``header["retry"]`` of a task definition."""
        chosen = self.exceptions
        return {
            "retries": self.retries,
            "exceptions": chosen if isinstance(chosen, bool) else list(chosen),
            "memory_factor": self.memory_factor,
            "time_factor": self.time_factor,
            **({"deaths": self.deaths} if self.deaths else {}),
        }

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> RetryPolicy:
        """Return the policy in the header of a task definition; where it has none, no retries."""
        said = header.get("retry") or {}
        chosen = said.get("exceptions", False)
        return cls(
            retries=int(said.get("retries", 0)),
            exceptions=chosen if isinstance(chosen, bool) else tuple(map(str, chosen)),
            memory_factor=float(said.get("memory_factor", 2.0)),
            time_factor=float(said.get("time_factor", 2.0)),
            deaths=int(said.get("deaths", 0)),
        )

    @property
    def repeats(self) -> bool:
        """Whether anything is repeated for the task's own reasons."""
        return self.retries > 0 or self.deaths > 0


def _bases(name: str) -> list[str]:
    """Return the names of an exception's class and of its bases, as far as they can be known."""
    kind = getattr(builtins, name.removeprefix("builtins."), None)
    if not isinstance(kind, type):
        return [name]
    return [f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__]


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended, as far as a repetition depends on it."""

    outcome: Outcome
    exception_types: tuple[str, ...] = ()
    """The qualified names of the exception's class and of its bases."""
    by_itself: bool = False
    """Whether the process crashed or left, rather than being killed."""

    @classmethod
    def of(cls, end: Mapping[str, Any]) -> Ending:
        """Read an end record."""
        try:
            outcome = Outcome(end.get("outcome"))
        except ValueError:
            outcome = Outcome.DIED
        types = end.get("exception_types") or _bases(str(end.get("exception_type") or ""))
        killed_by, code = end.get("signal"), end.get("exit_code")
        by_itself = killed_by in _CRASHES if killed_by else bool(code)
        return cls(outcome, tuple(str(name) for name in types if name), by_itself)


@dataclass(frozen=True, slots=True)
class Repeat:
    """The decision to make one more attempt."""

    why: str
    free: bool = False
    """Whether it counts for none of the retries that the user allowed."""


def decide(ending: Ending, policy: RetryPolicy, past: Sequence[Outcome]) -> Repeat | None:
    """Decide whether a failed attempt is repeated.

    Parameters
    ----------
    ending
        How it ended. *Dependency* must mean that the inputs have not really failed.
    policy
        What the user said.
    past
        How the same run's earlier attempts at the task ended.

    Returns
    -------
    Repeat or None
        None: the failure is final.
    """
    free = _FREE.get(ending.outcome)
    if free is not None:
        used = sum(outcome in _FREE for outcome in past)
        return Repeat(free, free=True) if used < FREE_REPEATS else None
    why, limit = _reason(ending, policy), policy.retries
    if policy.deaths and ending.outcome in _DEATHS:
        why = why or "its worker's process ended"
        limit = max(limit, policy.deaths)
    used = sum(outcome not in _FREE for outcome in past)
    if why is None or used >= limit:
        return None
    return Repeat(f"{why} (retry {used + 1} of {limit})")


def _reason(ending: Ending, policy: RetryPolicy) -> str | None:
    """Return why such an ending may be repeated; None if it may not."""
    if ending.outcome is Outcome.EXCEPTION:
        if not _asked_for(ending.exception_types, policy.exceptions):
            return None
        name = ending.exception_types[0] if ending.exception_types else "an exception"
        return f"it raised {name.removeprefix('builtins.')}"
    if ending.outcome is Outcome.DIED and ending.by_itself:
        return "its process ended by itself" if policy.exceptions is True else None
    return _AGAIN.get(ending.outcome)


def _asked_for(types: Sequence[str], chosen: bool | tuple[str, ...]) -> bool:
    """Tell whether a class, or a base of it, is among those that were named, shortly or fully."""
    if isinstance(chosen, bool):
        return chosen
    names = {name for full in types for name in (full, full.rpartition(".")[2])}
    return any(wanted in names for wanted in chosen)


def resources_of_attempt(
    resources: Mapping[str, Any], policy: RetryPolicy, past: Sequence[Outcome]
) -> dict[str, Any]:
    """Return what the next attempt is to have, in normal form.

    Parameters
    ----------
    resources
        What the first attempt had.
    policy
        By what memory and time grow.
    past
        How all attempts so far have ended.

    Notes
    -----
    What was not asked for cannot be multiplied: where the site's default holds, it stays.
    """
    grown = dict(resources)
    memory, time = grown.get("memory_max"), grown.get("run_time_max")
    if memory is not None:
        more = memory * policy.memory_factor ** sum(o is Outcome.OUT_OF_MEMORY for o in past)
        grown["memory_max"] = int(more) if float(more).is_integer() else more
    if time is not None:
        more = time * policy.time_factor ** sum(o is Outcome.TIMEOUT for o in past)
        grown["run_time_max"] = math.ceil(more)
    return grown
