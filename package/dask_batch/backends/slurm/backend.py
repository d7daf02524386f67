"""Slurm: one job per :class:`~dask_batch.backends.base.Job`, dependencies in the scheduler."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from dask_batch.backends.base import Job, JobStatus
from dask_batch.backends.command import Completed
from dask_batch.backends.jobs import distinct
from dask_batch.backends.parallel import levels, submit_together
from dask_batch.backends.patience import CANCEL_PATIENCE_S, PATIENCE_S, Waiting
from dask_batch.backends.slurm import parse, script
from dask_batch.backends.slurm.commands import Commands, chunks
from dask_batch.backends.slurm.dependencies import LONGEST, Dependency, dependency_of
from dask_batch.backends.slurm.inquiry import Inquiry
from dask_batch.backends.slurm.limits import refuse_what_cannot_be
from dask_batch.backends.slurm.options import refuse_directives, refuse_reserved
from dask_batch.backends.slurm.refusals import blames_parents
from dask_batch.backends.slurm.rerun import ANSWER_PATIENCE_S, Rerun
from dask_batch.backends.slurm.submission import Submitter
from dask_batch.backends.wakeable import Wakeable
from dask_batch.errors import (
    BackendError,
    BackendUnavailableError,
    CommandError,
    ResourceError,
    SubmissionError,
    TemplateError,
)

__all__ = ["SlurmBackend"]

logger = logging.getLogger(__name__)

PARALLEL = 4
"""Submissions at a time: more gain nothing at slurmctld."""
NODES_FOR_S = 600.0
"""For how long what ``sinfo`` said serves when many jobs are repeated."""


class SlurmBackend(Wakeable):
    """Hands jobs to Slurm through its commands.

    Parameters
    ----------
    command
        The command that runs a job's task: by default ``python -m dask_batch.job``.

    Raises
    ------
    BackendUnavailableError
        Slurm's commands are not on this machine.

    Notes
    -----
    One cluster: neither federations nor ``--clusters``. Jobs are looked for among those of the
    own user id. Without accounting (``sacct``) Slurm forgets jobs ``MinJobAge`` after their end.
    """

    name = "slurm"
    shared = True
    default_max_jobs: int | None = 1000

    def __init__(self, *, command: Callable[[Job], Sequence[str]] = script.job_command) -> None:
        if shutil.which("sbatch") is None:
            raise BackendUnavailableError(
                "there is no Slurm on this machine (no sbatch on PATH). Use backend='local', or "
                "run this on a login node of the cluster."
            )
        self._command = command
        self._known_nodes: list[parse.NodeKind] = []
        self._nodes_until = 0.0
        super().__init__()
        waiting = Waiting(self._closed.wait)
        self._commands = Commands(waiting)
        # Looked up at each call: tests put themselves in between.
        self._inquiry = Inquiry(lambda argv: self._ask(argv))
        find, busy = self._inquiry.find_queued, self._inquiry.busy
        self._submit_one = Submitter(find, busy, waiting)
        self._rerun = Rerun(self._commands, self._inquiry, self._submit_again)

    # -- before ---------------------------------------------------------------------------------

    def check(self, jobs: Sequence[Job]) -> None:
        """Render the script of each distinct request, and compare it with what the nodes have."""
        nodes = self._nodes()
        for job in distinct(jobs, by=lambda job: bool(job.parents or job.after)):
            refuse_reserved(job.resources)
            text = self.script(job, ["1", "2"] if job.parents or job.after else [])
            if not text.startswith("#!"):
                raise TemplateError(
                    "the submission template must begin with a line such as '#!/bin/bash': "
                    f"Slurm refuses a script that begins with {text[:40]!r}"
                )
            refuse_directives(text)
            refuse_what_cannot_be(job.resources, nodes)
            if (job.resources.get("priority") or 0) > 0:
                logger.warning(
                    "Slurm lets only administrators raise a priority: priority=%s counts as 0",
                    job.resources["priority"],
                )

    def _nodes(self) -> list[parse.NodeKind]:
        """Ask what there is; the answer also tells whether the controller is there."""
        try:
            done = self._ask(["sinfo", "-h", "-e", "-o", parse.SINFO_FORMAT])
        except CommandError as error:
            raise BackendUnavailableError(
                f"Slurm does not answer: {error}. Try again later, or use backend='local'."
            ) from error
        return parse.parse_sinfo(done.stdout)

    def script(self, job: Job, dependency: Sequence[str] = ()) -> str:
        """Return the script that would be submitted for a job."""
        return self._script(job, dependency_of(job, dependency))

    def _script(self, job: Job, dependency: Dependency) -> str:
        return script.script_text(job, dependency, self._command(job))

    # -- hand-over ------------------------------------------------------------------------------

    def submit(self, jobs: Sequence[Job], accepted: Callable[[str, str], None]) -> None:
        """Hand over jobs, parents before children, some at a time; roots held."""
        ids: dict[str, str] = {}
        repeatable = {job.name for job in jobs if job.repeatable}

        def submit(job: Job) -> str:
            parents = [ids[parent] for parent in job.parents]
            patient = not repeatable.isdisjoint(job.parents)
            hold = not (job.parents or job.after_failure or job.after_end)
            return self._hand_in(job, dependency_of(job, parents, patient=patient), hold=hold)

        def taken(name: str, job_id: str) -> None:
            ids[name] = job_id
            accepted(name, job_id)

        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="sbatch") as pool:
            for level in levels(jobs):
                submit_together(level, submit, taken, pool=pool, at_a_time=PARALLEL)

    def _hand_in(
        self, job: Job, dependency: Dependency, *, hold: bool, total_s: float = PATIENCE_S
    ) -> str:
        try:
            return self._hand_in_once(job, dependency, hold=hold, total_s=total_s)
        except SubmissionError as refusal:
            forgotten = self._forgotten(dependency, refusal)
            if not forgotten:
                raise
        logger.info("job %s does not wait for %s: they are over", job.name, ", ".join(forgotten))
        return self._hand_in(job, dependency.without(forgotten), hold=hold, total_s=total_s)

    def _forgotten(self, dependency: Dependency, refusal: SubmissionError) -> list[str]:
        """Return the jobs because of which Slurm refuses one that is to wait for them."""
        if not blames_parents(refusal.output or ""):
            return []
        try:
            return self._inquiry.forgotten(dependency.job_ids)
        except BackendError as error:
            logger.info("which parents Slurm knows cannot be told: %s", error)
            return []

    def _hand_in_once(self, job: Job, dependency: Dependency, *, hold: bool, total_s: float) -> str:
        arguments = script.sbatch_arguments(job, dependency, hold=hold)
        if (length := len(dependency.expression)) > LONGEST:
            refusal = SubmissionError(
                1,
                ["sbatch", *arguments],
                f"job {job.name} waits for more jobs than Slurm can be told of "
                f"({length} characters, of which it takes {LONGEST})",
                advice="Combine them in a tree, some hundreds at a time.",
            )
            refusal.job_name = job.name
            raise refusal
        return self._submit_one(job, arguments, self._script(job, dependency), total_s=total_s)

    def release(self, job_ids: Sequence[str]) -> None:
        """Let held jobs go; one that has been cancelled in the meantime is no error."""
        for chunk in chunks(job_ids):
            self._commands.insist(["scontrol", "release", ",".join(chunk)])

    def cancel(self, job_ids: Collection[str]) -> None:
        """End jobs, waiting or running."""
        for chunk in chunks(sorted(job_ids)):
            self._commands.insist(["scancel", *chunk], total_s=CANCEL_PATIENCE_S)

    # -- repeating ------------------------------------------------------------------------------

    def rerun(self, job: Job, job_id: str, dependents: Mapping[str, Sequence[str]]) -> str:
        """Run a job that has ended once more, in its place."""
        if time.monotonic() >= self._nodes_until:
            self._known_nodes = self._nodes()
            self._nodes_until = time.monotonic() + NODES_FOR_S
        try:
            refuse_what_cannot_be(job.resources, self._known_nodes)
        except ResourceError as error:  # Slurm itself would take it, and never start it
            refusal = SubmissionError(1, ["scontrol", "update"], str(error))
            refusal.job_name = job.name
            raise refusal from error
        return self._rerun(job, job_id, dependents)

    def _submit_again(self, job: Job) -> str:
        """Submit a job in the place of one that cannot be repeated; no answer is no refusal."""
        try:
            return self._hand_in(job, dependency_of(job), hold=True, total_s=ANSWER_PATIENCE_S)
        except SubmissionError as error:
            if isinstance(error.__cause__, CommandError):
                raise error.__cause__ from None
            raise

    # -- afterwards -----------------------------------------------------------------------------

    def status(self, job_ids: Collection[str]) -> dict[str, JobStatus]:
        """Ask ``squeue`` once for all, and ``sacct`` once for those that it does not know."""
        return self._inquiry.status(job_ids) if job_ids else {}

    def accounts(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """Ask ``sacct`` of jobs that ``squeue`` may be wrong about."""
        return self._inquiry.accounts(job_ids) if job_ids else {}

    def find(self, names: Collection[str]) -> dict[str, str]:
        """Look up job ids by unique job names, in the queue and in the accounting."""
        return self._inquiry.find(names) if names else {}

    def _ask(self, argv: Sequence[str]) -> Completed:
        return self._commands.ask(argv)
