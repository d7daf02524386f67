"""How a job ended, from what the kernel says about its process."""

from __future__ import annotations

import os
import signal

from dask_batch.backends.base import JobState
from dask_batch.backends.local.records import Outcome

__all__ = ["from_wait_status", "under_verdict"]


def from_wait_status(status: int) -> Outcome:
    """Read a status as ``waitpid`` returns it."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return Outcome(JobState.FAILED, signal=number, reason=f"killed by {_signal_name(number)}")
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return Outcome(JobState.COMPLETED, exit_code=0)
    return Outcome(JobState.FAILED, exit_code=code, reason=f"ended with exit code {code}")


def under_verdict(how: Outcome, verdict: Outcome | None) -> Outcome:
    """Name an end by the reason for which the job was being ended; success stays success."""
    if verdict is None or how.state is JobState.COMPLETED:
        return how
    return Outcome(verdict.state, how.exit_code, how.signal, verdict.reason)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
