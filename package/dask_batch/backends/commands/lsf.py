"""IBM Spectrum LSF, as data."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Final

from dask_batch.backends.base import JobState, JobStatus
from dask_batch.backends.commands.system import (
    Argv,
    Listing,
    System,
    Waits,
    Words,
    name_of,
    state_of,
)

__all__ = ["LSF", "read_bhist", "read_bjobs"]

_STATES: Final[Mapping[str, JobState]] = {
    "PEND": JobState.WAITING,
    "PROV": JobState.WAITING,
    "WAIT": JobState.WAITING,
    "PSUSP": JobState.HELD,
    "RUN": JobState.RUNNING,
    "USUSP": JobState.RUNNING,  # suspended: it may go on
    "SSUSP": JobState.RUNNING,
    "UNKWN": JobState.UNKNOWN,  # its node does not answer
    "ZOMBI": JobState.ENDING,
    "DONE": JobState.COMPLETED,
    "EXIT": JobState.FAILED,
}
_REASONS: Final = (
    (r"TERM_(RUNLIMIT|CPULIMIT|DEADLINE)", JobState.TIMEOUT),
    (r"TERM_(MEMLIMIT|SWAP)", JobState.OUT_OF_MEMORY),
    (r"TERM_ORPHAN_SYSTEM", JobState.DEPENDENCY_FAILED),
    (r"TERM_PREEMPT", JobState.PREEMPTED),
    (r"TERM_REMOVE_HUNG_JOB|TERM_RC_", JobState.NODE_FAILURE),
    (r"TERM_(FORCE_)?(OWNER|ADMIN)", JobState.CANCELLED),
)
_FIELDS: Final = "jobid stat exit_code job_name"


def read_bjobs(text: str) -> dict[str, JobStatus]:
    """Read ``bjobs -noheader -o "jobid stat exit_code job_name [exit_reason] delimiter='|'"``."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|", 4)]
        if len(cells) < 4 or not cells[0].isdecimal():
            continue
        job_id, word, code, name = cells[:4]
        reason = cells[4] if len(cells) > 4 and cells[4] != "-" else ""
        state = state_of("LSF", _STATES, word)
        if state is JobState.FAILED:
            state = _why(reason)
        number = int(code) if code.isdecimal() and state.ended else None
        if state is JobState.COMPLETED:
            number = 0
        found[job_id] = JobStatus(job_id, state, word, number, None, reason, "bjobs", name_of(name))
    return found


def _why(words: str) -> JobState:
    return next((state for sign, state in _REASONS if re.search(sign, words)), JobState.FAILED)


def read_bhist(text: str) -> dict[str, JobStatus]:
    """Read ``bhist -l``, whose lines are cut and go on behind blanks."""
    found = {}
    for block in re.split(r"^(?=Job <)", text, flags=re.MULTILINE):
        whole = re.sub(r"\n {10,}", "", block)
        job = re.search(r"Job <(\d+)>", whole)
        if job is None:
            continue
        name = re.search(r"Job Name <([^>]*)>", whole)
        state, code, signal = _bhist_end(whole)
        called = name_of(name[1]) if name else ""
        words = re.search(r"TERM_\w+[^;\n]*", whole)
        reason = words[0] if words else ""
        found[job[1]] = JobStatus(job[1], state, "", code, signal, reason, "bhist", called)
    return found


def _bhist_end(words: str) -> tuple[JobState, int | None, int | None]:
    if "Done successfully" in words:
        return JobState.COMPLETED, 0, None
    code = re.search(r"Exited with exit code (\d+)", words)
    signal = re.search(r"Exited by signal (\d+)", words)
    if code or signal:
        return _why(words), int(code[1]) if code else None, int(signal[1]) if signal else None
    if re.search(r"\bExited\b|Termination request", words):
        state = _why(words)
        return JobState.CANCELLED if state is JobState.FAILED else state, None, None
    return JobState.UNKNOWN, None, None


def _expression(what: Waits) -> str:
    every = [*(f"done({i})" for i in what.successes), *(f"ended({i})" for i in what.ends)]
    failures = " || ".join(f"exit({i})" for i in what.failures)
    if failures:
        every.append(f"({failures})" if every else failures)
    return " && ".join(every)


def _waits(what: Waits) -> Argv:
    """Return the options for what a job waits for.

    Jobs whose condition cannot be met any more wait for ever, unless they are *orphans* (``-ti``).
    """
    if not what:
        return []
    return ["-w", _expression(what), *([] if what.patient else ["-ti"])]


def _describe(name: str, out: str, err: str, shell: str) -> Argv:
    return ["-J", name, "-o", out, "-e", err, "-cwd", os.path.dirname(out), "-rn"]


def _listing(fields: str) -> Listing:
    def argv(ids: Sequence[str]) -> Argv:
        return ["bjobs", "-a", "-noheader", "-o", f"{fields} delimiter='|'"]

    return Listing(argv, read_bjobs)


LSF: Final = System(
    name="lsf",
    title="LSF",
    template="lsf.sh.j2",
    directive="#BSUB",
    submit=("bsub",),
    by_stdin=True,
    job_id=re.compile(r"Job <(\d+)> is submitted"),
    describe=_describe,
    hold=("-H",),
    waits=_waits,
    options={
        "account": lambda value: ["-P", str(value)],
        "partition": lambda value: ["-q", str(value)],
        "priority": lambda value: ["-sp", str(max(value, 1))],
        "reservation": lambda value: ["-U", str(value)],
        "run_time_max": lambda value: ["-W", str(math.ceil(value / 60))],
        "exclusive": lambda value: ["-x"] if value else [],
    },
    listings=(_listing(f"{_FIELDS} exit_reason"), _listing(_FIELDS)),
    past=Listing(lambda ids: ["bhist", "-l", "-n", "0", *ids], read_bhist),
    past_at_a_time=50,
    past_by_name=lambda names: [
        *("bhist", "-a", "-l", "-n", "0"),
        *(("-J", *names) if len(names) == 1 else ()),
    ],
    release=lambda ids: ["bresume", *ids],
    cancel=lambda ids: ["bkill", *ids],
    repoint=lambda job_id, what: ["bmod", "-w", _expression(what), job_id],
    words=Words(
        unknown=re.compile(
            r"no (matching |unfinished )?jobs? found|is not found|already finished|has finished"
            r"|no matching job|is being (terminated|resumed|killed)|parameters of job"
            r"|has not been suspended|job is not (held|suspended)|not suspended",
            re.IGNORECASE,
        ),
        temporary=re.compile(
            r"lsf is down|please wait|not responding|cannot (connect|contact)|connection refused"
            r"|failed in an lsf library call|time(d )? ?out|server (host )?is down",
            re.IGNORECASE,
        ),
        full=re.compile(
            r"pending job (threshold|limit)|job limit (has been )?reached|too many (pending )?jobs",
            re.IGNORECASE,
        ),
        dependency=re.compile(r"dependency condition|is not found", re.IGNORECASE),
        advice=(
            (r"no such queue|queue", "Choose one with resource_dict={'partition': ...}; `bqueues` "
             "lists them."),
            (r"project|user group", "Name yours: resource_dict={'account': ...}."),
            (r"limit|memory|-W|-M", "Ask for less: memory_max, run_time_max; see `bqueues -l`."),
        ),
    ),
    reserved=re.compile(r"\s-(K|I\w*|Z\w*)(\s|$)"),
    bad_in_paths="%",
)  # fmt: skip
"""``bjobs`` knows ended jobs for an hour (``CLEAN_PERIOD``), and ``bhist`` for longer."""
