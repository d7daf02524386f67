"""Flux: one job per :class:`~dask_batch.backends.base.Job`, dependencies in the instance."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final

from dask_batch.backends.base import Backend, Job, JobStatus
from dask_batch.backends.flux.bindings import Bindings
from dask_batch.backends.flux.gates import Gates, newest
from dask_batch.backends.flux.instance import NORMAL, Dependency, Instance, Machine, Row
from dask_batch.backends.flux.journal import Journal
from dask_batch.backends.flux.places import Ended, find_instance, name_of, place_of
from dask_batch.backends.flux.refusals import refusal
from dask_batch.backends.flux.requests import Writer, refuse_what_cannot_be, urgency_of
from dask_batch.backends.flux.rerun import Rerun
from dask_batch.backends.flux.states import status_of
from dask_batch.backends.flux.submission import Submitter
from dask_batch.backends.jobs import distinct, noted
from dask_batch.backends.slurm.script import job_command
from dask_batch.backends.wakeable import Wakeable
from dask_batch.errors import ResourceError

__all__ = ["FluxBackend", "open_flux"]

logger = logging.getLogger(__name__)

_MACHINE_FOR_S: Final = 60.0
"""For how long what the instance has is not asked again."""
_NAMES_PER_CALL: Final = 500


def open_flux(name: str, uri: str | None = None) -> Backend:
    """Return the backend of the enclosing instance, or of the one that a name tells of.

    Parameters
    ----------
    name
        ``flux``, or the name of a backend that a run was handed to.
    uri
        Where the instance is, as ``FLUX_URI`` says it.

    Raises
    ------
    BackendUnavailableError
        There are no bindings, or no instance can be reached.
    """
    place = place_of(name)
    if place is None:
        return FluxBackend(Bindings(uri))
    instance = find_instance(place, Bindings)
    return Ended(name) if instance is None else FluxBackend(instance)


class FluxBackend(Wakeable):
    """Hands jobs to a Flux instance.

    Parameters
    ----------
    instance
        The instance.
    command
        Returns the command that runs a job's task: by default ``python -m dask_batch.job``.

    Notes
    -----
    The instance's owner is told at once what becomes of jobs. A guest, of a system's instance, asks
    for it as politely as Slurm is asked.
    """

    shared = True
    default_max_jobs: int | None = 1000

    def __init__(
        self, instance: Instance, *, command: Callable[[Job], Sequence[str]] = job_command
    ) -> None:
        self.name = name_of(instance.place)
        self.prompt = instance.owned
        self._instance = instance
        super().__init__()
        self._known_machine: Machine | None = None
        self._machine_until = 0.0
        self._urgencies: dict[str, int] = {}
        """Of jobs that were handed over here and are held: their urgency once they are not."""
        self._journal = Journal(instance, self._news)
        self._writer = Writer("flux", self._machine, command)
        gates = self._gates = Gates(instance, self._journal, self._writer)
        self._submitter = Submitter(instance, self._journal, self._writer, gates)
        self._rerun = Rerun(instance, self._journal, self._submitter, gates)

    # ---- before ------------------------------------------------------------------------------

    def check(self, jobs: Sequence[Job]) -> None:
        """Compare each distinct request with what the instance has."""
        machine = self._machine()
        for job in distinct(jobs):
            refuse_what_cannot_be(job, machine)

    def _machine(self) -> Machine:
        if self._known_machine is None or time.monotonic() >= self._machine_until:
            self._known_machine = self._instance.machine()
            self._machine_until = time.monotonic() + _MACHINE_FOR_S
        return self._known_machine

    def script(self, job: Job, dependency: Sequence[str] = ()) -> str:
        """Return what would be run, with what is asked of Flux as comments."""
        waits = [Dependency("afterok", job_id) for job_id in dependency]
        asked = self._writer.request(job, waits)
        return noted(self._writer.script(job), *(f"flux: {line}" for line in _described(asked)))

    # ---- hand-over ---------------------------------------------------------------------------

    def submit(self, jobs: Sequence[Job], accepted: Callable[[str, str], None]) -> None:
        """Hand over jobs, parents before children, a level at a time; roots held."""
        self._journal.ensure()
        held = {job.name: urgency_of(job.resources) for job in jobs if not job.parents}

        def taken(name: str, job_id: str) -> None:
            if name in held:
                self._urgencies[job_id] = held[name]
            accepted(name, job_id)

        self._submitter(jobs, taken)

    def release(self, job_ids: Sequence[str]) -> None:
        """Let held jobs go: give them the urgency that they are to have."""
        self._instance.set_urgency({job_id: self._urgency(job_id) for job_id in job_ids})

    def _urgency(self, job_id: str) -> int:
        known = self._urgencies.pop(job_id, None)
        if known is None:  # another client's
            known = self._instance.note(job_id).get("urgency")
        return int(known) if known else NORMAL

    def cancel(self, job_ids: Collection[str]) -> None:
        """End jobs, waiting or running, and the gates behind which nobody waits any more."""
        if not job_ids:
            return
        gates = self._gates.of(self._journal.rows(job_ids, follow=False).values())
        self._instance.end(job_ids, "cancel", "dask-batch: not wanted any more")
        if gates:
            self._instance.end(self._gates.unused(gates), "cancel", "nobody waits behind it")

    def rerun(self, job: Job, job_id: str, dependents: Mapping[str, Sequence[str]]) -> str:
        """Run a job that has ended once more, as a new one of the same name."""
        try:
            refuse_what_cannot_be(job, self._machine())
        except ResourceError as error:  # Flux itself would take it, and fail it
            raise refusal(job, str(error)) from error
        return self._rerun(job, job_id)

    # ---- afterwards --------------------------------------------------------------------------

    def status(self, job_ids: Collection[str]) -> dict[str, JobStatus]:
        """Answer from the journal; ask once for what it has not told of."""
        rows = self._journal.rows(job_ids) if job_ids else {}
        return {job_id: status_of(row) for job_id, row in rows.items()}

    def find(self, names: Collection[str]) -> dict[str, str]:
        """Look up job ids by unique job names; of a job that was repeated the last."""
        wanted = sorted(names)
        by_name: dict[str, list[Row]] = {}
        for start in range(0, len(wanted), _NAMES_PER_CALL):
            for row in self._instance.named(wanted[start : start + _NAMES_PER_CALL]):
                by_name.setdefault(row.name, []).append(row)
        latest = ((name, newest(rows)) for name, rows in by_name.items())
        return {name: row.job_id for name, row in latest if row is not None}

    def close(self) -> None:
        """Let go of the instance. Jobs go on."""
        self._journal.close()
        self._instance.close()
        super().close()


def _described(asked: object) -> Iterator[str]:
    """Yield what is asked of Flux, a line for each thing that is not as usual."""
    for name in (
        *("name", "slots", "cpus", "gpus", "nodes", "exclusive", "nested", "run_time_s"),
        *("queue", "bank", "urgency", "directory", "stdout", "stderr"),
    ):
        value = getattr(asked, name)
        if value not in (None, False, 0):
            yield f"{name} = {value}"
    for each in getattr(asked, "dependencies", ()):
        yield f"dependency = {each.kind}:{each.job_id}"
