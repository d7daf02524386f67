"""From what Flux tells of a job to its state: pure. One table for all its words for an end."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from dask_batch.backends.base import JobState, JobStatus
from dask_batch.backends.flux.instance import HOLD, Event, Phase, Row

__all__ = ["after", "status_of"]

_ENDS: Final[Mapping[str, tuple[str, JobState]]] = {
    "cancel": ("CANCELED", JobState.CANCELLED),
    "timeout": ("TIMEOUT", JobState.TIMEOUT),
    "dependency": ("FAILED", JobState.DEPENDENCY_FAILED),
    "node-failure": ("FAILED", JobState.NODE_FAILURE),
    "preempt": ("FAILED", JobState.PREEMPTED),
}
"""What the exceptions mean that end jobs. All others (``exec``, ``alloc``, ...) are failures."""

_LOST_A_NODE: Final = re.compile(r"lost contact with|node failure|broker .*(?:lost|failed)", re.I)
"""How the job execution system says, under the type ``exec``, that a broker has gone."""

_PHASES: Final[Mapping[str, Phase]] = {
    "submit": Phase.DEPEND,
    "depend": Phase.PRIORITY,
    "priority": Phase.SCHED,
    "alloc": Phase.RUN,
    "start": Phase.RUN,
    "finish": Phase.CLEANUP,
    "clean": Phase.INACTIVE,
}
"""What each event of the journal leads to, if nothing has led further."""

_PENDING: Final[Mapping[Phase, str]] = {
    Phase.NEW: "Dependency",
    Phase.DEPEND: "Dependency",
    Phase.PRIORITY: "Priority",
    Phase.SCHED: "Resources",
}
"""What jobs wait for that have not begun."""


def after(row: Row | None, event: Event) -> Row:
    """Return what is known of a job after an event; None: nothing was known before it."""
    if row is None:
        row = Row(event.job_id, event.job_name, Phase.NEW, submitted=event.timestamp)
    if event.name in ("submit", "urgency"):
        row = replace(row, urgency=int(event.context.get("urgency", row.urgency)))
    if event.name == "dependency-add" and event.dependency is not None:
        row = replace(row, waits_for=row.waits_for | {event.dependency})
    if event.name == "finish":
        row = replace(row, wait_status=int(event.context.get("status", 0)))
    if event.name == "exception" and event.context.get("severity") == 0:
        return _excepted(row, event)
    reached = _PHASES.get(event.name, row.phase)
    return replace(row, phase=reached) if reached > row.phase else row


def _excepted(row: Row, event: Event) -> Row:
    """Take in a fatal exception; of several the first one counts."""
    if not row.exception:
        kind, note = (str(event.context.get(name) or "") for name in ("type", "note"))
        row = replace(row, exception=kind, note=note)
    return replace(row, phase=max(row.phase, Phase.CLEANUP))


def status_of(row: Row) -> JobStatus:
    """Return the status of a job, in the words of all backends."""
    if row.phase is Phase.INACTIVE:
        return _ended(row)
    if row.phase is Phase.CLEANUP:
        return _told(row, JobState.ENDING, "CLEANUP", row.note)
    if row.phase is Phase.RUN:
        return _told(row, JobState.RUNNING, "RUN")
    state = JobState.HELD if row.urgency == HOLD else JobState.WAITING
    return _told(row, state, row.phase.name, _PENDING[row.phase])


def _told(row: Row, state: JobState, word: str, reason: str = "") -> JobStatus:
    return JobStatus(row.job_id, state, word, reason=reason, source="flux", name=row.name)


def _ended(row: Row) -> JobStatus:
    exit_code = signal = None
    if row.wait_status is not None and os.WIFSIGNALED(row.wait_status):
        signal = os.WTERMSIG(row.wait_status)
    elif row.wait_status is not None:
        exit_code = os.waitstatus_to_exitcode(row.wait_status)
    if not row.exception:
        failed = bool(exit_code or signal)
        word, state = ("FAILED", JobState.FAILED) if failed else ("COMPLETED", JobState.COMPLETED)
    else:
        word, state = _ENDS.get(row.exception, ("FAILED", JobState.FAILED))
        if state is JobState.FAILED and _LOST_A_NODE.search(row.note):
            state = JobState.NODE_FAILURE
    reason = f"{row.exception}: {row.note}" if row.exception else ""
    return JobStatus(
        row.job_id,
        state,
        word,
        exit_code=exit_code,
        signal=signal,
        reason=reason,
        source="flux",
        name=row.name,
    )
