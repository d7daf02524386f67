"""Grid Engine (SGE, Son of Grid Engine, Univa, Altair), as data."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Mapping, Sequence
from typing import Final

from dask_batch.backends.base import JobState, JobStatus
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

__all__ = ["GRID_ENGINE", "read_qacct", "read_qstat"]

_ENDED: Final = "z"
"""A *zombie*: qmaster remembers that it has ended, and qacct knows how."""
_STATES: Final[Mapping[str, JobState]] = {
    _ENDED: JobState.CANCELLED,  # the books have no record of what was deleted before it began
    "q": JobState.WAITING,
    "w": JobState.WAITING,
    "qw": JobState.WAITING,
    "Rq": JobState.WAITING,
    "r": JobState.RUNNING,
    "t": JobState.RUNNING,
    "Rr": JobState.RUNNING,
    "Rt": JobState.RUNNING,
}
_BEGINNINGS: Final[tuple[tuple[str, JobState], ...]] = (
    ("E", JobState.LOST),  # an error state: it will not be started before that is cleared
    ("d", JobState.ENDING),
    ("h", JobState.WAITING),
    ("s", JobState.RUNNING),  # suspended: it may go on
    ("S", JobState.RUNNING),
    ("T", JobState.RUNNING),
    ("P", JobState.RUNNING),
    ("N", JobState.RUNNING),
)
_LIMITS = re.compile(r"\b(h_rt|s_rt)=(\d+)")


def read_qstat(text: str) -> dict[str, JobStatus]:
    """Read ``qstat -r -xml``.

    A hold looks alike whether the user set it or a job that is waited for: who waits for none, or
    for none any more, is held.

    Raises
    ------
    ValueError
        It is no XML.
    """
    found = {}
    for job in elements(text, "job_list"):
        job_id, word = job.findtext("JB_job_number", ""), job.findtext("state", "")
        state, reason = _state(word), ""
        if word.startswith("h") and job.find("predecessor_jobs") is None:
            state = JobState.HELD
        if state is JobState.LOST:
            reason = f"it is in an error state: `qstat -j {job_id}` tells why"
        name = job.findtext("full_job_name") or job.findtext("JB_name") or ""
        found[job_id] = JobStatus(
            job_id, state, word, reason=reason, source="qstat", name=name_of(name)
        )
    return found


def _state(word: str) -> JobState:
    for beginning, state in _BEGINNINGS:
        if word.startswith(beginning):
            return state
    return state_of("Grid Engine", _STATES, word)


def read_qacct(text: str) -> dict[str, JobStatus]:
    """Read ``qacct -j``; of several records of one job the last counts."""
    found = {}
    for block in re.split(r"^=+$", text, flags=re.MULTILINE):
        rows = (line.split(None, 1) for line in block.splitlines())
        record = {row[0]: row[1].strip() for row in rows if len(row) == 2}
        job_id = record.get("jobnumber", "")
        if job_id:
            found[job_id] = _past(job_id, record)
    return found


def _past(job_id: str, record: Mapping[str, str]) -> JobStatus:
    failed = _number(record.get("failed", "")) or 0
    code = _number(record.get("exit_status", ""))
    words = record.get("failed", "").partition(":")[2].strip()
    state, signal = JobState.COMPLETED, None
    if failed and code and code > 128:  # 37: it was killed at a limit, 100: after it had begun
        state, signal, code = _killed(record, failed), code - 128, None
    elif failed or code:
        state = JobState.FAILED
    if record.get("deleted_by", "NONE") not in ("NONE", ""):  # Univa's
        state = JobState.CANCELLED
    name = name_of(record.get("jobname", ""))
    word = f"failed {failed}" if failed else f"exit_status {code}"
    return JobStatus(job_id, state, word, code, signal, words, "qacct", name)


def _killed(record: Mapping[str, str], failed: int) -> JobState:
    """Return why a job was killed, as far as its record tells."""
    asked = record.get("category", "")
    limit = _LIMITS.search(asked)
    ran_s = _number(record.get("ru_wallclock", ""))
    if limit is not None and ran_s is not None and ran_s >= int(limit[2]):
        return JobState.TIMEOUT
    if failed == 37:
        return JobState.OUT_OF_MEMORY if "h_vmem" in asked else JobState.TIMEOUT
    return JobState.FAILED


def _number(text: str) -> int | None:
    match = re.match(r"\d+", text)
    return int(match[0]) if match else None


def _waits(what: Waits) -> Argv:
    """Return the options for what a job waits for: ends only, however they are.

    Jobs look themselves whether what they need is there.
    """
    ids = [*what.successes, *what.ends, *what.failures]
    return ["-hold_jid", ",".join(ids)] if ids else []


def _describe(name: str, out: str, err: str, shell: str) -> Argv:
    logs = ["-o", f":{out}", "-e", f":{err}", "-j", "n", "-wd", os.path.dirname(out)]
    return ["-N", name, *logs, "-r", "n", "-S", shell]


def _listing(ids: Sequence[str]) -> Argv:
    return ["qstat", "-u", getpass.getuser(), "-s", "prsz", "-r", "-xml"]


GRID_ENGINE: Final = System(
    name="sge",
    title="Grid Engine",
    template="sge.sh.j2",
    directive="#$",
    submit=("qsub", "-terse"),
    job_id=re.compile(r"^(\d+)$", re.MULTILINE),
    describe=_describe,
    hold=("-h",),
    waits=_waits,
    options={
        "account": lambda value: ["-P", str(value)],
        "partition": lambda value: ["-q", str(value)],
        "priority": lambda value: ["-p", str(min(value, 0))],
        "reservation": lambda value: ["-ar", str(value)],
        "run_time_max": lambda value: ["-l", f"h_rt={value}"],
    },
    listings=(Listing(_listing, read_qstat),),
    provisional=frozenset({_ENDED}),
    past=Listing(lambda ids: ["qacct", "-j", *ids], read_qacct),
    past_by_name=lambda names: (
        ["qacct", "-j", *names] if len(names) == 1 else ["qacct", "-o", getpass.getuser(), "-j"]
    ),
    release=lambda ids: ["qrls", ",".join(ids)],
    cancel=lambda ids: ["qdel", ",".join(ids)],
    repoint=lambda job_id, what: ["qalter", *_waits(what), job_id],
    words=Words(
        unknown=re.compile(
            r"does not exist|not found|already in deletion|invalid job|no jobs? (were )?found"
            r"|unknown job|registered the job \S+ for deletion|has deleted job|modified hold"
            r"|blocking jobs|exited jobs|modified job id hold list",
            re.IGNORECASE,
        ),
        temporary=re.compile(
            r"unable to (contact|send message to) qmaster|commlib error|got no connection"
            r"|can't (connect|resolve)|cannot connect|connection refused|timeout"
            r"|timed out|qmaster is not|error reading answer list",
            re.IGNORECASE,
        ),
        full=re.compile(r"only \d+ jobs are allowed|jobs are allowed per user", re.IGNORECASE),
        dependency=re.compile(r"hold_jid|hold list|does not exist", re.IGNORECASE),
        advice=(
            (r"parallel environment", "Your site's may be called otherwise: `qconf -spl` lists "
             "them; resource_dict={'job_extra_directives': ['-pe NAME N']} names one."),
            (r"unknown queue", "Choose one with resource_dict={'partition': ...}; `qconf -sql` "
             "lists them."),
            (r"project", "Name yours: resource_dict={'account': ...}; `qconf -sprjl` lists them."),
            (r"unknown resource", "This cell has no resource of that name (`qconf -sc`): bring "
             "your own template, resource_dict={'submission_template': ...}."),
        ),
    ),
    reserved=re.compile(r"\s-(t|sync|now|verify|b|@)(\s|$)"),
    forgets_after_s=60.0,
    bad_in_paths="$,:",
)  # fmt: skip
"""Accounts are written with a delay, 15 s as Grid Engine comes."""
