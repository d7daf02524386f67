"""Dependencies that outlive a failure, of which Flux has none: a gate, and what opens it.

What a job of Flux depends on cannot be changed once it has been submitted, and when a job fails
all that waits for its success falls with it. A job that may be repeated, under a new id, therefore
has a *gate*: a held job which never runs. What depends on the repeatable job waits for the *end*
of its gate, and an *opener*, which waits for the job's success, ends the gate by cancelling it::

    job  <--afterok--  opener  - - cancels - ->  gate  <--afterany--  dependents

If the job fails, the opener falls, and nothing else does. Whoever repeats the job gives the new one
an opener of its own. When all that waits behind a gate has been cancelled, the gate is as well.

Names make it work for many processes: a gate is found by the name of its job. A new job is
submitted before its gates are looked for, and a gate before the job that it belongs to is, so of
two that do both at the same time one sees the other.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from dask_batch.backends.base import Job
from dask_batch.backends.flux.instance import (
    HOLD,
    URGENT,
    Dependency,
    Instance,
    Phase,
    Refused,
    Request,
    Row,
)
from dask_batch.backends.flux.journal import Journal
from dask_batch.backends.flux.refusals import is_about_dependencies, refusal
from dask_batch.backends.flux.requests import Writer

__all__ = ["Gates", "newest"]

logger = logging.getLogger(__name__)

_GATE: Final = "gate-"
_OPENER: Final = "opener-"
_ANY_FLUX: Final = ("sh", "-c", 'f="$1"; shift; "$f" "$@" || flux "$@"', "opener")
"""Runs a command of Flux: with its program as it is called here, or else as a node finds it."""
_FINISH: Final = "after-finish"
_RUN_TIME_S: Final = 300.0
_NAMES_PER_CALL: Final = 500


def newest(rows: Iterable[Row]) -> Row | None:
    """Return the job of several of one name that was submitted last."""
    return max(rows, key=lambda row: row.submitted, default=None)


class Gates:
    """Makes, opens and clears away gates.

    Parameters
    ----------
    instance, journal
        Where they are, and what is known of jobs there.
    writer
        Writes requests.

    Attributes
    ----------
    made
        The gates of earlier jobs that were made since this was cleared last.
    """

    def __init__(self, instance: Instance, journal: Journal, writer: Writer) -> None:
        self._instance = instance
        self._journal = journal
        self._writer = writer
        self.made: set[str] = set()

    # ---- making ------------------------------------------------------------------------------

    def gate(self, job: Job, of: str = "") -> Request:
        """Return the gate of a job, or of an earlier one of that name, which ``job`` waits for."""
        return self._writer.aside(job, _GATE + (of or job.name), ["true"], urgency=HOLD)

    def opener(self, job: Job, name: str, job_id: str, gate_id: str) -> Request:
        """Return what opens a gate when a job succeeds.

        It is urgent, since all it does is let others begin.
        """
        words = ["job", "raise", "--type=cancel", f"--message={name} has succeeded", gate_id]
        return self._writer.aside(
            job,
            _OPENER + name,
            [*_ANY_FLUX, self._instance.command, *words],
            urgency=URGENT,
            run_time_s=_RUN_TIME_S,
            dependencies=(Dependency("afterok", job_id),),
        )

    def open_with(self, job: Job, job_id: str) -> None:
        """Give a job that repeats another, and is held, openers for the gates of its name.

        Raises
        ------
        SubmissionError
            One was refused: what waits behind its gate would wait for ever.
        """
        gates = [row for row in self._named([_GATE + job.name]) if _waits(row)]
        requests = [self.opener(job, job.name, job_id, gate.job_id) for gate in gates]
        for answer in self._instance.submit(requests):
            if isinstance(answer, Refused):
                raise refusal(job, answer.message)

    # ---- waiting for jobs of earlier hand-overs ------------------------------------------------

    def before(self, job: Job, job_id: str) -> Dependency:
        """Return what a job waits for in place of an earlier one that may be repeated.

        Raises
        ------
        SubmissionError
            A gate, or what opens it, was refused.
        """
        rows = self._journal.rows([job_id])
        if job_id not in rows or not self._instance.note(job_id).get("repeatable"):
            return Dependency("afterok", job_id)
        name = rows[job_id].name
        there = [row for row in self._named([_GATE + name, _OPENER + name]) if _waits(row)]
        gate_id = next((row.job_id for row in there if _is_gate(row)), None)
        if gate_id is None:
            gate_id = self._new(job, name)
        elif len(there) > 1:  # and its opener
            return Dependency("afterany", gate_id)
        self._open_with_latest(job, name, gate_id)
        return Dependency("afterany", gate_id)

    def _new(self, job: Job, name: str) -> str:
        """Make the gate of an earlier job."""
        (gate_id,) = self._instance.submit([self.gate(job, of=name)])
        if isinstance(gate_id, Refused):
            raise refusal(job, gate_id.message)
        self.made.add(gate_id)
        return gate_id

    def _open_with_latest(self, job: Job, name: str, gate_id: str) -> None:
        """Let a new gate be opened by the last job of a name, however often that is repeated."""
        served = None
        while (latest := newest(self._named([name]))) is not None and latest.job_id != served:
            served = latest.job_id
            (answer,) = self._instance.submit([self.opener(job, name, served, gate_id)])
            if isinstance(answer, Refused) and not is_about_dependencies(answer.message):
                raise refusal(job, answer.message)
            # Else it has failed: whoever repeats it opens the gate.

    # ---- clearing away -----------------------------------------------------------------------

    def of(self, rows: Iterable[Row]) -> set[str]:
        """Return the ids of the gates that jobs wait for, and of their own."""
        rows = list(rows)
        ids = {each.job_id for row in rows for each in row.waits_for if each.kind == _FINISH}
        known = list(self._journal.rows(ids, follow=False).values()) if ids else []
        names = sorted(_GATE + row.name for row in rows)
        for start in range(0, len(names), _NAMES_PER_CALL):
            known += self._named(names[start : start + _NAMES_PER_CALL])
        return {row.job_id for row in known if _is_gate(row)}

    def unused(self, gate_ids: Collection[str]) -> set[str]:
        """Return those gates for which no job waits any more."""
        if not gate_ids:
            return set()
        waiting = (row for row in self._instance.active() if _waits(row))
        return set(gate_ids) - {d.job_id for row in waiting for d in row.waits_for}

    def _named(self, names: Sequence[str]) -> list[Row]:
        return self._journal.newest(self._instance.named(names))


def _is_gate(row: Row) -> bool:
    return row.name.startswith(_GATE) and _waits(row)


def _waits(row: Row) -> bool:
    """Whether a job has not ended, nor is about to."""
    return row.phase < Phase.CLEANUP
