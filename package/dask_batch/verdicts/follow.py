"""From evidence to verdict: pure, and total.

What is known of an attempt comes from four places, trusted in this order: the store (a result was
published), the record that the job itself left when it ended, and what the batch system says. The
last is trusted with an ending only after a time of grace, in which a file system that shows new
files late can still bring the first or the second. *Don't know* is never a verdict.
"""

from __future__ import annotations

import enum
import signal as signals
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dask_batch.backends.base import JobState, JobStatus

__all__ = [
    "Evidence",
    "Outcome",
    "Verdict",
    "judge",
    "poll_interval_s",
    "said",
    "signal_of",
]


class Outcome(enum.Enum):
    """What became of an attempt. The values are the words of end records."""

    DONE = "done"
    EXCEPTION = "exception"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out of memory"
    NODE_FAILURE = "node failure"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    DIED = "died"
    NO_OUTPUT = "no output"
    UNSTORABLE = "unstorable"
    DEPENDENCY = "dependency"
    CHANGED = "changed"
    ENVIRONMENT = "environment"
    LOST = "lost"
    GIVEN_UP = "given up"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one attempt at one moment.

    Attributes
    ----------
    published
        The store has the result.
    end
        The record that the attempt left when it ended without one.
    status
        The batch system's last word on the job; None: it has none, or gave no answer.
    ended_for_s
        How long the batch system has been saying that the job has ended, in seconds.
    grace_s
        How long a result may take to be seen here after the job ended.
    parents_open
        Whether a job that this one waits for has no verdict yet.
    parents_alive
        Whether the batch system says of each of those that it has not ended.
    """

    published: bool = False
    end: Mapping[str, Any] | None = None
    status: JobStatus | None = None
    ended_for_s: float = 0.0
    grace_s: float = 0.0
    parents_open: bool = False
    parents_alive: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What we conclude about an attempt, and on what evidence."""

    outcome: Outcome
    message: str = ""
    evidence: str = ""


_OUTCOMES = {
    JobState.TIMEOUT: (Outcome.TIMEOUT, "the job was killed at its time limit"),
    JobState.OUT_OF_MEMORY: (
        Outcome.OUT_OF_MEMORY,
        "the job was killed because it used more memory than it asked for",
    ),
    JobState.NODE_FAILURE: (Outcome.NODE_FAILURE, "the node on which the job ran failed"),
    JobState.PREEMPTED: (Outcome.PREEMPTED, "the job was preempted"),
    JobState.CANCELLED: (Outcome.CANCELLED, "the job was cancelled"),
    JobState.DEPENDENCY_FAILED: (
        Outcome.DEPENDENCY,
        "the job never started: one that it waits for did not succeed",
    ),
    JobState.LOST: (Outcome.LOST, "the batch system has lost every trace of the job"),
    JobState.COMPLETED: (Outcome.NO_OUTPUT, "the job ended well, but its result is not there"),
}


def judge(evidence: Evidence) -> Verdict | None:
    """Return the verdict on an attempt; None while there is none to be had."""
    if evidence.published:
        return Verdict(Outcome.DONE, evidence="its result is in the cache")
    if evidence.end is not None:
        verdict = _from_record(evidence.end)
        fell = verdict.outcome is Outcome.DEPENDENCY and evidence.parents_open
        return None if fell else verdict
    status = evidence.status
    if status is None or not status.state.ended or evidence.ended_for_s < evidence.grace_s:
        return None
    if _fell_with_a_parent(status.state, evidence):
        # The parent's verdict, still to come, is the true cause.
        return None
    return Verdict(*_what_happened(status), said(status))


def _fell_with_a_parent(state: JobState, evidence: Evidence) -> bool:
    if state is JobState.CANCELLED:
        # Slurm's accounting calls so, too, what it removed because a parent failed.
        return evidence.parents_open and not evidence.parents_alive
    # One that was lost with its parents would find nothing to begin with before they have run.
    return state in (JobState.DEPENDENCY_FAILED, JobState.LOST) and evidence.parents_open


def _what_happened(status: JobStatus) -> tuple[Outcome, str]:
    if status.state is JobState.FAILED:
        return Outcome.DIED, _how_it_died(status)
    return _OUTCOMES[status.state]


def said(status: JobStatus) -> str:
    """Return what a batch system said about a job, as evidence for people."""
    words = f"{status.source or 'the batch system'} says {status.word or status.state.value}"
    return f"{words} ({status.reason})" if status.reason else words


def _from_record(end: Mapping[str, Any]) -> Verdict:
    try:
        outcome = Outcome(end.get("outcome"))
    except ValueError:
        outcome = Outcome.DIED  # a later version's word, or a record whose details were lost
    if outcome is Outcome.DONE:
        outcome = Outcome.NO_OUTPUT  # no end record says so, and success needs the result
    message = str(end.get("message") or "the attempt failed")
    return Verdict(outcome, message, str(end.get("evidence") or "its own end record"))


def _how_it_died(status: JobStatus) -> str:
    if status.unbegun is not None:
        return str(status.unbegun)
    signal = signal_of(status)
    if signal is not None:
        return f"the job was killed by signal {signal}{_SIGNALS.get(signal) or _name(signal)}"
    if status.exit_code == 127:
        return "the job's command was not found (exit code 127)"
    if status.exit_code:
        return f"the job ended with exit code {status.exit_code} and left no record of why"
    return "the job failed and left no record of why"


def _name(signal: int) -> str:
    known = signal in signals.valid_signals()
    return f" ({signals.Signals(signal).name})" if known and signal < signals.SIGRTMIN else ""


def signal_of(status: JobStatus) -> int | None:
    """Return the signal that ended a job, None if none did."""
    # A job script's shell reports the signal that ended its command as 128 + its number.
    signal = status.signal or (status.exit_code or 0) - _SHELL_SIGNAL
    return signal if status.signal or signal in _SIGNALS else None


_SHELL_SIGNAL = 128
_SIGNALS = {
    4: " (SIGILL: an instruction that this processor does not know)",
    6: " (SIGABRT)",
    7: " (SIGBUS)",
    8: " (SIGFPE)",
    9: " (SIGKILL: from outside, often for want of memory)",
    11: " (SIGSEGV: a crash in compiled code)",
    15: " (SIGTERM)",
}


def poll_interval_s(age_s: float, *, shortest_s: float, longest_s: float) -> float:
    """Return how long to wait between two questions to the batch system, in seconds.

    A twentieth of the age of the run: a young run is told of its failures quickly, an old one
    does not burden the scheduler.
    """
    return min(max(age_s / 20, shortest_s), longest_s)
