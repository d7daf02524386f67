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
from dask_batch.backends.slurm.states import WORDS
from dask_batch.errors import BackendError, CommandError

__all__ = ["is_over", "this_place"]

_TIMEOUT_S: Final = 30.0
_KEEP_S: Final = 30.0
_PLACE: Final = re.compile(r"slurm:([\w.-]+):([0-9_]+):([0-9]+)", re.ASCII)
_OVER: Final = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
        *("OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"),
    }
)
"""States that a job does not leave, but for one with a higher number of restarts. Slurm prints them
once nothing of the job is left: until then it prints COMPLETING."""
_known: dict[str, tuple[float, bool | None]] = {}
"""What was found out about places, and when, on the monotonic clock."""


def this_place(environ: Mapping[str, str] | None = None) -> str:
    """Return where this process is, as ``slurm:CLUSTER:JOB:RESTARTS``; empty if that says nothing.

    Numbers of jobs repeat on each cluster, and clusters may share a file system.
    """
    environ = os.environ if environ is None else environ
    cluster, job = environ.get("SLURM_CLUSTER_NAME"), environ.get("SLURM_JOB_ID")
    place = f"slurm:{cluster}:{job}:{environ.get('SLURM_RESTART_COUNT') or '0'}"
    return place if cluster and job and _PLACE.fullmatch(place) else ""


def is_over(place: str, environ: Mapping[str, str] | None = None) -> bool | None:
    """Whether all processes of a place have ended; None if that cannot be told.

    Parameters
    ----------
    place
        As :func:`this_place` had it there.
    environ
        The environment of this process.
    """
    match = _PLACE.fullmatch(place)
    if match is None:
        return None
    cluster, job, restarts = match[1], match[2], int(match[3])
    here = _PLACE.fullmatch(this_place(environ))
    if here is not None and here.group(1, 2) == (cluster, job):
        return int(here[3]) > restarts
    at, answer = _known.get(place, (0.0, None))
    now = time.monotonic()
    if place not in _known or (not answer and now - at > _KEEP_S):
        answer = _ask(cluster, job, restarts)
        _known[place] = (now, answer)
    return answer


def _ask(cluster: str, job: str, restarts: int) -> bool | None:
    """Ask the cluster at hand; another one knows nothing of the job, or has one of that number."""
    try:
        named = re.findall(r"^ClusterName\s*=\s*(\S+)", _scontrol("config"), re.MULTILINE)
        if named != [cluster]:
            return None
        shown = _scontrol("job", job)
    except CommandError as error:
        return True if "Invalid job id" in error.stdout + error.stderr else None
    except BackendError:
        return None
    state = re.search(r"\bJobState=(\w+)", shown)
    count = re.search(r"\bRestarts=(\d+)", shown)
    if state is None or count is None:
        return None
    if int(count[1]) > restarts or state[1] in _OVER:
        return True
    return False if state[1] in WORDS else None


def _scontrol(*what: str) -> str:
    return run(["scontrol", "-o", "show", *what], timeout_s=_TIMEOUT_S).stdout
