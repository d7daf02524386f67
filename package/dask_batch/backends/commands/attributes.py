"""Jobs of PBS and of Torque, from the attributes that both have: pure.

They come as JSON, as XML or as text; what they say is the same, and so is what becomes of it here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from xml.etree import ElementTree

from dask_batch.backends.base import JobState, JobStatus
from dask_batch.backends.commands.elements import elements
from dask_batch.backends.commands.system import Waits, name_of, state_of

__all__ = ["depend", "read_json", "read_text", "read_xml"]

_STATES: Final[Mapping[str, JobState]] = {
    "B": JobState.RUNNING,
    "C": JobState.COMPLETED,  # Torque
    "E": JobState.ENDING,
    "F": JobState.COMPLETED,  # PBS
    "H": JobState.WAITING,
    "M": JobState.WAITING,  # moved to another server
    "Q": JobState.WAITING,
    "R": JobState.RUNNING,
    "S": JobState.RUNNING,  # suspended: it may go on
    "T": JobState.WAITING,  # in transit
    "U": JobState.RUNNING,
    "W": JobState.WAITING,
    "X": JobState.COMPLETED,
}
_TIME_IS_UP: Final = frozenset({-28, -29})
"""``JOB_EXEC_KILL_CPUT``, ``JOB_EXEC_KILL_WALLTIME``."""
_TOO_MUCH_MEMORY: Final = frozenset({-26, -27})
"""``JOB_EXEC_KILL_VMEM``, ``JOB_EXEC_KILL_MEM``."""
_FELL = re.compile(r"deleted as result of dependency", re.IGNORECASE)
_DELETED = re.compile(r"\bterminated\b|\bdeleted\b", re.IGNORECASE)
_ATTRIBUTE = re.compile(r" {4}(\S+) = (.*)")


def depend(waits: Waits) -> str:
    """Return the value of ``depend=``.

    ``afternotok`` means all of its jobs, and there is no word for *any*: of several, all are waited
    for, however they end.

    >>> depend(Waits(successes=("1.s", "2.s"))), depend(Waits(failures=("3.s", "4.s")))
    ('afterok:1.s:2.s', 'afterany:3.s:4.s')
    """
    failure = "afternotok" if len(waits.failures) == 1 else "afterany"
    kinds = (("afterok", waits.successes), ("afterany", waits.ends), (failure, waits.failures))
    return ",".join(f"{kind}:{':'.join(ids)}" for kind, ids in kinds if ids)


def read_json(text: str) -> dict[str, JobStatus]:
    """Read ``qstat -f -F json``.

    Raises
    ------
    ValueError
        It is no JSON: PBS does not quote all that stands in jobs' variables (OpenPBS 1255, 2541),
        and up to version 14 it repeats the brackets around each of several jobs.
    """
    if not text.strip():
        return {}
    answer = json.loads(text, object_pairs_hook=_once)
    jobs = answer.get("Jobs") or {}
    if not isinstance(jobs, dict):
        raise ValueError("the jobs are no object")
    return {job_id: _status(job_id, dict(_flat(job))) for job_id, job in jobs.items()}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object that has two lists of jobs: the first would be lost."""
    if sum(name == "Jobs" for name, _ in pairs) > 1:
        raise ValueError("the jobs come twice")
    return dict(pairs)


def _flat(job: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in job.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def read_xml(text: str) -> dict[str, JobStatus]:
    """Read ``qstat -x`` of Torque.

    Raises
    ------
    ValueError
        It is no XML.
    """
    found = {}
    for job in elements(text, "Job"):
        attributes = dict(_leaves(job))
        job_id = attributes.get("Job_Id", "")
        if job_id:
            found[job_id] = _status(job_id, attributes)
    return found


def _leaves(element: ElementTree.Element, prefix: str = "") -> Iterator[tuple[str, str]]:
    for child in element:
        if len(child):
            yield from _leaves(child, f"{prefix}{child.tag}.")
        else:
            yield f"{prefix}{child.tag}", child.text or ""


def read_text(text: str) -> dict[str, JobStatus]:
    """Read ``qstat -f``: attributes are indented by four blanks, and what goes on by more."""
    found: dict[str, dict[str, str]] = {}
    attributes: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("Job Id:"):
            attributes = found.setdefault(line.removeprefix("Job Id:").strip(), {})
            name = ""
        elif match := _ATTRIBUTE.match(line):
            name = match[1]
            attributes[name] = match[2]
        elif name:
            attributes[name] += line.strip()
    return {job_id: _status(job_id, job) for job_id, job in found.items()}


def _status(job_id: str, job: Mapping[str, str]) -> JobStatus:
    word = job.get("job_state", "")
    state = state_of("PBS", _STATES, word)
    if word == "H" and set(job.get("Hold_Types", "n")) & set("uo"):
        state = JobState.HELD
    code = signal = None
    reason = job.get("comment", "")
    if state is JobState.COMPLETED:
        state, code, signal, reason = _end(job)
    name = name_of(job.get("Job_Name", ""))
    return JobStatus(job_id, state, word, code, signal, reason, "qstat", name)


def _end(job: Mapping[str, str]) -> tuple[JobState, int | None, int | None, str]:
    """Return how a job ended: state, exit code, signal, reason."""
    comment = job.get("comment", "")
    said = job.get("Exit_status", job.get("exit_status", ""))
    if _FELL.search(comment):
        return JobState.DEPENDENCY_FAILED, None, None, comment
    if not re.fullmatch(r"-?\d+", said):
        return _unstarted(job, comment), None, None, comment
    code = int(said)
    if code in _TIME_IS_UP or (code >= 256 and _ran_out(job)):
        return JobState.TIMEOUT, None, None, comment
    if code in _TOO_MUCH_MEMORY:
        return JobState.OUT_OF_MEMORY, None, None, comment
    if code < 0:
        return JobState.FAILED, None, None, f"PBS could not run it: its exit status is {code}"
    if code >= 256:
        number = code & 0x7F
        # qdel sends SIGTERM first; so does nobody else but the time limit.
        state = JobState.CANCELLED if number == 15 else JobState.FAILED
        return state, None, number, comment
    return (JobState.FAILED if code else JobState.COMPLETED), code, None, comment


def _unstarted(job: Mapping[str, str], comment: str) -> JobState:
    """Tell a job that fell with one that it waited for from one that was deleted."""
    fell = "afterok:" in job.get("depend", "") and not job.get("stime", job.get("start_time"))
    return (
        JobState.DEPENDENCY_FAILED if fell and not _DELETED.search(comment) else JobState.CANCELLED
    )


def _ran_out(job: Mapping[str, str]) -> bool:
    used = _seconds(job.get("resources_used.walltime", ""))
    limit = _seconds(job.get("Resource_List.walltime", ""))
    return used is not None and limit is not None and used >= limit


def _seconds(text: str) -> int | None:
    """Read ``HH:MM:SS``, or seconds."""
    parts = text.split(":")
    if not all(part.isdecimal() for part in parts):
        return None
    seconds = 0
    for part in parts:
        seconds = seconds * 60 + int(part)
    return seconds
