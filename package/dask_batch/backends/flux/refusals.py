"""What Flux says when it does not take a job, and what that means."""

from __future__ import annotations

import re
from typing import Final

from dask_batch.backends.base import Job
from dask_batch.errors import QueueFullError, SubmissionError

__all__ = ["is_about_dependencies", "refusal"]

_DEPENDENCY: Final = re.compile(r"dependency: ")
_FULL: Final = re.compile(
    r"max(?:imum)?[ _-](?:number of )?(?:active[ _-])?jobs|job limit|too many jobs", re.I
)
"""How instances with ``flux-accounting``, or a site's plugin, say that a user has enough jobs."""


def is_about_dependencies(message: str) -> bool:
    """Whether a job was refused because of what it waits for."""
    return bool(_DEPENDENCY.search(message))


def refusal(job: Job, message: str) -> SubmissionError:
    """Return the error for a job that Flux did not take."""
    kind = QueueFullError if _FULL.search(message) else SubmissionError
    error = kind(1, ["flux", "submit", f"--job-name={job.name}"], message, advice=_advice(message))
    error.job_name = job.name
    return error


def _advice(message: str) -> str:
    if "not a valid queue" in message or "no default queue" in message:
        return "`flux queue list` shows the queues: resource_dict={'partition': ...}."
    if "disabled" in message:
        return "`flux queue list` shows which queues take jobs: resource_dict={'partition': ...}."
    if "bank" in message or "account" in message:
        return "Name a bank that you may use: resource_dict={'account': ...}."
    return ""
