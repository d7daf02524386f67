"""From what Slurm's commands print to records. Pure: text in, records out.

The formats are asked for with ``|`` between the fields, and with those fields last that may hold
any character; names of our own jobs cannot hold one. A line that does not have the expected shape
is skipped, not guessed at.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dask_batch.backends.base import NO_LOGS, JobState, JobStatus
from dask_batch.backends.slurm.states import job_state

__all__ = [
    "SACCT_FIELDS",
    "SACCT_NAME_FIELDS",
    "SINFO_FORMAT",
    "SQUEUE_FORMAT",
    "SQUEUE_NAME_FORMAT",
    "NodeKind",
    "is_whole",
    "parse_job_id",
    "parse_names",
    "parse_sacct",
    "parse_sinfo",
    "parse_squeue",
    "parse_time_limit",
]

SQUEUE_FORMAT = "JobID:|,State:|,exit_code:|,RestartCnt:|,Name:|,Reason:"
SQUEUE_NAME_FORMAT = "JobID:|,Name:"
SACCT_FIELDS = "JobIDRaw,State,ExitCode,JobName,Start,End,Reason"
SACCT_NAME_FIELDS = "JobIDRaw,JobName"
SINFO_FORMAT = "%R|%D|%c|%m|%l|%G"

_LAST_SIGNAL = 64
_SLURMD_ERRORS = range(4000, 4064)
"""Numbers of slurmd's own errors: it reports them where a wait status should be (22.05). None of
them is one, since nothing ends both by a signal and with an exit code."""
_CANNOT_OPEN_LOGS = frozenset({4021, 4021 & 0x7F})
"""``ESLURMD_IO_ERROR``; the accounting has what is left of it when it is taken for a signal."""
_SIGNAL_REASON = re.compile(r"JobLaunchFailure$|RaisedSignal:")
"""What Slurm calls the death by any signal: a failure to launch (22.05), or it repeats the signal:
``RaisedSignal:9(Killed)`` (24.11)."""
_UNNAMED = "allocation"
"""What the accounting calls a short job for a second or two: the name comes with the record of the
start, which then arrives after that of the end."""


@dataclass(frozen=True, slots=True)
class NodeKind:
    """Nodes of one partition that are alike."""

    partition: str
    count: int
    cpus: int
    memory_mb: int
    time_s: float
    """The partition's time limit; infinite when it has none."""
    gpus: int


def parse_job_id(stdout: str) -> str | None:
    """Return the id that ``sbatch --parsable`` printed: ``ID`` or ``ID;CLUSTER``.

    Wrappers at some sites print more: the last line of that shape counts.
    """
    for line in reversed(stdout.splitlines()):
        match = re.fullmatch(r"(\d+)(;\S*)?", line.strip())
        if match:
            return match[1]
    return None


def _rows(text: str, fields: int) -> Iterator[list[str]]:
    # What comes after the last newline is empty, or was cut short.
    for line in text.split("\n")[:-1]:
        row = line.split("|", fields - 1)
        if len(row) == fields:
            yield [cell.strip() for cell in row]


def parse_squeue(text: str) -> dict[str, JobStatus]:
    """Read ``squeue -h -O`` in :data:`SQUEUE_FORMAT`."""
    found = {}
    for job_id, word, status, restarts, name, reason in _rows(text, 6):
        if job_id.isdecimal() and word:
            exit_code, signal = _queue_status(status)
            told = _status(job_id, word, exit_code, signal, reason, "squeue", name)
            found[job_id] = replace(told, restarts=_integer(restarts))
    return found


def is_whole(text: str) -> bool:
    """Whether an answer of ``squeue`` has nothing but whole rows.

    What is missing in one that was cut short is not gone.
    """
    lines = text.split("\n")
    rows = list(_rows(text, 6))
    return not lines[-1] and len(rows) == len(lines) - 1 and all(r[0].isdecimal() for r in rows)


def parse_sacct(text: str) -> dict[str, JobStatus]:
    """Read ``sacct -X -n -P`` in :data:`SACCT_FIELDS`."""
    found = {}
    for job_id, word, status, name, start, end, reason in _rows(text, 7):
        if not job_id.isdecimal() or not word:
            continue
        exit_code, signal = _exit_pair(status)
        if (word, reason) == ("CANCELLED", "Dependency"):
            # --kill-on-invalid-dep removed it; of a scancel it says "CANCELLED by UID".
            reason = "DependencyNeverSatisfied"
        name = "" if name == _UNNAMED else name
        found[job_id] = _status(job_id, word, exit_code, signal, reason, "sacct", name)
        if _written_off(found[job_id], start, end, signal):
            found[job_id] = replace(found[job_id], state=JobState.LOST)
    return found


