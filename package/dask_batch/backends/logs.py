"""The files that a job's words go to, ``<index>.out`` and ``<index>.err`` of its log folder.

They are made for their owner alone before a batch system's daemon makes them with whatever umask
the job has. A job that is run once more appends to them; a line between two attempts tells which
words are whose.
"""

from __future__ import annotations

import logging
import os

from dask_batch.backends.base import Job

__all__ = ["AGAIN", "last_attempt", "prepare", "separate"]

logger = logging.getLogger(__name__)

AGAIN = "dask-batch: the job is run once more"
"""Begins the line between the words of two attempts."""
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def _open(job: Job, suffix: str) -> int:
    return os.open(job.log_directory / f"{job.index}.{suffix}", _FLAGS, 0o600)


def prepare(job: Job) -> None:
    """Make the files of a job, or take others' rights away from those that are there."""
    for suffix in ("out", "err"):
        descriptor = _open(job, suffix)
        try:
            os.fchmod(descriptor, 0o600)  # they may be older, or the umask takes one's own rights
        finally:
            os.close(descriptor)


def separate(job: Job) -> None:
    """End the words of a job's last attempt, if it left any: another one follows."""
    try:
        descriptor = _open(job, "err")
        try:
            if os.fstat(descriptor).st_size:
                os.write(descriptor, f"{AGAIN}\n".encode())
        finally:
            os.close(descriptor)
    except OSError as error:  # a full disk must not keep a job from its repetition
        logger.info("job %s: no line between two attempts in its log: %s", job.name, error)


def last_attempt(text: str) -> str:
    """Return what of the end of a log is the last attempt's."""
    lines = text.splitlines(keepends=True)
    for number in range(len(lines), 0, -1):
        if lines[number - 1].startswith(AGAIN):
            return "".join(lines[number:])
    return text
