"""From Slurm's words for states to :class:`~dask_batch.backends.base.JobState`: one table."""

from __future__ import annotations

import logging
from types import MappingProxyType
from typing import Final

from dask_batch.backends.base import JobState

__all__ = ["WORDS", "job_state"]

logger = logging.getLogger(__name__)

WORDS: Final = MappingProxyType(
    {
        # Not started. A requeued job waits again, under the same id.
        "PENDING": JobState.WAITING,
        "REQUEUED": JobState.WAITING,
        "REQUEUE_FED": JobState.WAITING,
        "REQUEUE_HOLD": JobState.HELD,
        "RESV_DEL_HOLD": JobState.HELD,
        "SPECIAL_EXIT": JobState.HELD,
        # At work. A stopped or suspended job keeps its allocation and may go on.
        "CONFIGURING": JobState.RUNNING,
        "POWER_UP_NODE": JobState.RUNNING,
        "RUNNING": JobState.RUNNING,
        "RESIZING": JobState.RUNNING,
        "SIGNALING": JobState.RUNNING,
        "SUSPENDED": JobState.RUNNING,
        "STOPPED": JobState.RUNNING,
        "EXPEDITING": JobState.WAITING,
        # Past the script, not yet off the books.
        "COMPLETING": JobState.ENDING,
        "STAGE_OUT": JobState.ENDING,
        "UPDATE_DB": JobState.ENDING,
        # Over.
        "COMPLETED": JobState.COMPLETED,
        "FAILED": JobState.FAILED,
        "TIMEOUT": JobState.TIMEOUT,
        "DEADLINE": JobState.TIMEOUT,
        "OUT_OF_MEMORY": JobState.OUT_OF_MEMORY,
        "NODE_FAIL": JobState.NODE_FAILURE,
        "BOOT_FAIL": JobState.NODE_FAILURE,
        "LAUNCH_FAILED": JobState.NODE_FAILURE,
        "RECONFIG_FAIL": JobState.NODE_FAILURE,
        "PREEMPTED": JobState.PREEMPTED,
        "CANCELLED": JobState.CANCELLED,
        "REVOKED": JobState.CANCELLED,  # a federation's sibling job runs in its place
    }
)
"""Every state of Slurm 20.11 to 25.11 (``slurm.h``, ``job_state_string``)."""

_HELD_REASONS = frozenset({"JobHeldUser", "JobHeldAdmin", "job requeued in held state"})
_LAUNCH_FAILED = "launch failed requeued held"
"""A node did not start the job, and Slurm will not try again before somebody releases it. It is no
failure of the job's: a controller that was killed starts jobs a second time whose first copy still
runs, and the node refuses. So what Slurm knows of the job is lost, rather than its node."""

_warned: set[str] = set()


def job_state(word: str, reason: str = "") -> JobState:
    """Translate a state as ``squeue`` or ``sacct`` prints it.

    ``CANCELLED by 1000`` and the ``CANCELLED+`` of a narrow column count as their first word. A
    word that is not in the table is warned of once, and means *not finished*.
    """
    words = word.split()
    name = words[0].rstrip("+") if words else ""
    state = WORDS.get(name)
    if state is None:
        if name not in _warned:
            _warned.add(name)
            logger.warning(
                "Slurm reports the state %r, which is unknown here: taken as not finished", word
            )
        return JobState.UNKNOWN
    if state is JobState.WAITING:
        if reason == "DependencyNeverSatisfied":
            return JobState.DEPENDENCY_FAILED
        reason = reason.replace("_", " ")  # as scontrol, and squeue of 23.11 and later, print it
        if reason == _LAUNCH_FAILED:
            return JobState.LOST
        if reason in _HELD_REASONS:
            return JobState.HELD
    if state is JobState.CANCELLED and reason == "DependencyNeverSatisfied":
        return JobState.DEPENDENCY_FAILED
    return state
