"""A hand-over to Flux, level by level; and what a job does whose parents have ended already.

A whole level is sent before its ids are collected. The first level is held, so that nothing that is
handed over here can end before the rest waits for it. What was handed over earlier can: then Flux
refuses a dependency instead of letting the job fall, and what became of the parents is looked up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from dask_batch.backends.base import Job, JobState
from dask_batch.backends.flux.gates import Gates
from dask_batch.backends.flux.instance import (
    HOLD,
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
from dask_batch.backends.flux.states import status_of
from dask_batch.backends.parallel import levels

__all__ = ["Submitter"]

logger = logging.getLogger(__name__)

_SENTINEL: Final = "sentinel-"
_NEVER_BEGAN: Final = 'f="$1"; shift; j="$1"; shift; "$f" job wait-event -q "$j" start && exit 0'
_UNLESS: Final = ("bash", "-c", f'{_NEVER_BEGAN}; exec "$@"', "steward")
"""Runs a command unless a job has begun: with ``flux``, the job's id and the command to follow."""
_TRIES: Final = 3


class Submitter:
    """Hands jobs over.

    Parameters
    ----------
    instance, journal
        Whom to, and what is known of jobs there.
    writer, gates
        Write requests.
    """

    def __init__(self, instance: Instance, journal: Journal, writer: Writer, gates: Gates) -> None:
        self._instance = instance
        self._journal = journal
        self._writer = writer
        self._gates = gates

    def __call__(self, jobs: Sequence[Job], accepted: Callable[[str, str], None]) -> None:
        """Hand jobs over; see :meth:`Backend.submit`.

        Raises
        ------
        SubmissionError, QueueFullError, BackendUnavailableError
            As told there.
        """
        above = {parent for job in jobs for parent in job.parents}
        gated = {job.name for job in jobs if job.repeatable and job.name in above}
        waits: dict[str, Dependency] = {}
        gate_ids: dict[str, str] = {}
        self._gates.made.clear()
        try:
            for level in levels(jobs):
                ids = self._level(level, waits, accepted)
                # After their jobs, so that who cancels these after a crash finds them.
                self._add_gates([job for job in level if job.name in gated], ids, gate_ids)
                for job in level:
                    gate_id = gate_ids.get(job.name)
                    kind = "afterany" if gate_id else "afterok"
                    waits[job.name] = Dependency(kind, gate_id or ids[job.name])
        except BaseException:
            # Those that jobs wait for go with the last of these.
            made = {*gate_ids.values(), *self._gates.made}
            self._instance.end(self._gates.unused(made), "cancel", "not needed")
            raise

    def _add_gates(
        self, jobs: Sequence[Job], ids: dict[str, str], gate_ids: dict[str, str]
    ) -> None:
        """Give jobs that may be repeated gates, and openers for them."""
        answers = self._instance.submit([self._gates.gate(job) for job in jobs])
        taken = zip(jobs, answers, strict=True)
        gate_ids.update((job.name, i) for job, i in taken if not isinstance(i, Refused))
        _raise_first(jobs, answers)
        openers = (
            self._gates.opener(job, job.name, ids[job.name], gate_ids[job.name]) for job in jobs
        )
        _raise_first(jobs, self._instance.submit(list(openers)))

    # ---- jobs --------------------------------------------------------------------------------

    def _level(
        self,
        level: Sequence[Job],
        waits: dict[str, Dependency],
        accepted: Callable[[str, str], None],
    ) -> dict[str, str]:
        """Hand over jobs that do not wait for each other; report all that were taken."""
        requests = [self._request(job, waits) for job in level]
        for job in level:
            self._writer.prepare(job)
        ids: dict[str, str] = {}
        failure: BaseException | None = None
        for job, request, answer in zip(
            level, requests, self._instance.submit(requests), strict=True
        ):
            try:
                if isinstance(answer, Refused):
                    answer = self._once_more(job, request, answer)
                ids[job.name] = answer
                accepted(job.name, answer)
            except BaseException as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return ids

    def _request(self, job: Job, waits: dict[str, Dependency]) -> Request:
        if job.after_failure:
            return self._after_failure(job)
        if job.after_end:
            ends = [Dependency("afterany", job_id) for job_id in job.after_end]
            return self._writer.request(job, ends)
        dependencies = [waits[parent] for parent in job.parents]
        for job_id in job.after:
            earlier = Dependency("afterok", job_id)
            dependencies.append(self._gates.before(job, job_id) if job.patient else earlier)
        return self._writer.request(job, dependencies, urgency=None if job.parents else HOLD)

    def again(self, job: Job) -> str:
        """Hand over a job that ran before, held; return its new id.

        Raises
        ------
        SubmissionError
            It is refused.
        """
        self._writer.prepare(job)
        dependencies = [Dependency("afterok", job_id) for job_id in job.after]
        request = self._writer.request(job, dependencies, urgency=HOLD)
        (answer,) = self._instance.submit([request])
        if isinstance(answer, Refused):
            return self._once_more(job, request, answer)
        return answer

    def _after_failure(self, job: Job) -> Request:
        """Return a job that begins when one of some jobs has failed.

        Flux knows no *one of*. So a sentinel waits for the success of all: it falls at the first
        failure, and then the job begins; if it begins itself, the job ends at once.
        """
        sentinel = self._writer.aside(
            job,
            _SENTINEL + job.name,
            ["true"],
            dependencies=tuple(Dependency("afterok", job_id) for job_id in job.after_failure),
        )
        (answer,) = self._instance.submit([sentinel])
        if isinstance(answer, Refused):
            if not is_about_dependencies(answer.message):
                raise refusal(job, answer.message)
            logger.info("%s begins at once: %s", job.name, answer.message)
            return self._writer.request(job)
        behind = (*_UNLESS, self._instance.command, answer)
        return self._writer.request(job, [Dependency("afterany", answer)], behind=behind)

    # ---- parents that have ended ---------------------------------------------------------------

    def _once_more(self, job: Job, request: Request, refused: Refused) -> str:
        """Hand over a job whose parents have ended; one that can never begin falls at once."""
        for _ in range(_TRIES):
            if not is_about_dependencies(refused.message):
                break
            rows = self._journal.rows([each.job_id for each in request.dependencies], follow=False)
            fell = [each for each in request.dependencies if _has_failed(each, rows)]
            kept = tuple(each for each in request.dependencies if _is_open(each, rows))
            request = replace(request, dependencies=kept)
            # A job that falls must not begin in between.
            held = replace(request, urgency=HOLD) if fell else request
            (answer,) = self._instance.submit([held])
            if not isinstance(answer, Refused):
                if fell:
                    ids = ", ".join(each.job_id for each in fell)
                    self._instance.end([answer], "dependency", f"{ids} did not succeed")
                return answer
            refused = answer
        raise refusal(job, refused.message)


def _raise_first(jobs: Sequence[Job], answers: Sequence[str | Refused]) -> None:
    """Raise the first refusal of what was to serve some jobs."""
    for job, answer in zip(jobs, answers, strict=True):
        if isinstance(answer, Refused):
            raise refusal(job, answer.message)


def _has_failed(dependency: Dependency, rows: dict[str, Row]) -> bool:
    """Whether what a job waits for will never be. What is not known is left to the job to check."""
    row = rows.get(dependency.job_id)
    if row is None or row.phase is not Phase.INACTIVE or dependency.kind != "afterok":
        return False
    return status_of(row).state is not JobState.COMPLETED


def _is_open(dependency: Dependency, rows: dict[str, Row]) -> bool:
    row = rows.get(dependency.job_id)
    return row is not None and row.phase is not Phase.INACTIVE
