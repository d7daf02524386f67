"""Batch systems that are known by their commands: one backend for all of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from dask_batch.backends.base import Job, JobStatus
from dask_batch.backends.commands.asking import Asking
from dask_batch.backends.commands.inquiry import Inquiry
from dask_batch.backends.commands.rerun import Rerun
from dask_batch.backends.commands.script import (
    refuse_reserved,
    refuse_what_is_not_printed,
    script_text,
)
from dask_batch.backends.commands.submission import Submitter
from dask_batch.backends.commands.system import System, waits_of
from dask_batch.backends.jobs import distinct, noted
from dask_batch.backends.parallel import levels, submit_together
from dask_batch.backends.patience import CANCEL_PATIENCE_S, Waiting
from dask_batch.backends.slurm.script import job_command
from dask_batch.backends.wakeable import Wakeable
from dask_batch.errors import (
    BackendUnavailableError,
    CommandError,
    ConfigurationError,
    ResourceError,
    TemplateError,
)

__all__ = ["CommandsBackend"]

PARALLEL = 4
"""Submissions at a time."""


class CommandsBackend(Wakeable):
    """Hands jobs to a batch system through its commands.

    Parameters
    ----------
    system
        Which one.
    command
        The command that runs a job's task: by default ``python -m dask_batch.job``.

    Raises
    ------
    BackendUnavailableError
        Its commands are not on this machine.

    Notes
    -----
    What is known of ended jobs is what the system keeps: see ``docs/other-batch-systems.md``.
    """

    shared = True
    default_max_jobs: int | None = 1000

    def __init__(
        self, system: System, *, command: Callable[[Job], Sequence[str]] = job_command
    ) -> None:
        missing = [name for name in system.commands if shutil.which(name) is None]
        if missing:
            raise BackendUnavailableError(
                f"there is no {system.title} on this machine (no {', '.join(missing)} on PATH). "
                "Use backend='local', or run this on a login node of the cluster."
            )
        self.name = system.name
        self._system = system
        self._command = command
        super().__init__()
        waiting = Waiting(self._closed.wait)
        self._asking = Asking(system.words, waiting)
        self._inquiry = Inquiry(system, self._asking)
        find = self._inquiry.find_queued
        self._submit_one = Submitter(system, command, find, self._ended, waiting)
        self._rerun = Rerun(system, self._asking, self._inquiry, self._submit_again)

    # -- before ---------------------------------------------------------------------------------

    def check(self, jobs: Sequence[Job]) -> None:
        """Render the script of each distinct request, and see that it says all that is asked."""
        try:
            self._inquiry.find_queued(["dask-batch-is-there"])
        except CommandError as error:
            raise BackendUnavailableError(
                f"{self._system.title} does not answer: {error}. Try again later, or use "
                "backend='local'."
            ) from error
        for job in distinct(jobs):
            lost = refuse_what_is_not_printed(self._system, job.resources)
            if lost:
                raise ResourceError(lost)
            text = self._text(job)
            if not text.startswith("#!"):
                raise TemplateError(
                    "the submission template must begin with a line such as '#!/bin/bash', not "
                    f"with {text[:40]!r}"
                )
            reserved = refuse_reserved(self._system, text)
            if reserved:
                raise TemplateError(reserved)
            bad = set(str(job.log_directory)) & set(self._system.bad_in_paths)
            if bad:
                raise ConfigurationError(
                    f"{self._system.title} cannot write logs to {str(job.log_directory)!r}: "
                    f"{' and '.join(map(repr, sorted(bad)))} mean something to it there. Choose "
                    "another cache_directory."
                )

    def script(self, job: Job, dependency: Sequence[str] = ()) -> str:
        """Return the script that would be submitted for a job."""
        waits = self._system.waits(waits_of(job, dependency))
        text = self._text(job)
        return noted(text, *([f"submitted with {' '.join(waits)}"] if waits else []))

    def _text(self, job: Job) -> str:
        return script_text(self._system, job, self._command(job))

    # -- hand-over ------------------------------------------------------------------------------

    def submit(self, jobs: Sequence[Job], accepted: Callable[[str, str], None]) -> None:
        """Hand over jobs, parents before children, some at a time; roots held."""
        ids: dict[str, str] = {}
        repeatable = {job.name for job in jobs if job.repeatable}

        def submit(job: Job) -> str:
            parents = [ids[parent] for parent in job.parents]
            patient = not repeatable.isdisjoint(job.parents)
            hold = not (job.parents or job.after_failure or job.after_end)
            return self._submit_one(job, waits_of(job, parents, patient=patient), hold=hold)

        def taken(name: str, job_id: str) -> None:
            ids[name] = job_id
            accepted(name, job_id)

        with ThreadPoolExecutor(PARALLEL, thread_name_prefix=self._system.submit[0]) as pool:
            for level in levels(jobs):
                submit_together(level, submit, taken, pool=pool, at_a_time=PARALLEL)

    def release(self, job_ids: Sequence[str]) -> None:
        """Let held jobs go; one that has been cancelled in the meantime is no error."""
        self._asking.insist(self._system.release, list(job_ids), self._system.ids_per_call)

    def cancel(self, job_ids: Collection[str]) -> None:
        """End jobs, waiting or running."""
        self._asking.insist(
            self._system.cancel,
            sorted(job_ids),
            self._system.ids_per_call,
            total_s=CANCEL_PATIENCE_S,
        )

    def rerun(self, job: Job, job_id: str, dependents: Mapping[str, Sequence[str]]) -> str:
        """Run a job that has ended once more, under its own name."""
        return self._rerun(job, job_id, dependents)

    def _submit_again(self, job: Job) -> str:
        return self._submit_one(job, waits_of(job), hold=True)

    # -- afterwards -----------------------------------------------------------------------------

    def status(self, job_ids: Collection[str]) -> dict[str, JobStatus]:
        """Ask once for all, and the books for those that are not known any more."""
        return self._inquiry.status(job_ids) if job_ids else {}

    def _ended(self, job_ids: Collection[str]) -> set[str]:
        """Return those of some jobs that have ended, or are not known."""
        known = self.status(job_ids)
        return {i for i in job_ids if (status := known.get(i)) is None or status.state.ended}

    def find(self, names: Collection[str]) -> dict[str, str]:
        """Look up job ids by unique job names."""
        return self._inquiry.find(names)
