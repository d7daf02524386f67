"""``squeue``: which jobs, and in which format."""

from __future__ import annotations

import pwd
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import versions
from .queue import Queue
from .records import ACTIVE, JobRecord, exit_pair
from .requests import Refusal
from .words import STATES, short_options

__all__ = ["duration", "squeue", "stamp"]

_DEFAULT = "%.18i %.9P %.8j %.8u %.2t %.10M %.6D %R"
_INVALID_ID = "slurm_load_jobs error: Invalid job id specified"

_Field = tuple[str, Callable[[JobRecord], str]]


def duration(seconds: float) -> str:
    """Return ``[D-]H:MM:SS`` or ``M:SS``."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}-{hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def stamp(moment: float, none: str = "N/A") -> str:
    """Return a time as Slurm prints it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(moment)) if moment else none


def _where(job: JobRecord) -> str:
    return ",".join(job.allocation) if job.started else f"({job.reason})"


def _end(job: JobRecord) -> float:
    return job.ended or (job.started + job.limit_min * 60 if job.started else 0.0)


_LETTERS: Mapping[str, _Field] = {
    "A": ("JOBID", lambda job: str(job.job_id)),
    "C": ("CPUS", lambda job: str(job.cpus)),
    "D": ("NODES", lambda job: str(job.nodes)),
    "E": ("DEPENDENCY", lambda job: job.dependency or "(null)"),
    "F": ("ARRAY_JOB_ID", lambda job: str(job.job_id)),
    "K": ("ARRAY_TASK_ID", lambda job: "N/A"),
    "M": ("TIME", lambda job: duration(job.run_time_s)),
    "N": ("NODELIST", lambda job: ",".join(job.allocation)),
    "P": ("PARTITION", lambda job: job.partition),
    "Q": ("PRIORITY", lambda job: "0" if job.held else str(4294901760 - job.job_id)),
    "R": ("NODELIST(REASON)", _where),
    "S": ("START_TIME", lambda job: stamp(job.started or job.begin)),
    "T": ("STATE", lambda job: job.word),
    "U": ("USER", lambda job: str(job.uid)),
    "V": ("SUBMIT_TIME", lambda job: stamp(job.submitted)),
    "Z": ("WORK_DIR", lambda job: job.cwd),
    "a": ("ACCOUNT", lambda job: job.account),
    "e": ("END_TIME", lambda job: stamp(_end(job))),
    "i": ("JOBID", lambda job: str(job.job_id)),
    "j": ("NAME", lambda job: job.name),
    "k": ("COMMENT", lambda job: job.comment or "(null)"),
    "l": ("TIME_LIMIT", lambda job: duration(job.limit_min * 60)),
    "m": ("MIN_MEMORY", lambda job: f"{job.memory_mb}M"),
    "o": ("COMMAND", lambda job: job.command),
    "q": ("QOS", lambda job: "normal"),
    "r": ("REASON", lambda job: job.reason),
    "t": ("ST", lambda job: STATES.get(job.word, job.word[:2])),
    "u": ("USER", lambda job: pwd.getpwuid(job.uid).pw_name),
}
_LONG: Mapping[str, _Field] = {
    "account": _LETTERS["a"],
    "arrayjobid": _LETTERS["F"],
    "comment": _LETTERS["k"],
    "dependency": _LETTERS["E"],
    "exit_code": ("EXIT_CODE", lambda job: str(job.status)),
    "jobarrayid": _LETTERS["i"],
    "jobid": _LETTERS["A"],
    "minmemory": _LETTERS["m"],
    "name": _LETTERS["j"],
    "nodelist": _LETTERS["N"],
    "numcpus": _LETTERS["C"],
    "numnodes": _LETTERS["D"],
    "partition": _LETTERS["P"],
    "reason": _LETTERS["r"],
    "restartcnt": ("RESTART_COUNT", lambda job: str(job.restarts)),
    "starttime": _LETTERS["S"],
    "state": _LETTERS["T"],
    "statecompact": _LETTERS["t"],
    "submittime": _LETTERS["V"],
    "timelimit": _LETTERS["l"],
    "timeused": _LETTERS["M"],
    "userid": _LETTERS["U"],
    "username": _LETTERS["u"],
    "workdir": _LETTERS["Z"],
}


def squeue(queue: Queue, request: Mapping[str, Any]) -> dict[str, Any]:
    """List jobs.

    Raises
    ------
    Refusal
        An id, a state or an option that squeue does not take.
    """
    options, _ = short_options(
        "squeue",
        request["arguments"],
        "A:aj:hi:lM:n:o:O:p:q:rsS:t:u:vV",
        "account= all array Format= format= job= jobs= local me name= noheader partition= "
        "qos= sort= states= user= version",
    )
    if "version" in options or "V" in options:
        return {"out": versions.said(queue.config)}
    jobs = queue.each(_wanted(options, request["uid"], queue))
    row, header = _layout(options, _fields(queue.config))
    lines = [] if {"h", "noheader"} & set(options) else [header]
    return {"out": "".join(f"{line}\n" for line in [*lines, *map(row, jobs)])}


