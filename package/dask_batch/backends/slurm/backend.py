"""Slurm: one job per :class:`~dask_batch.backends.base.Job`, dependencies in the scheduler."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dask_batch.backends.base import Job, JobStatus
from dask_batch.backends.command import Completed, run
from dask_batch.backends.slurm import parse, script
from dask_batch.backends.slurm.limits import refuse_what_cannot_be
from dask_batch.backends.slurm.options import refuse_directives, refuse_reserved
from dask_batch.backends.slurm.parallel import levels, submit_together
from dask_batch.backends.slurm.submission import Submitter
from dask_batch.errors import BackendUnavailableError, CommandError, TemplateError

__all__ = ["SlurmBackend"]

logger = logging.getLogger(__name__)

QUERY_TIMEOUT_S = 60.0
"""Longer than the time for which Slurm's commands try to reach their controller."""
IDS_PER_CALL = 500
NAMES_PER_CALL = 200
PARALLEL = 4
"""Submissions at a time: more gain nothing at slurmctld."""
HISTORY = "now-60days"
"""How far back ``sacct`` looks for a name; without it, today only."""

_HARMLESS = ("Invalid job id", "already finished", "already completing", "slurm_suspend error")


class SlurmBackend:
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
        self._accounting = True
        self._news = threading.Event()
        self._closed = threading.Event()
        self._submit_one = Submitter(self.find, self._closed.wait)

    # -- before ---------------------------------------------------------------------------------

    def check(self, jobs: Sequence[Job]) -> None:
        """Render the script of each distinct request, and compare it with what the nodes have."""
        nodes = self._nodes()
        for job in _distinct(jobs):
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
        return script.script_text(job, dependency, self._command(job))

    # -- hand-over ------------------------------------------------------------------------------

    def submit(self, jobs: Sequence[Job], accepted: Callable[[str, str], None]) -> None:
        """Hand over jobs, parents before children, some at a time; roots held."""
        ids: dict[str, str] = {}

        def submit(job: Job) -> str:
            dependency = [*(ids[parent] for parent in job.parents), *job.after]
            arguments = script.sbatch_arguments(job, dependency)
            return self._submit_one(job, arguments, self.script(job, dependency))

        def taken(name: str, job_id: str) -> None:
            ids[name] = job_id
            accepted(name, job_id)

        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="sbatch") as pool:
            for level in levels(jobs):
                submit_together(level, submit, taken, pool=pool, at_a_time=PARALLEL)

    def release(self, job_ids: Sequence[str]) -> None:
        """Let held jobs go; one that has been cancelled in the meantime is no error."""
        for chunk in _chunks(job_ids, IDS_PER_CALL):
            self._tolerantly(["scontrol", "release", ",".join(chunk)])

    def cancel(self, job_ids: Collection[str]) -> None:
        """End jobs, waiting or running."""
        for chunk in _chunks(sorted(job_ids), IDS_PER_CALL):
            self._tolerantly(["scancel", *chunk])

    def _tolerantly(self, argv: Sequence[str]) -> None:
        """Run a command for many jobs, some of which may be gone."""
        try:
            self._ask(argv)
        except CommandError as error:
            lines = [line for line in error.stderr.splitlines() if line.strip()]
            harmless = all(any(sign in line for sign in _HARMLESS) for line in lines)
            if error.returncode is None or not lines or not harmless:
                raise

    # -- afterwards -----------------------------------------------------------------------------

    def status(self, job_ids: Collection[str]) -> dict[str, JobStatus]:
        """Ask ``squeue`` once for all, and ``sacct`` once for those that it does not know."""
        if not job_ids:
            return {}
        # By user, not by id: an unknown id alone is an error, among others it is silence.
        argv = ["squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid())]
        queued = parse.parse_squeue(self._ask([*argv, "-O", parse.SQUEUE_FORMAT]).stdout)
        found = {job_id: queued[job_id] for job_id in job_ids if job_id in queued}
        gone = sorted(set(job_ids) - set(found))
        for chunk in _chunks(gone, IDS_PER_CALL):
            argv = ["sacct", "-X", "-n", "-P", "-j", ",".join(chunk)]
            past = parse.parse_sacct(self._account([*argv, "--format", parse.SACCT_FIELDS]))
            # Accounting lags: a job that squeue no longer has, yet sacct calls unfinished, has
            # an end that is not known yet.
            found.update({i: past[i] for i in chunk if i in past and past[i].state.ended})
        return found

    def find(self, names: Collection[str]) -> dict[str, str]:
        """Look up job ids by unique job names, in the queue and in the accounting."""
        if not names:
            return {}
        argv = ["squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid())]
        queued = parse.parse_names(self._ask([*argv, "-o", parse.SQUEUE_NAME_FORMAT]).stdout)
        found = {name: queued[name] for name in names if name in queued}
        for chunk in _chunks(sorted(set(names) - set(found)), NAMES_PER_CALL):
            argv = ["sacct", "-X", "-n", "-P", "-S", HISTORY, "-u", str(os.getuid())]
            argv += ["--name", ",".join(chunk), "--format", parse.SACCT_NAME_FIELDS]
            past = parse.parse_names(self._account(argv))
            found.update({name: past[name] for name in chunk if name in past})
        return found

    def _account(self, argv: Sequence[str]) -> str:
        """Run ``sacct``; where there is no accounting, or no answer, nothing is known."""
        if not self._accounting:
            return ""
        try:
            return self._ask(argv).stdout
        except BackendUnavailableError:
            self._accounting = False
        except CommandError as error:
            if "accounting storage is disabled" in error.stderr:
                self._accounting = False
            else:
                logger.info("no accounting for now: %s", error)
        if not self._accounting:
            logger.info("Slurm keeps no accounts here: ended jobs are known for some minutes only")
        return ""

    def _ask(self, argv: Sequence[str]) -> Completed:
        return run(argv, timeout_s=QUERY_TIMEOUT_S)

    # -- waiting --------------------------------------------------------------------------------

    def wait(self, timeout_s: float) -> None:
        """Return after ``timeout_s``, or when woken; Slurm itself sends no news."""
        self._news.wait(timeout_s)
        self._news.clear()

    def wake(self) -> None:
        """End a :meth:`wait` of another thread, or the next one."""
        self._news.set()

    def close(self) -> None:
        """Give up waiting; there is no connection to let go of."""
        self._closed.set()
        self._news.set()


def _distinct(jobs: Sequence[Job]) -> Iterator[Job]:
    """Yield one job for each distinct request, with dependencies and without."""
    seen: set[tuple[str, bool]] = set()
    for job in jobs:
        request = json.dumps(_plain(job.resources), sort_keys=True, default=str)
        mark = (request, bool(job.parents or job.after))
        if mark not in seen:
            seen.add(mark)
            yield job


def _plain(resources: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in resources.items() if value is not None}


def _chunks(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
