"""One job through ``sbatch``: what is repeated, what is looked up first, what is refused."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dask_batch.backends.base import Job
from dask_batch.backends.command import command_environment, run
from dask_batch.backends.slurm.options import SBATCH_VARIABLES, thread_variables
from dask_batch.backends.slurm.parse import parse_job_id
from dask_batch.errors import BackendError, CommandError, SubmissionError

__all__ = ["Submitter", "submission_environment"]

logger = logging.getLogger(__name__)

SUBMIT_TIMEOUT_S = 120.0
"""At its job limit slurmctld makes sbatch wait; longer than this and we ask for ourselves."""
PAUSES_S = (2.0, 5.0, 10.0, 20.0, 40.0)
"""Before each repetition of a submission that may have been lost."""

_TEMPORARY = re.compile(
    r"temporarily unable|Socket timed out|Unable to contact slurm controller|Zero Bytes"
    r"|Connection (refused|reset|timed out)|Transport endpoint|Communication connection failure"
    r"|Unexpected message received|Resource temporarily unavailable|Backup controller",
    re.IGNORECASE,
)
_ADVICE = (
    (r"invalid account", "Name yours: resource_dict={'account': ...}; see `sacctmgr show assoc`."),
    (r"partition", "Choose one with resource_dict={'partition': ...}; `sinfo -s` lists them."),
    (r"time limit|--time", "Ask for less: resource_dict={'run_time_max': seconds}; see `sinfo`."),
    (r"memory|--mem", "Ask for less: resource_dict={'memory_max': gigabytes}; see `sinfo`."),
    (r"submit limit|QOS\w*Submit|Assoc\w*Submit", "Your account's queue is full: try later."),
    (r"qos", "Choose one with resource_dict={'qos': ...}; `sacctmgr show qos` lists them."),
    (r"feature|constraint", "See `sinfo -o '%N %f'` for the features of the nodes."),
    (r"reservation", "See `scontrol show reservation`."),
    (r"node configuration|processors|CPU count|gres", "See `sinfo -o '%R %c %m %G'` for what "
     "a node has."),
)  # fmt: skip
_ALWAYS_DROPPED = frozenset(
    f"SBATCH_{name}"
    for name in ("ARRAY_INX", "CLUSTERS", "ERROR", "EXPORT", "INPUT", "JOB_NAME", "OUTPUT", "WAIT")
)
"""Settings of a user's environment that would undo what a submission relies on."""


def submission_environment(job: Job) -> dict[str, str]:
    """Return the environment for ``sbatch``, which the job inherits (``--export=ALL``).

    It is the client's own, without its ``SBATCH_*`` where a resource says otherwise: an
    environment variable would override the line in the script. Nor does it carry the client's
    numbers of threads, which were meant for another machine.
    """
    dropped = set(_ALWAYS_DROPPED) | set(thread_variables(job.resources))
    for name, variables in SBATCH_VARIABLES.items():
        if job.resources.get(name) is not None:
            dropped.update(variables)
    environment = {name: value for name, value in job.environment.items() if name not in dropped}
    connection = {
        name: value for name, value in command_environment().items() if name.startswith("SLURM_")
    }
    return {**environment, **connection}


class Submitter:
    """Submits jobs one by one; safe to call from several threads.

    Parameters
    ----------
    find
        Looks up the id of a job by its unique name.
    pause
        Waits for some seconds; returns True if that was cut short and there is no going on.
    """

    def __init__(
        self,
        find: Callable[[Sequence[str]], Mapping[str, str]],
        pause: Callable[[float], bool],
    ) -> None:
        self._find = find
        self._pause = pause

    def __call__(self, job: Job, arguments: Sequence[str], script: str) -> str:
        """Submit one job and return its id.

        A failure that leaves open whether the job was taken is cleared up by its unique name
        before anything is repeated.

        Raises
        ------
        SubmissionError
            The job was refused, or Slurm does not answer; ``job_name`` names the job.
        """
        path = write_script(job, script)
        argv = ["sbatch", *arguments, str(path)]
        environment = submission_environment(job)
        for pause_s in PAUSES_S:
            try:
                done = run(argv, timeout_s=SUBMIT_TIMEOUT_S, env=environment, cwd=path.parent)
            except CommandError as error:
                failure = error
            else:
                job_id = parse_job_id(done.stdout)
                if job_id is not None:
                    return job_id
                # A wrapper at this site says that it went well, but hides the id.
                failure = CommandError(tuple(argv), 0, done.stdout, done.stderr)
            if not _may_be_lost(failure) or self._pause(pause_s):
                break
            logger.info("sbatch: %s; looking for job %s", failure.stderr.strip(), job.name)
            found = self._looked_up(job.name)
            if found is not None:
                return found
        raise _refusal(job, failure, path)

    def _looked_up(self, name: str) -> str | None:
        try:
            return self._find([name]).get(name)
        except BackendError as error:
            logger.debug("the look-up of %s failed as well: %s", name, error)
            return None


def _may_be_lost(failure: CommandError) -> bool:
    """Whether a submission may have been taken, or may be taken later."""
    return failure.returncode in (None, 0) or bool(_TEMPORARY.search(failure.stderr))


def write_script(job: Job, script: str) -> Path:
    """Write a job's script beside its logs, for its owner alone."""
    job.log_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = job.log_directory / f"{job.index}.sh"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
        file.write(script)
    return path


def _refusal(job: Job, failure: CommandError, script: Path) -> SubmissionError:
    words = failure.stderr + failure.stdout
    if failure.returncode is None:
        words += f"sbatch did not end within {SUBMIT_TIMEOUT_S:.0f} s\n"
    advice = next((text for sign, text in _ADVICE if re.search(sign, words, re.IGNORECASE)), "")
    refusal = SubmissionError(
        1 if failure.returncode is None else failure.returncode,
        list(failure.argv),
        words,
        script=script,
        advice=advice,
    )
    refusal.job_name = job.name
    return refusal