def _wanted(options: Mapping[str, str], uid: int, queue: Queue) -> Callable[[JobRecord], bool]:
    states = options.get("t") or options.get("states")
    tests: list[Callable[[JobRecord], bool]] = []
    if states is None:
        tests.append(lambda job: job.word in ACTIVE)
    elif states.lower() != "all":
        asked = {_state(word) for word in states.split(",")}
        tests.append(lambda job: job.word in asked)
    user = options.get("u") or options.get("user") or (str(uid) if "me" in options else None)
    if user is not None:
        uids = {int(name) if name.isdecimal() else _uid(name) for name in user.split(",")}
        tests.append(lambda job: job.uid in uids)
    named = options.get("n") or options.get("name")
    if named is not None:
        names = set(named.split(","))
        tests.append(lambda job: job.name in names)
    listed = options.get("j") or options.get("jobs") or options.get("job")
    if listed is not None:
        ids = _ids(listed)
        if len(ids) == 1 and not ids & set(queue.jobs):
            raise Refusal(_INVALID_ID, prefix="")
        tests.append(lambda job: job.job_id in ids)
    return lambda job: all(test(job) for test in tests)


def _ids(text: str) -> set[int]:
    for word in text.split(","):
        if not word.isdecimal():
            raise Refusal(f"Invalid job id: {word}", prefix="squeue: error: ")
    return {int(word) for word in text.split(",")}


def _uid(name: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise Refusal(f"Invalid user: {name}", 0, "squeue: error: ") from None


def _state(word: str) -> str:
    for long, short in STATES.items():
        if word.upper() in (long, short):
            return long
    raise Refusal(f"Invalid job state specified: {word}", prefix="squeue: error: ")


def _fields(config: Mapping[str, Any]) -> Mapping[str, _Field]:
    if not versions.since(config, 24, 11):
        return _LONG
    return {**_LONG, "exit_code": ("EXIT_CODE", _exit_pair)}


def _exit_pair(job: JobRecord) -> str:
    """Return ``CODE:SIGNAL``, of a job that was cancelled too (24.11)."""
    return f"0:{job.status & 0x7F}" if job.state == "CANCELLED" else exit_pair(job)


def _layout(
    options: Mapping[str, str], fields: Mapping[str, _Field]
) -> tuple[Callable[[JobRecord], str], str]:
    """Return what makes a line of a job, and the header."""
    long = options.get("O") or options.get("Format")
    parts = (
        _long_parts(long, fields)
        if long
        else _letter_parts(options.get("o") or options.get("format"))
    )

    def line(cell: Callable[[_Field], str]) -> str:
        return "".join(
            part if isinstance(part, str) else _fitted(cell(part[0]), *part[1:]) for part in parts
        )

    return (lambda job: line(lambda field: field[1](job))), line(lambda field: field[0])


_Part = str | tuple[_Field, int, bool, str]


def _fitted(text: str, width: int, right: bool, suffix: str) -> str:
    if width:
        text = text[:width].rjust(width) if right else text[:width].ljust(width)
    return text + suffix


def _letter_parts(text: str | None) -> Sequence[_Part]:
    r"""Read ``-o``: ``%[.][width]letter`` amid any text."""
    parts: list[_Part] = []
    for literal, right, width, letter in re.findall(
        r"([^%]+)|%(\.?)(\d*)([A-Za-z])", text or _DEFAULT
    ):
        if literal:
            parts.append(literal)
        elif letter in _LETTERS:
            parts.append((_LETTERS[letter], int(width or 0), bool(right), ""))
        else:
            raise Refusal(f"Invalid job format specification: {letter}", 0, "squeue: error: ")
    return parts


def _long_parts(text: str, fields: Mapping[str, _Field]) -> Sequence[_Part]:
    """Read ``-O``: ``name[:[.][width][suffix]],...``; without a colon 20 columns."""
    parts: list[_Part] = []
    for word in text.split(","):
        name, colon, rest = word.partition(":")
        field = fields.get(name.lower())
        if field is None:
            raise Refusal(f"Invalid job format specification: {name}", 0, "squeue: error: ")
        match = re.fullmatch(r"(\.?)(\d*)(.*)", rest)
        assert match is not None  # it matches anything without a newline
        width = int(match[2] or 0) if colon else 20
        parts.append((field, width, bool(match[1]), match[3]))
    return parts
