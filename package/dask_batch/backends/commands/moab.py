"""Moab, as data: the scheduler above a Torque or a Slurm, with commands of its own."""

from __future__ import annotations

import getpass
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from dask_batch.backends.base import JobState, JobStatus
from dask_batch.backends.commands.attributes import depend
from dask_batch.backends.commands.elements import elements
from dask_batch.backends.commands.system import (
    Argv,
    Listing,
    System,
    Waits,
    Words,
    name_of,
    state_of,
)

__all__ = ["MOAB", "read_showq"]

_STATES: Final[Mapping[str, JobState]] = {
    "Idle": JobState.WAITING,
    "Hold": JobState.WAITING,
    "BatchHold": JobState.WAITING,
    "SystemHold": JobState.WAITING,
    "Deferred": JobState.WAITING,
    "Migrated": JobState.WAITING,
    "NotQueued": JobState.WAITING,
    "Staged": JobState.WAITING,
    "Staging": JobState.WAITING,
    "UserHold": JobState.HELD,
    "Starting": JobState.RUNNING,
    "Running": JobState.RUNNING,
    "Suspended": JobState.RUNNING,
    "Exiting": JobState.ENDING,
    "Canceling": JobState.ENDING,
    "Completed": JobState.COMPLETED,
    "Removed": JobState.CANCELLED,
    "Vacated": JobState.PREEMPTED,
}


def read_showq(text: str) -> dict[str, JobStatus]:
    """Read ``showq --xml``, and ``showq -c --xml`` for what has ended.

    Raises
    ------
    ValueError
        It is no XML.
    """
    found = {}
    for job in elements(text, "job"):
        job_id, word = job.get("JobID", ""), job.get("State", "")
        state, code, reason = state_of("Moab", _STATES, word), None, ""
        if state.ended:
            reason = job.get("CompletionCode", "")
            state, code = _end(state, reason)
        name = name_of(job.get("JobName", ""))
        found[job_id] = JobStatus(job_id, state, word, code, None, reason, "showq", name)
    return found


def _end(state: JobState, words: str) -> tuple[JobState, int | None]:
    """Read a completion code: a number, ``CNCLD``, ``CNCLD(271)``, ``REMOVED``."""
    if re.match(r"CNCLD|REMOVED|CANCEL", words, re.IGNORECASE):
        return JobState.CANCELLED, None
    if not re.fullmatch(r"-?\d+", words):
        return state, None
    if state is JobState.COMPLETED and int(words):
        return JobState.FAILED, int(words)
    return state, int(words)


def _waits(what: Waits) -> Argv:
    """Return the options for what a job waits for.

    Moab does not tell what it deleted with a failed job from what a user deleted: where that one
    may be repeated, its end is waited for, and the job sees itself whether its input is there.
    """
    if what.patient:
        what = replace(what, successes=(), ends=(*what.successes, *what.ends))
    return ["-l", f"depend={depend(what)}"] if what else []


def _describe(name: str, out: str, err: str, shell: str) -> Argv:
    return ["-N", name, "-o", out, "-e", err, "-S", shell]


def _queue(ids: Sequence[str]) -> Argv:
    return ["showq", "--xml", "-w", f"user={getpass.getuser()}"]


def _completed(ids: Sequence[str]) -> Argv:
    return ["showq", "-c", "--xml", "-w", f"user={getpass.getuser()}"]


MOAB: Final = System(
    name="moab",
    title="Moab",
    template="moab.sh.j2",
    directive="#MSUB",
    submit=("msub",),
    job_id=re.compile(r"^\s*(\S*\d\S*)\s*$", re.MULTILINE),
    describe=_describe,
    hold=("-h",),
    waits=_waits,
    options={
        "account": lambda value: ["-A", str(value)],
        "partition": lambda value: ["-q", str(value)],
        "priority": lambda value: ["-p", str(min(value, 0))],
        "qos": lambda value: ["-l", f"qos={value}"],
        "reservation": lambda value: ["-l", f"advres={value}"],
        "run_time_max": lambda value: ["-l", f"walltime={value}"],
    },
    listings=(Listing(_queue, read_showq),),
    past=Listing(_completed, read_showq),
    past_at_a_time=100_000,
    past_by_name=_completed,
    release=lambda ids: ["mjobctl", "-u", "user", *ids],
    cancel=lambda ids: ["mjobctl", "-c", *ids],
    words=Words(
        unknown=re.compile(
            r"invalid job ?id|cannot (locate|find) job|job not found|does not exist|not on hold"
            r"|no (matching )?jobs?|unknown job|completed|removed",
            re.IGNORECASE,
        ),
        temporary=re.compile(
            r"cannot connect|connection refused|communication error|timed? ?out|server (is )?down"
            r"|temporarily|cannot (contact|communicate)",
            re.IGNORECASE,
        ),
        full=re.compile(
            r"(max|maximum)[^\n]*jobs?[^\n]*(exceed|reach)|violates[^\n]*MAX(I|)JOB"
            r"|job limit|maximum number of jobs",
            re.IGNORECASE,
        ),
        dependency=re.compile(r"dependency|invalid job ?id", re.IGNORECASE),
        advice=(
            (r"class|queue", "Choose one with resource_dict={'partition': ...}; `mdiag -c` lists "
             "them."),
            (r"account", "Name yours: resource_dict={'account': ...}."),
        ),
    ),
    reserved=re.compile(r"\s-[tIzK](\s|\d|$)"),
    ids_per_call=1,
    bad_in_paths=":,",
)  # fmt: skip
"""Ended jobs are known for as long as Moab keeps them (``JOBCPURGETIME``)."""