def _written_off(status: JobStatus, start: str, end: str, signal: int | None) -> bool:
    """Whether the row of a job was closed because slurmctld came up without knowing the job.

    Such a row says CANCELLED and not by whom. So do, once slurmctld has been restarted, the rows
    of jobs that a user cancelled; but those were killed by a signal if they ran (``0:15``), and
    have one time for start and end if they did not. (Slurm 22.05.)
    """
    return (
        status.word == "CANCELLED"
        and status.state is JobState.CANCELLED
        and not signal
        and start != end
    )


def _status(
    job_id: str,
    word: str,
    exit_code: int | None,
    signal: int | None,
    reason: str,
    source: str,
    name: str,
) -> JobStatus:
    reason = reason.strip("()")  # as some formats print it
    state = job_state(word, reason)
    reason = "" if reason in ("None", "null") else reason
    if not state.ended or state is JobState.DEPENDENCY_FAILED:
        exit_code = signal = None
    elif state is JobState.FAILED and not exit_code and signal:
        reason, signal = _how_it_was_ended(signal, reason)
    if signal is not None and not 0 < signal <= _LAST_SIGNAL:
        signal = None  # 0 is none; 125 is Slurm's own mark for "out of memory"
    return JobStatus(job_id, state, word, exit_code, signal, reason, source, name)


def _how_it_was_ended(signal: int, reason: str) -> tuple[str, int | None]:
    """Return the reason for which a job ended by a "signal", and the signal if it was one."""
    if signal in _CANNOT_OPEN_LOGS:
        return NO_LOGS, None
    if signal in _SLURMD_ERRORS:
        return f"the node could not start the job: slurmd's error {signal}", None
    return "" if _SIGNAL_REASON.match(reason) else reason, signal


def _exit_pair(text: str) -> tuple[int | None, int | None]:
    """Read ``CODE:SIGNAL``."""
    code, _, signal = text.partition(":")
    return _integer(code), _integer(signal)


def _queue_status(text: str) -> tuple[int | None, int | None]:
    """Read squeue's exit code for ``exit 3``: ``3:0`` (24.11), or wait(2)'s 768 (22.05)."""
    if ":" in text:
        return _exit_pair(text)
    status = _integer(text)
    if status is None:
        return None, None
    if status in _SLURMD_ERRORS:
        return 0, status
    return status >> 8 & 0xFF, status & 0x7F


def _integer(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def parse_names(text: str) -> dict[str, str]:
    """Read ``ID|NAME`` lines into job ids by name; the highest id counts where a name repeats."""
    found: dict[str, str] = {}
    for job_id, name in _rows(text, 2):
        if job_id.isdecimal() and int(job_id) > int(found.get(name, -1)):
            found[name] = job_id
    return found


def parse_sinfo(text: str) -> list[NodeKind]:
    """Read ``sinfo -h -e -o`` in :data:`SINFO_FORMAT`."""
    return [
        NodeKind(
            partition,
            _leading(number),
            _leading(cpus),
            _leading(memory),
            parse_time_limit(limit),
            _gpus(gres),
        )
        for partition, number, cpus, memory, limit, gres in _rows(text, 6)
    ]


def _leading(text: str) -> int:
    """Read a number that may end in ``+`` ("at least, among these nodes")."""
    match = re.match(r"\d+", text)
    return int(match[0]) if match else 0


def parse_time_limit(text: str) -> float:
    """Read ``[DAYS-]HOURS:MINUTES:SECONDS``, ``MINUTES:SECONDS`` or ``infinite`` as seconds."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if not match:
        return math.inf
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _gpus(gres: str) -> int:
    """Count the GPUs in ``gpu:2``, ``gpu:a100:4(S:0-1),gpu:t4:1,shard:8``, ``(null)``."""
    return sum(int(count) for count in re.findall(r"(?:^|,)gpu:(?:[^:,()]+:)?(\d+)", gres))
