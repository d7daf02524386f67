"""Where a client is whose jobs end with it, so that others can tell whether it may still live.

Only its own machine can tell whether a process lives. But a client in a job of Slurm ends with that
job, and of jobs everybody on the cluster may know: so where the client is on another machine, its
job is asked about. A job that was run again in its place is another place.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from typing import Final

from dask_batch.backends.command import run
from dask_batch.errors import BackendError, BackendUnavailableError, CommandError

__all__ = ["is_over", "this_place"]

_TIMEOUT_S: Final = 30.0
_KEEP_S: Final = 30.0
_ALIVE: Final = ("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "STOPPED")
_known: dict[str, tuple[float, bool | None]] = {}
"""What was found out about places, and when, on the monotonic clock."""


def this_place(environ: Mapping[str, str] | None = None) -> str:
    """Return where this process is, as ``slurm:JOB:RESTARTS``; empty if that says nothing."""
    environ = os.environ if environ is None else environ
    job, restarts = environ.get("SLURM_JOB_ID"), environ.get("SLURM_RESTART_COUNT") or "0"
    return f"slurm:{job}:{restarts}" if job else ""


def is_over(place: str, environ: Mapping[str, str] | None = None) -> bool | None:
    """Whether all processes of a place have ended; None if that cannot be told.

    Parameters
    ----------
    place
        As :func:`this_place` had it there.
    environ
        The environment of this process.
    """
    match = re.fullmatch(r"slurm:([0-9_]+):([0-9]+)", place)
    if match is None:
        return None
    job, restarts = match[1], int(match[2])
    here = re.fullmatch(r"slurm:([0-9_]+):([0-9]+)", this_place(environ))
    if here is not None and here[1] == job:
        return int(here[2]) > restarts
    at, answer = _known.get(place, (0.0, None))
    now = time.monotonic()
    if place not in _known or (not answer and now - at > _KEEP_S):
        answer = _ask(job, restarts)
        _known[place] = (now, answer)
    return answer


def _ask(job: str, restarts: int) -> bool | None:
    try:
        shown = run(["scontrol", "-o", "show", "job", job], timeout_s=_TIMEOUT_S).stdout
    except BackendUnavailableError:
        return None
    except CommandError as error:
        return True if "Invalid job id" in error.stdout + error.stderr else None
    except BackendError:
        return None
    state = re.search(r"\bJobState=(\w+)", shown)
    count = re.search(r"\bRestarts=(\d+)", shown)
    if state is None or count is None:
        return None
    return state[1] not in _ALIVE or int(count[1]) > restarts
